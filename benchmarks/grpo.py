"""How much faster a step of GRPO is than TRL's GRPOTrainer, on the same weights, prompts, settings and reward model.

Given the same answers, both sides must first learn the same. Then they sample for themselves and take turns, in
processes of their own. What is in the file of --out is kept and gone on with, so a run may be done in pieces. Needs
`pip install trl==1.16.0`.

    python benchmarks/grpo.py --size 5M --setting 512:128 --out benchmarks/grpo.json
    python benchmarks/grpo.py --scaling --out benchmarks/grpo_scaling.json
"""

import argparse

from grpo_scaling import scaling
from grpo_turns import contest
from grpo_world import SIZES, Case
from turns import Book, add_options

TARGETS = {(512, 128): 3.0, (192, 64): 2.0}
LEAST = 1.3
"""By how much a step shall be faster: at some lengths of prompt and answer, and at all others."""

DEFAULT_PASS = 16384
"""Padded tokens in one pass of ours, as in `rollout.micro_tokens`."""


def arguments() -> argparse.Namespace:
    """Return the settings given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    settings = ["64:64", "192:64", "512:128", "64:256"]
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["5M", "40M"], help="models (default 5M 40M)")
    parser.add_argument("--setting", nargs="+", default=settings, help="tokens of prompt:answer (default all four)")
    parser.add_argument(
        "--answers", nargs="+", choices=("full", "ends"), default=["full"],
        help="answers have all their tokens (default), or end after half of them on average",
    )  # fmt: skip
    own = (
        ("group", 8, "answers to a prompt"),
        ("prompts", 0, "prompts of a step; 0: 8, half for rows of 400 tokens or more, half for models of 40M or more"),
        ("steps", 0, "timed steps of a process, after one that is not; 0: 1 to 4, the shorter the answers the more"),
        ("threads", 2, "threads of torch"),
        ("micro-tokens", DEFAULT_PASS, "padded tokens in one pass of ours"),
    )
    add_options(parser, own, "answers")
    parser.add_argument(
        "--scaling", action="store_true", help="instead, how our step grows with group, prompt and model"
    )
    return parser.parse_args()


def cases(given: argparse.Namespace) -> dict[str, Case]:
    """Return what is to be compared, by name."""
    found = {}
    for size in given.size:
        for setting in given.setting:
            prompt, response = (int(part) for part in setting.split(":"))
            fewer = (8 if prompt + response < 400 else 4) // (2 if SIZES[size].hidden >= SIZES["40M"].hidden else 1)
            for answers in given.answers:
                small = "" if given.micro_tokens == DEFAULT_PASS else f", passes of {given.micro_tokens}"
                found[f"{size} {setting} {answers}{small}"] = Case(
                    size=size,
                    prompt=prompt,
                    response=response,
                    ends=answers == "ends",
                    prompts=given.prompts or fewer,
                    group=given.group,
                    steps=given.steps or max(1, min(4, 600 // (prompt + response))),
                    threads=given.threads,
                    micro_tokens=given.micro_tokens,
                )
    return found


def judged(case: Case, summary: dict[str, float]) -> dict[str, object]:
    """Return the targets of a case, and whether they are met."""
    target = TARGETS.get((case.prompt, case.response), LEAST)
    return {
        "target": target,
        "fast_enough": summary["step_ratio"] >= target,
        "small_enough": summary["peak_ratio"] <= 1,
    }


def main() -> None:
    """Compare, take turns, print the results as JSON."""
    given = arguments()
    if given.scaling:
        book = Book(given.out, "grpo_scaling")
        scaling(book, given.threads)
    else:
        book = Book(given.out, "grpo")
        for name, case in cases(given).items():
            entry = contest(book, name, case, given.repeats, given.rows)
            entry["summary"] |= judged(case, entry["summary"])
            book.save()
    print(book.text)


if __name__ == "__main__":
    main()
