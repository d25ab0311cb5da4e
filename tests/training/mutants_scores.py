"""Wrong versions of the score transform and of the weight of the KL that their tests must catch."""


def _of(module: str, *changes: tuple[str, str]) -> list[tuple[str, str, str, str]]:
    return [
        (f"src/holdfast/training/{module}.py", old, new, f"tests/training/test_{module}.py") for old, new in changes
    ]


MUTANTS = [
    *_of(
        "scores",
        ("return (scores - mean) / sd if sd", "return scores / sd if sd"),
        ("if sd else scores.new_zeros(scores.shape)", "if sd else scores - mean"),
        ("return scores / (sd or 1.0)", "return (scores - mean) / (sd or 1.0)"),
        ("return scores / (sd or 1.0)", "return scores / sd"),
        ("moments.mean, moments.sample_std", "moments.mean, moments.std"),
        ("result.clamp(-delta, delta)", "result.clamp(max=delta)"),
        ("counted = ~truncated if", "counted = truncated if"),
        ("if self.settings.exclude_truncated else", "if True else"),
        ('self.settings.keep if self.settings.stats == "ema" else 1.0', "self.settings.keep"),
        ('self.settings.keep if self.settings.stats == "ema" else 1.0', "1.0"),
        ("scores.double().clone()", "scores.double()"),
        ("self._rescaled(result[rows], *self._scale(name))", 'self._rescaled(result[rows], *self._scale(""))'),
        ("(bounded != result).sum()", "(bounded == result).sum()"),
        ("max(len(scores), 1)", "len(scores)"),
        ("bounded.to(precise(scores).dtype)", "bounded.to(scores.dtype)"),
        ("if not self.settings.per_source:", "if True:"),
        ("if not self.settings.per_source:", "if False:"),
        ("sum(map(bool, sources))", "len(sources)"),
        ("(~scores.isfinite())", "scores.isnan()"),
        ("if moments.seen]", "]"),
        ("len(given) < 2", "not given"),
        ('if self.stats != "fixed" and given:', "if False:"),
    ),
    *_of(
        "kl",
        ("kl_per_token / s.target - 1", "1 - kl_per_token / s.target"),
        ("min(max(kl_per_token / s.target - 1, -self.FASTEST), self.FASTEST)", "kl_per_token / s.target - 1"),
        ("1 + error * samples / s.horizon", "1 + error / s.horizon"),
        ("self._steered * self.factor", "self._steered"),
        ("max(self.factor, factor)", "factor"),
        ("max(self.factor, factor)", "self.factor * factor"),
        ('if s.control == "fixed":', "if False:"),
        ("if not math.isfinite(kl_per_token):", "if False:"),
        ("self.FASTEST * samples >= s.horizon", "self.FASTEST * samples > s.horizon"),
        ("and not isinstance(given, bool)", ""),
        ('if self.control == "adaptive" and not self.coef:', "if False:"),
        ('state["steered"], state["factor"]', 'state["steered"], 1.0'),
    ),
]
