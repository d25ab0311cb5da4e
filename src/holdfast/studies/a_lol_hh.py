"""Does everything that A-LoL needs work together on real answers, and does it move a model the right way?

Data: answers to the prompts of Anthropic HH's test sets (harmless-base, helpful-base, helpful-online) with the logits
that a reward model of 6.9 B parameters gave them, two to a prompt, from the files of LoL-RL (see `hh.py`), without the
181 rows that are also in its development set: 5,620 rows. A fifth of the prompts is held out. Of a dialogue the last 16
words of its last turn are read, and of an answer what fits into a window of 64 tokens (byte-level BPE, 1,024 entries).
The reward is the sigmoid of the logit. There is no reward model to score the reference's own answers with, so V is
learned from the rewards of the answers to 400 of the prompts, from which nothing else learns.

Model: a Llama of two layers and width 128, built from its configuration. It imitates in 150 steps of 32 answers (AdamW,
3e-3 falling to 0), which makes the reference; then every method has 40 steps of 32 answers at 1e-3; DPO and PRO take 16
pairs, DPO at 1e-4 with beta .1, PRO with the raw logits. Measured on the held-out pairs: how often log pi - log pi_ref
per token prefers the answer with the higher reward.

This is a test of wiring. A model that cannot write a sentence learns in seconds which of two answers has more of what
the reward model likes; that says nothing about the quality of its answers.

Criterion, written down before the first run of seeds 10-14; seed 99 served to try everything:

* a_lol_over_nll: over the held-out pairs, each with its mean over the seeds, `a_lol` is right more often than `nll`,
  by a paired bootstrap: the 95 % interval of the difference lies above 0.
"""

import json
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from holdfast.data.schema import Conversation, Ranked
from holdfast.data.sources import DataSettings, read
from holdfast.data.split import pools
from holdfast.data.template import Encoded, PromptTooLong, Template
from holdfast.data.tokenizer import train_tokenizer
from holdfast.engine.log import RunFolder
from holdfast.engine.order import Shuffled
from holdfast.engine.supervised import FitSettings, fit
from holdfast.losses.offline import Method
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.reading import Reader
from holdfast.stats.compare import paired_bootstrap
from holdfast.stats.estimate import rate
from holdfast.studies.a_lol_arms import Course, Labels, Lasting, Ranking, Start, adamw, labelled, learn
from holdfast.studies.common import criterion, existing, findings, interval, markdown, shared_folder
from holdfast.training.sft import SftTask

SEEDS = (10, 11, 12, 13, 14)
CLAIM = "on real answers with stored rewards A-LoL comes to prefer the better one more often than imitation does"
SOURCE = "A-LoL, arXiv 2305.14718"
FILES = tuple(f"lolrl_hh_test_{name}.jsonl.gz" for name in ("harmless_base", "helpful_base", "helpful_online"))
DEVELOPMENT = "lolrl_hh_dev.jsonl.gz"
METHODS: tuple[Method | Ranking, ...] = (*get_args(Method), *get_args(Ranking))


class Plan(Course):
    """How much of everything."""

    batch: int = 32
    """Answers of a step; half as many pairs."""
    steps: int = 40
    """Steps of every method."""
    gap: float = 1.0
    """pro: what logits are multiplied by."""
    dpo_beta: float = 0.1
    """Beta of dpo."""
    sft_steps: int = 150
    """Steps of imitation, which gives the reference."""
    words: int = 16
    """Words of a prompt, its last ones."""
    window: int = 64
    """Most tokens of a prompt and its answer."""
    vocabulary: int = 1024
    """Entries of the tokenizer."""
    hidden: int = 128
    """Width of the model."""
    known: int = 400
    """Prompts that teach the value head alone."""
    most: int | None = None
    """Rows to read of each file; null reads all."""


QUICK = Plan(sft_steps=8, steps=3, window=40, vocabulary=384, hidden=32, known=24, most=100)


class Material(NamedTuple):
    """What all seeds share: pairs to learn from and pairs to judge by, each better answer first, and how to read."""

    learned: list[Ranked]
    held_out: list[Ranked]
    template: Template


