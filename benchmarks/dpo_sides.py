"""The two sides of `dpo.py`: steps of DPO by holdfast or by TRL, on what a `Case` describes.

Both train the same network on the same pairs, in the same order, held to the same reference. A side runs in a process
of its own and prints what it measured:

    python benchmarks/dpo_sides.py holdfast '{"size": "5M", "prompt": 256, "response": 128}'
"""

import copy
import gc
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from grpo_sides import BETAS, EPSILON, LEARNING_RATE, peak_mb
from grpo_world import FIRST_WORD, PAD, SIZES, reference_of, tokenizer
from torch import Tensor, nn
from transformers import PreTrainedModel

from holdfast.data.template import Encoded
from holdfast.engine.log import RunFolder
from holdfast.engine.order import Shuffled
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.reading import Reader
from holdfast.training.ranked import DpoSettings, DpoTask, RankedRow
from holdfast.training.ranked import reference_of as read_reference

BETA = 0.1


@dataclass(frozen=True)
class Case:
    """What one process runs.

    prompt, response: tokens on average; spread: share of them by which a length may differ. rows: pairs in one forward
    and backward pass of TRL, all of a step when 0; precompute: TRL reads its reference before training, not in every
    step; micro_tokens: tokens in one pass of ours.
    """

    size: str
    prompt: int
    response: int
    spread: float = 0.0
    pairs: int = 8
    steps: int = 4
    threads: int = 2
    seed: int = 0
    rows: int = 0
    precompute: bool = True
    micro_tokens: int = 16384

    @property
    def tokens(self) -> float:
        """Tokens of a step, on average, as both sides are given them."""
        return 2 * self.pairs * (self.prompt + self.response)


