"""Wrong versions of the study `hc_stages` that its tests must catch: file, text, wrong text, tests."""

BANDIT, TINY = "src/holdfast/studies/hc_bandit.py", "src/holdfast/studies/hc_tiny.py"
STUDY, TEST = "src/holdfast/studies/hc_stages.py", "tests/studies/test_hc_stages.py"

MUTANTS = [
    # Candidate selection.
    (BANDIT, "return centre + spread * unit", "return centre + unit", TEST),
    (BANDIT, "dual.augmented_cost((cost - centre) / spread", "dual.augmented_cost(cost / spread", TEST),
    (BANDIT, "kappa, monotone=monotone)", "kappa, monotone=False)", TEST),
    (BANDIT, "zeros_like(draw.odds).scatter_add(", "zeros_like(draw.odds).scatter(", TEST),
    (BANDIT, "/ advantage[0].numel()", "/ advantage.numel()", TEST),
    (BANDIT, "draw.reward - kl * log_ratio", "draw.reward + kl * log_ratio", TEST),
    (BANDIT, "(ACTIONS * draw.odds).log()", "draw.odds.log()", TEST),
    (BANDIT, "arm.n_primal or window.shape[1]", "window.shape[1]", TEST),
    (BANDIT, "arm.kappa(plan.delta, window.shape[1]))", "arm.kappa(plan.delta, arm.n_primal or 256))", TEST),
    (BANDIT, "gain = (gain - share * cost)", "gain = (gain + share * cost)", TEST),
    (BANDIT, "+ NOISE[name] * noise", "+ NOISE['reward'] * noise", TEST),
    (BANDIT, "ACTIONS, WORLD = 8, 12, 35", "ACTIONS, WORLD = 8, 12, 4", TEST),
    # What is counted.
    (BANDIT, 'unsafe = (true["cost"] > TAU).numpy()', "unsafe = ~returned", TEST),
    (BANDIT, "returned & unsafe}", "returned & ~unsafe}", TEST),
    (BANDIT, "test.quantity(law.ravel()), -np.inf))", "test.quantity(law.ravel()), np.inf))", TEST),
    (BANDIT, "spend(delta, k, schedule) if schedule else delta", "delta", TEST),
    (BANDIT, "range(1, len(samples) + 1)", "range(2, len(samples) + 2)", TEST),
    (BANDIT, "[-round(alpha * values.size) :]", "[: round(alpha * values.size)]", TEST),
    (BANDIT, 'method="inverted_cdf"', 'method="higher"', TEST),
    # The language model's world and its certificates.
    (TINY, "min(sum(word in FORBIDDEN for word in answer.split()), 3) / 3", "min(answer.count(' '), 3) / 3", TEST),
    (TINY, "if verb in INVITING else 0.0)", "if verb in PLAIN else 0.0)", TEST),
    (TINY, "bool(draw >= cost)", "bool(draw < cost)", TEST),
    (TINY, "safe.index(True)", "safe.index(False)", TEST),
    (TINY, "share = 0.35 if verb in INVITING", "share = 0.35 if verb in PLAIN", TEST),
    (TINY, "score + 2 * betting_upper", "score + betting_upper", TEST),
    (TINY, "error = (labels - scored + 1) / 2", "error = (scored - labels + 1) / 2", TEST),
    (TINY, "betting_upper(error, 0.8 * delta", "betting_upper(error, delta", TEST),
    (TINY, '"labels": true[:n]}', '"labels": learned[:n]}', TEST),
    (TINY, "learned[n:], true[:n], learned[:n]", "learned[n:], learned[:n], learned[:n]", TEST),
    # The criteria.
    (STUDY, "delta + errors * math.sqrt", "delta - errors * math.sqrt", TEST),
    (STUDY, 'one["found"]["exact"]]', "one]", TEST),
    (STUDY, "[not all(kept", "[all(kept", TEST),
    (STUDY, 'and name != "wrongly learned"', "", TEST),
    (STUDY, "[a and b for a, b in zip(unsafe", "[b for a, b in zip(unsafe", TEST),
    (STUDY, "for size in (100, 1000)", "for size in (100,)", TEST),
    (STUDY, "name if isinstance(name, int) else number", "number", TEST),
]
