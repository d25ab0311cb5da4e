"""Wrong versions of the systems that train score models and mixtures: file, text, wrong text, tests."""

SCORE_MODEL, TEST_SCORE = "src/holdfast/systems/score_model.py", "tests/systems/test_score_model.py"
SCORES = "src/holdfast/systems/scores.py"
MICRO, TEST_MICRO = "src/holdfast/systems/micro.py", "tests/systems/test_micro.py"
CROWD, TRIAL = "src/holdfast/systems/crowd.py", "src/holdfast/systems/trial.py"
POLICY = "src/holdfast/systems/personal_policy.py"

MUTANTS = [
    (SCORE_MODEL, "return freeze_backbone(made) if", "return made if", TEST_SCORE),
    (SCORE_MODEL, "if self.joint and not (self.reward and self.cost):", "if False:", TEST_SCORE),
    (
        SCORE_MODEL,
        'network(settings, policy, ("reward", "cost"))',
        'network(settings, policy, ("cost", "reward"))',
        TEST_SCORE,
    ),
    (SCORES, 'if self.fit is None and self.start == "zero":', "if False:", TEST_SCORE),
    (SCORES, "    if stage.fit is not None:\n        learned", "    if True:\n        learned", TEST_SCORE),
    (CROWD, "if keys(record)[0] not in judges and not is_new(record)", "if not is_new(record)", TEST_MICRO),
    (CROWD, "if keys(record)[0] not in judges and not is_new(record)", "if keys(record)[0] not in judges", TEST_MICRO),
    (CROWD, "if seen[pair.group or pair.context] <= most:", "if True:", TEST_MICRO),
    (CROWD, "if keys(pair)[0] in judges and not is_new(pair)", "if keys(pair)[0] in judges", TEST_MICRO),
    (MICRO, "heads.masked = torch.tensor([one.mask for one in found])", "pass", TEST_MICRO),
    (MICRO, "if len(masked) == len(names):", "if False:", TEST_MICRO),
    (MICRO, "if self.leave_out_backbone and (", "if False and (", TEST_MICRO),
    (MICRO, "    if len(groups) == 1:\n", "    if False:\n", TEST_MICRO),
    (TRIAL, "return wins((chosen - rejected)", "return wins((rejected - chosen)", TEST_MICRO),
    (TRIAL, "delta[places], settings.tau", "-delta[places], settings.tau", TEST_MICRO),
    (
        POLICY,
        "prompts = [one.prompt for one in bench.practise]",
        "prompts = [one.plain for one in bench.practise]",
        TEST_MICRO,
    ),
    (POLICY, "apart = grouped and (constraints or", "apart = False and (constraints or", TEST_MICRO),
    (POLICY, "if (self.limit is None) != (self.cost is None):", "if False:", TEST_MICRO),
]
