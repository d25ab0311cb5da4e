"""Wrong versions of `holdfast.rollout.reading` that its tests must catch: file, text, wrong text, tests."""

READING, TEST_READING = "src/holdfast/rollout/reading.py", "tests/rollout/test_reading.py"

MUTANTS = [
    (READING, '"temperature": self.temperature', '"temperature": 1.0', TEST_READING),
    (
        READING,
        "return _placed(logp, grouped.mask), _placed(entropies",
        "return _placed(entropies, grouped.mask), _placed(logp",
        TEST_READING,
    ),
    (READING, "states[:, :-1][batch.response_mask[:, 1:]]", "states[batch.response_mask]", TEST_READING),
    (
        READING,
        "table[chosen, : values.shape[1]] = values.cpu()",
        "table[sorted(chosen), : values.shape[1]] = values.cpu()",
        TEST_READING,
    ),
    (READING, "        with evaluating(self.model):\n", "        if True:\n", TEST_READING),
    (
        READING,
        "return cut(prompts, self.micro_tokens, self._shares)",
        "return cut(prompts, 10 * self.micro_tokens, self._shares)",
        TEST_READING,
    ),
    (
        READING,
        "portions(rows, self.micro_tokens, self._shares)",
        "portions(rows, 2 * self.micro_tokens, self._shares)",
        TEST_READING,
    ),
    (READING, "if shares else plain()", "if True else plain()", TEST_READING),
    (READING, "if self.dtype else nullcontext()", "if False else nullcontext()", TEST_READING),
    (READING, "Sharing(share, gate)", "Sharing(share)", TEST_READING),
    (
        READING,
        "Reader(policy, pad_id, temperature, micro_tokens)",
        "Reader(policy, pad_id, 1.0, micro_tokens)",
        TEST_READING,
    ),
]
