"""The plain way to answer prompts: every prompt repeated n times, and none leaves before the last has ended.

It is the other side of `benchmarks/rollout.py` and the oracle of the rollout tests, so it shares no code with
`holdfast.rollout`: only the uniform numbers come from outside.
"""

import torch
from torch import Tensor, nn
from transformers import DynamicCache


@torch.no_grad()
def naive_generate(
    policy: nn.Module,
    prompts: list[list[int]],
    n: int,
    uniform: Tensor,
    stop_ids: list[int],
    temperature: float = 1.0,
    images: dict[str, Tensor] | None = None,
) -> list[tuple[list[int], list[float]]]:
    """Return ids and log-probabilities of n responses per prompt; row r draws token t by `uniform[r, t]`."""
    rows = [prompt for prompt in prompts for _ in range(n)]
    width = max(map(len, rows))
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    extra = {name: value.repeat_interleave(n, dim=0) for name, value in (images or {}).items()}
    cache = DynamicCache()
    tokens: list[Tensor] = []
    logprobs: list[Tensor] = []
    ended = torch.zeros(len(rows), dtype=torch.bool)
    for step in range(uniform.shape[1]):
        positions = (mask.cumsum(-1) - 1).clamp(min=0)[:, -ids.shape[1] :]
        outputs = policy(
            input_ids=ids, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True,
            logits_to_keep=1, **(extra if step == 0 else {}),
        )  # fmt: skip
        log_p = (outputs.logits[:, -1].float() / temperature).log_softmax(-1)
        heights = log_p.double().exp().cumsum(-1)
        token = (heights <= uniform[:, step, None] * heights[:, -1:]).sum(-1)
        tokens.append(token)
        logprobs.append(log_p.gather(-1, token[:, None])[:, 0])
        ended |= (token[:, None] == torch.tensor(stop_ids)).any(-1)
        if ended.all():
            break
        ids, mask = token[:, None], torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return [
        _until_stop(row, values, stop_ids)
        for row, values in zip(torch.stack(tokens, 1).tolist(), torch.stack(logprobs, 1).tolist())
    ]


def _until_stop(ids: list[int], values: list[float], stop_ids: list[int]) -> tuple[list[int], list[float]]:
    length = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), len(ids))
    return ids[:length], values[:length]
