"""What each saving in an iteration of PPO with one constraint is worth: in time, and in bytes of parameters.

Both sides of a saving are first compared: they must give the same numbers. Then they take turns, and the median of the
ratios is printed, with the forward passes that an iteration takes.

    python benchmarks/ppo.py --out benchmarks/ppo.json
"""

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from holdfast.data.collate import Batch, micro_batches, pad
from holdfast.data.template import Encoded
from holdfast.models.adapters import AdapterSettings, reference, with_adapter
from holdfast.models.heads import ScoreModel, critic_from, from_policy, with_score_adapter
from holdfast.models.policy import evaluating, hidden_states, logprobs_at, response_logprobs
from holdfast.models.tiny import tiny_policy
from holdfast.models.trunk import HeadsOnPolicy
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.types import Sample, Sampling

PAD = 0
SCORES, STREAMS = ("reward", "harm"), ("value", "value/harm")
LAYOUTS = ("a network each", "one critic with K heads", "heads on the policy")
# Passes over all tokens of the rollouts, one for each of LAYOUTS; learning is a forward pass and a backward one of two.
PASSES = {
    "log-probabilities of the sampler": (1, 0, 0),
    "log-probabilities of the reference": (1, 1, 1),
    "reward and cost": (2, 1, 1),
    "old values": (2, 1, 1),
    "learning, policy": (3, 3, 3),
    "learning, critics": (6, 3, 0),
}


def arguments() -> argparse.Namespace:
    """Return the settings given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value, text in (
        ("hidden", 256, "width of the model"),
        ("layers", 4, "layers of the model"),
        ("vocabulary", 8192, "size of the vocabulary"),
        ("rank", 16, "rank of the adapters"),
        ("prompts", 8, "prompts in the batch"),
        ("prompt-tokens", 96, "tokens of the longest prompt; the shortest has a quarter of them"),
        ("new-tokens", 64, "most tokens of a response"),
        ("mean-tokens", 24, "about how long a response is before it is cut"),
        ("samples", 4, "samples per prompt"),
        ("micro-tokens", 1024, "padded tokens of a micro-batch"),
        ("repeats", 5, "how often the sides take turns"),
        ("threads", 1, "threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--out", type=Path, help="write the result there as well")
    return parser.parse_args()


@dataclass(frozen=True)
class Bench:
    """What all comparisons share: a base network, and answers that it has sampled."""

    given: argparse.Namespace
    base: nn.Module
    samples: list[Sample]
    generate: Callable[[], list[Sample]]

    @property
    def rows(self) -> list[Encoded]:
        """The answered prompts as encoded rows."""
        return [encoded(sample.prompt_ids, sample.response_ids) for sample in self.samples]

    def batches(self) -> Iterator[tuple[list[int], Batch]]:
        """Micro-batches of rows of about one length, with the numbers of their rows."""
        rows = self.rows
        for chosen in micro_batches([row.length for row in rows], self.given.micro_tokens):
            yield chosen, pad([rows[i] for i in chosen], pad_id=PAD)

    @property
    def adapter(self) -> AdapterSettings:
        """The adapters of every network."""
        return AdapterSettings(rank=self.given.rank)


def encoded(prompt: list[int], response: Sequence[int] = ()) -> Encoded:
    """Return prompt and response as one row."""
    mask = [False] * len(prompt) + [True] * len(response)
    return Encoded([*prompt, *response], mask, mask, len(mask) - 1, len(prompt))


def prepare(given: argparse.Namespace) -> Bench:
    """Return a new network and its answers to random prompts."""
    torch.manual_seed(0)
    base = tiny_policy(
        given.vocabulary,
        kind="qwen2",
        hidden=given.hidden,
        layers=given.layers,
        max_positions=given.prompt_tokens + given.new_tokens,
    )
    # New weights make all tokens about equally probable, so the share of stop ids sets the mean length.
    generator = TransformersGenerator(base, range(given.vocabulary // given.mean_tokens), pad_id=PAD)
    lengths = torch.linspace(given.prompt_tokens // 4, given.prompt_tokens, given.prompts).int().tolist()
    prompts = [encoded(torch.randint(0, given.vocabulary, (length,)).tolist()) for length in lengths]

    def generate() -> list[Sample]:
        return generator.generate(prompts, given.samples, Sampling(max_new_tokens=given.new_tokens), seed=0)

    return Bench(given, base, generate(), generate)


def tokens(batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
    """Return what every network takes of a batch."""
    return batch.input_ids, batch.attention_mask, batch.position_ids


def apart(mine: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two tables."""
    return float((mine - theirs).abs().max())


