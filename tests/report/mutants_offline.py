"""Wrong versions of the page about given answers, each of which its tests must catch."""


def _of(source: str, *changes: tuple[str, str]) -> list[tuple[str, str, str, str]]:
    return [(f"src/holdfast/report/{source}", old, new, "tests/report/test_offline.py") for old, new in changes]


MUTANTS = [
    *_of(
        "offline.py",
        ('one["answers"] - one["beyond"])', 'one["beyond"])'),
        ('if one["how"] == "drop"]', "]"),
        ('found.get("kept", found["rows"]) < found["rows"]', 'found.get("kept", found["rows"]) <= found["rows"]'),
        ("< 0.995 *", "<="),
        ("draws / found['kept']", "draws / found['rows']"),
        ("(values > 0).mean()", "(values < 0).mean()"),
        ("np.maximum(values, 0.0)", "np.abs(values)"),
        ('(as_number(settings.get("priority_exponent")) or 1.0)', "1.0"),
        ('settings.get("sampling") != "priority" or ', ""),
        ("number(outside - inside)", "number(inside - outside)"),
        ('if (bias["low"] or 0.0) > 0:', 'if (bias["value"] or 0.0) > 0:'),
        ('if (bias["high"] or 0.0) < 0:', 'if (bias["low"] or 0.0) < 0:'),
        ("1 - error / spread", "error / spread"),
        ("if error >= spread:", "if error > spread:"),
        ('("clip_high", "above"),', '("clip_high", "below"),'),
        ('return _within(summary) - summary["offline"]["rows"] if', "return 0.0 if"),
        ('limits[0]["answers"] if limits else _within(summary)', "_within(summary)"),
        ('len(summary.get("offline_limits", ())) == 1 == len(_dropping(summary))', "_dropping(summary)"),
        ("_given(summary) - _within(summary)", "_given(summary)"),
    ),
    *_of(
        "offline_plots.py",
        ("min(first, 0.0)", "first"),
        ("max(last, 0.0)", "last"),
        ("barh(-place, count", "barh(place, count"),
        ("percent(1 - better)", "percent(better - 1)"),
        ("weights=drawn)[0] / drawn.sum()", "weights=drawn)[0]"),
    ),
    *_of("panels.py", ('("held out", "above, held out", "below, held out")', "()")),
    *_of("training.py", ("if from_given(rows):", "if False:")),
    *_of(
        "page.py",
        ('if run.summary.get("verdict") or run.certificate:', "if False:"),
        ("or offline.headline(run, found) or found", "or found"),
    ),
]
