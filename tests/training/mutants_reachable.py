"""Wrong versions of what says whether a limit is within reach: file, text, wrong text, tests."""

REACHABLE, TESTS = "src/holdfast/training/reachable.py", "tests/training/test_reachable.py"

MUTANTS = [
    (REACHABLE, old, new, TESTS)
    for old, new in (
        ("(self.rewards - multiplier * self.costs) / kl", "(self.rewards + multiplier * self.costs) / kl"),
        ("(1 + self.held + multiplier)", "(1 + multiplier)"),
        ('self.mode == "split" else self.kl', 'self.mode == "reward_only" else self.kl'),
        ("if other != name}", "}"),
        ("tilted, cost[name], sum(others.values())", "reward, cost[name], sum(others.values())"),
        ("axis=-1))", "axis=0))"),
        ("np.flatnonzero(curve <= threshold + ROUNDING)", "np.flatnonzero(curve >= threshold + ROUNDING)"),
        ("threshold + ROUNDING", "threshold - ROUNDING"),
        ("return float(grid[curve.argmin()])", "return float(grid[-1])"),
        ("(low, middle) if self.cost(middle) <= threshold", "(low, middle) if self.cost(middle) > threshold"),
        ("grid[place - 1] + share * (grid[place]", "grid[place] + share * (grid[place]"),
        ("self.costs.min(-1).mean()", "self.costs.min()"),
        ("(1 / np.square(weights).sum(-1)).mean()", "np.square(weights).sum(-1).mean()"),
        ("_mean(free * self.costs)", "cost"),
        ("cost <= threshold + SLACK,", "True,"),
        ("place is None or place == 0", "place is None"),
        ("from_safe <= from_now:", "from_safe >= from_now:"),
        ("mean - margin * float", "mean + margin * float"),
        ("min(float(values.min()), mean)", "float(values.min())"),
        ("label is not None and bool(label)", "label is None or bool(label)"),
        (
            "cost_now <= settings.threshold if least else cost_now >= settings.threshold",
            "cost_now >= settings.threshold if least else cost_now <= settings.threshold",
        ),
        ("else cost_now >= settings.threshold", "else cost_now > settings.threshold"),
    )
]
