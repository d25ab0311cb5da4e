"""Wrong versions in which several processes do what one should, or tell other numbers than one does."""

TESTS = "tests/systems/test_asked_once.py"
EXAM, PERSONAL = "src/holdfast/systems/exam.py", "src/holdfast/systems/personal_policy.py"
OUTLOOK, DUAL = "src/holdfast/systems/outlook.py", "src/holdfast/systems/dual.py"
POLICY, CRITIC = "src/holdfast/training/policy.py", "src/holdfast/training/actor_critic.py"
GRPO, EXPERIENCE = "src/holdfast/training/grpo.py", "src/holdfast/rollout/experience.py"
PPO_CUT, GRPO_CUT = "tests/invariance/test_ppo_cut.py", "tests/invariance/test_grpo_cut.py"
DISTRIBUTED, TEST_DISTRIBUTED = "src/holdfast/engine/distributed.py", "tests/engine/test_distributed.py"
ONLINE, INTERRUPT = "src/holdfast/engine/online.py", "src/holdfast/engine/interrupt.py"
MAIN, COMMANDS = "src/holdfast/cli/main.py", "tests/cli/test_main.py"

MUTANTS = [
    (
        EXAM,
        "stages.on_main(bench.run, lambda: examine(exam_of(bench), bench.generator, bench.policy, reference))",
        "examine(exam_of(bench), bench.generator, bench.policy, reference)",
        TESTS,
    ),
    (
        PERSONAL,
        "stages.on_main(bench.run, lambda: examine(exam, _generator(bench), bench.policy, reference))",
        "examine(exam, _generator(bench), bench.policy, reference)",
        TESTS,
    ),
    (
        OUTLOOK,
        "limits.processes.on_first(lambda: _scored(collector, seen, settings.samples))",
        "_scored(collector, seen, settings.samples)",
        TESTS,
    ),
    (
        DUAL,
        "stages.on_main(bench.run, lambda: suggestion(bench.scorer, pairs, main, now))",
        "suggestion(bench.scorer, pairs, main, now)",
        TESTS,
    ),
    (DISTRIBUTED, "except (HoldfastError, OSError) as error:", "except HoldfastError as error:", TEST_DISTRIBUTED),
    (DISTRIBUTED, "        if problem is not None:\n            raise problem\n", "", TEST_DISTRIBUTED),
    (DISTRIBUTED, "        if self.is_main:\n            try:", "        if True:\n            try:", TEST_DISTRIBUTED),
    (ONLINE, "if portion < processes:", "if portion < 0:", "tests/engine/test_online.py"),
    (INTERRUPT, "if not self._aloud:", "if False:", "tests/engine/test_interrupt.py"),
    (MAIN, 'not in ("run", "demo")', 'not in ("run", "demo", "env")', COMMANDS),
    (MAIN, "and _processes() > 1:", "and _processes() > 0:", COMMANDS),
    (MAIN, 'if context.invoked_subcommand == "sweep" else', "if False else", COMMANDS),
    (MAIN, '"" if rank == "0" else', '"" if rank else', COMMANDS),
    # The row of the log is that of one process.
    (POLICY, "describe(of_all(experience.experience, processes),", "describe(experience.experience,", PPO_CUT),
    (POLICY, "dict.fromkeys([*numbers, *totals])", "totals", PPO_CUT),
    (
        POLICY,
        "readable(of_all(experience.experience, self.limits.processes))",
        "readable(experience.experience)",
        TESTS,
    ),
    (
        CRITIC,
        "processes.gather([(returns[mask], values[mask], last[mask])])",
        "[(returns[mask], values[mask], last[mask])]",
        PPO_CUT,
    ),
    (CRITIC, "torch.cat(self.limits.processes.gather([counted]))", "counted", PPO_CUT),
    (
        CRITIC,
        'means([{f"clamped/{name}": clamped}], self.limits.processes)',
        '{f"clamped/{name}": float(clamped.mean)}',
        PPO_CUT,
    ),
    (
        GRPO,
        "found = column_means(columns, self.limits.processes)",
        "found = {name: float(one.nanmean()) for name, one in columns.items()}",
        GRPO_CUT,
    ),
    (EXPERIENCE, "groups=tuple(group for one in found for group in one.groups)", "groups=experience.groups", PPO_CUT),
]