def relative(mine: Tensor, theirs: Tensor) -> float:
    """Return the largest difference of two gradients, against the largest number of the second."""
    return apart(mine, theirs) / max(float(theirs.abs().max()), torch.finfo(theirs.dtype).tiny)


def stored(*models: nn.Module, trainable: bool = False) -> int:
    """Return the bytes of the parameters of all models together; what several of them hold counts once."""
    every = {id(weight): weight for model in models for weight in model.parameters()}
    return sum(weight.nbytes for weight in every.values() if weight.requires_grad or not trainable)


def shaken(model: nn.Module) -> nn.Module:
    """Return `model` with adapters that change something, as after training."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.05)
    return model.eval()


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def saving(
    given: argparse.Namespace, sides: dict[str, Callable[[], Any]], differences: dict[str, float], limit: float
) -> dict[str, Any]:
    """Return differences, seconds of every side, and how often the first side's time is each other's.

    Ends the benchmark when the sides give different numbers.
    """
    if max(differences.values()) > limit:
        raise SystemExit(f"the sides {', '.join(sides)} differ ({differences}), so there is nothing to time")
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(given.repeats):
        # The side that begins changes, so that a machine that slows down favours none.
        for name in list(sides)[:: 1 if turn % 2 else -1]:
            seconds[name].append(timed(sides[name]))
    first, *others = sides
    return {
        "largest_difference": differences,
        "seconds": seconds,
        "median_ratio": {
            name: statistics.median(a / b for a, b in zip(seconds[first], seconds[name])) for name in others
        },
    }


def read(bench: Bench, policy: nn.Module, opened: Callable[[nn.Module], Any] = evaluating) -> Tensor:
    """Return (N, T) log-probabilities of all responses under the network that `opened` gives."""
    table = torch.zeros(len(bench.samples), bench.given.prompt_tokens + bench.given.new_tokens)
    with opened(policy) as network:
        for chosen, batch in bench.batches():
            table[chosen, : batch.input_ids.shape[1]] = response_logprobs(network, *tokens(batch), batch.response_mask)
    return table


def scores(bench: Bench, model: ScoreModel) -> Tensor:
    """Return (N, K) scores of all rows."""
    table = torch.zeros(len(bench.samples), len(model.names))
    with evaluating(model):
        for chosen, batch in bench.batches():
            table[chosen] = model.scores(*tokens(batch), batch.score_index)
    return table


def sampler_logprobs(bench: Bench) -> dict[str, Any]:
    """Keep the log-probabilities that the sampler had, instead of one more pass over what it wrote."""
    kept = torch.zeros(len(bench.samples), bench.given.prompt_tokens + bench.given.new_tokens)
    for line, sample, row in zip(kept, bench.samples, bench.rows):
        line[row.prompt_length : row.length] = torch.tensor(sample.logprobs)

    def again() -> None:
        bench.generate()
        read(bench, bench.base)

    differences = {"log-probabilities": apart(kept, read(bench, bench.base))}
    sides = {"generate and read again": again, "generate": bench.generate}
    return saving(bench.given, sides, differences, limit=1e-4)


def reference_by_adapters(bench: Bench) -> dict[str, Any]:
    """Read the reference with the policy's adapters off, instead of from a second network."""
    second = copy.deepcopy(bench.base)
    policy = shaken(with_adapter(copy.deepcopy(bench.base), bench.adapter))
    differences = {"log-probabilities": apart(read(bench, policy, reference), read(bench, second))}
    if not apart(read(bench, policy), read(bench, second)):
        raise SystemExit("the adapters change nothing, so switching them off shows nothing")
    sides = {"second network": lambda: read(bench, second), "adapters off": lambda: read(bench, policy, reference)}
    found = saving(bench.given, sides, differences, limit=0.0)
    return found | {"bytes": {"second network": stored(policy, second), "adapters off": stored(policy)}}


