"""Wrong versions of `holdfast.models` that its tests must catch: file, text, wrong text, tests."""

POLICY, TEST_POLICY = "src/holdfast/models/policy.py", "tests/models/test_policy.py"
HEADS, TEST_HEADS = "src/holdfast/models/heads.py", "tests/models/test_heads.py"
ADAPTERS, TEST_ADAPTERS = "src/holdfast/models/adapters.py", "tests/models/test_adapters.py"
LOAD, TEST_LOAD = "src/holdfast/models/load.py", "tests/models/test_load.py"
SAVE, TEST_SAVE = "src/holdfast/models/save.py", "tests/models/test_save.py"

MUTANTS = [
    # The state at a token predicts the next one, not itself.
    (POLICY, "input_ids[:, 1:][predicted]", "input_ids[:, :-1][predicted]", TEST_POLICY),
    (POLICY, "hidden[:, :-1][predicted]", "hidden[:, 1:][predicted]", TEST_POLICY),
    (POLICY, "temperature=temperature,", "temperature=1.0,", TEST_POLICY),
    (POLICY, "position_ids=position_ids,", "position_ids=None,", TEST_POLICY),
    (POLICY, "module.training = mode", "module.training = True", TEST_POLICY),
    # The score is read at its index, not at the last column.
    (HEADS, "device=hidden.device), score_index]", "device=hidden.device), -1]", TEST_HEADS),
    (HEADS, "enabled=False", "enabled=True", TEST_HEADS),
    (HEADS, "position_ids, score_index, **images)", "position_ids, score_index)", TEST_HEADS),
    (HEADS, "else copy.deepcopy(backbone(policy))", "else backbone(policy)", TEST_HEADS),
    (HEADS, '{"_keep_in_fp32_modules_strict": {"score"}}', "{}", TEST_HEADS),
    (ADAPTERS, "policy.disable_adapter():", "evaluating(policy):", TEST_ADAPTERS),
    (ADAPTERS, "weight.requires_grad_(name in trainable)", "pass", TEST_ADAPTERS),
    (ADAPTERS, "if heads and not any(", "if False and not any(", TEST_ADAPTERS),
    (LOAD, "    if missing:\n", "    if False:\n", TEST_LOAD),
    (LOAD, "vocab_size > rows", "vocab_size < rows", TEST_LOAD),
    (SAVE, "results.shape != expected.shape or not", "False and", TEST_SAVE),
    (SAVE, "old.rename(target)", "pass", TEST_SAVE),
    (SAVE, "tokenizer.pad_token_id != tokenizer.eos_token_id", "True", TEST_SAVE),
]
