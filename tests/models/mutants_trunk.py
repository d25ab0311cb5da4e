"""Wrong versions of critics that `holdfast.models`' tests must catch: file, text, wrong text, tests."""

HEADS, TEST_HEADS = "src/holdfast/models/heads.py", "tests/models/test_heads.py"
POLICY, TEST_POLICY = "src/holdfast/models/policy.py", "tests/models/test_policy.py"
TRUNK, TEST_TRUNK = "src/holdfast/models/trunk.py", "tests/models/test_trunk.py"

MUTANTS = [
    # What learns is copied and what is frozen is shared, never the other way round.
    (HEADS, "if not weight.requires_grad)", "if weight.requires_grad)", TEST_HEADS),
    (HEADS, "{id(weight): weight for weight in frozen}", "{}", TEST_HEADS),
    (HEADS, "rows[0] = old.detach()[row]", "rows[:] = old.detach()[row]", TEST_HEADS),
    (HEADS, "rows[0] = old.detach()[row]", "rows[0] = old.detach()[-1 - row]", TEST_HEADS),
    (HEADS, "critic.head.modules()", "[unwrapped(critic.network).score.modules_to_save.default]", TEST_HEADS),
    (HEADS, "requires_grad=old.requires_grad", "requires_grad=False", TEST_HEADS),
    (HEADS, "_label(critic.config, names)", "pass", TEST_HEADS),
    (HEADS, "critic.borders = None", "pass", TEST_HEADS),
    (HEADS, "setattr(critic.config, fact, None)", "pass", TEST_HEADS),
    (POLICY, "temperature=temperature, chunk=chunk\n    )", "temperature=1.0, chunk=chunk\n    )", TEST_POLICY),
    (
        POLICY,
        "_placed(logprobs, response_mask), _placed(entropies",
        "_placed(entropies, response_mask), _placed(logprobs",
        TEST_POLICY,
    ),
    # Values read the policy and never move it.
    (TRUNK, "self.head(hidden.detach()", "self.head(hidden", TEST_TRUNK),
    (TRUNK, "self._held = (policy,)", "self._policy = policy; self._held = (policy,)", TEST_TRUNK),
    (TRUNK, "with evaluating(self.policy):", "if True:", TEST_TRUNK),
    (
        TRUNK,
        "position_ids, **images)\n        return self.values_at",
        "position_ids)\n        return self.values_at",
        TEST_TRUNK,
    ),
    (TRUNK, "enabled=False", "enabled=True", TEST_TRUNK),
    (TRUNK, "nn.init.zeros_(self.head.weight)", "pass", TEST_TRUNK),
    (TRUNK, "(batch, hidden.detach())", "(None, hidden.detach())", TEST_TRUNK),
    (TRUNK, "self._remembered.pop(id(batch), None)", "self._remembered.get(id(batch))", TEST_TRUNK),
    (TRUNK, "self._remembered[id(batch)]", "self._remembered[0]", TEST_TRUNK),
]
