"""Wrong versions of `holdfast.systems.transfer` that its tests must catch."""

TRANSFER, TEST = "src/holdfast/systems/transfer.py", "tests/systems/test_transfer.py"
REPORT = "src/holdfast/systems/transfer_report.py"

MUTANTS = [
    # Who learns from what.
    (TRANSFER, 'gold, plan.ceiling, "ceiling"', '1 - gold, plan.ceiling, "ceiling"', TEST),
    (TRANSFER, "        with self.plan.vault.locked(stage):\n", "        if True:\n", TEST),
    (TRANSFER, "enumerate(held) if not out]", "enumerate(held)]", TEST),
    (TRANSFER, "labels.take(validation.ids)) if self.plan.select", "labels.take(pool.ids)) if self.plan.select", TEST),
    (TRANSFER, '_bootstrapped": (name, last)', '_bootstrapped": (name, labels)', TEST),
    (TRANSFER, "                if now < before:\n", "                if now > before:\n", TEST),
    (TRANSFER, "if shared := groups[one] & groups[other]:", "if shared := set():", TEST),
    (TRANSFER, "any(plan.pools(seed).test.ids != test.ids for seed in plan.seeds)", "False", TEST),
    (TRANSFER, "if not stages.on_main(self.run, file.is_file):", "if True:", TEST),
    (TRANSFER, "if table.calibration.method != calibration.method:", "if False:", TEST),
    # What is reported.
    (REPORT, "weak[own], p, ceiling[own]", "ceiling[own], p, weak[own]", TEST),
    (TRANSFER, "predictor(self.pools.test.items).argmax(1)", "predictor(self.pools.test.items).argmin(1)", TEST),
    (TRANSFER, "sorted(map(int, answers))", "sorted(map(int, answers))[:-1]", TEST),
    (REPORT, "sure is not None and sure < naive", "sure is not None and sure > naive", TEST),
    (REPORT, 'if level[name] < recovery["weak"]["value"]:', 'if level[name] > recovery["weak"]["value"]:', TEST),
    (REPORT, 'student["value"] < weak["value"]:', 'student["value"] > weak["value"]:', TEST),
    # Cross-fitting.
    (TRANSFER, 'if own or kind != "weak_train"', 'if kind != "weak_train"', TEST),
    (TRANSFER, "if stage != SUPERVISOR or pool is not self.pools.weak_train:", "if True:", TEST),
    (TRANSFER, "[*one.items, *other.items]) if self.plan.cross_fit else one", "[]) if False else one", TEST),
]
