"""The two sides of `grpo.py` and `gpu.py`: steps of GRPO by holdfast or by TRL, on what a `Case` describes.

Both build the same networks, prompts and settings. A side runs in a process of its own and prints what it measured:

    python benchmarks/grpo_sides.py holdfast '{"size": "5M", "prompt": 64, "response": 64}'
"""

import gc
import json
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial, wraps
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from grpo_world import EOS, PAD, Answers, Case, World, build, cast, given_answers, reference_of
from torch import Tensor, nn

from holdfast.data.collate import pad
from holdfast.data.schema import Conversation
from holdfast.data.template import Encoded, Template
from holdfast.engine.log import RunFolder
from holdfast.engine.online import OnlineSettings, run_online
from holdfast.engine.step import OptimiserSettings
from holdfast.models.policy import evaluating, response_logprobs
from holdfast.preference.score import ModelScorer
from holdfast.rollout.experience import Collector, RolloutSettings
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.types import Generator, Sample, Sampling

LEARNING_RATE, BETAS, CLIP, KL = 1e-5, (0.9, 0.95), 0.2, 0.04
# Far above the usual 1e-8, with which AdamW's first step is the gradient's sign, and that of small ones is rounding.
EPSILON = 1e-3
PHASES = ("generate", "reference", "score")


class Given:
    """A `Generator` that gives answers known before, with the policy's log-probabilities."""

    foreign = False

    def __init__(self, policy: nn.Module, answers: Answers) -> None:
        self.policy, self.answers = policy, answers

    def generate(self, prompts: Sequence[Encoded], n: int, sampling: Sampling, seed: int) -> list[Sample]:
        """Return the n answers to each prompt."""
        rows = [(i, prompt.ids, ids) for i, prompt in enumerate(prompts) for ids in self.answers[tuple(prompt.ids)]]
        batch = pad([_row(prompt, ids) for _, prompt, ids in rows], pad_id=PAD)
        batch = batch.to(next(self.policy.parameters()).device)
        tokens = (batch.input_ids, batch.attention_mask, batch.position_ids, batch.response_mask)
        with evaluating(self.policy):
            values = response_logprobs(self.policy, *tokens)[batch.response_mask]
        parts = values.float().cpu().split([len(ids) for _, _, ids in rows])
        return [
            Sample(i, prompt, ids, part.tolist(), "stop" if ids[-1] == EOS else "length")
            for (i, prompt, ids), part in zip(rows, parts)
        ]


def _row(prompt: list[int], answer: list[int]) -> Encoded:
    mask = [False] * len(prompt) + [True] * len(answer)
    return Encoded([*prompt, *answer], mask, mask, len(mask) - 1, len(prompt))


