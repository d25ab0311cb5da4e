"""Wrong versions of `holdfast.preference.weak_labels` that its tests must catch."""

LABELS, TEST = "src/holdfast/preference/weak_labels.py", "tests/preference/test_weak_labels.py"

MUTANTS = [
    (LABELS, "logits.double() / self.T", "logits.double() * self.T", TEST),
    (LABELS, "torch.tensor([0.0, self.b])", "torch.tensor([self.b, 0.0])", TEST),
    (LABELS, "T=1 / found.slope, b", "T=found.slope, b", TEST),
    (LABELS, "values[:, 1] - values[:, 0]", "values[:, 0] - values[:, 1]", TEST),
    (LABELS, "self.p[[self._place[id] for id in ids]]", "self.p[sorted(self._place[id] for id in ids)]", TEST),
    (LABELS, "for row in rows for key in row} - KEYS", "for row in rows for key in row} & set()", TEST),
    (LABELS, "for row in rows} - {given}):", "for row in rows} & set()):", TEST),
    (LABELS, '{"margin": logit[1] - logit[0]}', '{"margin": logit[0] - logit[1]}', TEST),
    (LABELS, '[0.0, row["margin"]] if', '[row["margin"], 0.0] if', TEST),
    (LABELS, '"hard": int(self.p[i].argmax())', '"hard": int(self.p[i].argmin())', TEST),
    # What a supervisor labels it has not seen.
    (LABELS, "np.flatnonzero(fold != i).tolist()", "np.flatnonzero(fold >= 0).tolist()", TEST),
    (LABELS, "% folds)[group]", "% folds)[np.arange(len(group)) % count]", TEST),
    (LABELS, "logits[out] = predict", "logits[: len(out)] = predict", TEST),
]
