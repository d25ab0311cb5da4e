"""Wrong versions of the collapse detector and its measures that the tests must catch: file, text, wrong text, tests."""

HEALTH, TEST_HEALTH = "src/holdfast/training/health.py", "tests/training/test_health.py"
MONITOR, TEST = "src/holdfast/training/monitor.py", "tests/training/test_monitor.py"
SIGNS = "src/holdfast/training/signs.py"

MUTANTS = [
    # Measures.
    (
        HEALTH,
        "float(-masked_mean(experience.old_logprobs.double(), mask))",
        "float(-(experience.old_logprobs.double().sum(-1) / lengths).mean())",
        TEST_HEALTH,
    ),
    (HEALTH, "[row.response_ids for row", "[row.ids for row", TEST_HEALTH),
    (HEALTH, "for ids in answers if len(ids) > 1]", "for ids in answers if len(ids) > 2]", TEST_HEALTH),
    (HEALTH, "len(set(bigrams)) / len(bigrams)", "len(set(bigrams)) / len(ids)", TEST_HEALTH),
    (HEALTH, "centred.square().mean().sqrt()", "score.std()", TEST_HEALTH),
    (HEALTH, ".pow(3).mean()) if sd", ".pow(4).mean()) if sd", TEST_HEALTH),
    (HEALTH, "    k1 = old - ref\n", "    k1 = ref - old\n", TEST_HEALTH),
    (HEALTH, ".view(-1, experience.per_prompt).mean(-1)", "", TEST_HEALTH),
    (HEALTH, "/ len(prompts) ** 0.5", "", TEST_HEALTH),
    (HEALTH, "masked_mean(kl_k3(old, ref), mask)", "masked_mean(kl_k3(ref, old), mask)", TEST_HEALTH),
    (HEALTH, "float(score[rows].nanmean())", "float(score.nanmean())", TEST_HEALTH),
    (HEALTH, "masked_mean(k3[rows], own)", "k3[rows].mean()", TEST_HEALTH),
    # Signs.
    (SIGNS, "if not low <= times <= high:", "if not times <= high:", TEST),
    (SIGNS, "self.now[name] / self.start[name]", "self.now[name] - self.start[name]", TEST),
    (SIGNS, "if name in self.now and", "if", TEST),
    (SIGNS, "+ t.truncated_rise", "* (1 + t.truncated_rise)", TEST),
    (SIGNS, "+ t.run_rise", "* t.run_rise", TEST),
    (
        SIGNS,
        'self._outside("nll", "negative log-likelihood", t.nll_low, t.nll_high)',
        'self._outside("nll", "negative log-likelihood", t.nll_low)',
        TEST,
    ),
    (SIGNS, "t.length_low, t.length_high)", "0.0, t.length_high)", TEST),
    (SIGNS, "if name in named and", "if", TEST),
    (SIGNS, 'for stream in {"value", *streams}}', "for stream in streams}", TEST),
    # Levels.
    (MONITOR, "new * value + (1 - new) * before", "(1 - new) * value + new * before", TEST),
    (
        MONITOR,
        "before = self.settings.smoothing, start | memory.now",
        "before = self.settings.smoothing, memory.now",
        TEST,
    ),
    (MONITOR, 'row["score/q95"] - row["score/q50"]', 'row["score/q95"]', TEST),
    (MONITOR, "if math.isfinite(row.get(name, math.nan))}", "if name in row}", TEST),
    (MONITOR, "and slope(memory.kl) > 0", "", TEST),
    (
        MONITOR,
        'now["kl_token_k3"] > t.kl_times * self.kl.settings.target',
        'now["kl_token_k3"] > self.kl.settings.target',
        TEST,
    ),
    (MONITOR, 'now["kl"] < -t.kl_errors', 'now["kl"] > t.kl_errors', TEST),
    (MONITOR, "+ 1 if value < t.explained_low else 0", "+ (value < t.explained_low)", TEST),
    (MONITOR, "len(before) >= _FEWEST_LOSSES and", "before and", TEST),
    (MONITOR, "        self._wanted = 0\n", "", TEST),
    (MONITOR, "for name in COUNTED)\n        t, cut", "for name in FAMILIES)\n        t, cut", TEST),
    (MONITOR, "or cut > t.collapse_truncated", "", TEST),
    (MONITOR, "counted >= t.collapse_families", "counted > t.collapse_families", TEST),
    (MONITOR, "if counted > 1:", "if counted > 2:", TEST),
    (MONITOR, "default=0) >= self.settings.patience", "default=0) > self.settings.patience", TEST),
    (MONITOR, "memory.on.get(name, 0) + 1 if found else 0", "memory.on.get(name, 0) + bool(found)", TEST),
    (MONITOR, "memory.calm + 1 if level == OK else 0", "memory.calm + (level == OK)", TEST),
    (MONITOR, "rose, memory.level = level > memory.level, level", "rose, memory.level = level > OK, level", TEST),
    (MONITOR, "memory.calm >= _HEALTHY_AFTER\n", "memory.calm > _HEALTHY_AFTER\n", TEST),
    (MONITOR, ">= _HEALTHY_AFTER - 1", ">= _HEALTHY_AFTER", TEST),
    # What follows.
    (MONITOR, "best = healthy and self", "best = self", TEST),
    (MONITOR, 'value <= self._best["value"]', 'value < self._best["value"]', TEST),
    (MONITOR, "self._rollbacks >= self.settings.max_rollbacks", "self._rollbacks > self.settings.max_rollbacks", TEST),
    (MONITOR, "if level < WARN or", "if level < WATCH or", TEST),
    (MONITOR, "min(2 * self._factor, self.MOST)", "2 * self._factor", TEST),
    (MONITOR, "        self._memory = _Memory()\n        self._raise_kl()\n", "        self._raise_kl()\n", TEST),
    (
        MONITOR,
        "        self._memory = _Memory()\n        self._raise_kl()\n",
        "        self._memory = _Memory()\n",
        TEST,
    ),
    (MONITOR, "_Memory(**deepcopy(state", "_Memory(**(state", TEST),
    (MONITOR, "rose = any(signs.get(name) for name in COUNTED) and", "rose =", TEST),
    (
        MONITOR,
        'self.judge_by == self.reward or self.judge_by.startswith("score")',
        "self.judge_by == self.reward",
        TEST,
    ),
]
