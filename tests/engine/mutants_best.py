"""Wrong versions of the choice of the best weights that the tests must catch: file, old text, new text, tests."""

BEST, SUPERVISED, TEST = "src/holdfast/engine/best.py", "src/holdfast/engine/supervised.py", "tests/engine/test_best.py"
GUARD = "src/holdfast/engine/guard.py"

MUTANTS = [
    (BEST, "-(-total * i // self.times)", "total * i // self.times", TEST),
    (BEST, "range(1, self.times + 1)", "range(1, self.times)", TEST),
    (BEST, "if math.isfinite(one.value))", "if True)", TEST),
    (BEST, "if math.isfinite(one.value))", "if not math.isnan(one.value))", TEST),
    (BEST, "for one in self.of if", "for one in self.of[::-1] if", TEST),
    (BEST, "return max(known", "return min(known", TEST),
    (BEST, 'loop.states = {**loop.states, "best": self}', "pass", TEST),
    (BEST, "            forget_from(self._folder, step)", "            pass", TEST),
    (BEST, "forget_from(self._folder, step)", "forget_from(self._folder, step + 3)", TEST),
    (BEST, "forget_from(self._folder, step)", "forget_from(self._folder, step - 2)", TEST),
    (BEST, "if self.chosen is self.of[-1]:", "if True:", TEST),
    (BEST, "            restore(before)\n", "", TEST),
    (BEST, "return self.loop.run.processes.on_first(judged)", "return judged()", TEST),
    (BEST, "self._folder.load(chosen.step, self.loop.modules)", "pass", TEST),
    (BEST, "            thin_out(self._folder, self.loop.checkpoints.steps())\n", "", TEST),
    (BEST, "self._folder, self.loop.checkpoints.steps())", "self._folder, [])", TEST),
    (GUARD, "if step <= point]", "if step < point]", TEST),
    (GUARD, "in (kept, *known) if steps", "in known if steps", TEST),
    (SUPERVISED, "            best.look(number)\n", "            best.look(number - 1)\n", TEST),
    (SUPERVISED, "    if eval_rows and chosen.step < total:\n", "    if False:\n", TEST),
    (SUPERVISED, "    if eval_rows and chosen.step < total:\n", "    if chosen.step < total:\n", TEST),
]
