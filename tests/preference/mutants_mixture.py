"""Wrong versions of how heads, routers and baselines are learned and judged: file, text, wrong text, tests."""

FEATURES, TEST_FEATURES = "src/holdfast/preference/features.py", "tests/preference/test_features.py"
MIXTURE, TEST_MIXTURE = "src/holdfast/preference/mixture.py", "tests/preference/test_mixture.py"
HEADS, TEST_HEADS = "src/holdfast/preference/heads.py", "tests/preference/test_heads.py"
ROUTER, TEST_ROUTER = "src/holdfast/preference/router.py", "tests/preference/test_router.py"
BASELINES, TEST_BASELINES = "src/holdfast/preference/baselines.py", "tests/preference/test_baselines.py"
PERSONAL, TEST_PERSONAL = "src/holdfast/preference/personalise.py", "tests/preference/test_personalise.py"

MUTANTS = [
    # Sessions, contexts and which token is read.
    (FEATURES, "context = None if context is None else context[kept]", "pass", TEST_FEATURES),
    (FEATURES, "[session, other.session + first]", "[session, other.session]", TEST_FEATURES),
    (FEATURES, "keys = [name or place for", "keys = [name for", TEST_FEATURES),
    (FEATURES, "batch.prompt_lengths - 1)", "batch.prompt_lengths)", TEST_FEATURES),
    (FEATURES, "return PairFeatures(first - second, u", "return PairFeatures(second - first, u", TEST_FEATURES),
    (
        FEATURES,
        "tables.router.new_zeros(len(rows), tables.router.shape[1])",
        "tables.router[: len(rows)]",
        TEST_FEATURES,
    ),
    (FEATURES, 'if by == "pair" or self.session is None:', "if self.session is None:", TEST_FEATURES),
    # The mixture's loss and who is kept.
    (
        MIXTURE,
        '"nll": losses.mixture_nll(delta, log_weights, session),\n        "entropy"',
        '"nll": losses.mixture_nll(delta, log_weights),\n        "entropy"',
        TEST_MIXTURE,
    ),
    (
        MIXTURE,
        'return {"entropy": self.alpha, "balance": self.balance',
        'return {"entropy": -self.alpha, "balance": self.balance',
        TEST_MIXTURE,
    ),
    (MIXTURE, "HeadsFit(min(tried", "HeadsFit(max(tried", TEST_MIXTURE),
    (MIXTURE, "(row.pairs[0] < len(features)) == own", "own or row.pairs[0] >= len(features)", TEST_MIXTURE),
    (MIXTURE, "settings.fit.seed + 1000 * restart", "settings.fit.seed", TEST_MIXTURE),
    (MIXTURE, 'settings = settings.model_copy(update={"router": "static"})', "pass", TEST_MIXTURE),
    (MIXTURE, "losses.log_weights(self.router(u), self.masked)", "losses.log_weights(self.router(u))", TEST_MIXTURE),
    (MIXTURE, "return first - second, self.model", "return second - first, self.model", TEST_MIXTURE),
    (MIXTURE, "u = u[: len(first)]", "u = u[len(first) :].flip(0)", TEST_MIXTURE),
    (MIXTURE, "tokens.prompt_lengths - 1)", "tokens.prompt_lengths)", TEST_MIXTURE),
    (MIXTURE, "if heads < 2:", "if heads < 1:", TEST_MIXTURE),
    (MIXTURE, "if out])", "if not out])", TEST_MIXTURE),
    # Comparing heads.
    (HEADS, "(share[group].sum() / share[k]).log()", "(share[k] / share[group].sum()).log()", TEST_HEADS),
    (HEADS, "> most and masked[head] == masked[k] for k", "> most for k", TEST_HEADS),
    (HEADS, "key=lambda k: float(share[k]))", "key=lambda k: -float(share[k]))", TEST_HEADS),
    (HEADS, "one.high < 0.5", "one.value < 0.5", TEST_HEADS),
    (HEADS, "maximize=True", "maximize=False", TEST_HEADS),
    (HEADS, "share(column, clusters)", "share(column)", TEST_HEADS),
    # Stage two.
    (ROUTER, "return self.log_prior if anchored else", "return self.log_prior if not anchored else", TEST_ROUTER),
    (ROUTER, "if (step - 1) % per_epoch == 0:", "if True:", TEST_ROUTER),
    (ROUTER, "own = -logsigmoid(heads", "own = logsigmoid(heads", TEST_ROUTER),
    (ROUTER, "return sums[features.session]", "return own", TEST_ROUTER),
    (ROUTER, "self.evidence, self.settings.tau)", "self.evidence, 1.0)", TEST_ROUTER),
    (ROUTER, "nll < learner.lowest:", "nll > -learner.lowest:", TEST_ROUTER),
    (ROUTER, "target = self.model.target[batch.index]", "target = self.model.target[: batch.pairs]", TEST_ROUTER),
    (ROUTER, 'heads.router.kind != "static" and heads.router.features == width', "False", TEST_ROUTER),
    (ROUTER, "bias.copy_(log_prior.exp().mean(0).clamp(min=1e-6).log())", "pass", TEST_ROUTER),
    (ROUTER, 'self.register_buffer("target", target.clone())', "self.target = target.clone()", TEST_ROUTER),
    # Baselines.
    (BASELINES, "difference @ (self.weight + self.prior).T", "difference @ self.weight.T", TEST_BASELINES),
    (BASELINES, "torch.ones_like(router[:, :1])", "torch.zeros_like(router[:, :1])", TEST_BASELINES),
    (BASELINES, "places = [places[i] for i in order[:budget].tolist()]", "pass", TEST_BASELINES),
    (
        BASELINES,
        "result[places] = delta_of(models[group]",
        "result[places] = delta_of(models[groups[0]]",
        TEST_BASELINES,
    ),
    # Evaluation.
    (PERSONAL, 'found["new_contexts" if row.context not in contexts else new]', "found[new]", TEST_PERSONAL),
    (PERSONAL, "row.prompt not in prompts", "row.prompt in prompts", TEST_PERSONAL),
    (PERSONAL, "clusters = None if users is None else", "clusters = None if True else", TEST_PERSONAL),
    (PERSONAL, "for one in each)) / len(each) for", "for one in each) / len(each)) for", TEST_PERSONAL),
    (PERSONAL, "adapt(log_prior, mine[:size], tau)", "adapt(log_prior, mine[: size + 1], tau)", TEST_PERSONAL),
    (PERSONAL, "right(mine[most:], weights", "right(mine, weights", TEST_PERSONAL),
    (PERSONAL, "self.sizes.index(size)], within=(0, 1))", "self.sizes.index(size)])", TEST_PERSONAL),
    (PERSONAL, "widths.sum(), within=(0, 1))", "widths.sum())", TEST_PERSONAL),
    (PERSONAL, "mean(column, users, within=(0, 1))", "mean(column, users)", TEST_PERSONAL),
    (PERSONAL, "at = np.log1p(self.sizes)", "at = np.array(self.sizes)", TEST_PERSONAL),
    (PERSONAL, "heights[0] + part * (oracle - heights[0])", "part * oracle", TEST_PERSONAL),
    (PERSONAL, "numbers[found].prod()", "numbers[found].mean()", TEST_PERSONAL),
    (PERSONAL, "features.router[order.roll(1)]", "features.router[order]", TEST_PERSONAL),
    (PERSONAL, "- 2 * torch.eye(", "- 0 * torch.eye(", TEST_PERSONAL),
    (
        ROUTER,
        '        self.register_buffer("best", parameters_to_vector(router.parameters()).detach().clone())',
        "        self.best = parameters_to_vector(router.parameters()).detach().clone()",
        TEST_ROUTER,
    ),
    (FEATURES, "batch.prompt_lengths - 1)", "batch.score_index)", "tests/preference/test_personal.py"),
    (FEATURES, "batch.prompt_lengths - 1)", "batch.prompt_lengths)", "tests/preference/test_personal.py"),
]
