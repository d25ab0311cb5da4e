"""Wrong versions of the systems that improve a policy by PPO: file, text, wrong text, tests."""

DUAL, OUTLOOK, PPO = (f"src/holdfast/systems/{name}.py" for name in ("dual", "outlook", "ppo"))
PRESETS = "src/holdfast/systems/presets.py"
TEST_MAX, TEST_SAFE = "tests/systems/test_ppo_max.py", "tests/systems/test_safe_rlhf_v.py"

MUTANTS = [
    (DUAL, '{"policy": bench.policy}) if judge else None', '{"policy": bench.policy}) if False else None', TEST_MAX),
    (DUAL, '("cost", self.cost)) if stage is not None]', '("cost", self.cost)) if True]', TEST_MAX),
    (DUAL, "if one.score not in names:", "if False:", TEST_SAFE),
    (OUTLOOK, "constraint.start_at(reach.multiplier)", "constraint.start_at(1.0)", TEST_SAFE),
    (PPO, "    if words != own:\n", "    if False:\n", TEST_MAX),
    (PRESETS, 'value = {"coef": value}', "pass", TEST_MAX),
]
