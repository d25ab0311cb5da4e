"""Wrong versions of the engine that its tests must catch: file, old text, new text, tests."""

CHECKPOINT = "src/holdfast/engine/checkpoint.py"
DISTRIBUTED = "src/holdfast/engine/distributed.py"
LOG = "src/holdfast/engine/log.py"
LOOP = "src/holdfast/engine/loop.py"
ONLINE = "src/holdfast/engine/online.py"
SEEDS = "src/holdfast/engine/seeds.py"
STEP = "src/holdfast/engine/step.py"
SUPERVISED = "src/holdfast/engine/supervised.py"
BUDGET = "src/holdfast/engine/budget.py"
INTERRUPT = "src/holdfast/engine/interrupt.py"

MUTANTS = [
    # step
    (STEP, "(position + 1) / warmup", "position / warmup", "tests/engine/test_step.py"),
    (STEP, "(position - warmup) / max(total - warmup, 1)", "position / total", "tests/engine/test_step.py"),
    (STEP, "0.5 * (1.0 + math.cos", "0.5 * (1.0 - math.cos", "tests/engine/test_step.py"),
    (STEP, "self.parameters if p.ndim > 1]", "self.parameters if p.ndim > 0]", "tests/engine/test_step.py"),
    (STEP, "objective(terms, total, weights)", "objective(terms, total, {})", "tests/engine/test_step.py"),
    (
        STEP,
        "total = self.processes.add_up(announced)",
        "total = announced[0]",
        "tests/invariance/test_cut.py",
    ),
    (STEP, "self.done if position is None else position", "self.done", "tests/engine/test_step.py"),
    (
        STEP,
        "        self.processes.sum_gradients(self.parameters)\n        if apart",
        "        if apart",
        "tests/invariance/test_cut.py",
    ),
    (STEP, "max(position / warmup, 0.1)", "position / warmup", "tests/engine/test_step.py"),
    (STEP, "max(position / warmup, 0.1)", "max((position + 1) / warmup, 0.1)", "tests/engine/test_step.py"),
    (STEP, "math.sqrt(highest / max", "(highest / max", "tests/engine/test_step.py"),
    (STEP, "highest = max(warmup, 1)", "highest = warmup", "tests/engine/test_step.py"),
    (STEP, "place: apart not in announced", "place: apart in announced", "tests/engine/test_step.py"),
    (STEP, "announced[place].keys() - {apart}", "set()", "tests/engine/test_step.py"),
    (
        STEP,
        "        self.processes.sum_gradients(self.parameters)\n        aside",
        "        aside",
        "tests/engine/test_step.py",
    ),
    (
        STEP,
        "        self.optimiser.zero_grad()\n        return aside",
        "        return aside",
        "tests/engine/test_step.py",
    ),
    (STEP, "p.grad.add_(gradient)", "p.grad", "tests/engine/test_step.py"),
    (STEP, "p.grad.add_(gradient)", "gradient", "tests/engine/test_step.py"),
    (STEP, "gradient if p.grad is None else", "p.grad if p.grad is None else", "tests/engine/test_step.py"),
    (STEP, "float(own / rest)", "float(rest / own)", "tests/engine/test_step.py"),
    (STEP, "float(own / rest)} if rest > 0 else {}", "float(own / rest)}", "tests/engine/test_step.py"),
    (
        STEP,
        "        self.optimiser.zero_grad()  # another part's loss may have reached these parameters\n",
        "",
        "tests/engine/test_step.py",
    ),
    (
        STEP,
        "        self._refuse_non_finite(numbers, micro_batches, terms)\n",
        "",
        "tests/engine/test_step.py",
    ),
    (STEP, "if not torch.isfinite(norm):", "if torch.isnan(norm):", "tests/engine/test_step.py"),
    (STEP, "if not any(total.values()):", "if not total:", "tests/engine/test_step.py"),
    (STEP, '        self.done = state["done"]\n', "", "tests/engine/test_step.py"),
    # distributed
    (
        DISTRIBUTED,
        "        if self.size > 1:\n            for parameter",
        "        if self.size > 2:\n            for parameter",
        "tests/invariance/test_cut.py",
    ),
    (
        DISTRIBUTED,
        "(self.rank, self.rank + 1)",
        "(self.rank, self.rank + 2)",
        "tests/engine/test_distributed.py",
    ),
    (
        DISTRIBUTED,
        " and gradient.dtype == bucket[0].dtype",
        "",
        "tests/engine/test_distributed.py",
    ),
    (
        DISTRIBUTED,
        "zip(parameters, used.tolist()) if count)",
        "zip(parameters, used.tolist()))",
        "tests/invariance/test_cut.py",
    ),
    (
        DISTRIBUTED,
        "cpu=not torch.accelerator.is_available()",
        "cpu=False",
        "tests/invariance/test_cut.py",
    ),
    # seeds
    (SEEDS, "[len(parts), *parts]", "[*parts]", "tests/engine/test_seeds.py"),
    (SEEDS, '    random.setstate(state["python"])\n', "", "tests/engine/test_seeds.py"),
    (SEEDS, "int(has_gauss), float(gauss))", "0, 0.0)", "tests/engine/test_seeds.py"),
    # loop
    (
        LOOP,
        "interval > 0 and step % interval == 0",
        "step % max(interval, 1) == 0",
        "tests/engine/test_loop.py",
    ),
    (LOOP, "self.run.rewind(self.stage, latest or 0)", "pass", "tests/engine/test_loop.py"),
    (
        LOOP,
        "range(self.done + 1, self.total + 1)",
        "range(self.done + 2, self.total + 1)",
        "tests/engine/test_loop.py",
    ),
    (LOOP, "if stop or step == self.total or", "if step == self.total or", "tests/engine/test_loop.py"),
    (LOOP, '        restore(state["random"][self.run.processes.rank])\n', "", "tests/engine/test_loop.py"),
    (
        LOOP,
        '            part.load_state_dict(state["states"][name])\n',
        "            pass\n",
        "tests/engine/test_loop.py",
    ),
    # supervised
    (SUPERVISED, "(len(parts[-1]) + 1) * parts", "len(parts[-1]) * parts", "tests/engine/test_supervised.py"),
    (
        SUPERVISED,
        "key=lambda row: row.length, reverse=True)",
        "key=lambda row: row.length)",
        "tests/engine/test_supervised.py",
    ),
    (SUPERVISED, "        model.train(training)\n", "        pass\n", "tests/engine/test_supervised.py"),
    (
        SUPERVISED,
        "ordered[processes.rank :: processes.size]",
        "ordered[processes.rank ::]",
        "tests/engine/test_supervised.py",
    ),
    (SUPERVISED, "        task.model.train()\n", "", "tests/engine/test_supervised.py"),
    # online
    (
        ONLINE,
        "divmod(number, size // portion)",
        "divmod(number, -(-size // portion))",
        "tests/engine/test_online.py",
    ),
    (
        ONLINE,
        "generator(settings.seed, number, epoch)",
        "generator(settings.seed, number)",
        "tests/engine/test_online.py",
    ),
    (ONLINE, "range(settings.inner_epochs)", "range(1)", "tests/engine/test_online.py"),
    (ONLINE, "position=number - 1", "position=None", "tests/engine/test_online.py"),
    (ONLINE, "max(processes.gather([count]))", "count", "tests/invariance/test_cut.py"),
    (ONLINE, '    states["algorithm"] = algorithm\n', "", "tests/engine/test_online.py"),
    # checkpoint
    (CHECKPOINT, 'f".{target.name}"\n', "target.name\n", "tests/engine/test_checkpoint.py"),
    (CHECKPOINT, " and id(tensor) not in seen", "", "tests/engine/test_checkpoint.py"),
    (
        CHECKPOINT,
        "if isinstance(tensor, Tensor) and not frozen and",
        "if isinstance(tensor, Tensor) and",
        "tests/engine/test_checkpoint.py",
    ),
    (
        CHECKPOINT,
        "self.steps()[: -self.keep]",
        "self.steps()[: -self.keep + 1]",
        "tests/engine/test_checkpoint.py",
    ),
    (CHECKPOINT, 'step-{step:09d}"', 'step-{step}"', "tests/engine/test_checkpoint.py"),
    (
        CHECKPOINT,
        "            shutil.rmtree(temporary, ignore_errors=True)\n",
        "",
        "tests/engine/test_checkpoint.py",
    ),
    (CHECKPOINT, "            self._tidy()\n", "", "tests/engine/test_checkpoint.py"),
    (CHECKPOINT, "weights_only=True, map", "weights_only=False, map", "tests/engine/test_checkpoint.py"),
    (CHECKPOINT, '        _require_plain(state, "state")\n', "", "tests/engine/test_checkpoint.py"),
    (
        CHECKPOINT,
        '            if card["fingerprint"] != self.fingerprint:',
        "            if False:",
        "tests/engine/test_checkpoint.py",
    ),
    # log
    (LOG, 'row.get("step", 0) <= step', 'row.get("step", 0) < step', "tests/engine/test_log.py"),
    (LOG, 'row.get("stage") != stage or', "", "tests/engine/test_log.py"),
    (LOG, ' if line.endswith("\\n")]', "]", "tests/engine/test_log.py"),
    (
        LOG,
        "if strangers and not card.is_file():",
        "if strangers and not card.is_file() and not overwrite:",
        "tests/engine/test_log.py",
    ),
    (LOG, "None if name in lost else value", "0.0 if name in lost else value", "tests/engine/test_log.py"),
    (LOG, "            _clear(self.path, card)\n", "            pass\n", "tests/engine/test_log.py"),
    (
        LOG,
        "if self.processes.is_main:\n            with (self.path / name)",
        "if True:\n            with (self.path / name)",
        "tests/engine/test_log.py",
    ),
    # budget
    (BUDGET, "optimiser=2 * _size(moments)", "optimiser=_size(moments)", "tests/engine/test_budget.py"),
    (BUDGET, "max(flowing, default=0)", "sum(flowing)", "tests/engine/test_budget.py"),
    (BUDGET, " and m.out_features != vocabulary", "", "tests/engine/test_budget.py"),
    (BUDGET, "self.total <= available", "self.total < available", "tests/engine/test_budget.py"),
    # interrupt
    (
        INTERRUPT,
        "        if self.requested is not None:\n",
        "        if False:\n",
        "tests/engine/test_interrupt.py",
    ),
]
