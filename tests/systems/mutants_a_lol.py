"""Wrong versions of `systems/a_lol.py` that its tests must catch."""

FILE, STAGES = "src/holdfast/systems/a_lol.py", "tests/systems/test_a_lol_stages.py"
RUNS = "tests/systems/test_a_lol.py"
DIVIDED = f"{RUNS}::test_no_prompt_is_both_learned_from_and_watched"
CONTRADICTIONS = f"{RUNS}::test_contradictions_are_told_before_anything_runs"
DIVERSITY = f"{RUNS}::test_short_answers_have_no_triples_to_count"

MUTANTS = [
    # Settings that are ignored, or that go together after all.
    (FILE, "if len(chosen) != 1:", "if len(chosen) > 1:", CONTRADICTIONS),
    (FILE, 'any(limit.how == "weight" for', 'all(limit.how == "weight" for', STAGES),
    (FILE, '"data.ranked": self.offline is not None', '"data.ranked": self.offline is None', CONTRADICTIONS),
    (FILE, '"rewards": not rewarded and', '"rewards": self.pro is not None and', CONTRADICTIONS),
    (FILE, 'if "advantage" in method.needs:', "if method.needs:", STAGES),
    (FILE, '"value": "advantage" not in needs', '"value": not needs', STAGES),
    (FILE, "self.pro is not None or self.best is not None or bool(", "bool(", STAGES),
    (FILE, 'needs & {"reward", "advantage"}', 'needs | {"reward"}', STAGES),
    (FILE, "settings.rewards if method.needs else {}", "settings.rewards", STAGES),
    (FILE, '        if "ref" in method.needs:\n', "        if False:\n", STAGES),
    (FILE, "own[: len(row.tokens.response_ids)]", "own", STAGES),
    # What is handed on.
    (FILE, 'update={"data": given.with_answers(settings.data)}', 'update={"data": settings.data}', STAGES),
    (FILE, "limited = [limit.score for limit in settings.limits]", "limited: list[str] = []", STAGES),
    (FILE, "margin = method.value_margin", "margin = 0.0", STAGES),
    (FILE, "offline_rows(rows, known, weight)", "offline_rows(rows, known)", STAGES),
    (FILE, "ready, watching = divided(ready, answers", "_, watching = divided(ready, answers", STAGES),
    (
        FILE,
        "plan_rows(ready, method, stages.offset(settings.fit, settings.seed))",
        "plan_rows(ready, method, settings.fit)",
        STAGES,
    ),
    (FILE, "scored, judged = settings.pro is not None,", "scored, judged = settings.dpo is not None,", STAGES),
    (FILE, "        rows = known_to(reference, rows, bench)\n", "", STAGES),
    (FILE, "    rows, watching = divided(rows, found", "    _, watching = divided(rows, found", STAGES),
    (FILE, 'dual.probe_answers(bench.pools), "policy")', 'dual.probe_answers(bench.pools), "sft")', STAGES),
    # Who is watched, and what is told.
    (FILE, "watch/{keys(one)[0]}", "watch/{id(one)}", DIVIDED),
    (FILE, "place <= border", "place < border", DIVIDED),
    (FILE, "if not math.isnan(share)}", "}", DIVERSITY),
]
