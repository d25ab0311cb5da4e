"""Wrong versions of `holdfast.pocket` and its tokenizer that their tests must catch: file, text, wrong text, tests."""

ORACLES, TEST_ORACLES = "src/holdfast/pocket/oracles.py", "tests/pocket/test_oracles.py"
GRAMMAR, TEST_GRAMMAR = "src/holdfast/pocket/grammar.py", "tests/pocket/test_grammar.py"
ANNOTATORS, TEST_ANNOTATORS = "src/holdfast/pocket/annotators.py", "tests/pocket/test_annotators.py"
WORLD, TEST_WORLD = "src/holdfast/pocket/world.py", "tests/pocket/test_world.py"
PEOPLE, TEST_PEOPLE = "src/holdfast/pocket/people.py", "tests/pocket/test_people.py"
RATINGS, TEST_RATINGS = "src/holdfast/pocket/ratings.py", "tests/pocket/test_ratings.py"

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
    (WORLD, "rng = np.random.default_rng([settings.seed, 1])", "rng = np.random.default_rng(1)", TEST_WORLD),
    (WORLD, "        (folder / name).unlink(missing_ok=True)\n", "        pass\n", TEST_WORLD),
    (WORLD, "people.phrases() if settings.people else ()", "people.phrases()", TEST_WORLD),
    (WORLD, "people.phrases() if settings.people else ()", "()", TEST_WORLD),
    (
        WORLD,
        "people: PeopleSettings | None = Field(None, exclude_if=lambda value: value is None)",
        "people: PeopleSettings | None = None",
        TEST_WORLD,
    ),
    (PEOPLE, "1 - true.words / LONGEST if true.right else 0.0", "1 - true.words / LONGEST", TEST_PEOPLE),
    (PEOPLE, "0.7 * true.polite + 0.3 * true.alternative", "0.3 * true.polite + 0.7 * true.alternative", TEST_PEOPLE),
    (PEOPLE, "return TASTES[taste](true) - NONSENSE", "return TASTES[taste](true) + NONSENSE", TEST_PEOPLE),
    (PEOPLE, "expit(settings.sharpness * gap)", "expit(-settings.sharpness * gap)", TEST_PEOPLE),
    (PEOPLE, "while abs(gap) < LEAST_GAP:", "while abs(gap) < 1e-9:", TEST_PEOPLE),
    (PEOPLE, "rng.random() < settings.at_home", "rng.random() >= settings.at_home", TEST_PEOPLE),
    (PEOPLE, "if name != taste]", "]", TEST_PEOPLE),
    (PEOPLE, "VARIED = Manner(refuse=0.03,", "VARIED = Manner(refuse=0.3,", TEST_PEOPLE),
    (RATINGS, "1 - true.severity / 3", "true.severity / 3", TEST_RATINGS),
    (RATINGS, "max(0.0, 1 - true.words / LONG)", "1 - true.words / LONG", TEST_RATINGS),
    (
        RATINGS,
        "settings.noise * rng.standard_normal(len(true)), 0, 1)",
        "settings.noise * rng.random(len(true)), 0, 1)",
        TEST_RATINGS,
    ),
    (RATINGS, "rng.random(len(true)) < settings.missing", "rng.random() < settings.missing", TEST_RATINGS),
    (RATINGS, "while len(found) < count:", "for _ in range(count):", TEST_RATINGS),
]
