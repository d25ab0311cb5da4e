"""Wrong versions of `holdfast.evaluate.vault` that its tests must catch."""

VAULT, TEST = "src/holdfast/evaluate/vault.py", "tests/evaluate/test_vault.py"

MUTANTS = [
    (VAULT, "self._sealed.intersection(ids)", "self._sealed.difference(ids).difference(self._sealed)", TEST),
    (VAULT, "        if self._locked_by:\n", "        if False:\n", TEST),
    (VAULT, '        finally:\n            self._locked_by = ""', "        finally:\n            pass", TEST),
    (VAULT, "self.reads[purpose] += len(ids)", "self.reads[purpose] += 1", TEST),
    (VAULT, "self.correct(ids, logits, purpose), self.groups(ids))", "self.correct(ids, logits, purpose))", TEST),
    (VAULT, "groups=self.groups(ids)),", "groups=None),", TEST),
    (VAULT, "np.tile(gold, seeds), self.groups(ids) * seeds", "np.tile(gold, seeds), None", TEST),
    (VAULT, "np.tile(gold, seeds)", "np.repeat(gold, seeds)", TEST),
    (VAULT, "for table in (weak, student, ceiling)]", "for table in (weak, ceiling, student)]", TEST),
    (VAULT, "judged.agreement(s, w, y, groups)", "judged.agreement(w, s, y, groups)", TEST),
    (VAULT, "judged.blind_spots(s, w, c, y, groups)", "judged.blind_spots(s, c, w, y, groups)", TEST),
    (VAULT, "judged.overconfidence(s, y, groups)", "judged.overconfidence(w, y, groups)", TEST),
    (VAULT, "one_hot(torch.from_numpy(self._read(ids, to))", "one_hot(1 - torch.from_numpy(self._read(ids, to))", TEST),
]
