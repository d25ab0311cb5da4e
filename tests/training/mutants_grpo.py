"""Wrong versions of GRPO and of how its experience is cut that their tests must catch."""

GRPO, TEST_GRPO = "src/holdfast/training/grpo.py", "tests/training/test_grpo.py"
BATCH, TEST_BATCH = "src/holdfast/training/group_batch.py", "tests/training/test_group_batch.py"
DESCENT, TEST_DESCENT = "src/holdfast/training/common_descent.py", "tests/training/test_common_descent.py"
WEIGH, TEST_WEIGH = "src/holdfast/training/correction.py", "tests/training/test_correction.py"
EXPERIENCE, LAGRANGIAN = "src/holdfast/rollout/experience.py", "src/holdfast/training/lagrangian.py"
ORACLE, CUT = "tests/oracle/test_grpo.py", "tests/invariance/test_grpo_cut.py"

MUTANTS = [
    # Advantages, against the slow form.
    *(
        (GRPO, old, new, ORACLE)
        for old, new in (
            ("extra = -coefficient * experience.kl.sum(-1)", "extra = coefficient * experience.kl.sum(-1)"),
            ("extra = -coefficient * experience.kl.sum(-1)", "extra = -coefficient * experience.kl.mean(-1)"),
            ('if s.kl.mode == "split":', 'if s.kl.mode != "split":'),
            ("coefficient * self.limits.total(experience)", "coefficient"),
            ("extra = extra + overlong(", "extra = extra - overlong("),
            ("cache=s.overlong_share * self.longest", "cache=0.2 * self.longest"),
            ("if s.mode in UNSCALED else scalarise.normalise_then_sum", "if False else scalarise.normalise_then_sum"),
            ("torch.tensor([self.settings.cost_floor])", "torch.tensor([s.std_floor])"),
            ("relative if s.clip is None else relative.clamp(-s.clip, s.clip)", "relative"),
            ("self.settings.scalarise.mode in UNSCALED)\n        for", "False)\n        for"),
            (".amax(-1) > 0", ".amax(-1) >= 0"),
            ("live |= charged & ", "live &= charged & "),
            ("found.keep | found.dead", "found.keep"),
            ('if s.dead == "drop" else', 'if s.dead == "keep" else'),
            (") & weighed.keep", ")"),
            ("column, weighed.weights, weighed.keep,", "column, experience.response_mask.float(), weighed.keep,"),
            ("column, weighed.weights, weighed.keep,", "column, weighed.weights, ~silent,"),
            ("weighed.keep & ~experience.truncated", "weighed.keep & experience.truncated"),
            ('if s.scalarise.mode == "mgda" else None', "if False else None"),
            ("alone[:, wanted]", "alone[:, ~wanted | wanted]"),
        )
    ),
    # Losses, against the slow form.
    *(
        (GRPO, old, new, ORACLE)
        for old, new in (
            ('"entropy": -s.loss.entropy', '"entropy": s.loss.entropy'),
            ("s.kl.in_loss * self.kl.factor, **seen", "self.kl.factor, **seen"),
            ("batch.gather(correction * ratio.weighted(", "batch.gather(ratio.weighted("),
            ("batch.gather(correction * held)", "batch.gather(held)"),
            (
                "kl_loss(s.kl.estimator, logp, batch.ref_logprobs",
                "kl_loss(s.kl.estimator, logp, batch.sampler_logprobs",
            ),
            ("dual_clip=self.dual_clip", "dual_clip=None"),
            ("self.clip, self.clip_high, dual", "self.clip, None, dual"),
            ("ratio_cap=self.ratio_cap", "ratio_cap=5.0"),
            ("Portions(s.steps_per_experience, s.loss.mean,", 'Portions(s.steps_per_experience, "token_mean",'),
            ("s.kl.in_loss or s.loss.entropy or", "s.kl.in_loss or"),
            ("teaches = s.kl.in_loss or ", "teaches = "),
        )
    ),
    (GRPO, ' or s.loss.kind == "dppo_tv"', "", TEST_GRPO),
    (GRPO, "alone[:, wanted]", "alone[:, ~wanted | wanted]", TEST_GRPO),
    (
        GRPO,
        'found[OBJECTIVE] / found[f"cost/{name}"]',
        'found[f"cost/{name}"] / found[OBJECTIVE]',
        TEST_GRPO,
    ),
    (
        GRPO,
        "if self.settings.scalarise.mode in UNSCALED:\n            return {}",
        "if False:\n            return {}",
        TEST_GRPO,
    ),
    (GRPO, 'if OBJECTIVE in found and found[f"cost/{name}"] > 0', "if OBJECTIVE in found", TEST_GRPO),
    (GRPO, 'if OBJECTIVE in found and found[f"cost/{name}"] > 0', 'if found[f"cost/{name}"] > 0', TEST_GRPO),
    (GRPO, "if OBJECTIVE in self.objectives:", "if False:", TEST_GRPO),
    (GRPO, "if OBJECTIVE in found:", "if False:", TEST_GRPO),
    (GRPO, "samples_per_prompt < 2:", "samples_per_prompt < 1:", TEST_GRPO),
    (GRPO, "    collector.settings.sampling.require_unbiased()\n", "", TEST_GRPO),
    (GRPO, "and settings.scalarise.mode not in UNSCALED:", "and False:", TEST_GRPO),
    (GRPO, "and settings.scalarise.mode not in UNSCALED:", "and True:", TEST_GRPO),
    (GRPO, "        self.scalariser.load_state_dict(state", "        len(state", TEST_GRPO),
    # What does not depend on the cut.
    (GRPO, "settings.scalarise, limits.processes)", "settings.scalarise)", CUT),
    (GRPO, "                    self.limits.processes,\n", "                    type(self.limits.processes)(),\n", CUT),
    (GRPO, "super().state_dict() | ", "super().state_dict() or ", CUT),
    (BATCH, "weights[chosen], counts[chosen]", "weights[chosen] * len(chosen), counts[chosen]", CUT),
    (BATCH, "sum()))] if unread", "sum()) * 0)] if unread", CUT),
    (BATCH, "prompts[i :: plan.steps]", "prompts[i : i + plan.steps]", TEST_BATCH),
    (BATCH, "if kept[row]]", "]", TEST_BATCH),
    (BATCH, "if plan.skip and self.silent[row]]", "if self.silent[row]]", TEST_BATCH),
    (BATCH, "if not (plan.skip and self.silent[answers[0]])]", "]", TEST_BATCH),
    (
        BATCH,
        "for p, answers in enumerate(prompts) for _ in answers",
        "for p, answers in enumerate(prompts) for p in answers",
        TEST_BATCH,
    ),
    (
        BATCH,
        "torch.tensor(self.experience.places.lengths)[rows]",
        "torch.tensor([one.length for one in self.experience.rows])[rows]",
        TEST_BATCH,
    ),
    (BATCH, "ref_logprobs=experience.ref_logprobs[chosen", "ref_logprobs=old[chosen", TEST_BATCH),
    (BATCH, 'for field in fields(self) if field.name != "counts"', "for field in fields(self)", TEST_BATCH),
    (
        BATCH,
        "torch.randperm(self.experience.size // k, generator=rng)",
        "torch.arange(self.experience.size // k)",
        TEST_BATCH,
    ),
    (
        BATCH,
        "sampler = old if experience.sampler_logprobs is None else experience.sampler_logprobs",
        "sampler = old",
        ORACLE,
    ),
    (DESCENT, "for batch in batches])\n", "for batch in batches[:1]])\n", TEST_DESCENT),
    (
        DESCENT,
        "        if value.requires_grad:\n            value.backward()",
        "        value.backward()",
        TEST_DESCENT,
    ),
    (DESCENT, "    processes.sum_gradients(parameters)\n", "", TEST_DESCENT),
    (DESCENT, "if one.requires_grad]", "]", TEST_DESCENT),
    (DESCENT, "a.double() * b.double()", "a * b", TEST_DESCENT),
    (DESCENT, "        one.grad = None\n    for batch", "        pass\n    for batch", TEST_DESCENT),
    (DESCENT, "        one.grad = None\n    return", "        pass\n    return", TEST_DESCENT),
    (
        WEIGH,
        "correct(experience.old_logprobs, sampler, mask",
        "correct(sampler, experience.old_logprobs, mask",
        TEST_WEIGH,
    ),
    (WEIGH, "cap=s.cap, drop=s.drop, low=s.low, high=s.high", "cap=s.cap, drop=s.drop, low=s.low", TEST_WEIGH),
    (WEIGH, "cap=s.cap, drop=s.drop, low=s.low, high=s.high", "cap=s.cap, drop=s.drop, high=s.high", TEST_WEIGH),
    (WEIGH, "cap=s.cap, drop=s.drop", "drop=s.drop", ORACLE),
    # Another sampler, and limits that leave nothing between them.
    (
        EXPERIENCE,
        "old, foreign = self._read(self.policy, rows), drawn",
        "old, foreign = drawn, self._read(self.policy, rows)",
        ORACLE,
    ),
    (EXPERIENCE, 'self.generator.foreign and self.settings.recompute == "auto"', "self.generator.foreign", ORACLE),
    (EXPERIENCE, 'self.generator.foreign and self.settings.recompute == "auto"', "False", ORACLE),
    (LAGRANGIAN, "and low.threshold > high.threshold", "and low.threshold >= high.threshold", TEST_GRPO),
    (LAGRANGIAN, "and low.threshold > high.threshold", "and low.threshold < high.threshold", TEST_GRPO),
    (LAGRANGIAN, "(low.score, low.measure) == (high.score, high.measure)", "low.score == high.score", TEST_GRPO),
    (LAGRANGIAN, "(low.score, low.measure) == (high.score, high.measure)", "low.measure == high.measure", TEST_GRPO),
]
