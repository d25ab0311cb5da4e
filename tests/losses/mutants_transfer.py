"""Wrong versions of what a weakly supervised student is told; each must make its tests fail."""

_FILE, _TESTS = "src/holdfast/losses/transfer.py", "tests/losses/test_transfer.py"

MUTANTS = [
    (_FILE, old, new, _TESTS)
    for old, new in (
        ("return torch.lerp(told, own, weight)", "return torch.lerp(told, own.detach(), weight)"),
        ("return torch.lerp(told, own, weight)", "return torch.lerp(own, told, weight)"),
        ("torch.is_grad_enabled() and not own.requires_grad", "False"),
        ("    own = own.detach()\n", ""),
        ('_distribution("weak", weak).detach()', '_distribution("weak", weak)'),
        ("return hardened(told)", "return hardened(own)"),
        ("torch.lerp(told, hardened(own, prior, min_pool), weight)", "torch.lerp(told, hardened(own, prior), weight)"),
        ("torch.lerp(told, hardened(own, prior, min_pool), weight)", "torch.lerp(told, hardened(told), weight)"),
        ("torch.lerp(told, hardened(own, prior, min_pool), weight)", "hardened(own, prior, min_pool)"),
        ("own.amax(-1, keepdim=True) < 0.5 + options.radius", "told.amax(-1, keepdim=True) < 0.5 + options.radius"),
        ("own.amax(-1, keepdim=True) < 0.5 + options.radius", "own.amax(-1, keepdim=True) < 0.5 - options.radius"),
        ("hardened(own), _trust", "own, _trust"),
        ("float(prior[1])", "float(prior[0])"),
        ("harden(p[:, 1], None", "harden(p[:, 0], None"),
        ("wide.log() - wide.mean(0).log() + prior", "wide.log() + wide.mean(0).log() + prior"),
        (" - wide.mean(0).log() + prior.to(wide).log()", " - wide.mean(0).log()"),
        ("score.where(wide > 0, -torch.inf)", "score"),
        ("prior is None or len(p) < min_pool", "prior is None"),
        ("prior is None or len(everyone) < min_pool", "prior is None"),
        ("prior is None or len(everyone) < min_pool", "prior is None or len(p) < min_pool"),
        ("torch.cat([pool.to(p), p])", "torch.cat([p, pool.to(p)])"),
        ("(p > 0.5)", "(p >= 0.5)"),
        ("round(prior * len(everyone))", "round(prior * len(p))"),
        ("round(prior * len(everyone))", "int(prior * len(everyone))"),
        ("argsort(descending=True, stable=True)", "argsort(stable=True)"),
        ("hard[len(everyone) - len(p) :]", "hard[: len(p)]"),
        ("over(-(target", "over((target"),
        (".sum(-1), mask)", ".sum(-1))"),
        ("[torch.zeros_like(margin), margin]", "[margin, torch.zeros_like(margin)]"),
        ("most * fraction / share if fraction < share", "most * fraction if fraction < share"),
        ("most * fraction / share if fraction < share else most", "most * min(1.0, fraction / max(share, 1e-9))"),
        ("own.clamp(min=torch.finfo(own.dtype).tiny).log()", "own.log()"),
        ("told.clamp(1e-6, 1 - 1e-6).log()", "told.log()"),
        ("options.student_power * log_own", "log_own"),
        ("options.weak_power * log_told", "log_told"),
        ("own.gather(-1, told.argmax(-1, keepdim=True))", "told.gather(-1, own.argmax(-1, keepdim=True))"),
        ("(favoured.log() - own.amax(-1, keepdim=True).log())", "(own.amax(-1, keepdim=True).log() - favoured.log())"),
        (" / temperature).sigmoid()", ").sigmoid()"),
        ("(shares >= 0).all(-1) & ", ""),
        (" & ((shares.sum(-1) - 1).abs() < 1e-2)", ""),
    )
]
