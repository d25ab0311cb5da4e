"""Wrong versions of scales and borders that their tests must catch."""

SCALES, HEADS, TESTS = "src/holdfast/models/scales.py", "src/holdfast/models/heads.py", "tests/models/test_scales.py"

MUTANTS = [
    (SCALES, "return share if self.higher_is_better else 1 - share", "return share", TESTS),
    (SCALES, "(share if self.higher_is_better else 1 - share)", "share", TESTS),
    (SCALES, "if not self.low < self.high:", "if not self.low <= self.high:", TESTS),
    (SCALES, "if held[0] and held != (entries, link):", "if held[0] and held[0] != entries:", TESTS),
    (SCALES, "if held[0] and held != (entries, link):", "if False:", TESTS),
    (
        SCALES,
        "[name for name in names if name in scales] != list(scales)",
        "{name for name in names if name in scales} != set(scales)",
        TESTS,
    ),
    (
        SCALES,
        "return torch.cat([gaps.new_zeros(1), gaps.cumsum(0)])",
        "return torch.cat([gaps.new_zeros(1), gaps])",
        TESTS,
    ),
    (SCALES, "self.PACE * self.gaps.detach() + self.gaps - self.gaps.detach()", "self.PACE * self.gaps", TESTS),
    (SCALES, "gaps = self.LEAST + softplus", "gaps = softplus", TESTS),
    (HEADS, "self.config.score_borders = self.borders().tolist()", "pass", TESTS),
    (HEADS, '{"names": self.names, **facts(self.config)}', '{"names": self.names}', TESTS),
    (HEADS, "    score_model.head.requires_grad_(True)\n", "", TESTS),
    (HEADS, "    score_model.network.requires_grad_(False)\n", "", TESTS),
]
