"""Wrong versions of `holdfast.training` that its tests must catch: file, text, wrong text, tests."""

LAGRANGIAN, TEST_LAGRANGIAN = "src/holdfast/training/lagrangian.py", "tests/training/test_lagrangian.py"
POLICY, TEST_POLICY = "src/holdfast/training/policy.py", "tests/training/test_policy.py"
GROUP, TEST_GROUP = "src/holdfast/training/group.py", "tests/training/test_group.py"
SFT, TEST_SFT = "src/holdfast/training/sft.py", "tests/training/test_sft.py"
CHECKPOINT = "src/holdfast/engine/checkpoint.py"
TEST_RESUME = "tests/training/test_resume.py"
GROUPS, TEST_GROUPS = "src/holdfast/training/groups.py", "tests/training/test_groups.py"
EXPERIENCE = "src/holdfast/rollout/experience.py"

MUTANTS = [
    # Constraints.
    (LAGRANGIAN, "len(self._window) // self._per_prompt", "len(self._window)", TEST_LAGRANGIAN),
    (
        LAGRANGIAN,
        "bounds.kappa(s.delta, n_batch, s.n_safety, s.c1, s.c2)",
        "bounds.kappa(s.delta, n_batch, s.n_safety, s.c2, s.c1)",
        TEST_LAGRANGIAN,
    ),
    (
        LAGRANGIAN,
        "return dual.pessimistic(mean, std, self.kappa())",
        "return dual.pessimistic(mean, std, -self.kappa())",
        TEST_LAGRANGIAN,
    ),
    (LAGRANGIAN, "self._move(upper - self.limit)", "self._move(self.limit - upper)", TEST_LAGRANGIAN),
    (
        LAGRANGIAN,
        "if len(self._window) >= self.MIN_WINDOW:",
        "if len(self._window) > self.MIN_WINDOW:",
        TEST_LAGRANGIAN,
    ),
    (LAGRANGIAN, "(scores > self.zero)", "(scores > 0)", TEST_LAGRANGIAN),
    (LAGRANGIAN, "(self.sign * costs).tolist()", "costs.tolist()", TEST_LAGRANGIAN),
    (
        LAGRANGIAN,
        "        signed = self.sign * costs\n        if self.settings.bound",
        "        signed = costs\n        if self.settings.bound",
        TEST_LAGRANGIAN,
    ),
    (LAGRANGIAN, "self.sign * self.settings.threshold", "self.settings.threshold", TEST_LAGRANGIAN),
    (LAGRANGIAN, "monotone=self.settings.monotone", "monotone=False", TEST_LAGRANGIAN),
    (LAGRANGIAN, "max(0.0, cost - self.limit)", "cost - self.limit", TEST_LAGRANGIAN),
    (
        LAGRANGIAN,
        "self._at_ceiling + 1 if blocked else 0",
        "self._at_ceiling + 1 if blocked else self._at_ceiling",
        TEST_LAGRANGIAN,
    ),
    (
        LAGRANGIAN,
        "self.multiplier >= self.settings.ceiling and upper > self.limit",
        "self.multiplier >= self.settings.ceiling",
        TEST_LAGRANGIAN,
    ),
    (LAGRANGIAN, '        self._pid = dual.PidState(**state["pid"])\n', "", TEST_LAGRANGIAN),
    (LAGRANGIAN, '        self._per_prompt = state["per_prompt"]\n', "", TEST_LAGRANGIAN),
    (LAGRANGIAN, 'deque(state["window"], maxlen=self.settings.window)', 'deque(state["window"])', TEST_LAGRANGIAN),
    (LAGRANGIAN, 'self.rule in ("log", "mirror")', 'self.rule == "log"', TEST_LAGRANGIAN),
    # What methods share.
    (POLICY, "self.processes.gather(costs.tolist())", "costs.tolist()", TEST_POLICY),
    (
        POLICY,
        "constraint.observe(torch.tensor(self.processes.gather(costs.tolist())), experience.per_prompt)",
        "constraint.observe(torch.tensor(self.processes.gather(costs.tolist())))",
        TEST_POLICY,
    ),
    (POLICY, "if len(set(names)) != len(names):", "if False:", TEST_POLICY),
    (POLICY, "self.select([portion[i] for i in group])", "self.select(group)", TEST_POLICY),
    (POLICY, "places.chosen(column, chosen)", "places.chosen(column, sorted(chosen))", TEST_POLICY),
    (POLICY, "[seed, iteration, rank]", "[seed, iteration + rank]", TEST_POLICY),
    # Leave-one-out.
    (GROUP, "coefficient * experience.kl.sum(-1)", "coefficient * experience.kl.mean(-1)", TEST_GROUP),
    (GROUP, "experience, s.reward) - coefficient", "experience, s.reward) + coefficient", TEST_GROUP),
    (GROUP, "reward - s.truncation_penalty", "reward + s.truncation_penalty", TEST_GROUP),
    (GROUP, "reward.clamp(-s.reward_clip, s.reward_clip)", "reward", TEST_GROUP),
    (GROUP, "leave_one_out(self.returns(experience), experience.per_prompt)", "self.returns(experience)", TEST_GROUP),
    (POLICY, "self.limits.processes.rank))", "0))", TEST_GROUP),
    (POLICY, "{name: part.eval() for", "{name: part for", TEST_GROUP),
    (
        GROUP,
        "total = per_token.where(tokens.response_mask, 0.0).sum()",
        "total = per_token.where(tokens.response_mask, 0.0).mean()",
        TEST_GROUP,
    ),
    (POLICY, "return experience, self.limits.observe(experience, move)", "return experience, {}", TEST_GROUP),
    # A critic's name holds a slash, and its weights must lie in the checkpoint all the same.
    (CHECKPOINT, "        file.parent.mkdir(exist_ok=True)  #", "        #", TEST_RESUME),
    # Imitation.
    (SFT, "            batch.turn_mask,\n", "            batch.response_mask,\n", TEST_SFT),
    (
        SFT,
        "over(-self._logprobs(batch), batch.turn_mask)",
        "over(-self._logprobs(batch), batch.attention_mask.bool())",
        TEST_SFT,
    ),
    (SFT, "for one in conversations if one.answered]", "for one in conversations]", TEST_SFT),
    # Groups.
    (GROUPS, "settings.delta / len(groups)}", "settings.delta}", TEST_GROUPS),
    (GROUPS, "            constraint.zero,\n", "            0.0,\n", TEST_GROUPS),
    (GROUPS, "[rows.get(group, [])]\n                costs", "\n                costs", TEST_GROUPS),
    (GROUPS, "                if costs:\n", "                if True:\n", TEST_GROUPS),
    (GROUPS, "mixed[rows] = mix(reward[rows]", "mixed[rows] = mix(reward[: len(rows)]", TEST_GROUPS),
    (GROUPS, "members[group].multiplier for", "max(one.multiplier for one in members.values()) for", TEST_GROUPS),
    (GROUPS, "weight / self._shares[name]", "weight", TEST_GROUPS),
    (GROUPS, "mean - self.settings.best.get(name, 0.0)", "mean", TEST_GROUPS),
    (GROUPS, "moved.clamp(min=1e-6)", "moved", TEST_GROUPS),
    (GROUPS, "total * moved / moved.sum()", "moved / moved.sum()", TEST_GROUPS),
    (
        GROUPS,
        "processes.gather(reward[rows.get(name, [])].tolist())",
        "reward[rows.get(name, [])].tolist()",
        TEST_GROUPS,
    ),
    (GROUPS, "        if self.settings.normalise:\n", "        if False:\n", TEST_GROUPS),
    (GROUPS, '{"rewards": self.rewards.state_dict()} if self.rewards else {}', "{}", TEST_GROUPS),
    (GROUPS, '"normaliser": self.normaliser.state_dict()}', '"normaliser": {}}', TEST_GROUPS),
    (GROUPS, "return self._patterns", "return self.constraints", TEST_GROUPS),
    (GROUPS, "if len(experience.groups) != experience.size:", "if False:", TEST_GROUPS),
    (GROUPS, "        if name != self.rewards.settings.score:\n", "        if False:\n", TEST_GROUPS),
    (GROUPS, "found[name][chosen] = constraint.augmented(costs)", "found[name][chosen] = costs * 0", TEST_GROUPS),
    (GROUP, "self.limits.reward(experience, s.reward)", "experience.score(s.reward)", TEST_GROUPS),
    (EXPERIENCE, "self.group_of(prompts[s.prompt_index])", "self.group_of(prompts[0])", TEST_GROUPS),
]
