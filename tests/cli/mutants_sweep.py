"""Wrong versions of the sweep's commands, each of which its tests must catch."""

_FILE, _TESTS = "src/holdfast/cli/sweep.py", "tests/cli/test_sweep.py"

MUTANTS = [
    (_FILE, old, new, _TESTS)
    for old, new in (
        ("    if failed:\n", "    if False:\n"),
        ('"judge": names', '"judge": []'),
        ("        if key in axes:", "        if False:"),
        ("len(set(found)) < len(found)", "False"),
        ("_tell(folder, _names(judge))", "_tell(folder, [])"),
    )
]