def score_models(bench: Bench) -> tuple[ScoreModel, list[ScoreModel]]:
    """Return a network with a head for each score, and the same network once for each score."""
    joint = from_policy(bench.base, SCORES, init_std=0.02)
    alone = [critic_from(joint, (name,)) for name in SCORES]
    for model, weight in zip(alone, joint.head.weight):
        model.head.weight.data.copy_(weight[None])
    return joint, alone


def scores_together(bench: Bench) -> dict[str, Any]:
    """Score reward and cost as two heads of one network, instead of with two networks."""
    joint, alone = score_models(bench)
    each = torch.cat([scores(bench, model) for model in alone], dim=1)
    differences = {"scores": apart(scores(bench, joint), each)}
    sides = {
        "two networks": lambda: [scores(bench, model) for model in alone],
        "two heads": lambda: scores(bench, joint),
    }
    return saving(bench.given, sides, differences, limit=1e-5)


def learn_policy(policy: nn.Module, batch: Batch, heads: HeadsOnPolicy | None = None) -> None:
    """Add the gradient of a loss of the policy; its states go to `heads`."""
    hidden = hidden_states(policy, *tokens(batch))
    if heads is not None:
        heads.remember(batch, hidden)
    logprobs_at(policy, hidden, batch.input_ids, batch.response_mask).sum().backward()


def learn_values(values: Tensor, batch: Batch) -> None:
    """Add the gradient of a loss of the values (B, T, K)."""
    (values[batch.response_mask] - 1).square().sum().backward()


def critics(bench: Bench) -> dict[str, Any]:
    """Learn two streams with a network each, one network with two heads, or heads on the policy's own states."""
    policy = copy.deepcopy(bench.base)
    joint, alone = score_models(bench)
    heads = HeadsOnPolicy(policy, STREAMS)
    heads.head.weight.data.normal_(std=0.02)

    def networks(own: Sequence[ScoreModel]) -> Callable[[], None]:
        def run() -> None:
            cleared(policy, *own)
            for _, batch in bench.batches():
                learn_policy(policy, batch)
            for critic in own:
                for _, batch in bench.batches():
                    learn_values(critic.token_values(*tokens(batch)), batch)

        return run

    def on_policy(recall: bool = True) -> None:
        cleared(policy, heads)
        batches = [batch for _, batch in bench.batches()]
        for batch in batches:
            learn_policy(policy, batch, heads if recall else None)
        for batch in batches:
            learn_values(heads.recall(batch) if recall else heads.token_values(*tokens(batch)), batch)

    networks([joint])()
    networks(alone)()
    differences = same_critics(joint, alone) | same_heads(on_policy, policy, heads)
    sides = dict(zip(LAYOUTS, (networks(alone), networks([joint]), on_policy)))
    return saving(bench.given, sides, differences, limit=1e-4)


def cleared(*models: nn.Module) -> None:
    """Forget all gradients."""
    for model in models:
        model.zero_grad()


def same_critics(joint: ScoreModel, alone: Sequence[ScoreModel]) -> dict[str, float]:
    """Return how far the joint critic's gradient is from the sum of those of the critics, relative to its size."""
    pairs = []
    for weight, *each in zip(joint.parameters(), *(model.parameters() for model in alone)):
        gradients = [one.grad for one in each]
        # Every critic has its own row of the head.
        pairs.append((weight.grad, torch.cat(gradients) if weight is joint.head.weight else sum(gradients)))
    return {"gradient of one critic, relative": max(relative(*pair) for pair in pairs)}


def same_heads(run: Callable[[bool], None], policy: nn.Module, heads: HeadsOnPolicy) -> dict[str, float]:
    """Return how far gradients from remembered states are from those of a forward pass of the heads' own."""
    found = []
    for recall in (True, False):
        run(recall)
        found.append([weight.grad.clone() for model in (policy, heads) for weight in model.parameters()])
    return {"gradients with states remembered": max(apart(*pair) for pair in zip(*found))}