def build(case: Case) -> PreTrainedModel:
    """Return the policy that both sides begin with."""
    size = SIZES[case.size]
    return tiny_policy(
        size.vocabulary,
        kind="qwen2",
        hidden=size.hidden,
        layers=size.layers,
        heads=max(size.hidden // 64, 2),
        max_positions=2 * (case.prompt + case.response),
    )


def pairs(case: Case) -> list[RankedRow]:
    """Return pairs of random words, for one step more than is timed."""
    draw = torch.Generator().manual_seed(case.seed + 1)

    def words(mean: int) -> list[int]:
        length = mean * (1 + case.spread * (2 * torch.rand((), generator=draw).item() - 1))
        return torch.randint(FIRST_WORD, SIZES[case.size].vocabulary, (max(round(length), 1),), generator=draw).tolist()

    def row(number: int) -> RankedRow:
        start = words(case.prompt)
        return RankedRow(str(number), tuple(_encoded(start, words(case.response)) for _ in range(2)))

    return [row(number) for number in range((case.steps + 1) * case.pairs)]


def _encoded(prompt: list[int], answer: list[int]) -> Encoded:
    mask = [False] * len(prompt) + [True] * len(answer)
    return Encoded([*prompt, *answer], mask, mask, len(mask) - 1, len(prompt))


def order(case: Case) -> list[int]:
    """Return the places of the pairs in the order in which holdfast takes them."""
    shuffled = Shuffled((case.steps + 1) * case.pairs, case.pairs, 1, case.seed)
    return [i for step in range(1, shuffled.steps + 1) for i in shuffled.chosen(step)]


def holdfast(case: Case, policy: PreTrainedModel, reference: PreTrainedModel, folder: str) -> dict[str, Any]:
    """Train with `training.ranked`; return numbers and seconds of each step, and seconds of the reference."""
    reader, rows = Reader(reference, PAD, micro_tokens=case.micro_tokens), pairs(case)
    first = read_reference(rows[: case.pairs], reader)
    began = time.perf_counter()
    rows = [*first, *read_reference(rows[case.pairs :], reader)]
    spent = time.perf_counter() - began
    optimiser = OptimiserSettings(
        learning_rate=LEARNING_RATE, betas=BETAS, eps=EPSILON, schedule="constant", warmup_ratio=0.0
    )
    settings = FitSettings(batch_size=case.pairs, micro_tokens=case.micro_tokens, optimiser=optimiser, seed=case.seed)
    fit(DpoTask(policy, PAD, DpoSettings(beta=BETA)), rows, [], settings, RunFolder(folder), stage="policy")
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    numbers = [{"loss": line["preference"], "lead": line["lead"], "grad_norm": line["grad_norm"]} for line in lines]
    seconds = [after["seconds"] - before["seconds"] for before, after in pairwise(lines)]
    return {"rows": numbers, "seconds": seconds, "reference": spent / max(case.steps, 1)}


def trl(case: Case, policy: PreTrainedModel, reference: PreTrainedModel, folder: str) -> dict[str, Any]:
    """Train with TRL's `DPOTrainer`, in float32 and without recomputing activations; return as `holdfast` does."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import DPOTrainer

    ends: list[float] = []
    batches: list[float] = []

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            ends.append(time.perf_counter())

    class Clocked(DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *others: Any) -> Any:
            return dataset  # it is tokenised

        def compute_ref_log_probs(self, model: Any, inputs: Any) -> Any:
            began = time.perf_counter()
            found = super().compute_ref_log_probs(model, inputs)
            batches.append(time.perf_counter() - began)
            return found

    rows = pairs(case)
    ids = [
        {
            "prompt_ids": better.ids[: better.prompt_length],
            "chosen_ids": better.response_ids,
            "rejected_ids": worse.response_ids,
        }
        for better, worse in (rows[i].answers for i in order(case))
    ]
    trainer = Clocked(
        policy,
        ref_model=None if reference is policy else reference,
        args=trl_settings(case, folder),
        train_dataset=Dataset.from_list(ids),
        processing_class=tokenizer({f"w{i}": i for i in range(FIRST_WORD, SIZES[case.size].vocabulary)}),
        callbacks=[Ends()],
    )
    gc.collect()
    trainer.train()
    names = {"loss": "loss", "lead": "rewards/margins", "grad_norm": "grad_norm"}
    numbers = [{ours: log[name] for ours, name in names.items()} for log in trainer.state.log_history if "loss" in log]
    # The first batch of the reference, like the first step, warms up.
    each = case.pairs / (case.rows or case.pairs) * sum(batches[1:]) / max(len(batches) - 1, 1)
    return {"rows": numbers, "seconds": [b - a for a, b in pairwise(ends)], "reference": each}


def trl_settings(case: Case, folder: str) -> Any:
    """Return TRL's configuration: its defaults where they say the same as ours."""
    from trl import DPOConfig

    rows = case.rows or case.pairs
    return DPOConfig(
        folder, max_steps=case.steps + 1, per_device_train_batch_size=rows,
        gradient_accumulation_steps=case.pairs // rows, precompute_ref_log_probs=case.precompute, beta=BETA,
        max_length=None, learning_rate=LEARNING_RATE, lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0,
        adam_beta1=BETAS[0], adam_beta2=BETAS[1], adam_epsilon=EPSILON, max_grad_norm=1.0, optim="adamw_torch_fused",
        bf16=False, gradient_checkpointing=False, train_sampling_strategy="sequential", use_cpu=True,
        dataloader_pin_memory=False, dataloader_num_workers=0, logging_steps=1, save_strategy="no", report_to="none",
        disable_tqdm=True,
    )  # fmt: skip


SIDES = {"trl": trl, "holdfast": holdfast}


def measure(side: str, case: Case, moved: str | None) -> dict[str, Any]:
    """Run one side; return its numbers, seconds and peak memory.

    moved: hold it to a reference some way off, and write there how far each parameter has moved at the end.
    """
    torch.set_num_threads(case.threads)
    before, policy = peak_mb("cpu"), build(case)
    reference = policy
    if moved:
        reference = reference_of(policy)
    elif side == "trl" and not case.precompute:
        reference = copy.deepcopy(policy)
    start = _flat(policy) if moved else None
    with tempfile.TemporaryDirectory() as folder:
        found = SIDES[side](case, policy, reference, folder)
    if moved:
        torch.save(_flat(policy) - start, moved)
    parameters = sum(weight.numel() for weight in policy.parameters())
    return found | {"parameters": parameters, "peak_mb": peak_mb("cpu"), "before_mb": before}


def _flat(policy: nn.Module) -> Tensor:
    return torch.cat([weight.detach().double().flatten() for weight in policy.parameters()])


if __name__ == "__main__":
    name, text, *rest = sys.argv[1:]
    print(json.dumps(measure(name, Case(**json.loads(text)), rest[0] if rest else None)))
