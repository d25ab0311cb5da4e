"""Wrong versions of learning from weak labels that its tests must catch."""

TASK, TEST_TASK = "src/holdfast/training/transfer.py", "tests/training/test_transfer.py"
LEARNERS, TEST = "src/holdfast/training/learners.py", "tests/training/test_learners.py"

MUTANTS = [
    # The targets of a step.
    (TASK, "losses.warm_up((step - 1) / total", "losses.warm_up(step / total", TEST_TASK),
    (TASK, "settings.warm_up, settings.most)", "settings.most, settings.warm_up)", TEST_TASK),
    (TASK, "self._target(batch, logits))}", "batch.weak)}", TEST_TASK),
    (TASK, "self._target(batch, logits))}", "self._target(batch, logits.detach()))}", TEST_TASK),
    (TASK, "losses.Options(settings.student_power, settings.weak_power,", "losses.Options(1.0, 1.0,", TEST_TASK),
    (TASK, "settings.radius, settings.temperature)", "settings.temperature, settings.radius)", TEST_TASK),
    (TASK, "self._survey(step) if self._is_cut else {}", "{}", TEST_TASK),
    (TASK, "key=lambda one: position[one[0]]", "key=lambda one: one[0]", TEST_TASK),
    (TASK, "for row, line in zip(part, p)]", "for row, line in zip(own, p)]", TEST_TASK),
    (TASK, "for place in batch.ids]", "for place in sorted(batch.ids)]", TEST_TASK),
    (TASK, "(logits.argmax(-1) == batch.weak.argmax(-1))", "(logits.argmax(-1) != batch.weak.argmax(-1))", TEST_TASK),
    (TASK, "            return weak  #", "            pass  #", TEST_TASK),
    (TASK, "sorted(self.processes.gather(seen), key", "sorted(seen, key", TEST_TASK),
    # Priors.
    (TASK, "torch.tensor([1.0 - prior, float(prior)])", "torch.tensor([float(prior), 1.0 - prior])", TEST_TASK),
    (TASK, 'prior == "half" or (prior == "auto" and near)', 'prior == "half" or near', TEST_TASK),
    (TASK, 'prior == "half" or (prior == "auto" and near)', 'prior == "half"', TEST_TASK),
    # The epoch that is kept.
    (TASK, "divmod(step * self.settings.fit.epochs, total)", "divmod(step, total)", TEST_TASK),
    (TASK, "self.watch(epoch)", "self.watch(epoch - 1)", TEST_TASK),
    (TASK, "if self.watch is not None and not begun:", "if self.watch is not None:", TEST_TASK),
    (TASK, '"agreement") if held_out else None', '"agreement") if False else None', TEST_TASK),
    (TASK, "Contest(lambda step: agreement()", "Contest(lambda step: -agreement()", TEST_TASK),
    (TASK, "order=order, contest=contest)", "order=order)", TEST_TASK),
    (TASK, "[one.value for one in found.judged]", "[found.best.value]", TEST_TASK),
    (TASK, "[torch.tensor(places).argsort()]", "", TEST_TASK),
    # Learners.
    (LEARNERS, "free = self.pair and", "free = False and", TEST),
    (LEARNERS, "found[:, 1] - found[:, 0]", "found[:, 0] - found[:, 1]", TEST),
    (LEARNERS, "losses.pair((second - first)[:, 0])", "losses.pair((first - second)[:, 0])", TEST),
    (LEARNERS, "(features - self.mean) / self.scale", "(features - self.mean)", TEST),
    (LEARNERS, "scale.where(scale > 0, torch.ones_like(scale))", "scale", TEST),
    (LEARNERS, "self.hidden, not self.pair,", "self.hidden, True,", TEST),
    (LEARNERS, "settings = offset(settings, seed)", "settings = offset(settings, 0)", TEST),
    (LEARNERS, "                torch.manual_seed(settings.fit.seed)\n", "", TEST),
    (LEARNERS, "sample_weight=wanted[rows, labels]", "sample_weight=None", TEST),
    (LEARNERS, "fit_intercept=not self.pair", "fit_intercept=True", TEST),
    (LEARNERS, "present[1:] if len(present) == 2 else present", "present[:1] if len(present) == 2 else present", TEST),
    (LEARNERS, "torch.full((len(members),), ABSENT,", "torch.full((len(members),), 0.0,", TEST),
    (LEARNERS, "    if len(likely) == 1:\n", "    if False:\n", TEST),
    (LEARNERS, "if not (folder.path / WORDS).is_file() and", "if", TEST),
    (LEARNERS, "(seen, targets, others, held_out))", "(seen, others, held_out))", TEST),
    (LEARNERS, "(seen, targets, others, held_out))", "(targets, others, held_out))", TEST),
    (LEARNERS, "if conversation.answered else self.template.prompt(conversation)", "", TEST),
]
