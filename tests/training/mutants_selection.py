"""Wrong versions of `training/selection.py` that its tests must catch."""

FILE, TEST = "src/holdfast/training/selection.py", "tests/training/test_selection.py"

MUTANTS = [
    (FILE, "term.weight * (torch.sigmoid(value)", "(torch.sigmoid(value)", TEST),
    (FILE, 'if term.link == "sigmoid" else value', 'if term.link != "sigmoid" else value', TEST),
    (FILE, "nan_to_num(nan=torch.inf)", "nan_to_num(nan=0.0)", TEST),
    (FILE, "beyond = excess > 0", "beyond = excess >= 0", TEST),
    (FILE, "kept &= ~beyond", "kept = ~beyond", TEST),
    (FILE, "torch.exp(-excess / limit.softness)", "torch.exp(-excess)", TEST),
    (FILE, "weight = weight * torch", "weight = torch", TEST),
    (FILE, "    kept &= weight > 0\n", "", TEST),
    (FILE, "reward[~beyond], reward[beyond]", "reward[beyond], reward[~beyond]", TEST),
    (FILE, "value - limit.most", "value", TEST),
]
