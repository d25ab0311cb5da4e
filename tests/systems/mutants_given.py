"""Wrong versions of `systems/given.py` that its tests must catch."""

FILE, TEST = "src/holdfast/systems/given.py", "tests/systems/test_given.py"

MUTANTS = [
    # Which answers there are.
    (FILE, '{"sft": data.sft or own, "prompts"', '{"sft": own, "prompts"', TEST),
    (FILE, "if data.pairs is None else None))", "if data.pairs is not None else None))", TEST),
    (FILE, "if one.answered and one.response]", "if one.answered]", TEST),
    (FILE, "*pools.practise, *pools.dev, *pools.safety,", "*pools.practise, *pools.dev,", TEST),
    (FILE, "[*pools.ratings, *pools.held_out_ratings]", "[*pools.ratings]", TEST),
    (FILE, "if not skips or reading.fits", "if skips or reading.fits", TEST),
    (
        FILE,
        "[self.conversations[i] for i in chosen], own, self.reward[chosen]",
        "self.conversations, own, self.reward",
        TEST,
    ),
    (FILE, "answers.take(chosen), found.weight[chosen]", "answers.take(chosen), found.weight[: len(chosen)]", TEST),
    # What they are worth.
    (FILE, "not any(name in one.scores for one in rows) and", "not all(name in one.scores for one in rows) and", TEST),
    (FILE, "list(needed), scorer_digest(bench, {})]", "list(needed)]", TEST),
    (FILE, 'if kept["follows_from"] != stamp:', "if False:", TEST),
    (FILE, 'for name in ("reward", "cost", "attributes")}', 'for name in ("reward", "cost")}', TEST),
    (FILE, "{network_digest(one.model.network)} {one", "{one", TEST),
    (FILE, "(one.model.network)} {one.template.fingerprint}", "(one.model.network)}", TEST),
    (FILE, 'include={"scorers", "functions", "endpoints"}', 'include={"scorers", "functions"}', TEST),
    (FILE, "OfflineRow(row, reward=reward, weight=own)", "OfflineRow(row, reward=own, weight=reward)", TEST),
    # Rankings.
    (FILE, "pair.helpful_id is not None or pair.safer_id", "pair.helpful_id is not None and pair.safer_id", TEST),
    (
        FILE,
        "one.prompt.answer(one.responses[0]) for one in found]",
        "one.prompt.answer(one.responses[-1]) for one in found]",
        TEST,
    ),
    (FILE, "if scored and any(one.rewards is None", "if scored and all(one.rewards is None", TEST),
    (FILE, "found = [_best_and_worst(one) for one in found]", "found = list(found)", TEST),
    (FILE, "one.rewards is not None and one.rewards[0] ==", "one.rewards is None or one.rewards[0] ==", TEST),
]
