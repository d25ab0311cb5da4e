"""Wrong versions of PPO with critics and of what it stands on: file, text, wrong text, tests."""

CRITIC, TEST_CRITIC = "src/holdfast/training/actor_critic.py", "tests/training/test_actor_critic.py"
ADVANTAGES, TEST_ADVANTAGES = "src/holdfast/training/advantages.py", "tests/training/test_advantages.py"
PRETRAINING, TEST_PRETRAINING = "src/holdfast/training/pretraining.py", "tests/training/test_pretraining.py"
POLICY, TEST_RESUME = "src/holdfast/training/policy.py", "tests/training/test_resume.py"
LAGRANGIAN, TEST_STREAMS = "src/holdfast/training/lagrangian.py", "tests/training/test_streams.py"
RAGGED, TEST_RAGGED = "src/holdfast/rollout/ragged.py", "tests/rollout/test_ragged.py"
ORACLE, CUT = "tests/oracle/test_actor_critic.py", "tests/invariance/test_ppo_cut.py"

MUTANTS = [
    # Streams and what they pay, against the slow form.
    (CRITIC, "stream.kl[:, None], s.token_clamp", "stream.kl[:, None]", ORACLE),
    (CRITIC, "carried + self.limits.multiplier(experience, constraint.name)", "carried", ORACLE),
    (CRITIC, "self.kl.coef if own else 0.0", "-self.kl.coef if own else 0.0", ORACLE),
    (
        CRITIC,
        "self._paid(experience), -self.kl.coef * carried",
        "self._paid(experience), self.kl.coef * carried",
        ORACLE,
    ),
    (CRITIC, 'split = s.kl.mode == "split"', "split = True", ORACLE),
    (CRITIC, "share, name if constraint.settings.critic else None", "share, name", ORACLE),
    (CRITIC, "paid - s.missing_eos_penalty * cut", "paid + s.missing_eos_penalty * cut", ORACLE),
    (CRITIC, "paid.where(~cut, 0.0)", "paid.where(cut, 0.0)", ORACLE),
    (CRITIC, "predicted.ahead * (experience.truncated if asks else 0.0)", "predicted.ahead", ORACLE),
    (CRITIC, "part.weight[:, None] * advantages[name]", "advantages[name]", ORACLE),
    (CRITIC, "mixed * self.limits.total(experience)[:, None]", "mixed", ORACLE),
    (CRITIC, "(~experience.truncated).nonzero()", "experience.truncated.nonzero()", ORACLE),
    (CRITIC, "line[row.prompt_length - 1 : row.length]", "line[row.prompt_length : row.length + 1]", ORACLE),
    (CRITIC, "before[:, column]), ahead[:, column]", "before[:, 0]), ahead[:, column]", ORACLE),
    (
        CRITIC,
        "torch.tensor(scores), torch.tensor(truncated), told",
        "torch.tensor(scores), ~torch.tensor(truncated), told",
        ORACLE,
    ),
    (LAGRANGIAN, "weights = (1 - ratio * mean, ratio / 2)", "weights = (1 - ratio * mean, ratio)", ORACLE),
    (LAGRANGIAN, "weights = (1 - ratio * mean, ratio / 2)", "weights = (1 + ratio * mean, ratio / 2)", ORACLE),
    (LAGRANGIAN, "self.sign * (one - none)", "1.0", ORACLE),
    (LAGRANGIAN, "len(self.critics) == 1 and not two_valued", "len(self.critics) == 1", ORACLE),
    (LAGRANGIAN, "len(self.critics) == 1 and not two_valued", "not two_valued", ORACLE),
    # Losses, against the slow form.
    (CRITIC, "(0, 0, 1, 0)", "(0, 0, 0, 1)", ORACLE),
    (CRITIC, "after[:, :-1]", "after[:, 1:]", ORACLE),
    (CRITIC, 'per_sequence if settings.loss_mean == "sequence" else over', "over", ORACLE),
    (
        CRITIC,
        "batch.old_values[name], batch.returns[name], self",
        "batch.returns[name], batch.old_values[name], self",
        ORACLE,
    ),
    (CRITIC, '"clip_high": s.clip_high', '"clip_high": None', ORACLE),
    (CRITIC, '"dual_clip": s.dual_clip}', '"dual_clip": None}', ORACLE),
    (CRITIC, '"entropy": -s.surrogate.entropy', '"entropy": s.surrogate.entropy', ORACLE),
    (CRITIC, '"kl": s.kl.in_loss * self', '"kl": 1.0 * self', ORACLE),
    (CRITIC, "kl_k2(logp, batch.ref_logprobs)", "kl_k2(logp, batch.old_logprobs)", ORACLE),
    (CRITIC, 'if s.advantage.normalise == "minibatch":', "if False:", ORACLE),
    (CRITIC, 'if s.advantage.normalise == "batch":', "if False:", ORACLE),
    (CRITIC, "mixed if kept is None else places.chosen(mixed, kept)", "mixed", ORACLE),
    (
        CRITIC,
        "whole.split([len(column) for column in columns])",
        "whole.flip(0).split([len(c) for c in columns])",
        ORACLE,
    ),
    (ADVANTAGES, "s.gamma, lam, predicted.ahead)", "s.gamma, lam)", ORACLE),
    (ADVANTAGES, "s.length_adaptive, s.lam_floor)", "s.length_adaptive)", ORACLE),
    # Advantages by hand.
    (
        ADVANTAGES,
        "lam_value = s.lam_value if lam_value is None else lam_value",
        "lam_value = s.lam_value",
        TEST_ADVANTAGES,
    ),
    (ADVANTAGES, "s.length_adaptive or lam_value != s.lam_policy", "lam_value != s.lam_policy", ORACLE),
    (ADVANTAGES, "others = max(len(everyone) - 1, 1)", "others = len(everyone)", TEST_ADVANTAGES),
    (ADVANTAGES, "processes.gather(earned.tolist())", "earned.tolist()", TEST_ADVANTAGES),
    (ADVANTAGES, "processes.gather((column if", "list((column if", TEST_ADVANTAGES),
    (ADVANTAGES, "beyond[:, None] * mask", "beyond[:, None].expand(mask.shape)", TEST_ADVANTAGES),
    (ADVANTAGES, "settings.clip, among", "None, among", TEST_ADVANTAGES),
    # What must hold for any numbers.
    (POLICY, "{name: part.eval() for", "{name: part for", TEST_CRITIC),
    (CRITIC, 'optimisers["policy" if name == "policy" else "critic"]', 'optimisers["policy"]', TEST_CRITIC),
    (POLICY, "stream(seed, iteration, self", "stream(seed, 1, self", TEST_CRITIC),
    (CRITIC, "s.kl.in_loss * self.kl.factor", "s.kl.in_loss", TEST_CRITIC),
    (CRITIC, "if settings.ptx and ptx is None:", "if False:", TEST_CRITIC),
    (CRITIC, 'self.apart = {"policy": "ptx"} if self.ptx else {}', "self.apart = {}", TEST_CRITIC),
    (CRITIC, 'return {"ptx": s.ptx', 'return {"ptx": 1.0', TEST_CRITIC),
    (CRITIC, "rows = sum(batch.tokens.size for batch in portion)", "rows = len(portion)", TEST_CRITIC),
    (CRITIC, "if sorted(found) != sorted(needed):", "if set(found) != set(needed):", TEST_STREAMS),
    (CRITIC, 'if settings.truncation == "bootstrap" and not settings.reward_critic:', "if False:", TEST_STREAMS),
    (CRITIC, "told = sources if experience.groups else ()", "told = ()", TEST_STREAMS),
    (CRITIC, 'parts = {"policy": collector.policy, **critics}', "pass", TEST_STREAMS),
    (CRITIC, "critic.remember(given, states)", "critic.remember(batch, states * 0)", TEST_STREAMS),
    (CRITIC, "processes.gather(zip(", "list(zip(", CUT),
    # Critics first.
    (PRETRAINING, "now >= before * (1 - least)", "now >= before * (1 + least)", TEST_PRETRAINING),
    (
        PRETRAINING,
        "sum(losses[-2 * window : -window]), sum(losses[-window:])",
        "losses[-2], losses[-1]",
        TEST_PRETRAINING,
    ),
    (PRETRAINING, "or all(plateaued", "or any(plateaued", TEST_PRETRAINING),
    (PRETRAINING, "if done < s.min_iterations:", "if done <= s.min_iterations:", TEST_PRETRAINING),
    (PRETRAINING, "done >= s.max_iterations or", "", TEST_PRETRAINING),
    (PRETRAINING, "iteration, move=False)", "iteration)", TEST_PRETRAINING),
    (PRETRAINING, ", lam_value=1.0)", ")", TEST_PRETRAINING),
    (PRETRAINING, "self.method.settings.seed + 1_000_000", "self.method.settings.seed", TEST_PRETRAINING),
    (PRETRAINING, "self.parts = method.critics", "self.parts = method.parts", TEST_PRETRAINING),
    (
        PRETRAINING,
        "numbers = self.method.numbers(experience)",
        "numbers = self.method.after(experience)",
        TEST_PRETRAINING,
    ),
    # A run killed at any boundary.
    (PRETRAINING, '        self.method.load_state_dict(state["method"])\n', "", TEST_RESUME),
    (PRETRAINING, '{name: list(losses) for name, losses in state["losses"].items()}', "{}", TEST_RESUME),
    (CRITIC, '        self.scores.load_state_dict(state["scores"])\n', "", TEST_RESUME),
    (CRITIC, 'self.ptx.load_state_dict(state["ptx"])', "pass", TEST_RESUME),
    (CRITIC, "        super().load_state_dict(state)\n", "", TEST_RESUME),
    (POLICY, '        self.limits.load_state_dict(state["limits"])\n', "", TEST_RESUME),
    (POLICY, '        self.kl.load_state_dict(state["kl"])\n', "", TEST_RESUME),
    # Ragged columns.
    (RAGGED, "[:, None]\n\n    def flat", "[:, None] + 1\n\n    def flat", TEST_RAGGED),
    (RAGGED, "[pieces[i] for i in rows]", "[pieces[i] for i in sorted(rows)]", TEST_RAGGED),
    (RAGGED, "column.new_zeros(mask.shape)", "torch.zeros(mask.shape)", TEST_RAGGED),
    (RAGGED, " if rows else column[:0]", "", TEST_RAGGED),
    (RAGGED, "default=0", "default=1", TEST_RAGGED),
]