def holdfast(case: Case, world: World, folder: str, answers: Answers | None) -> dict[str, Any]:
    """Train with `training.grpo`; return the rows of numbers of all steps, and the seconds of the timed ones."""
    from holdfast.training.grpo import Grpo, GrpoSettings
    from holdfast.training.policy import Limits

    policy = world.policy
    template = Template(world.tokenizer, max_length=case.prompt + case.response + 1)
    scorer = ModelScorer(world.scorer, template, case.micro_tokens)
    sampler: Generator = Given(policy, answers) if answers else TransformersGenerator(policy, (EOS,), PAD)
    collector = Collector(
        policy=policy,
        reference=partial(evaluating, reference_of(policy)),
        generator=sampler,
        template=template,
        score=lambda conversations: {"reward": scorer.score(conversations)[:, 0]},
        settings=RolloutSettings(
            samples_per_prompt=case.group,
            sampling=Sampling(max_new_tokens=case.response, temperature=1.0),
            micro_tokens=case.micro_tokens,
        ),
    )
    settings = GrpoSettings(
        scalarise={"mode": "sum_then_normalise", "std_floor": 0.0, "eps": 1e-4, "clip": None},
        kl={"coef": 0.0, "in_loss": KL, "estimator": "ratio_k3"},
        loss={"clip": CLIP, "clip_high": CLIP, "mean": "token_mean"},
        overlong="none",
        dead="keep",
        seed=case.seed,
    )
    optimiser = OptimiserSettings(
        learning_rate=LEARNING_RATE, betas=BETAS, eps=EPSILON, schedule="constant", warmup_ratio=0.0
    )
    prompts = [Conversation.ask(text, id=str(i)) for i, text in enumerate(world.texts)]
    steps = 1 if answers else case.steps + 1
    online = OnlineSettings(
        iterations=steps, prompts_per_iteration=case.prompts, checkpoint_every=0, sample_every=0, seed=case.seed
    )
    run_online(
        Grpo(collector, settings, optimiser, Limits([])),
        prompts[: steps * case.prompts],
        online,
        RunFolder(folder),
        stage="policy",
    )
    rows = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    totals = [{name: row[f"seconds/{name}"] for name in PHASES} | {"step": row["seconds"]} for row in rows]
    # The clock of a row runs on, those of its phases begin anew.
    steps_alone = [b | {"step": b["step"] - a["step"]} for a, b in pairwise(totals)]
    return {"rows": [_plain(row) for row in rows], "seconds": steps_alone}


def _plain(row: dict[str, float]) -> dict[str, float]:
    """The numbers of one of holdfast's rows that are compared."""
    loss = row["policy/policy"] + KL * row["policy/kl"]
    named = {"loss": loss, "reward": row["reward"], "kl": row["policy/kl"], "grad_norm": row["policy/grad_norm"]}
    return named | {"length": row["length"]}


def trl(case: Case, world: World, folder: str, answers: Answers | None) -> dict[str, Any]:
    """Train with TRL's `GRPOTrainer`, in the case's precision and without recomputing; return as `holdfast` does."""
    from datasets import Dataset

    # Holdfast's score heads stay in float32; TRL calls the network as it is.
    policy, scorer = world.policy, cast(world.scorer.network, case.dtype)
    # TRL loads the reference from where the policy says that it came from.
    reference_of(policy).save_pretrained(f"{folder}/reference")
    world.tokenizer.save_pretrained(f"{folder}/reference")
    policy.config._name_or_path = f"{folder}/reference"
    scorer.config._name_or_path = "reward"
    gc.collect()
    clock = Clock(case.device)
    trainer = clocked_trainer(clock, answers)(
        model=policy,
        reward_funcs=scorer,
        args=trl_settings(case, folder, 1 if answers else case.steps + 1),
        train_dataset=Dataset.from_list([{"prompt": [{"role": "user", "content": text}]} for text in world.texts]),
        processing_class=world.tokenizer,
        reward_processing_classes=world.tokenizer,
    )
    trainer.train()
    names = {"length": "completions/mean_length", **{name: name for name in ("loss", "reward", "kl", "grad_norm")}}
    rows = [{ours: log[name] for ours, name in names.items()} for log in trainer.state.log_history if "loss" in log]
    steps = [{name: b[name] - a[name] for name in b} for a, b in pairwise(clock.steps)]
    return {"rows": rows, "seconds": steps}


