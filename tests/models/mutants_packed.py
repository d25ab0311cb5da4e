"""Wrong versions of `models/packed.py` that the tests must catch."""

FILE, TEST = "src/holdfast/models/packed.py", "tests/models/test_packed.py"

MUTANTS = [
    (FILE, "type(layer) is not nn.Linear or", "not isinstance(layer, nn.Linear) or", TEST),
    (FILE, ' or "forward" in vars(layer)', "", TEST),
    (FILE, "weight.dtype == torch.float32 and", "weight.dtype.is_floating_point and", TEST),
    (FILE, "weight.numel() >= LEAST", "weight.numel() > 0", TEST),
    (FILE, "_pack(layer.weight), layer.bias", "_pack(layer.weight), None", TEST),
    (FILE, 'vars(layer).pop("forward", None)', "pass", TEST),
    (FILE, "if torch.is_grad_enabled():", "if False:", TEST),
    (FILE, "    if not torch.backends.mkldnn.is_available():\n        return False\n", "", TEST),
    (FILE, "except (AttributeError, RuntimeError):", "except AttributeError:", TEST),
    (FILE, "return bool(torch.allclose(found, rows @ weight.T + 1, atol=1e-4))", "return True", TEST),
]
