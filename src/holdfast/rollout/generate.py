"""Responses from a transformers policy in this process.

Two things make it fast, and neither changes a token: a prompt is read once for all its samples, and a row
that has ended leaves the batch.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.template import Encoded
from holdfast.errors import UserError
from holdfast.models.policy import check_images, evaluating, unwrapped
from holdfast.rollout.sample import distribution, draw, uniforms
from holdfast.rollout.types import Sample, Sampling


class TransformersGenerator:
    """A `Generator` over a policy; it leaves the policy's weights, mode and random state alone.

    stop_ids end a response; pad_id fills up prompts (any id will do); batch_tokens bounds rows times length of a
    decode batch, and so its cache, except that the n samples of one prompt always stay together.
    """

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
        with evaluating(self.policy):
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
    rows = _Rows(policy, prompts, n, sampling)
    device = rows.logits.device
    uniform = uniform.to(device)
    stops = torch.tensor(stop_ids, dtype=torch.long, device=device)
    tokens = torch.zeros(uniform.shape, dtype=torch.long, device=device)
    logprobs = torch.zeros(uniform.shape, device=device)
    lengths = torch.zeros(len(uniform), dtype=torch.long, device=device)
    stopped = torch.zeros(len(uniform), dtype=torch.bool, device=device)
    for step in range(uniform.shape[1]):
        log_p = distribution(rows.logits, sampling, rows.seen)
        token = log_p.argmax(-1) if sampling.greedy else draw(log_p, uniform[rows.index, step])
        tokens[rows.index, step] = token
        logprobs[rows.index, step] = log_p.gather(-1, token[:, None]).squeeze(-1)
        lengths[rows.index] = step + 1
        ended = torch.isin(token, stops)
        stopped[rows.index] = ended
        if ended.all() or step + 1 == uniform.shape[1]:
            break
        rows.advance(token, ended)
    return [
        (ids[:length], values[:length], "stop" if stop else "length")
        for ids, values, length, stop in zip(tokens.tolist(), logprobs.tolist(), lengths.tolist(), stopped.tolist())
    ]


class _Rows:
    """The rows still being decoded: their cache, and the logits (R, V) of their next token.

    index: which of the original rows each of them is; seen: ids that occurred, kept only for a repetition
    penalty.
    """

    def __init__(self, policy: nn.Module, prompts: Batch, n: int, sampling: Sampling) -> None:
        self.model = unwrapped(policy)
        check_images(self.model, prompts.extra)
        prompts = prompts.to(self.model.device)
        self.cache = DynamicCache(config=self.model.config.get_text_config())
        # A mask that hides nothing costs a (rows x length) tensor per step; without padding there is none.
        padded = not bool(prompts.attention_mask.all())
        logits = self._forward(
            prompts.input_ids,
            prompts.attention_mask if padded else None,
            prompts.position_ids,
            **prompts.extra,
        )
        self.cache.batch_repeat_interleave(n)
        self.logits = logits.repeat_interleave(n, dim=0)
        self.mask = prompts.attention_mask.repeat_interleave(n, dim=0) if padded else None
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
        if self.mask is not None:
            self.mask = torch.cat([self.mask, self.mask.new_ones(len(token), 1)], dim=1)
        self.logits = self._forward(token[:, None], self.mask, self.position[:, None])
        self.position = self.position + 1

    def _drop(self, ended: Tensor, token: Tensor) -> Tensor:
        keep = (~ended).nonzero().squeeze(-1)
        self.cache.batch_select_indices(keep)
        self.index, self.position = self.index[keep], self.position[keep]
        self.mask = None if self.mask is None else self.mask[keep]
        self.seen = None if self.seen is None else self.seen[keep]
        return token[keep]

    def _forward(self, ids: Tensor, mask: Tensor | None, position: Tensor, **images: Tensor) -> Tensor:
        outputs = self.model(
            input_ids=ids,
            attention_mask=mask,
            position_ids=position,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
            **images,
        )
        return outputs.logits[:, -1]
