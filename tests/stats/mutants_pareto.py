"""Wrong versions of fronts, volumes and their draws; each must make its tests fail."""

_FILE, _TESTS = "src/holdfast/stats/pareto.py", "tests/stats/test_pareto.py"

MUTANTS = [
    (_FILE, old, new, _TESTS)
    for old, new in (
        ("(other >= one).all(-1) & (other > one).any(-1)", "(other >= one).all(-1)"),
        ("(other >= one).all(-1) & (other > one).any(-1)", "(other > one).all(-1)"),
        ("np.maximum(table - origin[..., None, :], 0.0)", "table - origin[..., None, :]"),
        ("above[..., : i + 1, :-1]", "above[..., :i + 2, :-1]"),
        ("append=0.0", "append=above[..., -1:, -1]"),
        ("np.argsort(-above", "np.argsort(above"),
        ("2 * float(quantile)", "float(quantile)"),
        ('estimate.method.startswith("student_t")', "False"),
        ("np.sqrt((count + 1) / np.maximum(count - 1, 1))", "np.ones(len(count))"),
        ("* present\n", "* 1.0\n"),
        ("size=(samples, 1, values.shape[1])", "size=(samples, *values.shape[:2])"),
        ("/ count[:, None]\n    by_prompt", "/ np.sqrt(count)[:, None]\n    by_prompt"),
        ("return centre + by_seed + by_prompt", "return centre + by_seed"),
        ("return centre + by_seed + by_prompt", "return centre + by_prompt"),
        ("hypervolume(drawn, drawn[:, 0])", "hypervolume(drawn, table[0])"),
        ("min(low, mirrored[0])", "low"),
        ("max(high, mirrored[1])", "mirrored[1]"),
    )
]
