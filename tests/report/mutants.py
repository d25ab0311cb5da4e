"""Wrong versions of the report, each of which its tests must catch: (file, text, wrong text, tests)."""


def _of(source: str, tests: str, *changes: tuple[str, str]) -> list[tuple[str, str, str, str]]:
    return [(f"src/holdfast/report/{source}", old, new, f"tests/report/{tests}") for old, new in changes]


MUTANTS = [
    *_of(
        "read.py",
        "test_read.py",
        ("enumerate(lines, start=1)", "enumerate(lines, start=0)"),
        ('_text(file).split("\\n")', "_text(file).splitlines()"),
        ("said != certified", "said == certified"),
        ("return number if math.isfinite(number) else None", "return number"),
        ("np.linspace(0, len(rows) - 1, most)", "np.linspace(0, len(rows) - 2, most)"),
    ),
    *_of(
        "words.py",
        "test_words.py",
        ("rounding=ROUND_CEILING", ""),
        ("round(1 - self.delta, 12)", "self.delta"),
        ('key=lambda item: bool(item.get("passed"))', "key=lambda item: 0"),
        ("percent(test.k / test.n)", "percent(test.ucb)"),
        ("harmful{test.judge}", "harmful"),
    ),
    *_of(
        "plots.py",
        "test_plots.py",
        ("(np.argmin, np.argmax)", "(np.argmin, np.argmin)"),
        ("2 * (len(values) // 40) + 1", "2 * (len(values) // 20) + 1"),
        ("rewards[~harmful], costs[~harmful]", "rewards[harmful], costs[harmful]"),
        ('"text.parse_math": False', '"text.parse_math": True'),
        ('aria-label="{escape(alt)}"', 'aria-label="{alt}"'),
        ('"svg.hashsalt": alt}):\n        letters', '"svg.hashsalt": "x"}):\n        letters'),
        ("([0.0] if from_zero else [])", "[]"),
    ),
    *_of(
        "panels.py",
        "test_panels.py",
        ('100.0 if self.unit.startswith("%")', '1.0 if self.unit.startswith("%")'),
        ("float(thresholds[-1])", "float(thresholds[0])"),
        ('measure in ("flag", "probability")', 'measure in ("logit", "probability")'),
        ("scale * values, style, dropped", "scale * values, style"),
        ("if member == group]", "]"),
    ),
    *_of(
        "page.py",
        "test_page.py",
        ("autoescape=True", "autoescape=False"),
        ('after["value"] - before["value"]', 'before["value"] - after["value"]'),
        ('before["high"] < after["low"]', 'before["low"] < after["high"]'),
    ),
    *_of(
        "page.html.jinja",
        "test_page.py",
        ("{{ row.response }}", "{{ row.response | safe }}"),
    ),
    *_of(
        "card.py",
        "test_card.py",
        ('in "\\\\`*_[]<>|#"', 'in ""'),
    ),
]
