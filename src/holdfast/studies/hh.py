"""Helpful and harmless comparisons of people (Anthropic HH, arXiv 2204.05862), read from files that lie at hand.

The files are those of `hh_test` in the LoL-RL repository: one JSON object per line, gzip-compressed, with `prefix`
(the turns so far) and `suffix` (the preferred answer, then the other one). They carry no licence, so they are read
where they lie and nothing of them is written anywhere but numbers.
"""

import gzip
import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from holdfast.errors import UserError
from holdfast.studies.common import existing

GROUPS = ("helpful", "harmless")
SPEAKERS = {"<|prompter|>": "Human", "<|assistant|>": "Assistant"}


@dataclass(frozen=True)
class Comparison:
    """Two answers to one dialogue, the preferred one first, and what was asked for: help or harmlessness."""

    group: str
    prompt: str
    last_turn: str
    chosen: str
    rejected: str


def comparisons(folder: Path) -> tuple[list[Comparison], dict[str, int]]:
    """The usable comparisons of both groups, and how many rows of each group were dropped for which reason.

    Dropped are the rows that the source itself calls bad, empty answers and equal answers. Raises `UserError` when
    a file is missing.
    """
    bad = json.loads(_text(folder / "lolrl_bad_test_indices_by_file.json.gz"))
    found, counts = [], Counter[str]()
    for group in GROUPS:
        listed = set(bad[f"{group}_base.json"])
        for i, line in enumerate(_text(folder / f"lolrl_hh_test_{group}_base.jsonl.gz").strip().split("\n")):
            row = json.loads(line)
            chosen, rejected = (answer.strip() for answer in row["suffix"])
            reason = _unusable(i in listed, chosen, rejected)
            counts[f"{group} {reason or 'kept'}"] += 1
            if reason:
                continue
            turns = [_turn(text) for text in row["prefix"][0][:-1]]
            prompt = "\n\n".join(f"{who}: {text}" for who, text in turns)
            found.append(Comparison(group, prompt, turns[-1][1], chosen, rejected))
    return found, dict(sorted(counts.items()))


def _unusable(listed: bool, chosen: str, rejected: str) -> str:
    if listed:
        return "listed as bad"
    if not chosen or not rejected:
        return "empty answer"
    return "equal answers" if chosen == rejected else ""


def _turn(text: str) -> tuple[str, str]:
    for mark, speaker in SPEAKERS.items():
        if text.startswith(mark):
            return speaker, text.removeprefix(mark).strip()
    raise UserError(f"a turn begins with one of {', '.join(SPEAKERS)}; one of {len(text)} characters does not")


def _text(file: Path) -> str:
    return gzip.decompress(existing(file, "data/hh with the hh_test files of LoL-RL").read_bytes()).decode("utf-8")
