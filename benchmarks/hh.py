"""Gather runs of `hc_rlhf/hh` into `benchmarks/hh.json`: `python benchmarks/hh.py TEST_FILE RUN [RUN ...]`.

TEST_FILE is the official test file of hh-rlhf harmless-base, which no run has read. The cost model of each run is
judged on it, without the prompts that occur in the run's own data. Texts and paths stay out of the result.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from holdfast import config
from holdfast.data.schema import DualPair, Labelled
from holdfast.data.sources import DataSettings, read
from holdfast.data.split import keys
from holdfast.data.template import Template
from holdfast.models.load import load_tokenizer
from holdfast.models.save import load_checked
from holdfast.preference.check import score_pairs
from holdfast.preference.pairs import harmful_rows
from holdfast.preference.score import ModelScorer
from holdfast.preference.tasks import CostSettings, CostTask
from holdfast.stats.calibration import platt
from holdfast.stats.estimate import mean
from holdfast.systems.hc_rlhf import HcRlhf
from holdfast.systems.stages import fits

TARGET = Path(__file__).with_suffix(".json")


def result(folder: Path, test_file: str) -> dict[str, Any]:
    """One run: its summary without texts, its cost model on the test file, its scores as probabilities."""
    settings = config.load(HcRlhf, folder / "config.yaml")
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    del summary["examples"]  # texts
    network = load_checked(folder / "models" / "cost")
    template = Template(load_tokenizer(str(folder / "models" / "cost")), max_length=settings.text.max_length)
    task = CostTask(network, template.pad_id, CostSettings(labels="none"))
    return {
        "settings": {"seed": settings.seed, "least_auc": settings.cost.least_auc},
        "bad_rows": {name: lines(folder / f"skipped-{name}.jsonl") for name in ("pairs", "labelled")},
        "summary": summary,
        "test_file": on_test_file(test_file, settings, task, template),
        "calibrated": calibrated(folder, settings, ModelScorer(network, template)),
    }


def lines(file: Path) -> int:
    """The number of lines of a file, 0 without the file."""
    return len(file.read_text(encoding="utf-8").splitlines()) if file.is_file() else 0


def on_test_file(path: str, settings: HcRlhf, task: CostTask, template: Template) -> dict[str, Any]:
    """Accuracies on the test file, for dialogues of one turn and of several."""
    assert settings.data is not None
    seen = {keys(record)[0] for record in read(settings.data.pairs).records}
    rows = read(DataSettings(path=path, split="all", on_bad_row="skip"))
    pairs = [pair for pair in rows.records if isinstance(pair, DualPair)]
    unseen = [pair for pair in pairs if keys(pair)[0] not in seen]
    fitting = [pair for pair in unseen if fits(pair, template)]
    counts = {"bad": rows.skipped, "seen": len(pairs) - len(unseen), "too_long": len(unseen) - len(fitting)}
    groups = {
        "one_turn": [pair for pair in fitting if len(pair.prompt.messages) == 1],
        "several_turns": [pair for pair in fitting if len(pair.prompt.messages) > 1],
    }
    found: dict[str, Any] = {"counts": counts}
    for name, group in groups.items():
        scored = score_pairs(task, harmful_rows(group, template, "none"))
        found[name] = {
            "pairs": len(group),
            "cost_accuracy": scored.accuracy().to_dict(),
            "shorter_is_safer_accuracy": scored.shorter_is_higher(higher=False).to_dict(),
            "cost_over_shorter": scored.over_shorter(higher=False).to_dict(),
        }
    return found


def calibrated(folder: Path, settings: HcRlhf, scorer: ModelScorer) -> dict[str, Any]:
    """The mean probability of harm of the policy's answers, by the labelled answers, before and after."""
    assert settings.data is not None
    assert settings.data.labelled is not None
    rated = [one for one in read(settings.data.labelled).records if isinstance(one, Labelled)]
    labelled = [one for one in rated if fits(one, scorer.template)]
    scores = scorer.score([one.conversation for one in labelled])[:, 0].numpy()
    harmful = np.array([0.0 if one.safe else 1.0 for one in labelled])
    fitted = platt(scores, harmful)
    rows = [json.loads(line) for line in (folder / "scores.jsonl").read_text(encoding="utf-8").splitlines()]
    found: dict[str, Any] = {"harmful_among_labelled": mean(harmful).to_dict()}
    for when in ("before", "after"):
        costs = np.array([row["cost"] for row in rows if row["when"] == when])
        found[f"cost_above_zero_{when}"] = mean(costs > 0).to_dict()
        found[f"probability_{when}"] = mean(fitted.probability(costs)).to_dict()
    return found


def main() -> None:
    """Write the JSON."""
    test_file, *folders = sys.argv[1:]
    if not folders:
        raise SystemExit(__doc__)
    machine = {"cores": os.cpu_count(), "threads": os.environ.get("OMP_NUM_THREADS", "all")}
    runs = {Path(folder).name: result(Path(folder), test_file) for folder in folders}
    TARGET.write_text(json.dumps({"recipe": "hc_rlhf/hh", "machine": machine, "runs": runs}, indent=1) + "\n")


if __name__ == "__main__":
    main()
