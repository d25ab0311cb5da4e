"""Wrong versions of `holdfast.preference.pairs` that its tests must catch: file, text, wrong text, tests."""

PAIRS, TEST_PAIRS = "src/holdfast/preference/pairs.py", "tests/preference/test_pairs.py"
TASKS = "src/holdfast/preference/tasks.py"

MUTANTS = [
    # The first half of the rows are first answers, the second half their partners.
    (PAIRS, "(i, i + batch.size) for i", "(2 * i, 2 * i + 1) for i", TEST_PAIRS),
    (PAIRS, "shared.saving >= WORTHWHILE", "True", TEST_PAIRS),
    (PAIRS, "WORTHWHILE = 1.15", "WORTHWHILE = 1.25", TEST_PAIRS),
    (PAIRS, 'share_prompt == "auto", False', "True, False", TEST_PAIRS),
    # A comparison that nothing follows from, that is made every time, or that looks at the scores of a new head.
    (
        PAIRS,
        "self._compared, self._sharing = True, self._agrees(",
        "self._compared, _ = True, self._agrees(",
        TEST_PAIRS,
    ),
    (PAIRS, "if not self._compared:", "if True:", TEST_PAIRS),
    (PAIRS, "if apart <= tolerance:", "if True:", TEST_PAIRS),
    (PAIRS, "else 5e-2", "else 1e-6", TEST_PAIRS),
    (PAIRS, "with evaluating(self.model.network) as network:", "if (network := self.model.network):", TEST_PAIRS),
    (PAIRS, "value.chunk(2)[0] for name", "value for name", TEST_PAIRS),
    (PAIRS, "if not self._sharing or not all(", "if not self._sharing or not any(", TEST_PAIRS),
    (PAIRS, "self.first.length + self.second.length - common", "self.first.length + self.second.length", TEST_PAIRS),
    (PAIRS, "return 2 * max(self.first.length", "return max(self.first.length", TEST_PAIRS),
    (PAIRS, "replace(row, shared=shared)", "replace(row, shared=True)", TEST_PAIRS),
    (PAIRS, "winner, loser, margin=pair.margin or 0.0", "winner, loser, margin=0.0", TEST_PAIRS),
    (PAIRS, "margin=torch.tensor([row.margin for", "margin=torch.tensor([0.0 for", TEST_PAIRS),
    (TASKS, "PairForward(model, share_prompt)", 'PairForward(model, "off")', TEST_PAIRS),
]
