"""Wrong versions of the sweep, each of which its tests must catch."""

_FILE, _TESTS = "src/holdfast/systems/sweep.py", "tests/systems/test_sweep.py"

MUTANTS = [
    (_FILE, old, new, _TESTS)
    for old, new in (
        ("DONE = (0, 4, 5)", "DONE = (0,)"),
        ("if len(values) < 2:", "if not values:"),
        ("quote(_text(value), safe='')", "quote(_text(value))"),
        ("        if finished[one.name]:", "        if False:"),
        ("            failed[one.name] = message\n", "            failed[one.name] = message\n            break\n"),
        ("!= planned.fingerprint", "is None"),
        ('return (folder / "summary.json").is_file()', "return True"),
        ("said[named[-1] :]", "said[named[-1] : named[-1] + 1]"),
        ('if code < 0 else f"exit code {code}"', 'if False else f"exit code {code}"'),
        ("axes.keys() & {", "axes.keys() - axes.keys() & {"),
    )
]
