"""Wrong versions of the diversity of texts that their tests must catch: file, text, wrong text, tests."""

DIVERSITY, TEST = "src/holdfast/stats/diversity.py", "tests/stats/test_diversity.py"

MUTANTS = [
    (DIVERSITY, "range(len(words) - n + 1)", "range(len(words) - n)", TEST),
    (DIVERSITY, "words[i : i + n]", "words[i : i + 1]", TEST),
    (DIVERSITY, 'if per == "ngram" else', 'if per == "word" else', TEST),
    (DIVERSITY, "text.lower() if lower else text", "text.lower()", TEST),
    (DIVERSITY, '.split(" ")', ".split()", TEST),
    (DIVERSITY, " for text in texts if text]", " for text in texts]", TEST),
    (
        DIVERSITY,
        'rows = [(text.lower() if lower else text).split(" ") for text in texts if text]',
        'rows = [(" ".join(texts).lower() if lower else " ".join(texts)).split(" ")]',
        TEST,
    ),
    (DIVERSITY, "if whole else math.nan", "if whole else 0.0", TEST),
    (DIVERSITY, "len(set(grams)) / whole", "len(grams) / whole", TEST),
    (DIVERSITY, "if n < 1:", "if n < 0:", TEST),
]
