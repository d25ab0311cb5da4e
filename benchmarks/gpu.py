"""A step of GRPO against TRL's GRPOTrainer on one GPU: seconds, tokens per second, model-FLOP utilisation.

The comparison is that of `grpo.py`, with larger models and batches, in float32 and in bfloat16 (weights, gradients and
optimiser alike on both sides). Both sample with transformers; where vLLM is installed TRL samples with it as well.

    python benchmarks/gpu.py --out benchmarks/gpu.json
    python benchmarks/gpu.py --device cpu --tiny      tries the path without a GPU; its numbers mean nothing
"""

import argparse
from dataclasses import replace
from typing import Any

import torch
from grpo_turns import contest
from grpo_world import SIZES, Case
from turns import Book, add_options, installed

# Dense peaks that NVIDIA gives, in TFLOP/s. Float32 is that of ordinary units: torch rounds to TF32 only when told to.
PEAKS = {"H100": {"bfloat16": 989.0, "float32": 67.0}, "H200": {"bfloat16": 989.0, "float32": 67.0}}
PEAKS["A100"] = {"bfloat16": 312.0, "float32": 19.5}


def arguments() -> argparse.Namespace:
    """Return the settings given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    settings = ["512:128", "192:64", "64:256"]
    parser.add_argument("--size", nargs="+", choices=SIZES, default=["40M", "500M"], help="models (default 40M 500M)")
    parser.add_argument("--setting", nargs="+", default=settings, help="tokens of prompt:answer (default all three)")
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["bfloat16", "float32"])
    parser.add_argument("--answers", nargs="+", choices=("full", "ends"), default=["full"], help="as in grpo.py")
    own = (
        ("group", 8, "answers to a prompt"),
        ("prompts", 32, "prompts of a step"),
        ("steps", 3, "timed steps of a process, after one that is not"),
    )
    add_options(parser, own, "answers")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model, lengths and a batch that any machine can run")
    parser.add_argument("--peak", type=float, help="TFLOP/s of the device, where this script does not know them")
    given = parser.parse_args()
    if given.tiny:
        given.size, given.setting, given.prompts, given.group, given.steps = ["tiny"], ["24:8"], 2, 4, 1
    return given


def cases(given: argparse.Namespace) -> dict[str, Case]:
    """Return what is to be compared, by name."""
    found = {}
    for size in given.size:
        for setting in given.setting:
            prompt, response = (int(part) for part in setting.split(":"))
            for dtype in given.dtype:
                for answers in given.answers:
                    case = Case(size, prompt, response, answers == "ends", given.prompts, given.group, given.steps)
                    case = replace(case, device=given.device, dtype=dtype)
                    name = f"{size} {setting} {answers} {dtype}"
                    found[name] = case
                    if installed("vllm") and given.device == "cuda":
                        found[f"{name} vllm"] = replace(case, sampler="vllm")
    return found


def step_flops(case: Case, parameters: int, length: float) -> float:
    """Return the floating-point operations of a step's networks in the plain form, where each answer reads its prompt.

    Forward passes: one each for sampling, reference and reward, and learning as three. A weight is a multiplication
    and an addition; a head runs on response tokens, the reward model has none to speak of; attention is causal. What is
    done once for several answers, or not at all, makes the utilisation higher: it is of useful work.
    """
    size = SIZES[case.size]
    table = size.vocabulary * size.hidden
    tokens = case.prompt + length
    body = tokens * (2 * (parameters - 2 * table) + 2 * size.layers * size.hidden * tokens)
    return case.answers * (6 * body + 5 * length * 2 * table)


def utilisation(case: Case, summary: dict[str, Any], peak: float) -> dict[str, float]:
    """Return the share of `peak` TFLOP/s at which each side does useful work."""
    return {
        side: step_flops(case, summary["parameters"], summary["mean_length"][side]) / seconds["step"] / (peak * 1e12)
        for side, seconds in summary["seconds"].items()
    }


def main() -> None:
    """Compare, take turns, print the results as JSON."""
    given = arguments()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit(
            "no CUDA device is to be seen here, so there is nothing to measure; --device cpu --tiny tries it"
        )
    device = torch.cuda.get_device_name() if given.device == "cuda" else "cpu"
    book = Book(given.out, "gpu", device)
    known = next((peaks for name, peaks in PEAKS.items() if name in device), {})
    for name, case in cases(given).items():
        entry = contest(book, name, case, given.repeats, given.rows)
        if peak := given.peak or known.get(case.dtype):
            entry["summary"] |= {"utilisation": utilisation(case, entry["summary"], peak), "peak_tflops": peak}
        book.save()
    print(book.text)


if __name__ == "__main__":
    main()
