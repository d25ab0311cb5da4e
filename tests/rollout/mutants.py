"""Wrong versions of `holdfast.rollout` that its tests must catch: file, text, wrong text, tests."""

SAMPLE, TEST_SAMPLE = "src/holdfast/rollout/sample.py", "tests/rollout/test_sample.py"
GENERATE, TEST_GENERATE = "src/holdfast/rollout/generate.py", "tests/rollout/test_generate.py"
EXPERIENCE, TEST_EXPERIENCE = "src/holdfast/rollout/experience.py", "tests/rollout/test_experience.py"

MUTANTS = [
    (SAMPLE, "default_rng((seed, row))", "default_rng(seed)", TEST_SAMPLE),
    (SAMPLE, "logits / sampling.temperature", "logits * sampling.temperature", TEST_SAMPLE),
    (SAMPLE, "logits < least", "logits <= least", TEST_SAMPLE),
    (SAMPLE, "before >= sampling.top_p", "before + ranked.softmax(-1) >= sampling.top_p", TEST_SAMPLE),
    (SAMPLE, "torch.where(seen, weakened, logits)", "torch.where(seen, logits, weakened)", TEST_SAMPLE),
    (SAMPLE, "right=True", "right=False", TEST_SAMPLE),
    (SAMPLE, "cumsum(-1, dtype=torch.float64)", "half().cumsum(-1).double()", TEST_SAMPLE),
    (GENERATE, 'side="left"', 'side="right"', TEST_GENERATE),
    # Rows that stay must keep their own cache, position, mask and uniform numbers.
    (GENERATE, "batch_select_indices(keep)", "batch_select_indices(keep.flip(0))", TEST_GENERATE),
    (GENERATE, "self.position[keep]", "self.position[: len(keep)]", TEST_GENERATE),
    (GENERATE, "else self.mask[keep]", "else self.mask[: len(keep)]", TEST_GENERATE),
    (GENERATE, "else self.seen[keep]", "else self.seen[: len(keep)]", TEST_GENERATE),
    (GENERATE, "uniform[rows.index, step]", "uniform[: len(rows.index), step]", TEST_GENERATE),
    (GENERATE, "self.position = self.position + 1", "self.position = self.position + 2", TEST_GENERATE),
    (GENERATE, "self.mask.new_ones", "self.mask.new_zeros", TEST_GENERATE),
    (GENERATE, "lengths[rows.index] = step + 1", "lengths[rows.index] = step", TEST_GENERATE),
    (GENERATE, "self.seen.scatter_(1, token[:, None], True)", "pass", TEST_GENERATE),
    (GENERATE, "[index * n + k for", "[index + k * len(prompts) for", TEST_GENERATE),
    (GENERATE, "            **prompts.extra,\n", "", TEST_GENERATE),
    (
        EXPERIENCE,
        "Ragged([row.length - row.prompt_length for row in rows])",
        "Ragged([max(row.length - row.prompt_length - 1, 1) for row in rows])",
        TEST_EXPERIENCE,
    ),
    (
        EXPERIENCE,
        "kl_k1(self.old_logprobs, self.ref_logprobs)",
        "kl_k1(self.ref_logprobs, self.old_logprobs)",
        TEST_EXPERIENCE,
    ),
    (EXPERIENCE, "        sampling.require_unbiased()\n", "", TEST_EXPERIENCE),
    (
        EXPERIENCE,
        "found |= zip(chosen, own.split(",
        "found |= zip(sorted(chosen), own.split(",
        TEST_EXPERIENCE,
    ),
    (EXPERIENCE, "temperature=temperature,", "temperature=1.0,", TEST_EXPERIENCE),
    (EXPERIENCE, "[row.truncated for row in rows]", "[not row.truncated for row in rows]", TEST_EXPERIENCE),
    (EXPERIENCE, "prompts[s.prompt_index].answer(", "prompts[0].answer(", TEST_EXPERIENCE),
]
