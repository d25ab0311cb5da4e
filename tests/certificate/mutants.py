"""Wrong versions of the certificate; each must make its tests fail."""

_SOURCE, _TESTS = "src/holdfast/certificate", "tests/certificate"


def _of(module: str, *changes: tuple[str, str]) -> list[tuple[str, str, str, str]]:
    return [(f"{_SOURCE}/{module}.py", old, new, f"{_TESTS}/test_{module}.py") for old, new in changes]


MUTANTS = [
    *_of(
        "constraint",
        ("(costs > self.threshold)", "(costs >= self.threshold)"),
        (
            'flags.max(axis=1) if self.method == "clopper_pearson"',
            'flags[:, 0] if self.method == "clopper_pearson"',
        ),
        ("and found.upper <= constraint.tau", "and found.upper < constraint.tau"),
        ("bounds(constraint, values, delta / constraints)", "bounds(constraint, values, delta)"),
        ("np.minimum(np.maximum(means, low), high)", "means"),
        (
            "low + high - betting_upper(other, delta, mirrored",
            "low + high - betting_upper(other, delta, bets",
        ),
        ("        low + high - hoeffding_bentkus_upper(", "        high - hoeffding_bentkus_upper("),
        ("-student_t_upper(-values, delta)", "student_t_upper(-values, delta)"),
        ("np.count_nonzero(values) < FEWEST_FOR_T", "np.count_nonzero(values) < 2"),
        ("return delta > 0 and n >= FEWEST_FOR_T", "return n >= FEWEST_FOR_T"),
        ("if not low < self.tau < high:", "if not low <= self.tau <= high:"),
    ),
    *_of(
        "plan",
        ("digest(sorted(keys))", "digest(list(keys))"),
        ('f"{seed}:{keys[i]}"', 'f"{keys[i]}"'),
        ("    delta = plan.delta_for(1)\n    for constraint", "    delta = plan.delta\n    for constraint"),
        ('if plan.zero_reference == "none":', 'if plan.zero_reference == "nothing":'),
        ("    refuse_hopeless(plan)\n", ""),
        ("if len(set(fold_rows)) < len(fold_rows):", "if not fold_rows:"),
    ),
    *_of(
        "ledger",
        ('entry["verdict"] != "CERTIFIED"', 'entry["verdict"] == "CERTIFIED"'),
        ('event == "close" and schedule != "single_use" and', 'event == "close" and'),
        ('        if known == "sealed":', '        if known in ("sealed", "open"):'),
        ("spend(delta, len(earlier) + 1, schedule)", "spend(delta, 1, schedule)"),
        ("!= (delta, schedule)", '!= (delta, entry["schedule"])'),
        ("line == canonical(entry).encode() and ", ""),
        ("!= (index, previous)", '!= (index, body.get("previous"))'),
        ("fcntl.flock(file, fcntl.LOCK_EX)", "fcntl.flock(file, fcntl.LOCK_SH)"),
        ('if entry["fold"] != fold or found == "burned":', 'if entry["fold"] != fold:'),
    ),
    *_of(
        "gate",
        ("if not all(np.isfinite(column).all() for column in table.values()):", "if False:"),
        ("    if len(set(keys)) < len(keys):\n", "    if False:\n"),
        ("    if fold_digest(keys) != frozen.fold_sha256:\n", "    if False:\n"),
        ("any(result.lcb > result.tau for", "any(result.ucb > result.tau for"),
        ("if all(result.passed for result in results):", "if any(result.passed for result in results):"),
        (
            "measure(each, sample[each.score], delta, count)",
            "measure(each, sample[each.score], delta / count, count)",
        ),
        ("column[order] for name", "column for name"),
        ("if any(degenerate(each", "if False and any(degenerate(each"),
        ('"insufficient_n" if attempt == 1 else "budget_exhausted"', '"insufficient_n"'),
        ("        ledger.burn(fold,", "        ledger.close(fold,"),
        ("for _, prompt in prompts for _ in range(count)", "for _ in range(count) for _, prompt in prompts"),
        ("(column >= low).all() and (column <= high).all()", "(column <= high).all()"),
        ("repr(cost) for cost in found", "f'{cost:.6f}' for cost in found"),
    ),
    *_of(
        "document",
        ('"tv_slack": result.tau - result.ucb', '"tv_slack": result.ucb - result.tau'),
        ("or 0) - result.k", "or 0)"),
        ("    if certificate.exists():", "    if evidence.is_dir():"),
        (
            "== (frozen.sha256, verdict.attempt, verdict.verdict)",
            "== (frozen.sha256, verdict.attempt, ours[2])",
        ),
    ),
    *_of(
        "verify",
        ('if document.get("sha256") != digest(body):', "if False:"),
        ("if text != render(document):", "if False:"),
        ("if result.delta != predicate.budget.delta_used:", "if False:"),
        ("if sha256(bundle).hexdigest() != predicate.evidence.bundle_sha256:", "if False:"),
        ("if row.harmful != flags(predicate.plan.plan, numbers):", "if False:"),
        ("not all(map(_same, stated, again.constraints))", "False"),
        ("if (predicate.verdict, predicate.reason) != (again.verdict, again.reason):", "if False:"),
        ('for key in ("_type", "subject", "signatures")', 'for key in ("_type", "subject")'),
        ("if predicate.plan_sha256 != predicate.plan.sha256:", "if False:"),
        ('    if closed.get("verdict") != predicate.verdict:', "    if False:"),
        ("if kind != PREDICATE:", "if kind is None:"),
    ),
    *_of(
        "explain",
        ('"within" if result.passed else "above"', '"above" if result.passed else "within"'),
        ("_percent(1 - predicate.budget.delta_used)", "_percent(predicate.budget.delta_used)"),
    ),
    *_of(
        "records",
        ("sort_keys=True, ", ""),
        (", allow_nan=False", ""),
    ),
]
