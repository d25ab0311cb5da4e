"""Wrong versions of `holdfast.evaluate` that its tests must catch: file, text, wrong text, tests."""

POLICY, TEST_POLICY = "src/holdfast/evaluate/policy.py", "tests/evaluate/test_policy.py"

MUTANTS = [
    (POLICY, 'self.truth["helpfulness"][benign]', 'self.truth["helpfulness"]', TEST_POLICY),
    (POLICY, 'self.truth["refusal"][benign]', 'self.truth["refusal"]', TEST_POLICY),
    (POLICY, 'proportion(_flags(self.truth["harm"]))', 'proportion(~_flags(self.truth["harm"]))', TEST_POLICY),
    (POLICY, "if benign.sum() > 1:", "if benign.any():", TEST_POLICY),
    (POLICY, "(own - ref).sum(-1)", "(own - ref).mean(-1)", TEST_POLICY),
    (POLICY, "kl=(own - ref)", "kl=(ref - own)", TEST_POLICY),
    (POLICY, "exam.sampling, exam.seed)", "exam.sampling, 0)", TEST_POLICY),
]
