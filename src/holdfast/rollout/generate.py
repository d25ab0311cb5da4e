"""Responses from a transformers policy in this process.

Two things make it fast, and neither changes a token: a prompt is read and held once for all its samples, and a row
that has ended leaves the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.template import Encoded
from holdfast.errors import UserError
from holdfast.models.packed import packed
from holdfast.models.policy import check_images, evaluating, image_placeholder, unwrapped
from holdfast.rollout.cache import Cache, remembering
from holdfast.rollout.sample import distribution, draw, uniforms
from holdfast.rollout.types import Sample, Sampling


class TransformersGenerator:
    """A `Generator` over a policy; it leaves the policy's weights, mode and random state alone.

    stop_ids end a response; pad_id fills up prompts (any id will do); batch_tokens bounds rows times length of a
    decode batch, and so its cache, except that the n samples of one prompt always stay together.
    """

    foreign = False

    def __init__(self, policy: nn.Module, stop_ids: Sequence[int], pad_id: int, *, batch_tokens: int = 65_536) -> None:
        self.policy = policy
        self.stop_ids = tuple(stop_ids)
        self.pad_id = pad_id
        self.batch_tokens = batch_tokens

    def generate(self, prompts: Sequence[Encoded], n: int, sampling: Sampling, seed: int) -> list[Sample]:
        """Return n samples per prompt, prompt by prompt; equal arguments give equal samples.

        Raises `UserError` for an empty prompt, and when a prompt and its response exceed the model's window.
        """
        if n < 1:
            raise ValueError(f"n must be at least 1, got {n}")
        self._check(prompts, sampling)
        streams = torch.from_numpy(uniforms(seed, len(prompts) * n, sampling.max_new_tokens))
        samples: dict[int, Sample] = {}
        sizes = [n * (prompt.length + sampling.max_new_tokens) for prompt in prompts]
        with evaluating(self.policy), packed(self.policy):
            for group in micro_batches(sizes, self.batch_tokens):
                rows = [index * n + k for index in group for k in range(n)]
                batch = pad([prompts[index] for index in group], side="left", pad_id=self.pad_id)
                responses = decode(self.policy, batch, n, sampling, self.stop_ids, streams[rows])
                for row, response in zip(rows, responses):
                    samples[row] = Sample(row // n, list(prompts[row // n].ids), *response)
        return [samples[row] for row in range(len(prompts) * n)]

    def _check(self, prompts: Sequence[Encoded], sampling: Sampling) -> None:
        config = self.policy.config.get_text_config()
        window = getattr(config, "max_position_embeddings", None) or float("inf")
        for index, prompt in enumerate(prompts):
            if not prompt.length:
                raise UserError(f"prompt {index} ({prompt.id or 'no id'}) has no tokens; give at least one")
            if prompt.length + sampling.max_new_tokens > window:
                raise UserError(
                    f"prompt {index} ({prompt.id or 'no id'}) has {prompt.length} tokens, which with "
                    f"max_new_tokens={sampling.max_new_tokens} exceeds the model's window of {window}; "
                    "shorten the prompt or lower max_new_tokens"
                )


@torch.inference_mode()
def decode(
    policy: nn.Module, prompts: Batch, n: int, sampling: Sampling, stop_ids: Sequence[int], uniform: Tensor
) -> list[tuple[list[int], list[float], str]]:
    """Return ids, log-probabilities and finish of n responses per prompt of a left-padded batch.

    uniform: (R, S) with R = B n rows and S the most tokens a response may have.
    """
    model = unwrapped(policy)
    check_images(model, prompts.extra)
    prompts = prompts.to(model.device)
    uniform = uniform.to(model.device)
    stops = torch.tensor(stop_ids, dtype=torch.long, device=model.device)
    steps, placeholder = uniform.shape[1], image_placeholder(model)
    drawn: list[tuple[Tensor, Tensor, Tensor]] = []
    with remembering(model, prompts, n, steps) as (cache, logits):
        rows = _Rows(cache, logits, prompts, n, sampling)
        for step in range(steps):
            probabilities = distribution(_without(rows.logits, placeholder), sampling, rows.seen)
            token = probabilities.argmax(-1) if sampling.greedy else draw(probabilities, uniform[rows.index, step])
            drawn.append((rows.index, token, probabilities.gather(-1, token[:, None]).squeeze(-1).log()))
            ended = torch.isin(token, stops)
            if step + 1 == steps or bool(ended.all()):
                break
            rows.advance(token, ended)
    return _responses(drawn, len(uniform), stop_ids)


def _without(logits: Tensor, placeholder: int | None) -> Tensor:
    """The logits (R, V) of words; whoever reads an answer with a placeholder looks for one more picture."""
    if placeholder is not None:
        logits = logits.clone()
        logits[:, placeholder] = -torch.inf
    return logits


def _responses(
    drawn: list[tuple[Tensor, Tensor, Tensor]], rows: int, stop_ids: Sequence[int]
) -> list[tuple[list[int], list[float], str]]:
    """Row by row what was drawn step by step: which rows, their tokens, their log-probabilities."""
    index, tokens, logprobs = (torch.cat(column) for column in zip(*drawn))
    order = index.argsort(stable=True)
    lengths = index.bincount(minlength=rows).tolist()
    ids, values = (column[order].cpu().split(lengths) for column in (tokens, logprobs))
    return [
        (row.tolist(), value.tolist(), "stop" if int(row[-1]) in stop_ids else "length")
        for row, value in zip(ids, values)
    ]


class _Rows:
    """The rows still being decoded: their cache, and the logits (R, V) of their next token.

    index: which of the original rows each of them is; seen: ids that occurred, kept only for a repetition
    penalty.
    """

    def __init__(self, cache: Cache, logits: Tensor, prompts: Batch, n: int, sampling: Sampling) -> None:
        self.cache = cache
        self.logits = logits.repeat_interleave(n, dim=0)
        self.position = prompts.lengths.repeat_interleave(n)
        self.index = torch.arange(len(self.logits), device=logits.device)
        self.seen = None
        if sampling.repetition_penalty != 1:
            counts = torch.zeros_like(logits, dtype=torch.long)
            counts.scatter_add_(1, prompts.input_ids, prompts.attention_mask)
            self.seen = (counts > 0).repeat_interleave(n, dim=0)

    def advance(self, token: Tensor, ended: Tensor) -> None:
        """Append `token` (R,) to the rows that have not ended, and forget the others."""
        if bool(ended.any()):
            token = self._drop(ended, token)
        if self.seen is not None:
            self.seen.scatter_(1, token[:, None], True)
        self.logits = self.cache.read(token, self.position)
        self.position = self.position + 1

    def _drop(self, ended: Tensor, token: Tensor) -> Tensor:
        keep = _closed_up(ended)
        self.cache.keep(keep)
        self.index, self.position = self.index[keep], self.position[keep]
        self.seen = None if self.seen is None else self.seen[keep]
        return token[keep]


def _closed_up(ended: Tensor) -> Tensor:
    """Return the rows (R',) that stay, in places 0 to R'-1: most keep theirs, the last ones fill the gaps.

    >>> _closed_up(torch.tensor([False, True, False, False])).tolist()
    [0, 3, 2]
    """
    staying = (~ended).nonzero().squeeze(-1)
    rows = torch.arange(len(staying), device=ended.device)
    gaps = ended[: len(staying)].nonzero().squeeze(-1)
    rows[gaps] = staying[len(staying) - len(gaps) :]
    return rows
