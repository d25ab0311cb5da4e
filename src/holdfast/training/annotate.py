"""What offline methods need to know of given answers: V(x), the advantage, and the reference's log-probabilities.

One forward pass of the frozen reference gives both, the states of the prompt and the log-probabilities of the answer
(A-LoL, arXiv 2305.14718, loads the reference beside the policy and reads it at every step instead). What was found lies
in plain files with the hashes of all that it follows from, and is refused when one of these has changed.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from holdfast.data.template import Encoded
from holdfast.errors import UserError
from holdfast.losses.offline import advantages
from holdfast.models.load import sha256
from holdfast.models.policy import evaluating
from holdfast.models.value import ValueHead, network_digest
from holdfast.rollout.experience import places
from holdfast.rollout.ragged import Ragged
from holdfast.rollout.reading import Reader

ROWS, LOGPROBS, CARD = "annotations.jsonl", "ref_logprobs.safetensors", "annotations.json"
COLUMNS = ("reward", "value", "advantage", "truncated")
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
_WORDS = {
    "rows": "the answers or their rewards",
    "reference": "the weights of the reference",
    "value_head": "the value head",
    "scorer": "what scored the answers",
    "margin": "the margin",
    "temperature": "the temperature",
}


@dataclass(frozen=True)
class Annotations:
    """What is known of N answers, in their order.

    rewards, value, advantage: (N,), the last being R - V(x) + margin, also below zero; ref: (N, T) log-probabilities of
    the reference, column t being the t-th token of the response, zero behind its end; lengths: tokens of each response;
    truncated: (N,) true where an answer did not end by itself; components: (N,) what the reward was made of, by name;
    facts: what all this follows from, see `facts_of`.
    """

    ids: tuple[str, ...]
    rewards: Tensor
    value: Tensor
    advantage: Tensor
    ref: Tensor
    lengths: tuple[int, ...]
    truncated: Tensor
    facts: Mapping[str, Any]
    components: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.ids)

    def ref_of(self, row: int) -> Tensor:
        """(T,) the reference's log-probabilities of the tokens of one response, without padding."""
        return self.ref[row, : self.lengths[row]]

    @property
    def kept(self) -> Tensor:
        """(N,) true where an answer is better than what the reference earns: its advantage is above zero."""
        return self.advantage > 0

    def summary(self) -> dict[str, Any]:
        """Counts of all, kept and truncated answers, the share kept, means, and quantiles of the advantage."""
        quantiles = torch.quantile(self.advantage.double(), torch.tensor(QUANTILES, dtype=torch.float64))
        return {
            "answers": len(self),
            "kept": int(self.kept.sum()),
            "kept_share": float(self.kept.double().mean()),
            "truncated": int(self.truncated.sum()),
            "mean_reward": float(self.rewards.double().mean()),
            "mean_value": float(self.value.double().mean()),
            "advantage_quantiles": dict(zip(map(str, QUANTILES), quantiles.tolist())),
        }

    def save(self, folder: str | Path) -> Path:
        """Write the three files to `folder` and return it; the card with hashes comes last and makes them whole."""
        path = Path(folder)
        path.mkdir(parents=True, exist_ok=True)
        (path / CARD).unlink(missing_ok=True)
        lines = "".join(json.dumps(row, allow_nan=False) + "\n" for row in self._rows())
        (path / ROWS).write_text(lines, encoding="utf-8")
        columns = {"logprobs": Ragged(self.lengths).flat(self.ref), "lengths": torch.tensor(self.lengths)}
        save_file(columns, path / LOGPROBS)
        files = {name: sha256(path / name) for name in (ROWS, LOGPROBS)}
        card = {"facts": dict(self.facts), "summary": self.summary(), "files": files}
        (path / CARD).write_text(json.dumps(card, indent=2) + "\n", encoding="utf-8")
        return path

    @classmethod
    def load(cls, folder: str | Path, expected: Mapping[str, Any]) -> "Annotations":
        """Return the annotations in `folder` that follow from `expected` (`facts_of` what there is now).

        Raises `UserError` for stale annotations, naming what has changed since, and for missing or changed files.
        """
        path = Path(folder)
        missing = [name for name in (CARD, ROWS, LOGPROBS) if not (path / name).is_file()]
        if missing:
            raise UserError(f"{path} lacks {', '.join(missing)}, so its annotations are not whole; annotate again")
        try:
            card = json.loads((path / CARD).read_text(encoding="utf-8"))
            facts, files = card["facts"], card["files"]
            damaged = [name for name in (ROWS, LOGPROBS) if sha256(path / name) != files[name]]
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path / CARD} cannot be read ({error!r}); annotate again") from error
        if damaged:
            raise UserError(f"{' and '.join(damaged)} in {path} changed after they were written; annotate again")
        stale = [_WORDS.get(name, name) for name in {**expected, **facts} if facts.get(name) != expected.get(name)]
        if stale:
            raise UserError(f"stale annotations in {path}: {', '.join(stale)} changed since; annotate again")
        return cls._read(path, facts)

    def _rows(self) -> list[dict[str, Any]]:
        columns = {
            "id": self.ids,
            "reward": self.rewards.tolist(),
            "components": [{name: float(each[i]) for name, each in self.components.items()} for i in range(len(self))],
            "value": self.value.tolist(),
            "advantage": self.advantage.tolist(),
            "ref_logprob": self.ref.sum(-1).tolist(),
            "truncated": self.truncated.tolist(),
        }
        return [dict(zip(columns, row)) for row in zip(*columns.values())]

    @classmethod
    def _read(cls, path: Path, facts: Mapping[str, Any]) -> "Annotations":
        """The annotations of files that are as they were written."""
        rows = [json.loads(line) for line in (path / ROWS).read_text(encoding="utf-8").splitlines()]
        stored = load_file(path / LOGPROBS)
        lengths = stored["lengths"].tolist()
        column = {name: torch.tensor([row[name] for row in rows]) for name in COLUMNS}
        parts = [row["components"] for row in rows]
        return cls(
            ids=tuple(row["id"] for row in rows),
            rewards=column["reward"],
            value=column["value"],
            advantage=column["advantage"],
            ref=Ragged(lengths).table(stored["logprobs"]),
            lengths=tuple(lengths),
            truncated=column["truncated"],
            facts=facts,
            components={name: torch.tensor([part[name] for part in parts]) for name in parts[0]},
        )


