"""Wrong versions of the study `w2s_dial` that its tests must catch."""

DIAL, TEST = "src/holdfast/studies/w2s_dial.py", "tests/studies/test_w2s_dial.py"

MUTANTS = [
    (DIAL, "weak[:, 0] += 0.7 * sides", "weak[:, 0] += 1.4 * sides", TEST),
    (DIAL, "strong[:, 0] += 1.4 * sides", "strong[:, 0] += 0.7 * sides", TEST),
    (DIAL, "(1 - rho**2) ** 0.5 * noise", "(1 - rho) * noise", TEST),
    (DIAL, '_pgr(one, "soft") > 0.8', '_pgr(one, "logconf") > 0.8', TEST),
    (DIAL, 'abs(_pgr(one, "soft")) < 0.03', '_pgr(one, "soft") < 0.03', TEST),
    (DIAL, 'one["soft"]["on_wrong"] > 0.98', 'one["soft"]["on_wrong"] > 0.9', TEST),
    (DIAL, '- _pgr(one, "soft") >= 0.2', '- _pgr(one, "soft") >= 0.1', TEST),
    (DIAL, '_pgr(one, "logconf") < _pgr(one, "soft")', '_pgr(one, "logconf") < 1', TEST),
    (DIAL, "    if finished.is_file():\n", "    if False:\n", TEST),
]
