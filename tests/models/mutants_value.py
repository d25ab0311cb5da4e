"""Wrong versions of `holdfast.models.value` that its tests must catch: file, text, wrong text, tests."""

VALUE, TEST_VALUE = "src/holdfast/models/value.py", "tests/models/test_value.py"

MUTANTS = [
    (VALUE, "key_padding_mask=padding, ", "", TEST_VALUE),
    (VALUE, "key_padding_mask=padding", "key_padding_mask=~padding", TEST_VALUE),
    (VALUE, "or bool(padding.all(-1).any())", "", TEST_VALUE),
    (VALUE, "return self.low + (self.high - self.low) * share", "return self.high * share", TEST_VALUE),
    (VALUE, "[:, 0].sigmoid()", "[:, 0]", TEST_VALUE),
    (VALUE, "self.dropout(gathered[:, 0])", "self.dropout(keys[:, 0])", TEST_VALUE),
    (VALUE, "keys, keys, key_padding", "keys, query.expand_as(keys), key_padding", TEST_VALUE),
    (VALUE, "nn.Dropout(dropout)", "nn.Dropout(0.0)", TEST_VALUE),
    (VALUE, "states.device.type, enabled=False", "states.device.type, torch.bfloat16", TEST_VALUE),
    (VALUE, "with torch.random.fork_rng(devices=[]):", "if True:", TEST_VALUE),
    (VALUE, "if not low < high:", "if low > high:", TEST_VALUE),
    (VALUE, "if hidden % heads:", "if False:", TEST_VALUE),
    (VALUE, "(value - self.low) / (self.high - self.low)", "value / (self.high - self.low)", TEST_VALUE),
    (VALUE, "math.log(share / (1 - share))", "math.log(share)", TEST_VALUE),
    (VALUE, "min(max(share, 0.01), 0.99)", "min(max(share, 1e-9), 1 - 1e-9)", TEST_VALUE),
    (VALUE, "        self.last.weight.zero_()\n", "", TEST_VALUE),
    (VALUE, "if head.digest != expected:", "if False:", TEST_VALUE),
    (VALUE, '"high": self.high,', '"high": 1.0,', TEST_VALUE),
    (VALUE, "head.to(device).eval()", "head.to(device)", TEST_VALUE),
    (VALUE, "{name} {tensor.dtype} {tuple(tensor.shape)};", "{tensor.dtype} {tuple(tensor.shape)};", TEST_VALUE),
    (VALUE, "        digest.update(tensor.detach()", "        (tensor.detach()", TEST_VALUE),
]
