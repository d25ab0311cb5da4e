"""How much faster rollouts are than the plain loop, on the same model, prompts and uniform numbers.

First the tokens of both sides are compared; then they take turns, and the median of the ratios is printed.

    python benchmarks/rollout.py --prompt-tokens 192 --new-tokens 64 --samples 8 --out result.json
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from naive import naive_generate

from holdfast.data.template import Encoded
from holdfast.models.tiny import tiny_policy
from holdfast.rollout.generate import TransformersGenerator
from holdfast.rollout.sample import uniforms
from holdfast.rollout.types import Sampling


def arguments() -> argparse.Namespace:
    """Return the settings given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value, text in (
        ("hidden", 256, "width of the model"),
        ("layers", 4, "layers of the model"),
        ("vocabulary", 8192, "size of the vocabulary"),
        ("prompts", 8, "prompts in the batch"),
        ("prompt-tokens", 192, "tokens of the longest prompt; the shortest has half of them"),
        ("new-tokens", 64, "most tokens of a response"),
        ("mean-tokens", 32, "about how long a response is before it is cut; 0 never ends one"),
        ("samples", 8, "samples per prompt"),
        ("repeats", 7, "how often the sides take turns"),
        ("threads", 2, "threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--out", type=Path, help="write the result there as well")
    return parser.parse_args()


def timed(run: Callable[[], Any]) -> float:
    """Return the seconds that `run` takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def borderline(
    policy: torch.nn.Module, prompt: list[int], sides: tuple[list[int], list[int]], row: torch.Tensor
) -> bool:
    """Return whether two responses part where the uniform number falls within rounding of a border of two tokens.

    Sums over other shapes move a border by about 1e-8; a flat distribution over 8,192 tokens has as many borders.
    """
    step = next(t for t, (one, other) in enumerate(zip(*sides)) if one != other)
    with torch.no_grad():
        logits = policy(torch.tensor([prompt + sides[0][:step]])).logits[0, -1]
    heights = logits.double().softmax(-1).cumsum(-1)
    return bool((heights[min(side[step] for side in sides)] - row[step]).abs() < 1e-7)


def main() -> None:
    """Compare, take turns, print the result as JSON."""
    given = arguments()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    policy = tiny_policy(
        given.vocabulary,
        kind="qwen2",
        hidden=given.hidden,
        layers=given.layers,
        max_positions=given.prompt_tokens + given.new_tokens,
    )
    # New weights make all tokens about equally probable, so the share of stop ids sets the mean length.
    stops = list(range(given.vocabulary // given.mean_tokens)) if given.mean_tokens else []
    lengths = torch.linspace(given.prompt_tokens // 2, given.prompt_tokens, given.prompts).int().tolist()
    prompts = [torch.randint(0, given.vocabulary, (length,)).tolist() for length in lengths]
    none = [[False] * length for length in lengths]
    encoded = [Encoded(ids, mask, mask, len(ids) - 1, len(ids)) for ids, mask in zip(prompts, none)]
    sampling = Sampling(max_new_tokens=given.new_tokens)
    uniform = torch.from_numpy(uniforms(0, given.prompts * given.samples, given.new_tokens))
    generator = TransformersGenerator(policy, stops, pad_id=0)

    def ours() -> list[list[int]]:
        return [s.response_ids for s in generator.generate(encoded, given.samples, sampling, seed=0)]

    def plain() -> list[list[int]]:
        return [ids for ids, _ in naive_generate(policy, prompts, given.samples, uniform, stops)]

    responses, other = ours(), plain()
    parted = [row for row in range(len(other)) if responses[row] != other[row]]
    for row in parted:
        if not borderline(policy, prompts[row // given.samples], (responses[row], other[row]), uniform[row]):
            raise SystemExit("the two sides give different tokens, so there is nothing to time")
    seconds = [(timed(plain), timed(ours)) for _ in range(given.repeats)]
    tokens = sum(map(len, responses))
    result = {
        "benchmark": "rollout",
        "settings": {key: value for key, value in vars(given).items() if key != "out"},
        "parameters": sum(weight.numel() for weight in policy.parameters()),
        "tokens_equal": not parted,
        "rows_parted_at_a_border": len(parted),
        "response_tokens": tokens,
        "seconds": {"plain": [one for one, _ in seconds], "holdfast": [one for _, one in seconds]},
        "tokens_per_second": tokens / statistics.median(one for _, one in seconds),
        "median_ratio": statistics.median(one / other for one, other in seconds),
        "torch": torch.__version__,
        "machine": platform.machine(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
