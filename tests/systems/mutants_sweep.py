"""Wrong versions of the sweep, each of which its tests must catch."""

_FILE, _TESTS = "src/holdfast/systems/sweep.py", "tests/systems/test_sweep.py"

MUTANTS = [
    (_FILE, old, new, _TESTS)
    for old, new in (
        ("        if not _finished(out / one.name, one):", '        if "code 0" not in ended:'),
        ("if len(values) < 2:", "if not values:"),
        ("quote(_text(value), safe='')", "quote(_text(value))"),
        ("todo = [one for one in planned if not _finished(out / one.name, one)]", "todo = list(planned)"),
        ("            _write(out, told, failed)\n", "            break\n"),
        ("!= planned.fingerprint", "is None"),
        ('return (folder / "summary.json").is_file()', "return True"),
        ("errors[-1] if errors else -1", "-1"),
        ('f"signal {-code}" if code < 0 else', ""),
        ("axes.keys() & {", "axes.keys() - axes.keys() & {"),
    )
]