def trimmed(bench: Bench) -> dict[str, Any]:
    """Learn from micro-batches of rows of about one length, instead of one batch as wide as rows may be."""
    policy = copy.deepcopy(bench.base)
    whole = pad(bench.rows, pad_id=PAD, multiple_of=bench.given.prompt_tokens + bench.given.new_tokens)

    def padded() -> None:
        cleared(policy)
        learn_policy(policy, whole)

    def in_parts() -> None:
        cleared(policy)
        for _, batch in bench.batches():
            learn_policy(policy, batch)

    found = []
    for side in (in_parts, padded):
        side()
        found.append([weight.grad.clone() for weight in policy.parameters()])
    differences = {"gradient, relative": max(relative(*pair) for pair in zip(*found))}
    sides = {"one padded batch": padded, "trimmed and sorted": in_parts}
    sizes = {"one padded batch": whole.input_ids.numel()}
    sizes["trimmed and sorted"] = sum(batch.input_ids.numel() for _, batch in bench.batches())
    return saving(bench.given, sides, differences, limit=1e-4) | {"padded_tokens": sizes, "tokens": whole.tokens}


def one_base(bench: Bench) -> dict[str, Any]:
    """Hold policy, reference, reward, cost and two critics as adapters on one base, instead of as full copies."""
    joint, alone = score_models(bench)
    policy = copy.deepcopy(bench.base)
    # The same seed gives the same head as that of `joint`.
    score = with_score_adapter(from_policy(policy, SCORES, init_std=0.02, share=True), bench.adapter)
    critic = critic_from(score, STREAMS)
    policy = with_adapter(policy, bench.adapter)
    differences = {
        "scores": apart(scores(bench, score), scores(bench, joint)),
        "reference": apart(read(bench, policy, reference), read(bench, bench.base)),
    }
    if max(differences.values()) > 0:
        raise SystemExit(f"networks on one base differ from their copies ({differences}), so nothing is saved")
    copies = [copy.deepcopy(model) for model in (bench.base, *alone)]
    return {
        "largest_difference": differences,
        "full copies": footprint(learning=copies, frozen=[bench.base, *alone]),
        "adapters on one base": footprint(learning=[policy, critic], frozen=[score]),
        "adapters, heads on the policy": footprint(learning=[policy, HeadsOnPolicy(policy, STREAMS)], frozen=[score]),
    }


def footprint(learning: Sequence[nn.Module], frozen: Sequence[nn.Module]) -> dict[str, int]:
    """Return the bytes of all parameters, and those with gradients and AdamW's two moments of what learns."""
    parameters = stored(*learning, *frozen)
    return {"parameters": parameters, "with_optimiser": parameters + 3 * stored(*learning, trainable=True)}


def passes() -> dict[str, Any]:
    """Return the forward passes of an iteration in each layout; checkpointing repeats one for what learns."""
    totals = [sum(column) for column in zip(*PASSES.values())]
    # One of the three passes of learning is the forward pass.
    repeated = [sum(column) // 3 for column in zip(*(PASSES[name] for name in PASSES if name.startswith("learning")))]
    return {
        "plan": {what: dict(zip(LAYOUTS, counts)) for what, counts in PASSES.items()},
        "total": dict(zip(LAYOUTS, totals)),
        "total_with_checkpointing": {name: a + b for name, a, b in zip(LAYOUTS, totals, repeated)},
    }


SAVINGS = {
    "sampler_logprobs": sampler_logprobs,
    "reference_by_adapters": reference_by_adapters,
    "scores_together": scores_together,
    "critics": critics,
    "trimmed_and_sorted": trimmed,
    "one_base": one_base,
}


def main() -> None:
    """Compare, take turns, print the result as JSON."""
    given = arguments()
    torch.set_num_threads(given.threads)
    bench = prepare(given)
    lengths = [len(sample.response_ids) for sample in bench.samples]
    result = {
        "benchmark": "ppo",
        "settings": {key: value for key, value in vars(given).items() if key != "out"},
        "parameters": sum(weight.numel() for weight in bench.base.parameters()),
        "answers": len(lengths),
        "response_tokens": sum(lengths),
        "passes": passes(),
        "savings": {name: measure(bench) for name, measure in SAVINGS.items()},
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")},
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
