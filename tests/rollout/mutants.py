"""Wrong versions of `holdfast.rollout` that its tests must catch: file, text, wrong text, tests."""

SAMPLE, TEST_SAMPLE = "src/holdfast/rollout/sample.py", "tests/rollout/test_sample.py"
CACHE, TEST_CACHE = "src/holdfast/rollout/cache.py", "tests/rollout/test_cache.py"
GENERATE, TEST_GENERATE = "src/holdfast/rollout/generate.py", "tests/rollout/test_generate.py"
EXPERIENCE, TEST_EXPERIENCE = "src/holdfast/rollout/experience.py", "tests/rollout/test_experience.py"

MUTANTS = [
    (SAMPLE, "default_rng((seed, row))", "default_rng(seed)", TEST_SAMPLE),
    (SAMPLE, "logits / sampling.temperature", "logits * sampling.temperature", TEST_SAMPLE),
    (SAMPLE, "logits < least", "logits <= least", TEST_SAMPLE),
    (SAMPLE, "before >= sampling.top_p", "before + ranked.softmax(-1) >= sampling.top_p", TEST_SAMPLE),
    (SAMPLE, "torch.where(seen, weakened, logits)", "torch.where(seen, logits, weakened)", TEST_SAMPLE),
    (SAMPLE, "right=True", "right=False", TEST_SAMPLE),
    (SAMPLE, "masses = masses.double()", "masses = masses.float()", TEST_SAMPLE),
    # Blocks: where a number falls inside its block, and the last block, which is shorter.
    (SAMPLE, "target - heights.gather(-1, item) + mass", "target - heights.gather(-1, item)", TEST_SAMPLE),
    (SAMPLE, "_invert(inside, uniform)[0]", "_invert(inside, uniform * 0.5)[0]", TEST_SAMPLE),
    (SAMPLE, ".where(tokens < size, 0.0)", "", TEST_SAMPLE),
    (SAMPLE, "probabilities[:, whole:].sum", "probabilities[:, :0].sum", TEST_SAMPLE),
    (GENERATE, 'side="left"', 'side="right"', TEST_GENERATE),
    # Rows that stay must keep their own position, seen tokens and uniform numbers.
    (GENERATE, "self.position[keep]", "self.position[: len(keep)]", TEST_GENERATE),
    (GENERATE, "else self.seen[keep]", "else self.seen[: len(keep)]", TEST_GENERATE),
    (GENERATE, "uniform[rows.index, step]", "uniform[: len(rows.index), step]", TEST_GENERATE),
    (GENERATE, "self.position = self.position + 1", "self.position = self.position + 2", TEST_GENERATE),
    (GENERATE, "self.index[keep]", "self.index[: len(keep)]", TEST_GENERATE),
    (GENERATE, "index.argsort(stable=True)", "index.argsort(stable=True, descending=True)", TEST_GENERATE),
    (GENERATE, "staying[len(staying) - len(gaps) :]", "staying[: len(gaps)]", TEST_GENERATE),
    (GENERATE, "self.seen.scatter_(1, token[:, None], True)", "pass", TEST_GENERATE),
    (GENERATE, "[index * n + k for", "[index + k * len(prompts) for", TEST_GENERATE),
    (CACHE, ", **prompts.extra\n", "\n", TEST_GENERATE),
    # The shared prompt: padding, the scale, whose slot is whose, and what is written where.
    (CACHE, "scores += self.bias", "pass", TEST_CACHE),
    (CACHE, "query.shape[-1]) * scale", "query.shape[-1])", TEST_CACHE),
    (CACHE, "+ to_own @ values[:, :, :end]", "+ values[:, :, self.written : end]", TEST_CACHE),
    (CACHE, "member.cumsum(0) - 1", "member.cumsum(0) * 0", TEST_CACHE),
    (CACHE, "prompt[:, None] * self.heads + head", "prompt[:, None] + head", TEST_CACHE),
    (CACHE, "table[rows[new], :, : self.written]", "table[new, :, : self.written]", TEST_CACHE),
    (CACHE, "self._living(self.prompt[rows])", "self._living(self.prompt[: len(rows)])", TEST_CACHE),
    (CACHE, "        return number\n", "        return prompt.clamp(max=len(living) - 1)\n", TEST_CACHE),
    (CACHE, "else self.bias[living]", "else self.bias[: len(living)]", TEST_CACHE),
    (CACHE, "2 * len(living) > len(self.prompts[0][0])", "len(living) > 0", TEST_CACHE),
    (CACHE, "        self.written += 1\n", "        self.written = 1\n", TEST_CACHE),
    (CACHE, "softmax(-1, dtype=torch.float32).to(value.dtype)", "softmax(-1, dtype=torch.float32)", TEST_CACHE),
    # The repeated prompt.
    (CACHE, "batch_select_indices(rows)", "batch_select_indices(rows.flip(0))", TEST_CACHE),
    (CACHE, "else self.mask[rows]", "else self.mask[: len(rows)]", TEST_CACHE),
    (CACHE, "self.mask.new_ones", "self.mask.new_zeros", TEST_CACHE),
    (CACHE, "repeat_interleave(n, dim=0)\n        cache", "repeat(n, 1)\n        cache", TEST_CACHE),
    (CACHE, "        with attending(model, ATTENTION):", "        with attending(model, 'sdpa'):", TEST_CACHE),
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
    (EXPERIENCE, "[row.truncated for row in rows]", "[not row.truncated for row in rows]", TEST_EXPERIENCE),
    (EXPERIENCE, "prompts[s.prompt_index].answer(", "prompts[0].answer(", TEST_EXPERIENCE),
]
