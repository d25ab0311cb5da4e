"""Write the tables of docs/ from the JSON beside this file, and that of the presets: `python benchmarks/tables.py`.

A table stands between `<!-- study NAME -->`, `<!-- run RECIPE -->`, `<!-- presets KIND -->`, `<!-- grpo -->`,
`<!-- scaling -->` or `<!-- dpo -->` and `<!-- end -->`. A test compares them, so a table cannot drift from the run, or
the settings, that it came from.
"""

import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from holdfast.studies.common import interval, markdown
from holdfast.systems.grpo_presets import GRPO_PRESETS
from holdfast.systems.presets import PRESETS

ROOT = Path(__file__).parent.parent
STUDY = re.compile(r"(<!-- study (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
TABLE = re.compile(r"(<!-- presets (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
SPEED = re.compile(r"(<!-- (grpo|scaling|dpo) -->\n).*?(<!-- end -->)", re.DOTALL)
RUN = re.compile(r"(<!-- run ([^\n]+?) -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = {"ppo": PRESETS, "grpo": GRPO_PRESETS}


def written(text: str) -> str:
    """`text` with every table made anew from where it comes from."""
    text = STUDY.sub(lambda found: found[1] + section(found[2]) + found[3], text)
    text = SPEED.sub(lambda found: f"{found[1]}\n{SPEEDS[found[2]]()}\n\n{found[3]}", text)
    text = RUN.sub(lambda found: f"{found[1]}\n{run(found[2])}\n\n{found[3]}", text)
    return TABLE.sub(lambda found: f"{found[1]}\n{presets(KINDS[found[2]])}\n\n{found[3]}", text)


def presets(tables: Mapping[str, Mapping[str, Any]]) -> str:
    """Every setting that a preset sets, and its value in each; a dash is the system's own default."""
    columns = {name: dict(flat(table)) for name, table in tables.items()}
    sections = list(dict.fromkeys(section for table in tables.values() for section in table))
    known = dict.fromkeys(key for column in columns.values() for key in column)
    settings = sorted(known, key=lambda key: sections.index(key.split(".")[0]))
    rows = [[f"`{key}`", *(column.get(key, "-") for column in columns.values())] for key in settings]
    return markdown(["setting", *(f"`{name}`" for name in columns)], rows)


def flat(table: Mapping[str, Any], before: str = "") -> list[tuple[str, str]]:
    """The settings of nested tables by their paths, with values as a recipe writes them."""
    found = []
    for name, value in table.items():
        if isinstance(value, Mapping) and value:
            found += flat(value, f"{before}{name}.")
        else:
            found.append((before + name, json.dumps(value).strip('"')))
    return found


def section(name: str) -> str:
    """The table of a study and whether each of its criteria holds."""
    result = json.loads((ROOT / "benchmarks" / "studies" / f"{name}.json").read_text(encoding="utf-8"))
    table = importlib.import_module(f"holdfast.studies.{name}").table(result)
    lines = ["| criterion | holds | measured | needed |", "|---|---|---|---|"]
    for one in result["criteria"]:
        found = f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}] n={one['n']}" if one["n"] else one["method"]
        lines.append(f"| {one['name']} | {'yes' if one['holds'] else 'NO'} | {found} | {one.get('needed', '')} |")
    return "\n" + table + "\n\n" + "\n".join(lines) + "\n\n"


def results(name: str) -> Mapping[str, Any]:
    """The results of a benchmark by case."""
    return json.loads((ROOT / "benchmarks" / f"{name}.json").read_text(encoding="utf-8"))["results"]


def grpo() -> str:
    """A step of GRPO on both sides, case by case."""
    rows = []
    for entry in results("grpo").values():
        case, found = entry["case"], entry["summary"]
        low, high = found["step_ratio_range"]
        seconds = [f"{found['seconds'][side]['step']:.2f}" for side in ("trl", "holdfast")]
        speed = [f"{found['tokens_per_second'][side]:,.0f}" for side in ("trl", "holdfast")]
        phases = [f"{found['phase_ratio'][phase]:.1f}" for phase in ("generate", "reference", "score", "learn")]
        rows.append(
            [
                f"{found['parameters'] / 1e6:.1f} M",
                f"{case['prompt']}:{case['response']}" + (", ending" if case["ends"] else ""),
                f"{case['prompts']} x {case['group']}",
                f"{case['micro_tokens']:,}",
                f"{entry['largest_difference']['loss']:.0e}",
                *seconds,
                f"**{found['step_ratio']:.2f}** ({low:.2f} to {high:.2f})",
                " / ".join(phases),
                *speed,
                f"{found['peak_ratio']:.2f}",
            ]
        )
    columns = [
        "model",
        "prompt:answer",
        "prompts x answers",
        "our pass, tokens",
        "difference of the loss",
        "TRL, s",
        "holdfast, s",
    ]
    columns += [
        "times as fast",
        "generate / reference / score / learn",
        "TRL, tokens/s",
        "holdfast, tokens/s",
        "peak memory",
    ]
    return markdown(columns, rows)


def scaling() -> str:
    """Seconds of a step along each axis, and the exponent of a power law through them."""
    rows = []
    for axis, entry in results("grpo_scaling").items():
        points = [f"{point[axis]}: {point['seconds']['step']:.2f}" for point in entry["points"]]
        exponents = [f"{entry['exponent'][phase]:.2f}" for phase in ("step", "generate", "reference", "score", "learn")]
        rows.append([axis, ", ".join(points), *exponents])
    columns = ["along", "seconds of a step", "exponent", "of generate", "of reference", "of score", "of learn"]
    return markdown(columns, rows)


def dpo() -> str:
    """A step of DPO on both sides, case by case."""
    rows = []
    for entry in results("dpo").values():
        case, found = entry["case"], entry["summary"]
        seconds = [f"{found['seconds'][side]['step']:.2f}" for side in ("trl", "trl_in_step", "holdfast")]
        ratios = [
            f"**{found[name]:.2f}** ({found[f'{name}_range'][0]:.2f} to {found[f'{name}_range'][1]:.2f})"
            for name in ("step_ratio", "whole_ratio")
        ]
        rows.append(
            [
                f"{found['parameters'] / 1e6:.1f} M",
                f"{case['prompt']}:{case['response']}" + (f", +-{case['spread']:.0%}" if case["spread"] else ""),
                case["pairs"],
                f"{entry['largest_difference']['loss']:.0e}",
                *seconds,
                *ratios,
                f"{found['peak_ratio']:.2f}",
            ]
        )
    columns = ["model", "prompt:answer", "pairs", "difference of the loss", "TRL, s", "TRL, reference in the step, s"]
    columns += ["holdfast, s", "times as fast", "with the reference on both sides", "peak memory"]
    return markdown(columns, rows)


def run(name: str) -> str:
    """What the published run of a recipe found, with 95 % intervals: models against each other, or before and after."""
    found = json.loads((ROOT / "benchmarks" / "systems.json").read_text(encoding="utf-8"))["runs"][name]
    rows = students(found["weak_to_strong"]) if "weak_to_strong" in found else before_and_after(found)
    cost = f"{found['seconds']:.0f} s, {found['peak_rss_mib']:,} MiB"
    benign = "; `true help` and `over refusal` are of benign requests" if "true_help_before" in found else ""
    return f"{rows}\n\n`holdfast run {name}`, seed {found['seed']}: {cost}; 95 % intervals{benign}."


def before_and_after(found: Mapping[str, Any]) -> str:
    """What is known of a policy's answers before and after it was improved, the truth first."""
    names = [name.removesuffix("_before") for name in found if name.endswith("_before")]
    names = sorted(names, key=lambda name: (not name.startswith(("true_", "over_")), name.startswith("distinct")))
    rows = [
        [name.replace("_", " "), *(number(found[f"{name}_{when}"]) for when in ("before", "after"))] for name in names
    ]
    return markdown(["", "before", "after"], rows)


def students(found: Mapping[str, Any]) -> str:
    """Supervisor, students and ceiling, with the share of the gap that each student recovers."""
    models = found["students"]
    (first, *_) = models.values()
    rows = [["supervisor", number(first["weak"]), "0"]]
    rows += [
        [f"`{name}`", number(one["student"]), one["reason"] or number(one["value"])] for name, one in models.items()
    ]
    return markdown(["model", "accuracy", "PGR"], [*rows, ["ceiling", number(first["ceiling"]), "1"]])


def number(value: Any) -> str:
    """An estimate with its interval, or a number alone."""
    return interval(value) if isinstance(value, Mapping) else f"{value:.3f}"


SPEEDS = {"grpo": grpo, "scaling": scaling, "dpo": dpo}


def main() -> None:
    """Rewrite every page that holds a table."""
    for page in sorted((ROOT / "docs").rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        after = written(before)
        if after != before:
            page.write_text(after, encoding="utf-8")
            print(f"written: {page.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
