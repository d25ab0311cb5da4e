"""Wrong versions of the report on a sweep, each of which its tests must catch."""

_TESTS = "tests/report/test_pareto.py"
_JUDGE = "src/holdfast/report/pareto.py"
_PAGE, _PLOTS = "src/holdfast/report/pareto_page.py", "src/holdfast/report/pareto_plots.py"

MUTANTS = [
    (_JUDGE, "-1.0 if one.lower else 1.0", "1.0", _TESTS),
    (_JUDGE, '"after" if m else "before"', '"after"', _TESTS),
    (_JUDGE, 'key != "seed"', "True", _TESTS),
    (_JUDGE, "if len(parts[0]) == len(parts[1]) and preferred", "if preferred", _TESTS),
    (_JUDGE, "return number is None, number or 0.0, str(value)", "return False, 0.0, str(value)", _TESTS),
    (_JUDGE, "if name not in {run.name for run in done}", "if name", _TESTS),
    (_JUDGE, 'names or told.get("judge", ())', "names", _TESTS),
    (_JUDGE, "usual.get(name, name in LOWER)", "usual.get(name, False)", _TESTS),
    (_JUDGE, 'if len(found) == 1 and not names and "kl" in known', "if False", _TESTS),
    (_JUDGE, 'one.get("direction", "at_most") == "at_most"', "True", _TESTS),
    (_JUDGE, "if len(before) > 1:", "if False:", _TESTS),
    (_JUDGE, "if 1 < max(counts) < FEW_SEEDS:", "if max(counts) < FEW_SEEDS:", _TESTS),
    (_JUDGE, "if len({_seed(run) for run in own}) < len(own):", "if False:", _TESTS),
    (_JUDGE, ' or n == "over_refusal")', ")", _TESTS),
    (_PAGE, "DOWN if one.lower else UP", "UP if one.lower else DOWN", _TESTS),
    (_PAGE, 'text.replace("|", "\\\\|")', "text", _TESTS),
    (_PLOTS, "        if one.lower:\n            turn()", "        if False:\n            turn()", _TESTS),
    (_PLOTS, "(points > reference).all(1)", "(points > reference).any(1)", _TESTS),
    (_PLOTS, "[:MOST_PANELS]", "", _TESTS),
    (_PLOTS, "not box.count_overlaps(taken)", "True", _TESTS),
    (_PLOTS, "if place is None and not point.on_front:", "if place is None:", _TESTS),
]