def run(folder: Path, seeds: Sequence[int] = SEEDS, quick: bool = False) -> dict[str, Any]:
    """Run all methods for the seeds, taking up those that are finished; return the result."""
    plan, place = (QUICK, folder / "quick") if quick else (Plan(), folder / "full")
    shared = material(plan, shared_folder("hh"))
    found = [one_seed(plan, shared, seed, place / f"seed-{seed}") for seed in seeds]
    arms = {name: [each[name] for each in found] for name in METHODS}
    return findings("a_lol_hh", CLAIM, SOURCE, criteria(arms), arms, seeds, plan) | {
        "pairs learned": len(shared.learned),
        "pairs held out": len(shared.held_out),
    }


def material(plan: Plan, folder: Path) -> Material:
    """The pairs of the files, split by prompt, and a tokenizer that has seen the answers to learn from."""
    records = [shortened(row, plan.words) for row in rows(folder, plan.most)]
    split = pools(records, {"learned": 0.8, "held_out": 0.2}, salt="a_lol_hh")
    texts = [text for row in split["learned"] for text in (row.prompt.messages[0].text, *row.responses)]
    template = Template(train_tokenizer(texts, plan.vocabulary), max_length=plan.window)
    learned, held_out = ([row for row in split[name] if fits(row, template)] for name in ("learned", "held_out"))
    return Material(learned, held_out, template)


def rows(folder: Path, most: int | None = None) -> list[Ranked]:
    """The usable rows of all files that are not in the development set; `UserError` for a missing file.

    Rows whose answers are equal or empty cannot be used. Nothing of them is written anywhere.
    """
    known = {row.id for row in _rows(folder / DEVELOPMENT)}
    return [row for name in FILES for row in _rows(folder / name, most) if row.id not in known]


def _rows(file: Path, most: int | None = None) -> list[Ranked]:
    existing(file, "data/hh with LoL-RL's files")
    found = read(DataSettings(path=str(file), format="pro", split="all", on_bad_row="skip", limit=most)).records
    return [row for row in found if isinstance(row, Ranked)]


def shortened(row: Ranked, words: int) -> Ranked:
    """The row with the last words of its last turn as its prompt."""
    text = " ".join(row.prompt.messages[-1].text.split()[-words:])
    return row.model_copy(update={"prompt": Conversation.ask(text, id=row.id)})


def fits(row: Ranked, template: Template) -> bool:
    """Whether the prompt of a row leaves room for an answer in the window."""
    try:
        return bool(template.prompt(row.prompt))
    except PromptTooLong:
        return False


class Bench(NamedTuple):
    """What all methods of a seed share.

    judged: the held-out answers whose rewards differ, the better one of each pair first; ref: what the reference says
    of each of them, its log-probability.
    """

    start: Start
    labels: Labels
    judged: list[Encoded]
    ref: Tensor


def one_seed(plan: Plan, shared: Material, seed: int, folder: Path) -> dict[str, dict[str, Any]]:
    """What is measured of every method; what they share is made when one first needs it."""
    bench, found = None, {}
    for method in METHODS:
        out = RunFolder(folder / method, plan)
        finished = out.path / "summary.json"
        if not finished.is_file():
            bench = bench or prepare(plan, shared, seed, RunFolder(folder / "reference", plan))
            out.write_json(finished.name, one_method(plan, bench, method, out))
        found[method] = json.loads(finished.read_text(encoding="utf-8"))
    return found


def prepare(plan: Plan, shared: Material, seed: int, out: RunFolder) -> Bench:
    """The reference, which has imitated all answers that are there to learn from, and what follows from it."""
    template, answers = shared.template, encoded(shared.learned, shared.template)
    policy = tiny_policy(len(template.tokenizer), hidden=plan.hidden, max_positions=plan.window, seed=seed)
    settings = FitSettings(batch_size=plan.batch, optimiser=adamw(3e-3, "linear"), seed=seed)
    order = Lasting(Shuffled(len(answers), plan.batch, 1, seed), plan.sft_steps)
    fit(SftTask(policy, template.pad_id), answers, [], settings, out, stage="sft", order=order)
    start = Start(policy.eval().requires_grad_(False), template, seed)
    judged = encoded([row for row in shared.held_out if len(set(row.rewards or ())) > 1], template)
    return Bench(start, annotated(plan, shared, start), judged, whole(policy, judged, template))


