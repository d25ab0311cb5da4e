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
        ('.removeprefix("audit-")', ""),
        ('isinstance(audit.get("scores"), dict)', "audit"),
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
        ('after["value"] - before["value"]', 'before["value"] - after["value"]'),
        ('before["high"] < after["low"]', 'before["low"] < after["high"]'),
    ),
    *_of(
        "document.py",
        "test_page.py",
        ("autoescape=True", "autoescape=False"),
    ),
    *_of(
        "page.html.jinja",
        "test_page.py",
        ("{{ row.response }}", "{{ row.response | safe }}"),
    ),
    *_of(
        "page.html.jinja",
        "test_audit.py",
        ("<li>{{ line }}</li>{% endfor %}</ul>\n{% endif %}\n{{ table", "</ul>\n{% endif %}\n{{ table"),
        ("{% if found.scores | length > 3 %}", "{% if found.scores | length > 4 %}"),
    ),
    *_of(
        "audit.py",
        "test_audit.py",
        ("{'+' if value > 0 else ''}", ""),
        ('_cell(ece.get("platt"), percent)', '_cell(ece.get("raw"), percent)'),
        ('{**estimate, "n": None}', "estimate"),
        ("if len(members) > 1:", "if members:"),
        ("members.items())[:MOST_PARTS]", "members.items())[: 2 * MOST_PARTS]"),
        ("share >= 1e-4", "share >= 0"),
        ('if told["length"].get("spearman"):', "if True:"),
        ("if value]\n    page =", "]\n    page ="),
        ("round(value, 2) + 0.0", "round(value, 1) + 0.0"),
    ),
    *_of(
        "score_plots.py",
        "test_score_plots.py",
        ("place = 100 * bucket.stated", "place = 100 - 100 * bucket.stated"),
        (">= FEW else 0.35", "> FEW else 0.35"),
        ("100 * count / count.sum()", "count"),
        ("if border and edges[0] < 0 < edges[-1]:", "if border:"),
        ("_dot(axes, row, -place)", "_dot(axes, row, place)"),
        ("if entries > 1:", "if entries:"),
        ('row.name.replace("_", " ")', "row.name"),
    ),
    *_of(
        "card.py",
        "test_card.py",
        ('in "\\\\`*_[]<>|#"', 'in ""'),
    ),
]
