"""Wrong versions of the page about students of weak labels, each of which its tests must catch."""


def _of(source: str, *changes: tuple[str, str]) -> list[tuple[str, str, str, str]]:
    return [(f"src/holdfast/report/{source}", old, new, "tests/report/test_recovery.py") for old, new in changes]


MUTANTS = [
    *_of(
        "recovery.py",
        ("name, found = max(", "name, found = min("),
        ('if (value["low"] or 0.0) > 0:', 'if value["value"] > 0:'),
        ('if value["value"] < 0 else', 'if (value["high"] or 0.0) < 0 else'),
        ("if len(students) == 1:", "if not students:"),
        ('if best == "soft" or', "if"),
        ("names.setdefault(what, []).append(name)", "names[what] = [name]"),
        ('line.partition(": ")', 'line.rpartition(": ")'),
        ('return first["weak"], first["ceiling"]', 'return first["ceiling"], first["weak"]'),
        ('[one["chosen"] for one', '[one["oracle"] for one'),
        ("if one is not None])", "if one])[:0]"),
        ('if all(row.mark["value"] is None for row in rows):', 'if any(row.mark["value"] is None for row in rows):'),
        ('cell(found["gain"], points)', 'cell(found["gap"], points)'),
        ('(same["on_right"], same["on_wrong"]', '(same["on_wrong"], same["on_right"]'),
        ('for key in ("known", "unknown")', 'for key in ("unknown", "known")'),
        ('*_recall(recalled, "weak")', '*_recall(recalled, "ceiling")'),
        ("if own}", "}"),
        ('.replace("_bootstrapped", ", bootstrapped")', ""),
    ),
    *_of(
        "recovery_plots.py",
        ("place in (0, len(rows) - 1)", "place == 0"),
        ("_row(axes, row, -place, 100.0,", "_row(axes, row, place, 100.0,"),
        ("height - 0.24)", "height + 0.24)"),
        ("axes.set_xlim(min(-0.2, *ends) - 0.05, max(1.0, *ends) + 0.1)", "pass"),
        ("int(np.argmax(weak)) if weak", "0 if weak"),
        ("else len(gold) - 1", "else 0"),
        ("sharey=shared", "sharey=None"),
        ("zip((weak, gold), looks)", "zip((gold, weak), looks)"),
    ),
]