def annotate(
    reader: Reader,
    head: ValueHead,
    rows: Sequence[Encoded],
    rewards: Tensor,
    *,
    components: Mapping[str, Tensor] | None = None,
    scorer: str = "",
    margin: float = 0.0,
) -> Annotations:
    """Annotations of N answered rows with their rewards (N,), from one pass of the reference behind `reader`.

    head: V(x), on the states of the same reference; components: (N,) what the reward was made of; scorer: the hash or
    name of what gave it; margin: added to every advantage. Reference and head are read without dropout, whatever mode
    they are in. Raises `UserError` for rows without a reward, and when no answer has a positive advantage.
    """
    _refuse_missing(rows, rewards)
    device = next(reader.model.parameters()).device
    with evaluating(head.to(device)):
        ref, value = reader.logprobs_and_values(rows, head)
    rewards = rewards.float().cpu()
    advantage = advantages(rewards, value, margin)
    if not bool((advantage > 0).any()):
        raise UserError(
            f"none of {len(rows)} answers is better than what the reference earns on its prompt: rewards reach from "
            f"{float(rewards.min()):g} to {float(rewards.max()):g}, values from {float(value.min()):g} to "
            f"{float(value.max()):g}. Check that both are on one scale, give better answers, or raise the margin"
        )
    return Annotations(
        ids=tuple(row.id for row in rows),
        rewards=rewards,
        value=value,
        advantage=advantage,
        ref=ref,
        lengths=tuple(places(rows).lengths),
        truncated=torch.tensor([row.truncated for row in rows]),
        facts=facts_of(reader, head, rows, rewards, scorer=scorer, margin=margin),
        components={name: values.float() for name, values in (components or {}).items()},
    )


def facts_of(
    reader: Reader, head: ValueHead, rows: Sequence[Encoded], rewards: Tensor, *, scorer: str = "", margin: float = 0.0
) -> dict[str, Any]:
    """What annotations of these rows would follow from: hashes of rows, reference, head and scorer, and two numbers.

    Of the rows their ids, tokens, pictures and rewards count. Arguments are those of `annotate`.
    """
    digest = hashlib.sha256()
    for row, reward in zip(rows, rewards.float().tolist(), strict=True):
        pictures = [each.image.sha256 or each.image.path for each in row.images]
        digest.update(json.dumps([row.id, row.ids, row.prompt_length, row.truncated, pictures, reward]).encode())
    return {
        "rows": digest.hexdigest(),
        "reference": network_digest(reader.model),
        "value_head": head.digest,
        "scorer": scorer,
        "margin": margin,
        "temperature": reader.temperature,
    }


def _refuse_missing(rows: Sequence[Encoded], rewards: Tensor) -> None:
    if not rows or rewards.shape != (len(rows),):
        raise ValueError(f"{len(rows)} answered rows need a reward each, got {tuple(rewards.shape)}")
    missing = (~rewards.isfinite()).nonzero()[:, 0].tolist()
    if missing:
        named = ", ".join(rows[i].id or f"number {i}" for i in missing[:5])
        raise UserError(
            f"{len(missing)} of {len(rows)} answers have no finite reward (rows {named}); score them again or drop them"
        )
