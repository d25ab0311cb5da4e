"""Wrong versions of `holdfast.preference` that its tests must catch: file, text, wrong text, tests."""

PAIRS = "src/holdfast/preference/pairs.py"
TASKS, TEST_TASKS = "src/holdfast/preference/tasks.py", "tests/preference/test_tasks.py"
SCORE, TEST_SCORE = "src/holdfast/preference/score.py", "tests/preference/test_score.py"
CHECK, TEST_CHECK = "src/holdfast/preference/check.py", "tests/preference/test_check.py"

MUTANTS = [
    # The direction of every label.
    (PAIRS, "_encode(pair, pair.helpful_id, template)", "_encode(pair, 1 - pair.helpful_id, template)", TEST_TASKS),
    (PAIRS, "worse = 1 - (pair.safer_id", "worse = (pair.safer_id", TEST_TASKS),
    (PAIRS, "-1.0 if safe else 1.0", "1.0 if safe else -1.0", TEST_TASKS),
    (PAIRS, "return float(-rate)", "return float(rate)", TEST_TASKS),
    (PAIRS, "(known[worse], known[1 - worse])", "(known[0], known[1])", TEST_TASKS),
    (
        PAIRS,
        "template.answered(prompt.answer(pair.responses[1 - first]))",
        "template.answered(prompt.answer(pair.responses[first]))",
        TEST_TASKS,
    ),
    # Weights, masks and sides of the losses.
    (TASKS, '"absolute": 2 * settings.scale', '"absolute": settings.scale', TEST_TASKS),
    (TASKS, "preference.cost_rank(more[ranked], less[ranked])", "preference.cost_rank(more, less)", TEST_TASKS),
    (TASKS, "self._absolute(torch.cat([more, less])", "self._absolute(torch.cat([less, more])", TEST_TASKS),
    (
        PAIRS,
        "pad([row.first for row in rows] + [row.second for row in rows]",
        "pad([row.second for row in rows] + [row.first for row in rows]",
        TEST_TASKS,
    ),
    (TASKS, "bradley_terry(better, worse, margin=asked)", "bradley_terry(worse, better, margin=asked)", TEST_TASKS),
    (TASKS, '"l2": 2.0 * pairs', '"l2": 1.0 * pairs', TEST_TASKS),
    (TASKS, "+ 0.5 * (margin == 0).float()", "", TEST_TASKS),
    (TASKS, "known & (label != 0)", "known", TEST_TASKS),
    (PAIRS, "if pair.helpful_id is not None:", "if pair.helpful_id:", TEST_TASKS),
    # Scorers.
    (
        SCORE,
        "[place[_identity(one)] for one in conversations]",
        "[place[_identity(one)] for one in distinct.values()]",
        TEST_SCORE,
    ),
    (SCORE, "return conversation.messages", "return conversation.messages[:1]", TEST_SCORE),
    (SCORE, "batch.position_ids, **batch.extra)", "batch.position_ids)", TEST_SCORE),
    (SCORE, "                **prompts.extra,\n", "", TEST_SCORE),
    (SCORE, "answers.score_index + 1", "answers.score_index.clamp(min=1)", TEST_SCORE),
    (SCORE, "batch.size, device=states.device), batch.score_index]", "batch.size), -1]", TEST_SCORE),
    (SCORE, "portions(rows, self.batch_tokens", "portions(rows, 10 * self.batch_tokens", TEST_SCORE),
    (SCORE, "(~torch.isfinite(table))", "torch.isnan(table)", TEST_SCORE),
    (SCORE, "if cells.shape != expected:", "if cells.size != expected[0] * expected[1]:", TEST_SCORE),
    (SCORE, "if len(set(self.names)) != len(self.names):", "if False:", TEST_SCORE),
    (SCORE, "        if not conversations:\n            return torch.empty(expected)\n", "", TEST_SCORE),
    # Held-out pairs.
    (
        CHECK,
        "return estimate(values[self._ranked], clusters=prompts)",
        "return estimate(values[self._ranked])",
        TEST_CHECK,
    ),
    (CHECK, "return (margin > 0) + 0.5 * (margin == 0)", "return (margin > 0) + 0.0", TEST_CHECK),
    (CHECK, "wins(longer if higher else -longer)", "wins(longer)", TEST_CHECK),
    (CHECK, "_over_prompts(share, wins(", "_over_prompts(mean, wins(", TEST_CHECK),
    (CHECK, "_over_prompts(share, self._by_length", "_over_prompts(mean, self._by_length", TEST_CHECK),
    (CHECK, "partial(mean, within=(-1, 1))", "mean", TEST_CHECK),
    (CHECK, "wins(self.first - self.second) -", "wins(self.second - self.first) -", TEST_CHECK),
    (CHECK, "if len(set(prompts)) > 1 else None", "", TEST_CHECK),
    (CHECK, "row.second.length - row.first.length", "row.first.length - row.second.length", TEST_CHECK),
    (
        CHECK,
        "for side in (0, 1) for value in (row.absolute[side] for row in self.rows)",
        "for row in self.rows for value in row.absolute",
        TEST_CHECK,
    ),
    (CHECK, "~np.isnan(known) & (known != 0)", "~np.isnan(known)", TEST_CHECK),
    (CHECK, "first[chosen], second[chosen] = one", "second[chosen], first[chosen] = one", TEST_CHECK),
]
