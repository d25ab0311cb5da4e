"""Wrong versions of the offline task that its tests must catch: file, text, wrong text, tests."""

OFFLINE, TEST = "src/holdfast/training/offline.py", "tests/training/test_offline.py"
LOSS = "src/holdfast/losses/offline.py"

MUTANTS = [
    # The loss.
    (OFFLINE, "self.model.eval()  # `fit` has turned dropout on", "pass", TEST),
    (OFFLINE, "row_weight=batch.weight", "row_weight=None", TEST),
    (OFFLINE, "term = Sum(term.total, mask.sum())", "pass", TEST),
    (OFFLINE, "over(-logprobs.detach(), mask)", "over(-logprobs, mask)", TEST),
    (OFFLINE, "worth = worth.clamp(min=0)", "worth = worth.abs()", TEST),
    (OFFLINE, "worth.sign() * worth.abs() ** self", "worth.abs() ** self", TEST),
    (OFFLINE, "** self.settings.loss_exponent", "** 1.0", TEST),
    (OFFLINE, "batch.advantage < self.plan.beta", "batch.advantage < 0", TEST),
    (OFFLINE, '"clip_low", "clip_high", "below_beta"), 0.0', '"clip_low", "clip_high", "below_beta"), 1.0', TEST),
    (OFFLINE, 'tokens if self.plan.method == "a_lol_seq" else rows', "rows", TEST),
    (OFFLINE, "line[:tokens] = row.ref", "line[-tokens:] = row.ref", TEST),
    (OFFLINE, "row.ref is None or len(row.ref) != tokens", "row.ref is None", TEST),
    (OFFLINE, "for chosen in reversed(found)", "for chosen in found", TEST),
    (LOSS, "rows * precise(row_weight)", "rows + precise(row_weight)", TEST),
    # Which rows, how often, how long.
    (OFFLINE, "(worth > 0) | (not settings.filters)", "(worth >= 0) | (not settings.filters)", TEST),
    (OFFLINE, "(worth > 0) | (not settings.filters)", "worth > 0", TEST),
    (OFFLINE, 'self.filter_nonpositive and "advantage" in self.needs', "self.filter_nonpositive", TEST),
    (OFFLINE, "worth[left] ** settings.priority_exponent", "worth[left]", TEST),
    (OFFLINE, "worth[left] ** settings.priority_exponent if priority", "torch.ones(len(kept)) if priority", TEST),
    (OFFLINE, "steps * len(kept) // len(rows)", "-(-steps * len(kept) // len(rows)) - 1", TEST),
    (OFFLINE, "steps * len(kept) // len(rows), 1)", "steps * len(kept) // len(rows), 0)", TEST),
    (OFFLINE, "steps = math.ceil(len(rows) / fit", "steps = math.ceil(len(kept) / fit", TEST),
    (OFFLINE, "if settings.scale_steps_by_kept:", "if True:", TEST),
    (OFFLINE, 'if settings.sampling != "shuffle":', "if priority:", TEST),
    (OFFLINE, "effective_size(weights)", "float(len(weights))", TEST),
    (OFFLINE, 'if name == "reward" and bool((worth < 0).any()):', "if False:", TEST),
    (OFFLINE, "annotations.ref_of(i), weights[i]", "annotations.ref_of(i)", TEST),
    (OFFLINE, "OfflineRow(row, rewards[i], advantage[i],", "OfflineRow(row, advantage[i], rewards[i],", TEST),
    # Settings.
    (OFFLINE, "value not in (None, type", "value not in (type", TEST),
    (OFFLINE, '"beta": self.method == "a_lol_kl",', '"beta": True,', TEST),
    (OFFLINE, "if priority and not self.needs:", "if False:", TEST),
    (OFFLINE, "Plan(self.method, self.clip, self.floor, self.beta, self.level)", "Plan(self.method)", TEST),
]
