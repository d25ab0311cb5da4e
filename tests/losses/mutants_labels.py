"""Wrong versions of the losses of ratings, severities and centring that their tests must catch."""

REGRESSION, TEST_REGRESSION = "src/holdfast/losses/regression.py", "tests/losses/test_regression.py"
PREFERENCE, TEST_PREFERENCE = "src/holdfast/losses/preference.py", "tests/losses/test_preference.py"

MUTANTS = [
    (REGRESSION, "over(weight.to(each) * each, present).total", "over(each, present).total", TEST_REGRESSION),
    (REGRESSION, "over(weight.to(each) * each, present)", "over(weight.to(each) * each)", TEST_REGRESSION),
    (REGRESSION, 'reduction="none", delta=delta', 'reduction="none", delta=0.1', TEST_REGRESSION),
    (REGRESSION, "- (1 - known) * logsigmoid(-guess)", "- (1 - known) * logsigmoid(guess)", TEST_REGRESSION),
    (REGRESSION, "guess = precise(predicted)", "guess = predicted", TEST_REGRESSION),
    (REGRESSION, "(~labels.isnan()).sum(0)", "labels.new_ones(labels.shape).sum(0)", TEST_REGRESSION),
    (REGRESSION, "or not bool((weight > 0).all())", "", TEST_REGRESSION),
    (PREFERENCE, "(precise(chosen) + precise(rejected))", "(precise(chosen) - precise(rejected))", TEST_PREFERENCE),
    (
        PREFERENCE,
        "low, high = edges[level], edges[level + 1]",
        "low, high = edges[level + 1], edges[level]",
        TEST_PREFERENCE,
    ),
    (PREFERENCE, " + torch.log1p(-torch.exp(low - high))", "", TEST_PREFERENCE),
    (PREFERENCE, "logsigmoid(high - precise(cost))", "logsigmoid(precise(cost) - high)", TEST_PREFERENCE),
    (PREFERENCE, "        severity = severity.where(mask, 0)\n", "        pass\n", TEST_PREFERENCE),
    (PREFERENCE, "(borders.diff() > 0)", "(borders.diff() >= 0)", TEST_PREFERENCE),
    (PREFERENCE, "return over(-inside, mask)", "return over(-inside)", TEST_PREFERENCE),
]
