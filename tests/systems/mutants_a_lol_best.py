"""Wrong versions of the choice of the best policy that the tests must catch: file, old text, new text, tests."""

A_LOL, GIVEN, TEST = (
    "src/holdfast/systems/a_lol.py",
    "src/holdfast/systems/given.py",
    "tests/systems/test_a_lol_best.py",
)
REPORT, PLOTS, TEST_REPORT = (
    "src/holdfast/report/offline.py",
    "src/holdfast/report/offline_plots.py",
    "tests/report/test_offline.py",
)

MUTANTS = [
    (A_LOL, "sorted(pools.practise, key", "sorted(pools.dev, key", TEST),
    (A_LOL, "sorted(pools.practise, key", "sorted([*pools.imitate, *pools.practise], key", TEST),
    (A_LOL, 'key=lambda one: share_of(f"best/{keys(one)[0]}"))[:most]', "key=lambda one: 0)[:most]", TEST),
    (A_LOL, "    if len(found) < most:\n", "    if False:\n", TEST),
    (A_LOL, "leaks([*pools.imitate, *pools.pairs, *pools.dev], found)", "leaks([], found)", TEST),
    (
        A_LOL,
        "(bench.scorer), settings.rollout.sampling",
        "(bench.scorer), type(settings.rollout.sampling)(temperature=9)",
        TEST,
    ),
    (A_LOL, "generate(starts, 1, sampling, settings.seed)", "generate(starts, 1, sampling, settings.seed + 1)", TEST),
    (A_LOL, "settings.rewards).mean())", "settings.rewards).sum())", TEST),
    (A_LOL, "order=order, contest=contest)", "order=order)", TEST),
    (
        A_LOL,
        "self.pro is not None or self.best is not None or",
        "self.pro is not None or",
        TEST,
    ),
    (A_LOL, "if n not in known]):", "if False]):", TEST),
    (A_LOL, "{*self.given_scores, *(name", "{*(name", TEST),
    (A_LOL, 'given.scored_by(bench, list(settings.rewards), ", or set best=null")', "pass", TEST),
    (A_LOL, "settings.pro is not None, settings.best is not None", "settings.pro is not None, False", TEST),
    (A_LOL, "one.value if math.isfinite(one.value) else None", "one.value", TEST),
    (GIVEN, "*pools.practise, *pools.dev, *pools.safety", "*pools.dev, *pools.safety", TEST),
    (REPORT, "the most of {len(found['of'])} steps", "the most of {found['step']} steps", TEST_REPORT),
    (REPORT, 'if end["step"] > found["step"] else None', "", TEST_REPORT),
    (REPORT, '"" if last is None else', '"" if last is not None else', TEST_REPORT),
    (PLOTS, "values[steps == chosen][0]", "values[0]", TEST_REPORT),
    (PLOTS, "chosen > steps.mean()", "True", TEST_REPORT),
]