def trl_settings(case: Case, folder: str, steps: int) -> Any:
    """Return TRL's configuration: its defaults where they say the same as ours, the fastest one where they may."""
    from trl import GRPOConfig

    passes = case.answers // (case.rows or case.answers)
    return GRPOConfig(
        folder, max_steps=steps, per_device_train_batch_size=case.rows or case.answers,
        gradient_accumulation_steps=passes, steps_per_generation=passes, num_generations=case.group,
        max_completion_length=case.response, temperature=1.0, top_p=1.0, top_k=0, beta=KL, epsilon=CLIP,
        num_iterations=1, loss_type="dapo", scale_rewards="group", learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant", warmup_steps=0, weight_decay=0.0, adam_beta1=BETAS[0], adam_beta2=BETAS[1],
        adam_epsilon=EPSILON, max_grad_norm=1.0, optim="adamw_torch_fused", bf16=False,
        gradient_checkpointing=False, disable_dropout=True, shuffle_dataset=False, use_cpu=case.device == "cpu",
        dataloader_pin_memory=False, dataloader_num_workers=0, logging_steps=1, save_strategy="no",
        report_to="none", disable_tqdm=True, seed=case.seed + 1, use_vllm=case.sampler == "vllm",
        vllm_mode="colocate", vllm_gpu_memory_utilization=0.3,
    )  # fmt: skip


class Clock:
    """Seconds spent in named phases so far, noted at the end of every step."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.spent = dict.fromkeys(PHASES, 0.0)
        self.steps: list[dict[str, float]] = []

    def now(self) -> float:
        """The time, when all that was asked of the device is done."""
        if self.device != "cpu":
            torch.cuda.synchronize()
        return time.perf_counter()

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Add the time inside the block to the phase."""
        began = self.now()
        yield
        self.spent[name] += self.now() - began

    def around(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return the function inside a phase."""

        @wraps(function)
        def run(*given: Any, **named: Any) -> Any:
            with self.phase(name):
                return function(*given, **named)

        return run


def clocked_trainer(clock: Clock, answers: Answers | None) -> type:
    """Return TRL's trainer with a clock around its phases, and with the answers instead of sampling, if given."""
    from transformers import TrainerCallback
    from trl import GRPOTrainer

    class Ends(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            clock.steps.append(dict(clock.spent) | {"step": clock.now()})

    class Clocked(GRPOTrainer):
        def __init__(self, *given: Any, **named: Any) -> None:
            super().__init__(*given, **named, callbacks=[Ends()])
            self._generate_single_turn = clock.around("generate", self._generate_single_turn)
            self._calculate_rewards = clock.around("score", self._calculate_rewards)

        def _get_per_token_logps_and_entropies(self, model: Any, *given: Any, **named: Any) -> Any:
            read = partial(super()._get_per_token_logps_and_entropies, model, *given, **named)
            return clock.around("reference", read)() if model is self.ref_model else read()

    class Answered(Clocked):
        def _generate_single_turn(self, prompt_ids: list[list[int]], *others: Any, **named: Any) -> Any:
            rest = {prompt: iter(given) for prompt, given in (answers or {}).items()}
            return [next(rest[tuple(ids)]) for ids in prompt_ids], None

    return Answered if answers else Clocked


SIDES = {"trl": trl, "holdfast": holdfast}


def measure(side: str, case: Case, moved: str | None) -> dict[str, Any]:
    """Run one side; return its numbers, seconds and peak memory.

    moved: take one step on given answers instead, and write there how far each parameter moved.
    """
    torch.set_num_threads(case.threads)
    before = peak_mb("cpu")
    world = build(case)
    answers = given_answers(case, world) if moved else None
    start = _flat(world.policy) if moved else None
    with tempfile.TemporaryDirectory() as folder:
        found = SIDES[side](case, world, folder, answers)
    if moved:
        torch.save(_flat(world.policy) - start, moved)
    parameters = sum(weight.numel() for weight in world.policy.parameters())
    return found | {"parameters": parameters, "peak_mb": peak_mb(case.device), "before_mb": before}


def _flat(policy: nn.Module) -> Tensor:
    return torch.cat([weight.detach().double().cpu().flatten() for weight in policy.parameters()])


def peak_mb(device: str) -> float:
    """Return the most memory in MB that the process has held, or has allocated on another device."""
    if device != "cpu":
        return torch.cuda.max_memory_allocated() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    name, text, *rest = sys.argv[1:]
    print(json.dumps(measure(name, Case(**json.loads(text)), rest[0] if rest else None)))
