"""Wrong versions of the offline losses that their tests must catch: file, text, wrong text, tests."""

OFFLINE, TEST = "src/holdfast/losses/offline.py", "tests/losses/test_offline.py"

MUTANTS = [
    # Weights
    (OFFLINE, "rows = (-weights * precise", "rows = (weights * precise", TEST),
    (OFFLINE, "precise(logprobs).where(mask, 0.0)).sum(-1)", "precise(logprobs)).sum(-1)", TEST),
    (OFFLINE, "    return over(rows)\n", "    return over(weights)._replace(total=rows.sum())\n", TEST),
    (OFFLINE, "expand(logprobs.shape).where(mask, 0.0)", "expand(logprobs.shape)", TEST),
    (OFFLINE, "@torch.no_grad()\ndef _weights", "def _weights", TEST),
    (OFFLINE, "precise(each.detach()) for", "precise(each) for", TEST),
    (OFFLINE, "precise(each.detach()) for", "each.detach() for", TEST),
    (OFFLINE, "        worth = worth - plan.beta\n", "        worth = worth + plan.beta\n", TEST),
    (OFFLINE, "rows = rows - plan.beta", "rows = rows + plan.beta", TEST),
    (OFFLINE, 'read["ref"].where(mask, 0.0).sum(-1)', 'read["ref"].sum(-1)', TEST),
    (OFFLINE, "clamp(min=plan.floor)", "clamp(max=plan.floor)", TEST),
    (OFFLINE, "clamp(min=plan.floor)", "clamp(min=0.1)", TEST),
    (OFFLINE, "if name in needs and", "if", TEST),
    (OFFLINE, "if read[name].shape != logprobs.shape[:1]:", "if False:", TEST),
    (OFFLINE, 'ref=read.get("ref", logprobs))', "ref=logprobs)", TEST),
    (OFFLINE, "rows = rows * precise(row_weight)", "pass", TEST),
    (OFFLINE, "        same_shape(rows=rows, row_weight=row_weight)\n", "", TEST),
    # Ratio
    (OFFLINE, "tokens = (precise(logprobs) - precise(ref))", "tokens = (precise(ref) - precise(logprobs))", TEST),
    (OFFLINE, "- precise(ref)).where(mask, 0.0)", "- precise(ref))", TEST),
    (OFFLINE, 'if plan.level == "sequence" else', 'if plan.level == "geometric" else', TEST),
    (OFFLINE, "answer / mask.sum(-1, keepdim=True)", "answer / mask.shape[-1] + 0 * mask.sum(-1, keepdim=True)", TEST),
    (OFFLINE, '    if plan.method == "a_lol_seq":\n        return tokens\n', "", TEST),
    (
        OFFLINE,
        "ratio if plan.clip is None else ratio.clamp(1 - plan.clip, 1 + plan.clip)",
        "ratio if plan.clip is None else ratio.clamp(max=1 + plan.clip)",
        TEST,
    ),
    (
        OFFLINE,
        "ratio if plan.clip is None else ratio.clamp(1 - plan.clip, 1 + plan.clip)",
        "ratio.clamp(1 - (plan.clip or 0), 1 + (plan.clip or 0))",
        TEST,
    ),
    (OFFLINE, "log_ratio.clamp(-LARGEST_LOG_RATIO, LARGEST_LOG_RATIO).exp()", "log_ratio.exp()", TEST),
    (OFFLINE, "not self.clip > 0", "not self.clip >= 0", TEST),
    # Metrics
    (OFFLINE, 'counted = mask if plan.method == "a_lol_seq" else', "counted =", TEST),
    (OFFLINE, "over(ratio < 1 - plan.clip, counted)", "over(ratio < plan.clip, counted)", TEST),
    (OFFLINE, "over(ratio > 1 + plan.clip, counted)", "over(ratio > 1 / plan.clip, counted)", TEST),
    (OFFLINE, "in CLIPPED and plan.clip is not None", "and plan.clip is not None", TEST),
    # Advantages and pairs
    (OFFLINE, "precise(value) + margin", "precise(value) - margin", TEST),
    (OFFLINE, "precise(reward) - precise(value)", "reward - value", TEST),
    (OFFLINE, "beta * precise(lead.detach())", "precise(lead.detach())", TEST),
    (OFFLINE, "beta * precise(lead.detach())", "-beta * precise(lead.detach())", TEST),
    (OFFLINE, "beta * precise(lead.detach())", "beta * precise(lead)", TEST),
    (OFFLINE, "beta * precise(rejected), margin", "precise(rejected), margin", TEST),
    # Rankings
    (OFFLINE, "quality[:, k, None] - quality[:, k + 1 :]", "quality[:, k + 1 :] - quality[:, k, None]", TEST),
    (OFFLINE, "gaps.amax(-1)", "gaps.amin(-1)", TEST),
    (OFFLINE, "rivals = scores[:, k + 1 :] * gaps", "rivals = scores[:, k + 1 :] * gaps.amax(-1, keepdim=True)", TEST),
    (OFFLINE, "torch.cat([own[:, None], rivals], -1)", "rivals", TEST),
    (OFFLINE, ".logsumexp(-1) - own", ".exp().sum(-1).log() - own", TEST),
    (OFFLINE, "range(scores.shape[1] - 1)", "range(1)", TEST),
    (OFFLINE, "or scores.shape[1] < 2", "or scores.shape[1] < 1", TEST),
    # Draws
    (OFFLINE, "weights = weights.double()\n", "weights = weights.float()\n", TEST),
    (OFFLINE, "~weights.isfinite() | (weights < 0)", "~weights.isfinite()", TEST),
    (OFFLINE, "~weights.isfinite() | (weights < 0)", "weights < 0", TEST),
    (OFFLINE, "    if not total > 0:", "    if False:", TEST),
    (OFFLINE, "1 / float(probabilities(weights).square().sum())", "1 / float(probabilities(weights).max())", TEST),
]
