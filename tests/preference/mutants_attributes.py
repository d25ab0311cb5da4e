"""Wrong versions of attributes, ordinal costs and joint scores that their tests must catch."""

TASKS, TEST_TASKS = "src/holdfast/preference/tasks.py", "tests/preference/test_tasks.py"
PAIRS = "src/holdfast/preference/pairs.py"
ATTRIBUTES, TEST_ATTRIBUTES = "src/holdfast/preference/attributes.py", "tests/preference/test_attributes.py"
JOINT, TEST_JOINT = "src/holdfast/preference/joint.py", "tests/preference/test_joint.py"

MUTANTS = [
    # Margins, centring, severities.
    (TASKS, "margin.to(better) + self.settings.margin", "margin.to(better)", TEST_TASKS),
    (TASKS, "asked = margin.to(better) + self.settings.margin", "asked = self.settings.margin", TEST_TASKS),
    (TASKS, '"l2": settings.l2, "centre": settings.centre}', '"l2": settings.l2}', TEST_TASKS),
    (TASKS, "label.clamp(min=0), self.borders(), known", "label, self.borders(), known", TEST_TASKS),
    (TASKS, "level - label.clamp(min=0)", "level - label", TEST_TASKS),
    (TASKS, "cost[:, None] > self.borders()", "cost[:, None] > self.borders() + 1", TEST_TASKS),
    (PAIRS, "return float(severity or -1)", "return float(severity or 0)", TEST_TASKS),
    (PAIRS, "(severity is not None or safe)", "severity is not None", TEST_TASKS),
    (
        PAIRS,
        "PairRow(pair.id, winner, loser, margin=pair.margin or 0.0)",
        "PairRow(pair.id, winner, loser)",
        TEST_TASKS,
    ),
    # Labels, their weights, and numbers of evaluation.
    (ATTRIBUTES, "self.label_weight = 1 / found.variance", "self.label_weight = found.variance", TEST_ATTRIBUTES),
    (ATTRIBUTES, "return scale.share(raw)", "return raw / scale.high", TEST_ATTRIBUTES),
    (ATTRIBUTES, "if row.names != self.names:", "if set(row.names) != set(self.names):", TEST_ATTRIBUTES),
    (ATTRIBUTES, "if all(math.isnan(row.labels[column])", "if any(math.isnan(row.labels[column])", TEST_ATTRIBUTES),
    (ATTRIBUTES, "mean = table.nansum(0) / count", "mean = table.nansum(0) / len(rows)", TEST_ATTRIBUTES),
    (ATTRIBUTES, "if not variance[column] > 1e-12:", "if False:", TEST_ATTRIBUTES),
    (ATTRIBUTES, "label[known] - self.moments.mean[column]", "label[known] - label[known].mean()", TEST_ATTRIBUTES),
    (ATTRIBUTES, 'scores.sigmoid() if self.settings.link == "logit" else scores', "scores", TEST_ATTRIBUTES),
    (ATTRIBUTES, "bradley_terry(better, worse, margin=", "bradley_terry(worse, better, margin=", TEST_ATTRIBUTES),
    (ATTRIBUTES, "{PREFERENCE: self.settings.preference}", "{}", TEST_ATTRIBUTES),
    (ATTRIBUTES, "return scores[:, self.columns]", "return scores[:, : len(self.columns)].flip(1)", TEST_ATTRIBUTES),
    # Ridge.
    (ATTRIBUTES, "values.clamp(min=0) + torch.tensor", "values.clamp(min=0) * torch.tensor", TEST_ATTRIBUTES),
    (ATTRIBUTES, "return shrunk @ vectors.T", "return shrunk @ vectors", TEST_ATTRIBUTES),
    (ATTRIBUTES, "ridge(table[known], labels[known, column]", "ridge(table[known], labels[known, 0]", TEST_ATTRIBUTES),
    (ATTRIBUTES, "labels = labels.clamp(0.05, 0.95).logit()", "pass", TEST_ATTRIBUTES),
    (ATTRIBUTES, "distinct = sorted(set(prompts))", "distinct = list(dict.fromkeys(prompts))", TEST_ATTRIBUTES),
    # Both directions of a pair.
    (JOINT, "harmful = None if pair.safer_id is None else 1 - pair.safer_id", "harmful = pair.safer_id", TEST_JOINT),
    (JOINT, "return answers[first, pair], answers[1 - first, pair]", "return answers[0], answers[1]", TEST_JOINT),
    (JOINT, "batch.pairs.absolute[judged.repeat(2)]", "batch.pairs.absolute", TEST_JOINT),
    (JOINT, "batch.pairs.margin[batch.compared]", "batch.pairs.margin[: int(batch.compared.sum())]", TEST_JOINT),
    (JOINT, '{"rank": 1.0, **self.cost.weights}', "{**self.cost.weights}", TEST_JOINT),
    (JOINT, "for name in NAMES)", "for name in NAMES[::-1])", TEST_JOINT),
    (
        JOINT,
        "_ordered(reward, batch.helpful, batch.compared)",
        "_ordered(reward, batch.harmful, batch.compared)",
        TEST_JOINT,
    ),
]
