"""Wrong ways to make one advantage of several rewards, each of which its tests must catch."""

SCALARISE, TESTS = "src/holdfast/losses/scalarise.py", "tests/losses/test_scalarise.py"

MUTANTS = [
    (SCALARISE, old, new, TESTS)
    for old, new in (
        ("known = ~rewards.isnan()", "known = torch.ones_like(rewards, dtype=torch.bool)"),
        ("(rewards - lowest).where(known, 0.0)", "rewards.where(known, 0.0)"),
        ("compared = known & (count > 1)", "compared = known"),
        ("(centred.square().sum(1, keepdim=True) / (count - 1)", "(centred.square().sum(1, keepdim=True) / count"),
        ("centred, compared, lowest + mean, sd, count)", "centred, compared, mean, sd, count)"),
        ("(groups.compared & (weights > 0)).any(-1", "groups.compared.any(-1"),
        ("(groups.compared & (weights > 0)).any(-1, keepdim=True)", "torch.ones_like(summed)"),
        ("(rows - 1).clamp(min=1)", "rows.clamp(min=1)"),
        ("torch.maximum(sd, _over_objectives(groups, weights * floors)) + eps", "sd + eps"),
        ("_over_objectives(groups, weights * floors)) + eps", "(weights * floors).sum()) + eps"),
        ("_over_objectives(groups, weights * floors)", "_over_objectives(groups, floors)"),
        (
            "return weights * _inverse(torch.maximum(groups.sd, floors) + eps)",
            "return _inverse(torch.maximum(groups.sd, floors) + eps)",
        ),
        ("_inverse(torch.maximum(groups.sd, floors) + eps)", "_inverse(groups.sd + floors + eps)"),
        ("weights * torch.maximum(groups.sd, floors)) + eps", "weights * groups.sd) + eps"),
        ("weights * torch.maximum(groups.sd, floors)) + eps", "torch.maximum(groups.sd, floors)) + eps"),
        ("groups.count / (groups.count - 1)", "(groups.count - 1) / groups.count"),
        ("_over_objectives(groups, weights * groups.mean)", "_over_objectives(groups, groups.mean)"),
        ("if (level < 0).any():", "if (level < -9).any():"),
        ('"batch": center,', '"batch": sum_then_normalise,'),
        ('"mgda": normalise_then_sum,', '"mgda": sum_then_normalise,'),
        ("(coefficients * groups.sd)[:, 0]", "coefficients[:, 0]"),
        ("precise(among).std() if", "precise(among).square().mean().sqrt() if"),
        ("if len(among) > 1 else", "if len(among) > 0 else"),
        ("_inverse(spread.clamp(min=floor) + eps)", "_inverse(spread + eps)"),
        ("_inverse(spread.clamp(min=floor) + eps)", "_inverse(spread.clamp(min=floor))"),
        ("(others >= needs)", "(others > needs)"),
        ("rewards[..., None, :], needs", "rewards[..., :, None], needs"),
        (".clamp(max=0.0)\n    return rewards.where(met", "\n    return rewards.where(met"),
        ("amin(1, keepdim=True).clamp(max=0.0)", "amin(1, keepdim=True) * 0"),
        (".masked_fill(unknown, torch.nan)", ""),
        ("met | rewards.isnan(), lowest", "met, lowest"),
        ("(advantages.sum(-1).abs() / size)", "(advantages.sum(-1) / size)"),
        (".where(size > 0, 1.0)", ".where(size > 0, 0.0)"),
        ("speaking = (lengths > 0)", "speaking = (lengths >= 0)"),
        ("1 / len(gram))", "1.0)"),
        ("products[nearest] >= square - tolerance", "products[nearest] >= 0"),
        ("corral.pop(int(share.argmin()))", "corral.pop(int(share.argmax()))"),
        (" / lengths.max()", ""),
        ("values.reciprocal().where(values > 0, 0.0)", "values.reciprocal()"),
        (".where(groups.count > 1, 0.0).sum(-1", ".sum(-1"),
    )
]