def whole(policy: nn.Module, rows: Sequence[Encoded], template: Template) -> Tensor:
    """(N,) the log-probabilities of whole answers."""
    return Reader(policy, template.pad_id).logprobs(rows).double().sum(-1)


def annotated(plan: Plan, shared: Material, start: Start) -> Labels:
    """What the stored rewards make of the answers, less those that teach the value head."""
    order = np.random.default_rng(start.seed).permutation(len(shared.learned))
    known, rest = ([shared.learned[i] for i in part] for part in (order[: plan.known], order[plan.known :]))
    rows = [encoded(part, start.template) for part in (known, rest)]
    earned, given = ([link(logit) for row in part for logit in row.rewards or ()] for part in (known, rest))
    labels = labelled(start, rows[0], earned, rows[1], given, plan)
    # PRO weighs by the gaps between raw rewards, which here are logits.
    raw = {row.id: tuple(plan.gap * logit for logit in row.rewards or ()) for row in rest}
    return labels._replace(pairs=[replace(pair, quality=raw[pair.id]) for pair in labels.pairs])


def encoded(records: Sequence[Ranked], template: Template) -> list[Encoded]:
    """Both answers of every record, the better one first."""
    return [template.answered(row.prompt.answer(text)) for row in records for text in row.responses]


def link(logit: float) -> float:
    """The sigmoid of a logit: a reward between 0 and 1.

    >>> link(0.0)
    0.5
    """
    return 1 / (1 + math.exp(-logit))


def one_method(plan: Plan, bench: Bench, method: Method | Ranking, out: RunFolder) -> dict[str, Any]:
    """Train the reference by a method, and judge the held-out pairs."""
    began, labels = time.monotonic(), bench.labels
    policy = learn(plan, bench.start, labels, method, out)
    seconds = time.monotonic() - began
    right = prefers(policy, bench)
    kept = sum(row.advantage > 0 for row in labels.rows) / len(labels.rows)
    return {
        "seed": bench.start.seed,
        "right": rate(sum(right), len(right)).to_dict(),
        "pairs": "".join(str(int(one)) for one in right),
        "kept": kept if method.startswith("a_lol") else None,
        "value": labels.value.to_dict(),
        "seconds": round(seconds, 1),
    }


def prefers(policy: nn.Module, bench: Bench) -> list[bool]:
    """For every held-out pair whether log pi - log pi_ref per token is higher for the better answer."""
    tokens = torch.tensor([row.length - row.prompt_length for row in bench.judged])
    lead = (whole(policy, bench.judged, bench.start.template) - bench.ref) / tokens
    better, worse = lead.view(-1, 2).unbind(-1)
    return (better > worse).tolist()


def criteria(arms: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[dict[str, Any]]:
    """The criterion with what was measured, and whether it holds; one seed is no evidence."""
    if len(arms["nll"]) < 2:
        return [criterion("a_lol_over_nll", [], 1.0)]
    ours, theirs = (_by_pair(arms[name]) for name in ("a_lol", "nll"))
    gain = paired_bootstrap(ours, theirs, seed=0)
    return [{"name": "a_lol_over_nll", "holds": gain.low > 0, **gain.to_dict(), "needed": "low > 0"}]


def _by_pair(ones: Sequence[Mapping[str, Any]]) -> NDArray[np.float64]:
    """How often each held-out pair was judged right, the mean over the seeds."""
    return np.array([[int(flag) for flag in one["pairs"]] for one in ones], dtype=np.float64).mean(0)


def table(result: Mapping[str, Any]) -> str:
    """The result as a Markdown table: the share of held-out pairs judged right, mean and range over the seeds."""
    lines = []
    for name, ones in result["arms"].items():
        found = [one["right"]["value"] for one in ones]
        shown = interval({"value": float(np.mean(found)), "low": min(found), "high": max(found)})
        kept = "-" if ones[0]["kept"] is None else f"{np.mean([one['kept'] for one in ones]):.2f}"
        lines.append([name, shown, kept, f"{np.mean([one['seconds'] for one in ones]):.1f}"])
    facts = f"{result['pairs learned']} pairs to learn from, {result['pairs held out']} held out."
    return markdown(["method", "held-out pairs judged right", "answers kept", "seconds"], lines) + "\n\n" + facts
