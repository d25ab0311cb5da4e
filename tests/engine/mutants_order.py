"""Wrong versions of the order of rows that their tests must catch: file, text, wrong text, tests."""

ORDER, TEST = "src/holdfast/engine/order.py", "tests/engine/test_order.py"
SUPERVISED = "src/holdfast/engine/supervised.py"

MUTANTS = [
    (ORDER, "divmod(step - 1, self._per_epoch)", "divmod(step, self._per_epoch)", TEST),
    (ORDER, "generator(self.seed, epoch)", "generator(self.seed)", TEST),
    (ORDER, "generator(self.seed, epoch)", "generator(0, epoch)", TEST),
    (ORDER, "math.ceil(count / batch_size)", "count // batch_size or 1", TEST),
    (ORDER, "self._per_epoch * epochs", "self._per_epoch", TEST),
    # One draw for all steps, one for all seeds, or one that depends on what was drawn before.
    (ORDER, "generator(self.seed, step)", "generator(self.seed)", TEST),
    (ORDER, "generator(self.seed, step)", "generator(step)", TEST),
    (ORDER, "generator=generator(self.seed, step), ", "", TEST),
    (ORDER, "dtype=torch.float64)", "dtype=torch.float32).double()", TEST),
    (ORDER, "draws, right=True)", "draws)", TEST),
    (ORDER, "self._ends = ends / ends[-1]", "self._ends = ends", TEST),
    (ORDER, "probabilities(weights).cumsum(0)", "probabilities(weights).float().cumsum(0).double()", TEST),
    (ORDER, "probabilities(weights).cumsum(0)", "(probabilities(weights) > 0).double().cumsum(0)", TEST),
    (SUPERVISED, "order = order or Shuffled(", "order = Shuffled(", TEST),
    (SUPERVISED, "order.chosen(number)", "order.chosen(1)", TEST),
    (SUPERVISED, "total = order.steps", "total = len(rows)", TEST),
    (SUPERVISED, "settings.epochs, settings.seed)", "settings.epochs, 0)", TEST),
    (SUPERVISED, "assert order.count == len(rows)", "assert order.count <= len(rows)", TEST),
]
