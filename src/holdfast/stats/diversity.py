"""How much a set of texts repeats itself."""

import math
from collections.abc import Iterable
from typing import Literal

Per = Literal["ngram", "word"]


def distinct_n(texts: Iterable[str], n: int, per: Per = "ngram", lower: bool = False) -> float:
    """Distinct n-grams of all texts over a count of all: 1 nothing is said twice; NaN when there is nothing to count.

    Words are split at single spaces, and no n-gram reaches from one text into the next. Two definitions are in use, so
    name the one that you report: `per="word"` divides by the number of words (Li et al., arXiv 1510.03055), of which
    short texts have more than n-grams; `per="ngram"` by the number of n-grams. `lower` takes capitals for small
    letters. Both fall as a corpus grows: compare only sets of about the same number of words.

    >>> texts = ["the cat sat on the mat", "the cat"]
    >>> distinct_n(texts, 2), distinct_n(texts, 2, per="word")  # 5 of 6 pairs, 5 for 8 words
    (0.8333333333333334, 0.625)
    """
    if n < 1:
        raise ValueError(f"n is the number of words of an n-gram and at least 1, got {n}")
    rows = [(text.lower() if lower else text).split(" ") for text in texts if text]
    grams = [tuple(words[i : i + n]) for words in rows for i in range(len(words) - n + 1)]
    whole = len(grams) if per == "ngram" else sum(len(words) for words in rows)
    return len(set(grams)) / whole if whole else math.nan
