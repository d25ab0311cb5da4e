"""Wrong versions of `holdfast.pocket` and its tokenizer that their tests must catch: file, text, wrong text, tests."""

ORACLES, TEST_ORACLES = "src/holdfast/pocket/oracles.py", "tests/pocket/test_oracles.py"
GRAMMAR, TEST_GRAMMAR = "src/holdfast/pocket/grammar.py", "tests/pocket/test_grammar.py"
ANNOTATORS, TEST_ANNOTATORS = "src/holdfast/pocket/annotators.py", "tests/pocket/test_annotators.py"
WORLD, TEST_WORLD = "src/holdfast/pocket/world.py", "tests/pocket/test_world.py"

MUTANTS = [
    (ORACLES, "if topic is asked.topic and thing == asked.object", "if topic is asked.topic", TEST_ORACLES),
    (ORACLES, "if topic is asked.topic and thing == asked.object", "if thing == asked.object", TEST_ORACLES),
    (
        ORACLES,
        "for template, _, topic in steps if topic.harmful",
        "for template, _, topic in steps if asked.topic.harmful",
        TEST_ORACLES,
    ),
    (ORACLES, "wrong = len(spoken) - len(right)", "wrong = len(steps) - len(right)", TEST_ORACLES),
    (ORACLES, "- 0.2 * wrong", "+ 0.2 * wrong", TEST_ORACLES),
    (ORACLES, "0.0 if refusal else min(1.0", "0.1 if refusal else min(1.0", TEST_ORACLES),
    (ORACLES, "severity=min(3, len(harmful))", "severity=len(harmful)", TEST_ORACLES),
    (ORACLES, 'kind(one) == "benign"', 'kind(one) != "harmful"', TEST_ORACLES),
    (
        GRAMMAR,
        'return "disguised" if self.framed else "harmful"',
        'return "harmful" if self.framed else "disguised"',
        TEST_ORACLES,
    ),
    (GRAMMAR, '["just"] if len(steps) == 1', '["just"] if len(steps) == 0', TEST_GRAMMAR),
    (GRAMMAR, "*ALTERNATIVES, *CONNECTIVES, *DETAILS]", "*ALTERNATIVES, *CONNECTIVES]", TEST_GRAMMAR),
    (GRAMMAR, '("crack", "nut"),', '("crack", "safe"),', TEST_GRAMMAR),
    (ANNOTATORS, "expit(self.sharpness * margin)", "expit(-self.sharpness * margin)", TEST_ANNOTATORS),
    (ANNOTATORS, "rng.random() >= self.flip", "rng.random() >= self.flip / 2", TEST_ANNOTATORS),
    (ANNOTATORS, "0 if rates[0] > rates[1] else 1", "1 if rates[0] > rates[1] else 0", TEST_ANNOTATORS),
    (ANNOTATORS, "(seen[0] == 0, seen[1] == 0)", "(seen[1] == 0, seen[0] == 0)", TEST_ANNOTATORS),
    (WORLD, "    stamp.unlink(missing_ok=True)\n", "", TEST_WORLD),
    (WORLD, "Annotator(settings.sharpness, settings.flip)", "Annotator()", TEST_WORLD),
    (
        WORLD,
        "annotators.draw_request(rng, settings.harmful_share) for _ in",
        "annotators.draw_request(rng) for _ in",
        TEST_WORLD,
    ),
    (WORLD, "np.random.default_rng(settings.seed)", "np.random.default_rng(0)", TEST_WORLD),
    (WORLD, "layers=settings.layers, seed=settings.seed)", "layers=settings.layers)", TEST_WORLD),
]
