"""Wrong versions of what weak supervision is made of in `systems` that its tests must catch."""

SCORES, SCORED = "src/holdfast/systems/weak_scores.py", "tests/systems/test_weak_labels_given.py"
RUNS = "tests/systems/test_weak_scores.py"
LOSSES = f"{RUNS}::test_the_losses_are_those_written_out"
AGREEMENT = f"{RUNS}::test_agreement_counts_the_axis_that_was_labelled"
CONTRADICTIONS = f"{RUNS}::test_contradictions"
STRONG, PLANNED = "src/holdfast/systems/weak_to_strong.py", "tests/systems/test_weak_to_strong.py"
LEARNERS, LEARNED = "src/holdfast/systems/weak_learners.py", "tests/systems/test_weak_learners.py"
PLAN = "src/holdfast/systems/transfer_plan.py"
REPORT, REPORTED = "src/holdfast/systems/transfer_report.py", "tests/systems/test_transfer_report.py"


def planned(name: str) -> str:
    """One test of the plan; the file as a whole trains networks first."""
    return f"{PLANNED}::test_{name}"


MUTANTS = [
    # What a weak model says of a pair, and whether it still says so.
    (SCORES, "transfer.pair(found[:, 1] - found[:, 0])", "transfer.pair(found[:, 0] - found[:, 1])", SCORED),
    (SCORES, '["scores"] / settings.temperature, pairs)', '["scores"], pairs)', SCORED),
    (SCORES, "names.index(axis) if axis in names else 0", "0", SCORED),
    (SCORES, "model_dump_json(), *one.responses)", "model_dump_json())", SCORED),
    (SCORES, "(one.id, one.prompt.model_dump_json(), *one", "(one.id, *one", SCORED),
    (
        SCORES,
        "(table.created_from, table.calibration) != (origin, calibration)",
        "table.created_from != origin",
        SCORED,
    ),
    (SCORES, "[network_digest(scorer.model), template.fingerprint]", "[network_digest(scorer.model)]", SCORED),
    (SCORES, 'text.on_long_prompt == "error":', 'text.on_long_prompt == "skip":', SCORED),
    # Learning from it.
    (SCORES, "told.table.p[i, 1] > 0.5", "told.table.p[i, 0] > 0.5", SCORED),
    (SCORES, "None if pair.safer_id is None else 1 - pair.safer_id", "pair.safer_id", AGREEMENT),
    (SCORES, "pair.safer_id is not None or not all(", "pair.safer_id is not None and not all(", SCORED),
    (
        SCORES,
        "(stage.loss, name) != value",
        "(stage.loss, name) == value",
        f"{RUNS}::test_a_loss_that_a_weak_model_replaces_is_refused",
    ),
    (SCORES, "if not weak and moved:", "if weak and moved:", CONTRADICTIONS),
    (SCORES, "stages.train(task, rows, [], fit, run, axis)", "stages.train(task, rows, rows, fit, run, axis)", SCORED),
    (SCORES, 'settings.learn.model_copy(update={"fit": fit})', "settings.learn", SCORED),
    (SCORES, 'torch.sigmoid(told.scores).tolist() if axis == "cost"', 'told.scores.tolist() if axis == "cost"', SCORED),
    (SCORES, "for pair, (a, b) in zip(pairs, harm)", "for pair, (b, a) in zip(pairs, harm)", SCORED),
    (SCORES, "return transfer.pair((second - first)[:, 0])", "return transfer.pair((first - second)[:, 0])", SCORED),
    (
        SCORES,
        "logits = transfer.pair(second - first)\n        absolute",
        "logits = transfer.pair(first - second)\n        absolute",
        LOSSES,
    ),
    (SCORES, '{"absolute": 2 * scale}', '{"absolute": scale}', LOSSES),
    (SCORES, '"absolute": 2.0 * len(batch.weak)', '"absolute": 1.0 * len(batch.weak)', LOSSES),
    # Who may see what.
    (STRONG, 'sealed=pooled["test"].ids', "sealed=()", planned("gold_labels_of_the_test_are_never_released")),
    (
        STRONG,
        'if name != "test" for row',
        'if name != "validation" for row',
        planned("nothing_of_the_test_is_read_before_it_is_judged"),
    ),
    (STRONG, "cluster_ids([one.record for one in items.values()])", "items", planned("the_vault_knows_groups")),
    (
        STRONG,
        'f"weak/{seed}"',
        'f"weak/{settings.seed}"',
        planned("each_seed_draws_gold_rows_of_its_own_and_shares_the_rest"),
    ),
    (
        STRONG,
        'same = (pooled[name] for name in ("transfer", "validation", "test"))',
        'same = (pooled[name] for name in ("transfer", "test", "test"))',
        planned("each_seed_draws_gold_rows_of_its_own_and_shares_the_rest"),
    ),
    (
        STRONG,
        "int(order[1] == chosen)",
        "int(order[0] == chosen)",
        planned("the_order_of_a_pair_is_drawn_and_its_gold_class_follows"),
    ),
    (
        STRONG,
        "1 - (pair.safer_id or 0)",
        "(pair.safer_id or 0)",
        planned("the_order_of_a_pair_is_drawn_and_its_gold_class_follows"),
    ),
    (
        STRONG,
        "order = (1, 0) if turned else (0, 1)",
        "order = (0, 1)",
        planned("the_order_of_a_pair_is_drawn_and_its_gold_class_follows"),
    ),
    (
        STRONG,
        'axis = "helpful_id" if',
        'axis = "safer_id" if',
        planned("a_task_reads_the_pairs_that_people_judged_on_its_axis"),
    ),
    # Settings that must reach their place.
    (
        STRONG,
        'shares["transfer"] / parts for',
        'shares["transfer"] for',
        planned("intermediate_learners_share_the_transfer_split"),
    ),
    (
        STRONG,
        '"classifier" and data.balance else',
        '"classifier" else',
        planned("classes_are_balanced_unless_data_are_to_stay"),
    ),
    (
        STRONG,
        "{name: learning(settings.fit, one) for",
        "{name: learning(settings.fit) for",
        planned("the_plan_says_what_the_settings_say"),
    ),
    (
        STRONG,
        "supervised=learning(settings.supervised)",
        "supervised=learning(settings.fit)",
        planned("the_plan_says_what_the_settings_say"),
    ),
    (
        STRONG,
        "seeds=tuple(settings.seed + seed for",
        "seeds=tuple(seed for",
        planned("the_plan_says_what_the_settings_say"),
    ),
    (STRONG, "        cross_fit=settings.cross_fit,\n", "", planned("the_plan_says_what_the_settings_say")),
    (STRONG, 'learner(f"intermediate_{i}")', 'learner("student")', planned("the_plan_says_what_the_settings_say")),
    (
        STRONG,
        'if one.kind == "words" or one.model else',
        'if one.kind == "words" else',
        planned("the_world_brings_what_was_not_given"),
    ),
    (STRONG, "data = settings.data or WeakData(", "data = WeakData(", planned("the_world_brings_what_was_not_given")),
    # Learners.
    (LEARNERS, "(precise(states) * mask).sum(1) / mask.sum(1)", "precise(states).mean(1)", LEARNED),
    (LEARNERS, "for i, one in zip(chosen, means.cpu())", "for i, one in enumerate(means.cpu())", LEARNED),
    (LEARNERS, "for side in (0, 1)], 1)", "for side in (1, 0)], 1)", LEARNED),
    (LEARNERS, "pair=self.pair, hidden=wanted.hidden)", "pair=self.pair)", LEARNED),
    (LEARNERS, "pair=self.pair, regularisation=wanted.regularisation)", "pair=self.pair)", LEARNED),
    (LEARNERS, "fit = stages.offset(wanted.sft, self.settings.seed)", "fit = wanted.sft", LEARNED),
    (LEARNERS, 'stage=f"sft_{name}")', 'stage="sft")', LEARNED),
    (LEARNERS, "pair=self.pair, adapter=adapter,", "pair=self.pair,", LEARNED),
    (LEARNERS, 'one if one.answered else one.answer(".")', "one", LEARNED),
    (
        LEARNERS,
        "return [not names for names in found]",
        "return [len(names) < len(templates) for names in found]",
        LEARNED,
    ),
    (LEARNERS, '"probe": {"model", "sft", "hidden"}', '"probe": {"model", "sft", "hidden", "regularisation"}', LEARNED),
    (LEARNERS, 'model_copy(update={"fit": fit})', "model_copy()", LEARNED),
    # Plan and report.
    (PLAN, "tuple(self.ids[i] for i in places), [", "self.ids[: len(places)], [", REPORTED),
    (PLAN, "in (single | fresh).items() if pool.ids", "in (single | fresh).items()", REPORTED),
    (REPORT, "[plan.seeds[i] for i in own]", "list(plan.seeds)", REPORTED),
    (REPORT, "outcomes[i].students[name] for i in own]", "outcomes[-1].students[name] for _ in own]", REPORTED),
    (REPORT, "chosen = curve.agreed or list(range(len(gold)))", "chosen = curve.agreed or gold", REPORTED),
    (REPORT, '"mean": shown.mean(0).tolist()', '"mean": shown.mean(1).tolist()', REPORTED),
    (REPORT, "p.amax(1, keepdim=True)", "p.amax(0, keepdim=True)", REPORTED),
    (REPORT, "shown.std(0, correction=0)", "shown.std(0)", REPORTED),
    (REPORT, "        if ended:\n", "        if not ended:\n", REPORTED),
]
