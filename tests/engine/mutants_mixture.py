"""Wrong versions of the choice of prompts, each of which some test must catch: file, text, wrong text, tests."""

MIXTURE, TEST = "src/holdfast/engine/mixture.py", "tests/engine/test_mixture.py"
ONLINE, TEST_ONLINE = "src/holdfast/engine/online.py", "tests/engine/test_online.py"

MUTANTS = [
    (MIXTURE, "first = round(self.share * portion)", "first = int(self.share * portion)", TEST),
    (MIXTURE, '"other": portion - first}', '"other": portion}', TEST),
    # One order for both kinds, one choice for all iterations, or benign prompts for the first process only.
    (MIXTURE, "wanted, number, seed, stream)", "wanted, number, seed)", TEST),
    (MIXTURE, "take(len(indices), wanted, number,", "take(len(indices), wanted, 0,", TEST),
    (MIXTURE, "[chosen[i] for i in order.tolist()]", "chosen", TEST),
    (MIXTURE, "            indices[i]\n", "            i\n", TEST),
    (MIXTURE, "            if wanted\n", "            if True\n", TEST),
    (MIXTURE, "if wanted > (given :=", "if wanted >= (given :=", TEST),
    (MIXTURE, "0 < self.share < 1 and", "False and", TEST),
    (ONLINE, "chosen = choose or partial(", "chosen = partial(", TEST_ONLINE),
    (ONLINE, "in chosen(number - 1)]", "in chosen(number)]", TEST_ONLINE),
    (ONLINE, "generator(seed, epoch, *stream)", "generator(seed, epoch)", TEST_ONLINE),
    (ONLINE, "portion, seed=settings.seed)", "portion, seed=0)", TEST_ONLINE),
]
