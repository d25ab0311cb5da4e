"""How much faster a reward model is trained than by TRL's RewardTrainer, on the same weights, pairs and settings.

Both sides take turns in processes of their own. Every process trains one model for each ratio of prompt to answer
length; losses and final scores of both sides are compared before any time is. Needs `pip install trl`.

    python benchmarks/reward.py --out result.json
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from holdfast.data.template import Encoded
from holdfast.engine.log import RunFolder
from holdfast.engine.seeds import generator
from holdfast.engine.step import OptimiserSettings
from holdfast.engine.supervised import FitSettings, fit
from holdfast.models.heads import ScoreModel, from_policy
from holdfast.models.policy import evaluating
from holdfast.models.tiny import tiny_policy
from holdfast.preference.pairs import PairRow, collate_pairs, sides
from holdfast.preference.tasks import RewardSettings, RewardTask

PAD, LEARNING_RATE = 0, 1e-4


def arguments() -> argparse.Namespace:
    """Return the settings given on the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    for name, value, text in (
        ("hidden", 256, "width of the model"),
        ("layers", 4, "layers of the model"),
        ("vocabulary", 8192, "size of the vocabulary"),
        ("pairs", 8, "pairs of a step"),
        ("tokens", 240, "mean tokens of prompt and answer together; each varies by half of its mean"),
        ("steps", 6, "timed steps, after one that is not"),
        ("repeats", 5, "how often the sides take turns"),
        ("threads", 2, "threads of torch"),
    ):
        parser.add_argument(f"--{name}", type=int, default=value, help=f"{text} (default {value})")
    parser.add_argument("--ratios", nargs="+", default=["1:4", "1:2", "1:1", "2:1", "4:1", "8:1"], help="prompt:answer")
    parser.add_argument("--side", choices=SIDES, help="train on one side in this process and print what it measures")
    parser.add_argument("--out", type=Path, help="write the result there as well")
    return parser.parse_args()


def pairs(given: argparse.Namespace, ratio: str) -> list[PairRow]:
    """Return pairs for one step more than is timed, and for a test batch behind them."""
    prompt, answer = (int(part) for part in ratio.split(":"))
    draw = torch.Generator().manual_seed(0)

    def words(mean: float) -> list[int]:
        length = int(mean * (0.5 + torch.rand((), generator=draw).item()))
        return torch.randint(2, given.vocabulary, (max(length, 1),), generator=draw).tolist()

    def row(number: int) -> PairRow:
        start = words(given.tokens * prompt / (prompt + answer))
        both = [start + words(given.tokens * answer / (prompt + answer)) for _ in range(2)]
        none = [[False] * len(ids) for ids in both]
        one, two = (Encoded(ids, mask, mask, len(ids) - 1, len(start)) for ids, mask in zip(both, none))
        return PairRow(str(number), one, two)

    return [row(number) for number in range((given.steps + 2) * given.pairs)]


def holdfast(given: argparse.Namespace, model: ScoreModel, rows: list[PairRow], folder: str) -> tuple[list, list]:
    """Train as holdfast does; return the loss of every step and the time at its end."""
    optimiser = OptimiserSettings(learning_rate=LEARNING_RATE, betas=(0.9, 0.999), schedule="linear", warmup_ratio=0.0)
    settings = FitSettings(batch_size=given.pairs, optimiser=optimiser)
    fit(RewardTask(model, PAD, RewardSettings(l2=0.0)), rows, [], settings, RunFolder(folder), stage="reward")
    lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    return [line["rank"] for line in lines], [line["seconds"] for line in lines]


