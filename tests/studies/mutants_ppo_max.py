"""Wrong versions of the studies `ppo_max` and `collapse` that their tests must catch: file, text, wrong text, tests."""

WORLD, TEST_WORLD = "src/holdfast/studies/ppo_max_world.py", "tests/studies/test_ppo_max_world.py"
STUDY, TEST = "src/holdfast/studies/ppo_max.py", "tests/studies/test_ppo_max.py"
COLLAPSE, TEST_COLLAPSE = "src/holdfast/studies/collapse.py", "tests/studies/test_collapse.py"

MUTANTS = [
    # What the judges see.
    (WORLD, "- 0.5 * repeats", "+ 0.5 * repeats", TEST_WORLD),
    (WORLD, "len(words) - 12", "len(words) - 11", TEST_WORLD),
    (WORLD, "len(words) >= LIMIT", "len(words) > LIMIT", TEST_WORLD),
    (WORLD, "0.1 * fits.count(False)", "0.1 * fits.count(True)", TEST_WORLD),
    (WORLD, "len({word for word, fit in zip(words, fits, strict=True) if fit})", "fits.count(True)", TEST_WORLD),
    (WORLD, "[fits.count(True), fits.count(False)]", "[fits.count(False), fits.count(True)]", TEST_WORLD),
    (WORLD, "np.logaddexp(0, -difference @ weights)", "np.logaddexp(0, difference @ weights)", TEST_WORLD),
    (WORLD, "np.exp(-2 * margin)", "np.exp(2 * margin)", TEST_WORLD),
    (WORLD, "for _ in range(4):", "for _ in range(1):", TEST_WORLD),
    # What is trained and judged.
    (STUDY, "end = judged(plan, collector)", "end = bench.start", TEST),
    (STUDY, "policy = copy.deepcopy(bench.policy)", "policy = bench.policy", TEST),
    (STUDY, '"clip": arm.clip}', '"clip": None}', TEST),
    (STUDY, "value_clip=arm.value_clip", "value_clip=None", TEST),
    (STUDY, "max_iterations=plan.arm.pretrain)", "max_iterations=plan.arm.pretrain + 1)", TEST),
    # When something happened, and what it means.
    (STUDY, 'row["gold"] < gold - FALL', 'row["gold"] < gold + FALL', TEST),
    (STUDY, 'row["alarm/level"] >= WATCH', 'row["alarm/level"] > WATCH', TEST),
    (STUDY, 'row["alarm/level"] >= WARN', 'row["alarm/level"] >= WATCH', TEST),
    (STUDY, 'one["warn"] <= one["below"] + 2', 'one["warn"] <= one["below"] + 3', TEST),
    (STUDY, 'if name != "rollback" for one', "for one", TEST),
    (STUDY, 'max(one["curves"]["truncated"]) < 0.1', 'min(one["curves"]["truncated"]) < 0.1', TEST),
    (STUDY, 'max(one["curves"]["length"])', 'min(one["curves"]["length"])', TEST),
    (STUDY, 'one["end"][name]["value"] - one["start"]', 'one["start"][name]["value"] - one["end"]', TEST),
    (STUDY, "1.0 if name in always else 0.8", "0.8", TEST),
    # What the detector is worth.
    (COLLAPSE, '[one for one in runs if one["below"]]', '[one for one in runs if one["warn"]]', TEST_COLLAPSE),
    (COLLAPSE, 'one["below"] - one[when]', 'one[when] - one["below"]', TEST_COLLAPSE),
    (COLLAPSE, "arms[seed % 2]", "arms[0]", TEST_COLLAPSE),
    (COLLAPSE, "level >= ppo_max.WARN", "level >= ppo_max.WATCH", TEST_COLLAPSE),
    (COLLAPSE, "clopper_pearson_lower(k, n, 0.05)", "clopper_pearson_lower(k, n, 0.025)", TEST_COLLAPSE),
    (COLLAPSE, "clopper_pearson_upper(k, n, 0.05)", "clopper_pearson_upper(n - k, n, 0.05)", TEST_COLLAPSE),
    (COLLAPSE, "estimate.proportion(flags, runs)", "estimate.proportion(flags)", TEST_COLLAPSE),
]
