"""Wrong versions of `systems/valued.py` that its tests must catch."""

FILE, TEST = "src/holdfast/systems/valued.py", "tests/systems/test_valued.py"

MUTANTS = [
    (FILE, "place[[i for i, _ in samples]]", "place[sorted(i for i, _ in samples)]", TEST),
    (FILE, 'list(terms), "sample_scores")', 'list(terms), "scores")', TEST),
    (FILE, "*how, network_digest(reading_it.model)]", "*how]", TEST),
    (FILE, 'if value.learn_from == "samples":', 'if value.learn_from == "data":', TEST),
    (FILE, "float(earned.max()) + room)", "float(earned.max()))", TEST),
    (FILE, "stages.offset(value.head.fit, bench.settings.seed)", "value.head.fit", TEST),
    (FILE, '                head.save(folder / "value_head")\n', "", TEST),
    (FILE, '"margin": margin}', '"margin": 0.0}', TEST),
    (FILE, "given.scorer_digest(bench, terms)", '"scorer"', TEST),
]