def trl(given: argparse.Namespace, model: ScoreModel, rows: list[PairRow], folder: str) -> tuple[list, list]:
    """Train with TRL's defaults, but in float32 and without recomputing activations; return as `holdfast` does."""
    from datasets import Dataset
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import RewardConfig, RewardTrainer

    ends: list[float] = []

    class Clock(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            ends.append(time.perf_counter())

    words = Tokenizer(WordLevel({"<pad>": PAD, "<eos>": 1}, unk_token="<eos>"))
    order = torch.randperm(len(rows), generator=generator(0, 0)).tolist()
    settings = RewardConfig(
        folder, per_device_train_batch_size=given.pairs, max_steps=given.steps + 1, learning_rate=LEARNING_RATE,
        train_sampling_strategy="sequential", bf16=False, gradient_checkpointing=False, max_length=None,
        logging_steps=1, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
        dataloader_pin_memory=False,
    )  # fmt: skip
    trainer = RewardTrainer(
        model.network,
        settings,
        train_dataset=Dataset.from_list(
            [{"chosen_ids": rows[i].first.ids, "rejected_ids": rows[i].second.ids} for i in order]
        ),
        processing_class=PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", eos_token="<eos>"),
        callbacks=[Clock()],
    )
    trainer.train()
    steps = given.steps + 1
    return [row["loss"] for row in trainer.state.log_history[:steps]], ends[:steps]


SIDES = {"trl": trl, "holdfast": holdfast}


def measure(given: argparse.Namespace) -> dict[str, Any]:
    """Train on one side at every ratio; return losses, scores of the last pairs, seconds, tokens and peak memory."""
    torch.set_num_threads(given.threads)
    found: dict[str, Any] = {"ratios": {}, "before_mb": peak_mb()}
    for ratio in given.ratios:
        policy = tiny_policy(
            given.vocabulary, kind="qwen2", hidden=given.hidden, layers=given.layers, max_positions=2 * given.tokens
        )
        model = from_policy(policy, ("reward",), init_std=0.02)
        rows = pairs(given, ratio)
        rows, test = rows[: -given.pairs], rows[-given.pairs :]
        with tempfile.TemporaryDirectory() as folder:
            losses, ends = SIDES[given.side](given, model, rows, folder)
        with evaluating(model):
            scores = torch.cat(sides(model, collate_pairs(test, PAD)))[:, 0].tolist()
        found["ratios"][ratio] = {"losses": losses, "scores": scores, "seconds": ends[-1] - ends[0]}
    found["parameters"] = sum(weight.numel() for weight in model.parameters())
    found["peak_mb"] = peak_mb()
    return found


def peak_mb() -> float:
    """Return the most memory that this process has held, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def compared(given: argparse.Namespace, runs: dict[str, list[dict[str, Any]]], ratio: str) -> dict[str, Any]:
    """Return how far the sides are apart at one ratio, and their times; end when they learn different things."""
    mine, theirs = ([run["ratios"][ratio] for run in runs[side]] for side in ("holdfast", "trl"))
    apart = {
        name: max(abs(a - b) for a, b in zip(mine[0][name], theirs[0][name], strict=True))
        for name in ("losses", "scores")
    }
    if max(apart.values()) > 1e-3:
        raise SystemExit(f"at {ratio} the two sides learn different things ({apart}), so there is nothing to time")
    order = torch.randperm((given.steps + 1) * given.pairs, generator=generator(0, 0)).tolist()
    rows = pairs(given, ratio)
    tokens = sum(rows[i].first.length + rows[i].second.length for i in order[given.pairs :])
    seconds = {side: [run["ratios"][ratio]["seconds"] for run in runs[side]] for side in SIDES}
    medians = {side: statistics.median(values) for side, values in seconds.items()}
    return {
        "largest_difference": apart,
        "seconds": seconds,
        "tokens_per_second": {side: tokens / value for side, value in medians.items()},
        "median_ratio": statistics.median(a / b for a, b in zip(seconds["trl"], seconds["holdfast"])),
    }


def main() -> None:
    """Take turns, compare, print the result as JSON."""
    given = arguments()
    if given.side:
        print(json.dumps(measure(given)))
        return
    runs: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for turn in range(given.repeats):
        # The side that begins changes, so that a machine that slows down favours neither.
        for side in list(SIDES)[:: 1 if turn % 2 else -1]:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            runs[side].append(json.loads(output.splitlines()[-1]))
    peaks = {side: [run["peak_mb"] for run in runs[side]] for side in SIDES}
    result = {
        "benchmark": "reward",
        "settings": {key: value for key, value in vars(given).items() if key not in ("out", "side")},
        "parameters": runs["trl"][0]["parameters"],
        "ratios": {ratio: compared(given, runs, ratio) for ratio in given.ratios},
        "peak_mb": peaks,
        "before_mb": {side: [run["before_mb"] for run in runs[side]] for side in SIDES},
        "peak_ratio": statistics.median(a / b for a, b in zip(peaks["holdfast"], peaks["trl"])),
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        "machine": platform.machine(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if given.out is not None:
        given.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
