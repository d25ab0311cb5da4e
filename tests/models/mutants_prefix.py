"""Wrong versions of `holdfast.models.prefix` that its tests must catch: file, text, wrong text, tests."""

PREFIX, TEST_PREFIX = "src/holdfast/models/prefix.py", "tests/models/test_prefix.py"

MUTANTS = [
    # An answer sees the prompt and itself; not the other answers, and nothing that comes later.
    (PREFIX, "visible = (self.part[:, None, :] == 0) |", "visible = (self.part[:, None, :] >= 0) |", TEST_PREFIX),
    (PREFIX, "visible = (self.part[:, None, :] == 0) | (", "visible = (", TEST_PREFIX),
    (PREFIX, "visible.tril()", "visible", TEST_PREFIX),
    (PREFIX, '_attn_implementation == "eager"', '_attn_implementation == "none"', TEST_PREFIX),
    (PREFIX, "torch.finfo(dtype).min", "0.0", TEST_PREFIX),
    # Every token keeps the position it has alone.
    (PREFIX, "place, own] = torch.arange(lengths[row]", "place, own] = own.new_zeros(lengths[row]", TEST_PREFIX),
    (PREFIX, "attention_mask.argmax(-1)", "(0 * attention_mask).argmax(-1)", TEST_PREFIX),
    (PREFIX, "enumerate(group, 1)", "enumerate(group, 0)", TEST_PREFIX),
    (PREFIX, "begin, end = end, end + lengths[row] - once", "begin, end = once, lengths[row]", TEST_PREFIX),
    # Tokens are common as far as all of them agree, not as often.
    (PREFIX, ".int().cumprod(0).sum()", ".int().sum()", TEST_PREFIX),
    (PREFIX, "(cut == cut[0])", "(cut == cut)", TEST_PREFIX),
    (PREFIX, "self.column.numel() / self.part.numel()", "self.part.numel() / self.column.numel()", TEST_PREFIX),
    (PREFIX, "self.column.gather(1, index[:, None])[:, 0]", "index", TEST_PREFIX),
    (
        PREFIX,
        "values[self.line[:, None], self.column]",
        "values[self.line.sort()[0][:, None], self.column]",
        TEST_PREFIX,
    ),
    (PREFIX, 'not getattr(config, "alibi", False)', "True", TEST_PREFIX),
    (PREFIX, "and not network._is_stateful", "", TEST_PREFIX),
    (PREFIX, "longest <= window", "longest < window", TEST_PREFIX),
    (PREFIX, "longest <= window for", "True for", TEST_PREFIX),
    (PREFIX, '_attn_implementation in ("sdpa", "eager")', "_attn_implementation", TEST_PREFIX),
    (PREFIX, "attends.issuperset", "set.isdisjoint", TEST_PREFIX),
]
