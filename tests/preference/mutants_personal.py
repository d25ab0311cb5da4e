"""Wrong versions of aggregation, adaptation and the personal scorer that their tests must catch."""

_SOURCE, _TESTS = "src/holdfast/preference", "tests/preference"


def _of(module: str, *changes: tuple[str, str]) -> list[tuple[str, str, str, str]]:
    return [(f"{_SOURCE}/{module}.py", old, new, f"{_TESTS}/test_{module}.py") for old, new in changes]


MUTANTS = [
    *_of(
        "aggregate",
        ("rewards[:, :, None] - rewards[:, None]", "rewards[:, None] - rewards[:, :, None]"),
        (".sigmoid().sum(2) - 0.5", ".sigmoid().sum(2)"),
        ("weights.to(wins)) / (answers - 1)", "weights.to(wins)) / answers"),
        ("precise(anchors)).sigmoid().mean(1)", "precise(anchors)).mean(1).sigmoid()"),
        ("precise(rewards)[:, None] - precise(anchors)", "precise(anchors) - precise(rewards)[:, None]"),
        ("(precise(rewards) * precise(weights)).sum(-1)", "precise(rewards).sum(-1)"),
        ("precise(rewards).amin(-1)", "precise(rewards).mean(-1)"),
        ("precise(rewards).mean(0).amin()", "precise(rewards).amin(0).mean()"),
        ('sign = -1 if direction == "reward" else 1', 'sign = 1 if direction == "reward" else -1'),
        ("precise(weights).log() + sign", "sign"),
        ('if direction not in ("reward", "cost"):', "if False:"),
        ("(1 + delta.sign()) / 2", "(delta > 0)"),
        ("same_shape(share=share, shares=shares)", "pass"),
        ("(history.std or 1.0)", "history.std"),
        ("(result[rows] - history.mean)", "result[rows]"),
        ("setdefault(name, Moments()).add", 'setdefault("", Moments()).add'),
    ),
    *_of(
        "adapt",
        ("posterior(log_prior, -logsigmoid(precise(deltas)), tau)", "posterior(log_prior, -precise(deltas), tau)"),
        ("posterior(log_prior, -logsigmoid(", "posterior(log_prior, logsigmoid("),
        ("precise(deltas)), tau)", "precise(deltas)))"),
        ("losses.cumsum(0)[:-1]])", "losses[:-1]])"),
        ("(precise(log_prior) - known)", "(-known)"),
        ("prior[unaudited].sum().clamp(min=w_max)", "prior[unaudited].sum()"),
        ("prior[unaudited].sum().clamp(min=w_max)", "prior[unaudited].sum() * 0 + w_max"),
        ("if share <= allowed or rest.sum() == 0:", "if rest.sum() == 0:"),
        ("if share <= allowed or rest.sum() == 0:", "if True:"),
        ("(weights if weights[~unaudited].sum() > 0 else prior)", "prior"),
        ("(weights if weights[~unaudited].sum() > 0 else prior)", "weights"),
        ("weights * allowed / share,", "weights,"),
        ("known.n_labels + len(deltas)", "len(deltas)"),
        ("adapt(known.weights.log(), deltas", "adapt(self.prior.log(), deltas"),
        ("        if len(deltas):\n", "        if True:\n"),
        ("return capped(weights.log(), self.prior.log(), self.unaudited, self.w_max).float()", "return weights.log()"),
        ("if list(stored) == list(names):", "if set(stored) == set(names):"),
        ("if list(stored) == list(names):", "if len(stored) == len(names):"),
        ('partial = target.with_name(f"{target.name}.partial")', "partial = target"),
        ("not abs(float(weights.sum()) - 1) < 1e-4", "False"),
        ("or not (weights >= 0).all()", ""),
        ("dtype=torch.float64)\n    # A prior", "dtype=torch.float32).double()\n    # A prior"),
        ("store.prior = _simplex", "_ = _simplex"),
        ("if not torch.isfinite(deltas).all():", "if False:"),
    ),
    *_of(
        "personal",
        ("seen = asked if self.heads_see_context else conversations", "seen = asked"),
        ("seen = asked if self.heads_see_context else conversations", "seen = conversations"),
        ("self._log_weights([one.prompt for one in asked]", "self._log_weights([one.prompt for one in conversations]"),
        ("[place[one.messages] for one in seen]", "list(range(len(rewards)))"),
        ("self.users.n_labels(person.user_id) > 0", "bool(person.user_id)"),
        ("            if not own and one.messages not in known\n", "            if one.messages not in known\n"),
        ("            if not own and one.messages not in known\n", "            if not own\n"),
        ("answers = {one.messages: self.template", "answers = {one.messages[-1:]: self.template"),
        ("return mixture.log_weights(table, masked)", "return table"),
        ("log_weights[::answers].exp()", "log_weights[:: answers].exp() * 0 + 1 / 3"),
        (
            "(one.prompt.messages, person) for one, person in zip(conversations, people))",
            "one.prompt.messages for one in conversations)",
        ),
        ("if answers < 2 or len(keys) % answers or any(", "if any("),
        ("            if len(rows) < 2:\n", "            if not rows:\n"),
        ("config.heads_see_context if heads_see_context is None else", "None or"),
        ("if users is not None and users.names != model.names:", "if False:"),
        (
            "return finite(torch.cat([scores[:, None], rewards], dim=1), conversations)",
            "return torch.cat([scores[:, None], rewards], dim=1)",
        ),
        ("        if lost:\n", "        if False:\n"),
    ),
]
