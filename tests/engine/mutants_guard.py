"""Wrong versions of snapshots, rollback and early end that the tests must catch: file, old text, new text, tests."""

CHECKPOINT, TEST_CHECKPOINT = "src/holdfast/engine/checkpoint.py", "tests/engine/test_checkpoint.py"
GUARD, TEST = "src/holdfast/engine/guard.py", "tests/engine/test_guard.py"
LOG, TEST_LOG = "src/holdfast/engine/log.py", "tests/engine/test_log.py"
LOOP = "src/holdfast/engine/loop.py"
ONLINE = "src/holdfast/engine/online.py"

MUTANTS = [
    (GUARD, "done = number - 1", "done = number", TEST),
    (GUARD, "done - latest >= every", "done - latest > every", TEST),
    (GUARD, "self.guard.wants_best or ", "", TEST),
    (GUARD, "elif self.guard.promising and", "elif", TEST),
    (GUARD, "            self._latest = done\n", "", TEST),
    (GUARD, "            self._forget_from(done)\n", "            self._begun = True\n", TEST),
    (GUARD, "if later >= step:", "if later > step:", TEST),
    (GUARD, "if later >= step:", "if later >= step - 1:", TEST),
    (GUARD, "gather([self._healthy.latest()])[0]", "gather([self._healthy.latest()])[-1]", TEST),
    (GUARD, "for name, value in numbers.items()}])[0]", "for name, value in numbers.items()}])[-1]", TEST),
    (GUARD, "            self._healthy.forget(step)\n", "", TEST),
    (GUARD, "        if verdict.healthy:\n            self._latest = step\n", "        self._latest = step\n", TEST),
    (GUARD, "[point - 1 for point in", "[point for point in", TEST),
    (GUARD, "in (kept, *known) if steps", "in (kept,) if steps", TEST),
    (GUARD, "        self._thin_out(self._healthy)\n", "", TEST),
    (GUARD, "            self._thin_out(self._best)\n", "", TEST),
    (GUARD, "            part.load_state_dict(states[name])\n", "            pass\n", TEST),
    (GUARD, "        self.guard.rolled_back()\n", "", TEST),
    (GUARD, 'loop.states = {**loop.states, "guard": guard}', "pass", TEST),
    (GUARD, "            self.loop.ended = True\n", "", TEST),
    (GUARD, 'told["alarm/rolled_back_to"] = float(step)', "pass", TEST),
    (LOOP, "                if self._is_over():\n                    break\n", "", TEST),
    (LOOP, "            if self._saved < self.done:\n                self._save()\n", "", TEST),
    (LOOP, "if self._saved < self.done:", "if True:", TEST),
    (
        LOOP,
        'self.done, self.last, self.ended = latest, state["last"], state.get("ended", False)',
        'self.done, self.last = latest, state["last"]',
        TEST,
    ),
    (ONLINE, "            watch.begin(number)\n", "            pass\n", TEST),
    (ONLINE, "            numbers |= watch.look(number, numbers)\n", "            watch.look(number, numbers)\n", TEST),
    (ONLINE, "OnlineResult(loop.done, last)", "OnlineResult(settings.iterations, last)", TEST),
    (CHECKPOINT, "        self._tidy()\n        # Hidden first", "        # Hidden first", TEST_CHECKPOINT),
    (CHECKPOINT, "shutil.copytree(source, folder)", "source.rename(folder)", TEST_CHECKPOINT),
    (LOG, ', "alarms.jsonl")', ")", TEST_LOG),
    (LOG, '            print(f"{stage}: {words}", file=sys.stderr, flush=True)\n', "            pass\n", TEST_LOG),
]
