"""What the smaller commands do."""

import json
import os
import platform
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from holdfast.config import build
from holdfast.data.schema import Conversation, DualPair, Labelled, Pair, Rated
from holdfast.data.sources import DataSettings, Readable, read
from holdfast.data.split import prompt_of
from holdfast.data.template import Template
from holdfast.errors import UserError
from holdfast.rollout.types import Sampling

if TYPE_CHECKING:
    from holdfast.preference.score import Scorer


def _read(path: str) -> list[Readable]:
    return read(build(DataSettings, {"path": path, "split": "all"})).records


def _answers(record: Readable) -> list[tuple[str, Conversation]]:
    """The answered conversations of a record with an id each."""
    if isinstance(record, DualPair):
        return [(f"{record.id}/{i}", record.prompt.answer(text)) for i, text in enumerate(record.responses)]
    if isinstance(record, Pair):
        both = {"chosen": record.chosen, "rejected": record.rejected}
        return [(f"{record.id}/{name}", record.prompt.answer(text)) for name, text in both.items()]
    one = record.conversation if isinstance(record, Labelled | Rated) else record
    return [(record.id, one)] if one.answered else []


def _write(rows: Iterable[dict[str, Any]], out: Path) -> None:
    out.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    out.write_text("".join(lines), encoding="utf-8")
    print(f"{len(lines)} rows in {out}")


def score(model: Path, conversations: str, out: Path, max_length: int, audit: bool = False) -> None:
    """Score every answered conversation of a data set and write id, scores and response, or why there are none.

    audit: say too what the scores are worth on the labels of the data, in `audit.json` and `audit.html` beside `out`.
    """
    # The data first: what is wrong with them is said before a large model is loaded.
    records = _read(conversations)
    rows = [row for record in records for row in _answers(record)]
    if not rows:
        raise UserError(f"{conversations} holds no answered conversation, so there is nothing to score")
    scorer = _scorer(model, max_length)
    table = scorer.score([one for _, one in rows]).tolist()
    scored = [
        {"id": id, **dict(zip(scorer.names, values, strict=True)), "response": one.response}
        for (id, one), values in zip(rows, table, strict=True)
    ]
    skipped = [{"id": record.id, "skipped": "it ends without an answer"} for record in records if not _answers(record)]
    _write([*scored, *skipped], out)
    if audit:
        _audit(scorer, records, out.parent, {"folder": str(model), "data": conversations})


def _scorer(model: Path, max_length: int) -> "Scorer":
    from holdfast.models.heads import ScoreModel
    from holdfast.models.load import load_tokenizer
    from holdfast.models.mixture import MixtureRewardModel
    from holdfast.models.save import load_checked
    from holdfast.preference.personal import MixtureScorer
    from holdfast.preference.score import ModelScorer

    network = load_checked(model)
    if not isinstance(network, ScoreModel | MixtureRewardModel):
        raise UserError(f"{model} holds a policy; give the folder of a reward or cost model")
    template = Template(load_tokenizer(str(model)), max_length=max_length)
    return ModelScorer(network, template) if isinstance(network, ScoreModel) else MixtureScorer(network, template)


def _audit(scorer: "Scorer", records: list[Readable], folder: Path, facts: dict[str, str]) -> None:
    from holdfast.cli import show
    from holdfast.preference.audit import audit
    from holdfast.report.audit import render_audit

    found = audit(scorer, records, facts=facts).to_dict()
    file = folder / "audit.json"
    file.write_text(json.dumps(found, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    show.audit(found, render_audit(found, folder / "audit.html"))


def sampling(max_new_tokens: int, temperature: float) -> Sampling:
    """Sampling settings of the command line; temperature 0 is greedy."""
    values: dict[str, Any] = {"max_new_tokens": max_new_tokens}
    return build(Sampling, values | ({"greedy": True} if temperature == 0 else {"temperature": temperature}))


def generate(model: str, prompts: str, out: Path, samples: int, how: Sampling, seed: int) -> None:
    """Answer every prompt of a data set and write id, prompt, response and finish reason."""
    from holdfast.models.load import ModelSettings, load_policy, load_tokenizer
    from holdfast.rollout.generate import TransformersGenerator

    asked = [prompt_of(record).model_copy(update={"id": record.id}) for record in _read(prompts)]
    policy = load_policy(ModelSettings(name=model))
    window = getattr(policy.config.get_text_config(), "max_position_embeddings", 4096)
    template = Template(load_tokenizer(model), max_length=window)
    generator = TransformersGenerator(policy, template.stop_ids, template.pad_id)
    found = generator.generate([template.prompt(one) for one in asked], samples, how, seed)
    _write(
        (
            {
                "id": asked[one.prompt_index].id,
                "prompt": asked[one.prompt_index].messages[-1].text,
                "response": template.decode(one.response_ids),
                "finish": one.finish,
            }
            for one in found
        ),
        out,
    )


def study(name: str, out: Path, seeds: str, quick: bool) -> bool:
    """Run a study, write `result.json` and `table.md`, print both; return whether every criterion holds."""
    import importlib

    from holdfast.studies import STUDIES

    if name not in STUDIES:
        raise UserError(f"no study called {name!r}; known are {', '.join(STUDIES)}")
    module = importlib.import_module(f"holdfast.studies.{name}")
    try:
        chosen = [int(seed) for seed in seeds.split(",")] if seeds else list(module.SEEDS)
    except ValueError as error:
        raise UserError(f"seeds are whole numbers separated by commas; got {seeds!r}") from error
    result = module.run(out, chosen[:1] if quick else chosen, quick)
    (out / "result.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    (out / "table.md").write_text(module.table(result) + "\n", encoding="utf-8")
    print(module.table(result))
    for one in result["criteria"]:
        share = "no run" if one["value"] is None else f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}]"
        print(f"{'holds' if one['holds'] else 'DOES NOT HOLD':<14}{one['name']}: {share} n={one['n']}")
    return all(one["holds"] for one in result["criteria"])


def environment() -> dict[str, str]:
    """Versions, processors, memory and accelerators."""
    import torch

    from holdfast.engine.budget import available_bytes

    packages = ("holdfast", "torch", "transformers", "accelerate", "peft", "datasets", "numpy", "scipy")
    memory = available_bytes()
    found = {"python": platform.python_version(), **{name: metadata.version(name) for name in packages}}
    found |= {"system": platform.platform(), "cores": str(os.cpu_count())}
    found["memory free"] = "unknown" if memory is None else f"{memory / 2**30:.1f} GiB"
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return found | {"accelerators": ", ".join(gpus) or "none"}
