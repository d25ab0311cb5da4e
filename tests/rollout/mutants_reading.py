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
    (
        READING,
        "        table = _table(rows)\n        with evaluating(self.model):\n",
        "        table = _table(rows)\n        if True:\n",
        TEST_READING,
    ),
    (
        READING,
        "torch.zeros(len(rows))\n        with evaluating(self.model):\n",
        "torch.zeros(len(rows))\n        if True:\n",
        TEST_READING,
    ),
    (READING, "with evaluating(self.model), self._precision():", "with self._precision():", TEST_READING),
    (READING, "with evaluating(self.model), self._precision():", "with evaluating(self.model):", TEST_READING),
    (READING, "            values[same] = values[same[0]].clone()\n", "            pass\n", TEST_READING),
    (READING, ".cpu()[grouped.of]", ".cpu()[torch.zeros_like(grouped.of)]", TEST_READING),
    (READING, "            of[same] = number\n", "            of[same[:1]] = number\n", TEST_READING),
    (READING, "line[: first[i].prompt_length].cpu()", "line.cpu()", TEST_READING),
    (READING, "[row.prompt_length for row in first], self", "[1 for row in first], self", TEST_READING),
    (READING, "tokens.answer[:, :-1]], 1)", "tokens.answer[:, 1:]], 1)", TEST_READING),
    (READING, "prompts.lengths[grouped.of] - 1]", "prompts.lengths[grouped.of] - 2]", TEST_READING),
    (READING, "tokens.prompt[_asked(grouped)]", "tokens.prompt.flatten()[: int(_asked(grouped).sum())]", TEST_READING),
    (READING, "states[rows, : asked.shape[1]]", "states[: len(asked), : asked.shape[1]]", TEST_READING),
    (READING, "PromptStates(states, ~asked)", "PromptStates(states, asked)", TEST_READING),
    (READING, "(~self.padding[chosen]).sum(-1).max()", "(~self.padding).sum(-1).max()", TEST_READING),
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
