"""Write the tables of docs/ from the JSON beside this file: `python benchmarks/tables.py`.

A table stands between `<!-- study NAME -->` and `<!-- end -->`. A test compares them, so a table cannot drift from
the run it came from.
"""

import importlib
import json
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PLACE = re.compile(r"(<!-- study (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def written(text: str) -> str:
    """`text` with every table made anew from its JSON."""
    return PLACE.sub(lambda found: found[1] + section(found[2]) + found[3], text)


def section(name: str) -> str:
    """The table of a study and whether each of its criteria holds."""
    result = json.loads((ROOT / "benchmarks" / "studies" / f"{name}.json").read_text(encoding="utf-8"))
    table = importlib.import_module(f"holdfast.studies.{name}").table(result)
    lines = ["| criterion | holds | measured | needed |", "|---|---|---|---|"]
    for one in result["criteria"]:
        found = f"{one['value']:.3f} [{one['low']:.3f}, {one['high']:.3f}] n={one['n']}" if one["n"] else "no run"
        lines.append(f"| {one['name']} | {'yes' if one['holds'] else 'NO'} | {found} | {one.get('needed', '')} |")
    return "\n" + table + "\n\n" + "\n".join(lines) + "\n\n"


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
