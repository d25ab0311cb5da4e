"""Wrong versions of `holdfast.models` that its tests must catch: file, text, wrong text, tests."""

POLICY, TEST_POLICY = "src/holdfast/models/policy.py", "tests/models/test_policy.py"
TEST_WORDS = "tests/rollout/test_generate_words.py"
HEADS, TEST_HEADS = "src/holdfast/models/heads.py", "tests/models/test_heads.py"
ADAPTERS, TEST_ADAPTERS = "src/holdfast/models/adapters.py", "tests/models/test_adapters.py"
LOAD, TEST_LOAD = "src/holdfast/models/load.py", "tests/models/test_load.py"
SAVE, TEST_SAVE = "src/holdfast/models/save.py", "tests/models/test_save.py"
ROUTER, TEST_ROUTER = "src/holdfast/models/router.py", "tests/models/test_router.py"
MIXTURE, TEST_MIXTURE = "src/holdfast/models/mixture.py", "tests/models/test_mixture.py"
MIXTURE_CONFIG = "src/holdfast/models/mixture_config.py"

MUTANTS = [
    # The state at a token predicts the next one, not itself.
    (POLICY, "input_ids[:, 1:][predicted]", "input_ids[:, :-1][predicted]", TEST_POLICY),
    (POLICY, "hidden[:, :-1][predicted]", "hidden[:, 1:][predicted]", TEST_POLICY),
    (
        POLICY,
        "labels, bias=answer_bias(policy), temperature=temperature, chunk=chunk)",
        "labels, bias=answer_bias(policy), chunk=chunk)",
        TEST_POLICY,
    ),
    (POLICY, "never[placeholder] = NEVER", "never[placeholder] = 0", TEST_WORDS),
    (POLICY, "NEVER = -1e4", "NEVER = -float('inf')", TEST_WORDS),
    (POLICY, "never if head.bias is None else head.bias + never", "head.bias", TEST_WORDS),
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
    (ROUTER, "nn.init.zeros_(self.last.weight)", "pass", TEST_ROUTER),
    (ROUTER, "torch.manual_seed(seed)", "torch.manual_seed(0)", TEST_ROUTER),
    (ROUTER, "with torch.random.fork_rng(devices=[]):", "if True:", TEST_ROUTER),
    (ROUTER, "self.hidden(u).relu()", "self.hidden(u)", TEST_ROUTER),
    (ROUTER, "enabled=False", "enabled=True", TEST_ROUTER),
    # The router reads the last token of the prompt, wherever the padding is.
    (MIXTURE, "mask.argmax(-1) + prompt_lengths - 1", "mask.argmax(-1) + prompt_lengths", TEST_MIXTURE),
    (MIXTURE, "mask.argmax(-1) + prompt_lengths - 1", "prompt_lengths - 1", TEST_MIXTURE),
    (MIXTURE, "precise(hidden[rows, prompt_index])", "precise(hidden[rows, score_index])", TEST_MIXTURE),
    (MIXTURE, "(mask * torch.arange(mask.shape[1], device=mask.device)).argmax(-1)", "mask.sum(-1) - 1", TEST_MIXTURE),
    (MIXTURE, "score_index = last if score_index is None else score_index", "score_index = last", TEST_MIXTURE),
    (MIXTURE, "((prompt_lengths < 1) | (prompt_index > score_index))", "(prompt_lengths < 1)", TEST_MIXTURE),
    (MIXTURE, "(rewards - mean) / std", "(rewards - mean) * std", TEST_MIXTURE),
    (MIXTURE, "(rewards - mean) / std", "rewards / std", TEST_MIXTURE),
    (MIXTURE, "mixture.log_weights(logits, self.masked)", "mixture.log_weights(logits)", TEST_MIXTURE),
    (MIXTURE, "mixture.log_weights(self.router(u), self.masked)", "mixture.log_weights(self.router(u))", TEST_MIXTURE),
    (MIXTURE, "copy_(init_std * noise)", "copy_(init_std * noise[:1])", TEST_MIXTURE),
    (MIXTURE, "enabled=False", "enabled=True", TEST_MIXTURE),
    (MIXTURE, "bias=False, dtype=torch.float32)", "bias=False)", TEST_MIXTURE),
    (ROUTER, '{"dtype": torch.float32}', "{}", TEST_MIXTURE),
    (MIXTURE, 'if hasattr(self.model, "peft_config"):', "if False:", TEST_MIXTURE),
    (MIXTURE, "copy.deepcopy(model.model).merge_and_unload()", "model.model.merge_and_unload()", TEST_MIXTURE),
    (MIXTURE, "any(not mine[name].cpu().equal(theirs[name]) for name in mine)", "False", TEST_MIXTURE),
    (MIXTURE, "if weights_digest(where) != config.backbone_digest:", "if False:", TEST_MIXTURE),
    (MIXTURE, 'if report["missing_keys"]:', "if False:", TEST_MIXTURE),
    (MIXTURE, 'below.name_or_path = ""', "pass", TEST_MIXTURE),
    (MIXTURE, "logits=output.score[:, None]", "logits=output.logits[:, :1]", TEST_MIXTURE),
    (MIXTURE, 'given["router_logits"] = self.log_weights', "pass", TEST_MIXTURE),
    (MIXTURE, "if config.num_labels != config.num_heads:", "if False:", TEST_MIXTURE),
    (MIXTURE_CONFIG, "if length != len(names)}", "if False}", TEST_MIXTURE),
    (MIXTURE_CONFIG, "set(masked) == set(names)", "False", TEST_MIXTURE),
    (SAVE, 'if _names(model) != card["names"]:', "if False:", TEST_MIXTURE),
    (SAVE, "response_mask.int().argmax(-1) - 1", "response_mask.int().argmax(-1)", TEST_MIXTURE),
    (SAVE, "NOTES = (CARD, PROBES, HEAD_CARD)", "NOTES = (CARD, PROBES)", TEST_MIXTURE),
]
