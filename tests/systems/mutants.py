"""Wrong versions of `holdfast.systems` that its tests must catch: file, text, wrong text, tests."""

SCORES, STAGES, TEST_HH = "src/holdfast/systems/scores.py", "src/holdfast/systems/stages.py", "tests/systems/test_hh.py"
READING = "src/holdfast/systems/reading.py"

MUTANTS = [
    (SCORES, "ranked.low <= stage.least_auc or", "False and", TEST_HH),
    (SCORES, "0.0 if record.safe else 1.0", "1.0 if record.safe else 0.0", TEST_HH),
    (SCORES, "q1, q2 = value / (2 - value), 2 * value**2 / (1 + value)", "q1, q2 = value, value", TEST_HH),
    (SCORES, "min(value + half, 1.0)", "value + half", TEST_HH),
    (SCORES, "max(value - half, 0.0)", "value - half", TEST_HH),
    (SCORES, "scored.shorter_is_higher(higher=False)", "scored.shorter_is_higher()", TEST_HH),
    (SCORES, "border = -found.intercept / found.slope", "border = found.intercept / found.slope", TEST_HH),
    (
        READING,
        "    except PromptTooLong:\n        return False\n",
        "    except PromptTooLong:\n        return True\n",
        TEST_HH,
    ),
    (STAGES, "    if model.name is not None:\n        words", "    if tokenizer is None:\n        words", TEST_HH),
]
