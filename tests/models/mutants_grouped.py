"""Wrong versions of `models.grouped` and `models.attend` that their tests must catch: file, text, wrong text, tests."""

GROUPED, TEST_GROUPED = "src/holdfast/models/grouped.py", "tests/models/test_grouped.py"
ATTEND, TEST_ATTEND = "src/holdfast/models/attend.py", "tests/models/test_attend.py"

MUTANTS = [
    # What an answer sees: its own prompt without the padding, and itself up to each token.
    (GROUPED, ".triu(1)", ".triu(2)", TEST_GROUPED),
    (
        GROUPED,
        "self.padding[self.of] if bool(self.padding.any()) else self.padding[:1]",
        "self.padding[:1]",
        TEST_GROUPED,
    ),
    (GROUPED, "self.padding[self.of] if", "self.padding[self.of.flip(0)] if", TEST_GROUPED),
    (GROUPED, "mask.repeat(1, queries, 1)", "mask.repeat_interleave(queries, 1)", TEST_GROUPED),
    (GROUPED, "asked_key.index_select(0, tokens.of)", "asked_key.index_select(0, tokens.of.sort()[0])", TEST_GROUPED),
    (GROUPED, "asked_value.index_select(0, tokens.of)", "asked_value.index_select(0, tokens.of.flip(0))", TEST_GROUPED),
    (GROUPED, "is_causal=True", "is_causal=False", TEST_GROUPED),
    (GROUPED, 'kwargs.get("dropout", 0.0)', "0.0", TEST_GROUPED),
    (GROUPED, 'kwargs.get("scaling")', "1.0", TEST_GROUPED),
    # Every token keeps the position it has alone, and its gradient.
    (GROUPED, "prompt_lengths[of][:, None] + after", "(0 * prompt_lengths[of])[:, None] + after", TEST_GROUPED),
    (
        GROUPED,
        "gradient.index_select(0, *ctx.saved_tensors), None, None",
        "gradient[: len(ctx.saved_tensors[0])], None, None",
        TEST_GROUPED,
    ),
    (GROUPED, "gradient.new_zeros(ctx.shape)", "gradient.new_ones(ctx.shape)", TEST_GROUPED),
    (GROUPED, "prompt_lengths[of] - 1]", "0 * of]", TEST_GROUPED),
    (GROUPED, "answers[:, :-1], lengths, of)", "answers[:, 1:], lengths, of)", TEST_GROUPED),
    (GROUPED, "lengths[:, None] - 1)[:, 0]", "0 * lengths[:, None])[:, 0]", TEST_GROUPED),
    # When to share, and when to stop.
    (GROUPED, "saving >= self.gate", "saving > self.gate", TEST_GROUPED),
    (GROUPED, 'self.share == "auto" and', "True and", TEST_GROUPED),
    (GROUPED, "self._agreed.get(unwrapped(model), True) and", "True and", TEST_GROUPED),
    (GROUPED, "supports(model, longest)\n", "supports(model)\n", TEST_GROUPED),
    (GROUPED, "return shared() if self._agreed[network] else plain()", "return shared()", TEST_GROUPED),
    (
        GROUPED,
        "            with evaluating(model):\n                one",
        "            if True:\n                one",
        TEST_GROUPED,
    ),
    (GROUPED, "else 5e-2", "else 1e-2", TEST_GROUPED),
    (GROUPED, "else 5e-2", "else 1e-1", TEST_GROUPED),
    (GROUPED, "/ plain.abs().max())", "/ 1)", TEST_GROUPED),
    (GROUPED, "network = unwrapped(model)\n        if", "network = model\n        if", TEST_GROUPED),
    (ATTEND, "        config._attn_implementation = former", "        pass", TEST_ATTEND),
    (
        ATTEND,
        "            with _configured(config, name):\n                return layer(*again)",
        "            return layer(*again)",
        TEST_ATTEND,
    ),
    (ATTEND, "        module._gradient_checkpointing_func = former", "        pass", TEST_ATTEND),
    (ATTEND, "return backbone(model).get_decoder().config", "return model.config.get_text_config()", TEST_ATTEND),
    (ATTEND, '_attn_implementation in ("sdpa", "eager")', "_attn_implementation", TEST_ATTEND),
    (ATTEND, 'and "mrope_section" not in rope', "", TEST_ATTEND),
    (ATTEND, "and not network._is_stateful", "", TEST_ATTEND),
    (ATTEND, 'and not getattr(config, "attn_logit_softcapping", None)', "", TEST_ATTEND),
    (ATTEND, 'and not hasattr(module, "sinks")', "", TEST_ATTEND),
    (ATTEND, "all(_hands_down(module) and", "all(", TEST_ATTEND),
    (ATTEND, "longest <= window", "longest < window", TEST_ATTEND),
    (ATTEND, "all(longest is not None and longest <= window", "all(longest is None or longest <= window", TEST_ATTEND),
    (ATTEND, "known.get(kind) or 0", "known.get(kind) or 10**9", TEST_ATTEND),
    (ATTEND, "kinds |= {kind", "kinds &= {kind", TEST_ATTEND),
]
