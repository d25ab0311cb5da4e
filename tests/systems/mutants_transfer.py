"""Wrong versions of `holdfast.systems.transfer` that its tests must catch."""

TRANSFER, TEST = "src/holdfast/systems/transfer.py", "tests/systems/test_transfer.py"

MUTANTS = [
    # Who learns from what.
    (TRANSFER, 'gold, plan.ceiling, "ceiling"', '1 - gold, plan.ceiling, "ceiling"', TEST),
    (TRANSFER, "        with self.plan.vault.locked(stage):\n", "        if True:\n", TEST),
    (TRANSFER, "enumerate(held) if not out]", "enumerate(held)]", TEST),
    (TRANSFER, "labels.take(validation.ids)) if self.plan.select", "labels.take(pool.ids)) if self.plan.select", TEST),
    (TRANSFER, '_bootstrapped": (name, last)', '_bootstrapped": (name, labels)', TEST),
    (TRANSFER, "                if now < before:\n", "                if now > before:\n", TEST),
    (TRANSFER, 'if kind != "weak_train"]', 'if kind != "nothing"]', TEST),
    (TRANSFER, "if shared := groups[one] & groups[other]:", "if shared := set():", TEST),
    (TRANSFER, "any(plan.pools(seed).test.ids != test.ids for seed in plan.seeds)", "False", TEST),
    (TRANSFER, "        if not file.is_file():\n            logits", "        if True:\n            logits", TEST),
    (TRANSFER, "both[::-1] if gold[pair.id] else both", "both", TEST),
    # What is reported.
    (TRANSFER, "weak[own], p, ceiling[own]", "ceiling[own], p, weak[own]", TEST),
    (TRANSFER, "predictor(self.pools.test.items).argmax(1)", "predictor(self.pools.test.items).argmin(1)", TEST),
    (TRANSFER, "sorted(map(int, answers))", "sorted(map(int, answers))[:-1]", TEST),
    (TRANSFER, "sure is not None and sure < naive", "sure is not None and sure > naive", TEST),
    (TRANSFER, 'if level[name] < recovery["weak"]["value"]:', 'if level[name] > recovery["weak"]["value"]:', TEST),
    (TRANSFER, 'student["value"] < weak["value"]:', 'student["value"] > weak["value"]:', TEST),
]
