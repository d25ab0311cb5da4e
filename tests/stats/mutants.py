"""Wrong versions of the statistics; each must make its tests fail."""

_SOURCE, _TESTS = "src/holdfast/stats", "tests/stats"


def _of(module: str, *changes: tuple[str, str]) -> list[tuple[str, str, str, str]]:
    return [(f"{_SOURCE}/{module}.py", old, new, f"{_TESTS}/test_{module}.py") for old, new in changes]


MUTANTS = [
    *_of(
        "bounds",
        ("betaincinv(k + 1, n - k, 1 - _level(delta))", "betaincinv(k, n - k + 1, 1 - _level(delta))"),
        ("1.0 if k == n else float(betaincinv", "float(betaincinv"),
        (
            "0.0 if k == 0 else float(betaincinv(k, n - k + 1",
            "0.0 if k == 0 else float(betaincinv(k + 1, n - k",
        ),
        (
            "centre + float(stdtrit(df, 1 - _level(delta)))",
            "centre + float(stdtrit(df, 1 - _level(delta) / 2))",
        ),
        ("(numbers.size - 1)\n\n\ndef _unit", "numbers.size\n\n\ndef _unit"),
        ("stdtr(df, (centre - tau) / error)", "stdtr(df, (tau - centre) / error)"),
        (
            "math.sqrt(-math.log(_level(delta)) / (2 * unit.size))",
            "math.sqrt(-math.log(_level(delta)) / unit.size)",
        ),
        ("7 * surprise / (3 * (unit.size - 1))", "7 * surprise / (3 * unit.size)"),
        ("math.log(2 / _level(delta))", "math.log(1 / _level(delta))"),
        ("bentkus = math.e * ", "bentkus = "),
        ("math.ceil(n * centre - 1e-9)", "math.floor(n * centre - 1e-9)"),
        ("return min(hoeffding, bentkus, 1.0)", "return min(hoeffding, 1.0)"),
        ("share - band - (1 - alpha)", "share - band"),
        ("np.diff(ordered, append=upper)", "np.diff(ordered, append=1.0)"),
        ("betaincc(j, ordered.size - j + 1, q)", "betaincc(j + 1, ordered.size - j, q)"),
        ("factor * float(stdtrit(n - 1", "factor * float(stdtrit(n"),
        ("return _width(delta, n_batch, c1) +", "return _width(delta, n_safety, c1) +"),
        ("    return high\n\n\ndef below", "    return low\n\n\ndef below"),
        ("return math.fsum(numbers) / numbers.size", "return float(numbers.sum()) / numbers.size"),
        ("return lower + (upper - lower) * min(unit, 1.0)", "return lower + (upper - lower) * unit"),
    ),
    *_of(
        "betting",
        ("squares[:-1]", "squares[1:]"),
        ("np.concatenate([[0.0], squares[:-1]])[: z.size]", "squares"),
        (")[: z.size]) / i", ")[: z.size]) / (i + 1)"),
        ("np.cumsum((z - running) ** 2)", "np.cumsum((z - bets.prior_mean) ** 2)"),
        ("i * np.log1p(i) if bets.sequential", "i * np.log(i + 2) if bets.sequential"),
        ("np.sqrt(-2 * math.log(delta)", "np.sqrt(-math.log(delta)"),
        ("-np.minimum(chosen, cap)", "-np.maximum(chosen, cap)"),
        ("c / (upper - m) if m < upper", "c / (1 - m) if m < upper"),
        ("chosen, bets.c, upper).max() >= goal", "chosen, bets.c, upper)[-1] >= goal"),
        ("math.exp(-max(0.0, float(growth.max(initial=0.0))))", "math.exp(-float(growth[-1]))"),
        ("if not 0 < self.c < 1", "if not 0 < self.c <= 1"),
    ),
    *_of(
        "estimate",
        ("ndtri((1 + _level(confidence)) / 2)", "ndtri(_level(confidence))"),
        ("z * z / (4 * n * n)", "z * z / (4 * n)"),
        ("units.std(ddof=1)", "units.std()"),
        ("stdtrit(units.size - 1,", "stdtrit(units.size,"),
        ("    if units.size < 2 or p in (0.0, 1.0):", "    if units.size < 2:"),
        ("np.bincount(index, weights=numbers) / np.bincount(index)", "numbers"),
        ("1 - math.floor(math.log10(width))", "2 - math.floor(math.log10(width))"),
    ),
    *_of(
        "power",
        (
            "clopper_pearson_upper(k, middle, delta) <= tau",
            "clopper_pearson_upper(k, middle, delta / 2) <= tau",
        ),
        ("return low if low >= 0 else None", "return max(low, 0)"),
        ("betaincc(k + 1, n - k, rate)", "betaincc(k, n - k + 1, rate)"),
        ("math.ldexp(delta, -attempt)", "math.ldexp(delta, 1 - attempt)"),
        ("return delta if attempt == 1 else 0.0", "return delta"),
        ("6 * delta / (math.pi * attempt) ** 2", "delta / attempt**2"),
    ),
    *_of(
        "calibration",
        ("(positive + 1) / (positive + 2), 1 / (negative + 2)", "1.0, 0.0"),
        ("b - a * shift / scale", "b"),
        ("a / scale)", "a)"),
        ("x * np.exp(-log_t)", "x * np.exp(log_t)"),
        ("np.minimum((p * bins).astype(int), bins - 1)", "(p * bins).astype(int)"),
        ("bin.observed.n * abs(bin.predicted", "abs(bin.predicted"),
    ),
    *_of(
        "metrics",
        ("(p & y, p & ~y, ~p & y, ~p & ~y)", "(p & y, ~p & y, p & ~y, ~p & ~y)"),
        ("_ratio(self.fp, self.fp + self.tn)", "_ratio(self.fp, self.fp + self.tp)"),
        ("2 * self.tp + self.fp + self.fn", "self.tp + self.fp + self.fn"),
        ('np.searchsorted(negative, positive, "right")', 'np.searchsorted(negative, positive, "left")'),
        ("0.5 * (m == 0)", "(m == 0)"),
        ("for kind in np.unique(y)", "for kind in np.unique(p)"),
        ("part / whole if whole else math.nan", "part / whole if whole else 0.0"),
    ),
    *_of(
        "compare",
        ("delta / (len(p_values) - rank)", "delta / (rank + 1)"),
        ("            break\n", "            continue\n"),
        ("2 * stdtr(", "stdtr("),
        ("per_cluster(first - second, clusters)", "per_cluster(second - first, clusters)"),
        ("(1 - confidence) / 2, (1 + confidence) / 2", "1 - confidence, confidence"),
    ),
]
