"""Wrong versions of `holdfast.studies` that its tests must catch: file, text, wrong text, tests."""

FOLD, TEST = "src/holdfast/studies/micro_hh_fold.py", "tests/studies/test_micro_hh.py"
STUDY, HH, TEST_HH = "src/holdfast/studies/micro_hh.py", "src/holdfast/studies/hh.py", "tests/studies/test_hh.py"
ENCODER, TEST_ENCODER = "src/holdfast/studies/encoder.py", "tests/studies/test_encoder.py"

MUTANTS = [
    # Who is asked what, and which labels are told.
    (FOLD, "permutation(place.max() + 1) % count)[place]", "permutation(len(place)) % count)", TEST),
    (FOLD, "yield budget, order[:budget], order[budget:]", "yield budget, order[:budget], order", TEST),
    (FOLD, "told, rest = order[:labels], order[labels:]", "told, rest = order[labels:], order[labels:]", TEST),
    (FOLD, "features.difference * column", "features.difference", TEST),
    (FOLD, "inner, outer = labels.take(index[~held]), labels.take(index[held])", "inner = outer = labels", TEST),
    (
        FOLD,
        'self.judge("R4 single BT, second type", bt, turned(labels, -1.0))',
        'self.judge("R4 single BT, second type", bt, labels)',
        TEST,
    ),
    (FOLD, "likely = probability(sign * delta[rest], weights)", "likely = probability(delta[rest], weights)", TEST),
    (FOLD, "argsort(descending=True)", "argsort()", TEST),
    (FOLD, 'router="static", session="pair"', 'router="static"', TEST),
    (FOLD, "total / self.asked[arm]", "total", TEST),
    (FOLD, "(features.router - centre) @ axes", "(features.router + centre) @ axes", TEST),
    # What the features are, and what is measured.
    (STUDY, "[chosen - rejected, after_chosen - after_rejected]", "[chosen - rejected, chosen - rejected]", TEST),
    (STUDY, "scale * np.concatenate", "np.concatenate", TEST),
    (STUDY, "np.nanmean(together[arm]) > np.nanmean", "np.nanmean(together[arm]) < np.nanmean", TEST),
    (STUDY, "and error <= 0.01", "", TEST),
    (STUDY, "abs(harm.value) <= 0.01", "harm.value <= 0.01", TEST),
    (STUDY, "(sides[0].value - 0.5) * (sides[1].value - 0.5) < 0", "apart.value > 0", TEST),
    (HH, "chosen, rejected = (answer", "rejected, chosen = (answer", TEST_HH),
    (HH, "turns[-1][1], chosen", "prompt, chosen", TEST_HH),
    (ENCODER, 'truncation_side = "left"', 'truncation_side = "right"', TEST_ENCODER),
    (ENCODER, "(states * kept).sum(1)", "states.sum(1)", TEST_ENCODER),
    (ENCODER, "if found != SHA256:", "if False:", TEST_ENCODER),
    (ENCODER, "[[place[text] for text in texts]]", "[: len(texts)]", TEST_ENCODER),
]
