"""Wrong ways to bring several objectives together, each of which its tests must catch."""

OBJECTIVES, TESTS = "src/holdfast/training/objectives.py", "tests/training/test_objectives.py"

MUTANTS = [
    (OBJECTIVES, old, new, TESTS)
    for old, new in (
        ("if other == name or other not in objectives:", "if other not in objectives:"),
        ("    if given and not settings.lexicographic:", "    if False:"),
        ("for name in names[:-1] if name not in given", "for name in names if name not in given"),
        ("settings.std_floor if one.std_floor is None else one.std_floor", "settings.std_floor"),
        ('1 if one.direction == "higher" else -1', "1"),
        ("torch.inf if one.enough is None else sign * one.enough", "torch.inf if one.enough is None else one.enough"),
        ("next(k for k, one in enumerate(every) if one.weight)", "0"),
        ("else 1 - 1e-9", "else 1"),
        ('if settings.conflict == "threshold"', 'if settings.conflict == "signs"'),
        (".tril(-1) > 0", ".triu(1) > 0"),
        ("torch.maximum(needs[k, place], self._signs[place] * value)", "value"),
        ("self._signs[place] * value", "value"),
        ("if scores[score].isinf().any():", "if False:"),
        ("score = one.score or name", "score = name"),
        ("known = ~table.isnan() & (self.weights > 0)", "known = ~table.isnan()"),
        ("(self.weights * table.double()).where(known, 0.0)", "table.double().where(known, 0.0)"),
        ("summed.where(known.any(-1), torch.nan)", "summed"),
        ("[sign * column for", "[column for"),
        ("(groups.compared & (self.weights > 0)).any(-1)", "groups.compared.any(-1)"),
        ("(groups.compared & (self.weights > 0)).any(-1)", "torch.ones_like(raw[..., 0], dtype=torch.bool)"),
        ("groups.sd[:, 0] < s.dead_below", "groups.sd[:, 0] <= s.dead_below"),
        ("alive = (~still & (self.weights > 0)).any(-1)", "alive = (~still).any(-1)"),
        ("alive = (~still & (self.weights > 0)).any(-1)", "alive = (~still | (self.weights <= 0)).all(-1)"),
        ("self.weights if weights is None else weights.to(self.weights)", "self.weights"),
        ("self._coefficients(scored & alive[:, None], ", "self._coefficients(scored, "),
        ("scalarise.agreement(chosen * self._alone(groups))", "scalarise.agreement(self._alone(groups))"),
        ("self._alone(groups)) < self._least", "self._alone(groups)) > self._least"),
        ("(alive if live is None else alive | live)", "alive"),
        ("alive | live", "live"),
        ("else keep & ~apart", "else keep"),
        (".where(keep, 0.0)\n", "\n"),
        ("values.clamp(-s.clip, s.clip)", "values.clamp(max=s.clip)"),
        ("[alive, : len(self.names)]", "[:, : len(self.names)]"),
        ('"dead": ~alive', '"dead": alive'),
        ('"conflicts": apart[scored]', '"conflicts": apart'),
        ('"advantage_abs": values[keep].abs()', '"advantage_abs": values.abs()'),
        ("raw.where(self.weights > 0, 0.0)", "raw"),
        ('        if s.mode == "max_rl":\n            self._refuse_negative(raw)\n', ""),
        (
            "torch.minimum(scalarise.conditioned(raw, self._needs.to(raw)), self._enough.to(raw))",
            "scalarise.conditioned(torch.minimum(raw, self._enough.to(raw)), self._needs.to(raw))",
        ),
        ("self._needs.to(raw)", "self._needs"),
        ("        if not extra.isfinite().all():", "        if False:"),
        ("penalty / self.weights[self._main]", "penalty"),
        ("moments(table + within)", "moments(table)"),
        ("penalty.where(scored, torch.nan)[..., None]", "penalty[..., None]"),
        ("        beside = beside._replace(mean=torch.zeros_like(beside.mean))\n", ""),
        ("torch.cat([self._floors, _row([0])])", "torch.cat([self._floors, _row([1])])"),
        ("torch.cat([weights, _row([1])])", "torch.cat([weights, _row([-1])])"),
        ('if not s.batch_normalise and s.mode != "batch":', "if not s.batch_normalise:"),
        ('if not s.batch_normalise and s.mode != "batch":', 'if s.mode != "batch":'),
        (
            "self.processes.gather(scalarise.combined(paid, found)[counted].tolist())",
            "scalarise.combined(paid, found)[counted].tolist()",
        ),
        ('if s.mode == "batch" else 0.0', 'if s.mode != "batch" else 0.0'),
        ("float((weights * floors).sum())", "float(floors.sum())"),
        ("self._signs[k] * scores,", "scores,"),
        ("self._signs[k] * scores,", "self._signs[k] * scores.nan_to_num(),"),
        ("groups.sd[compared, 0, k]", "groups.sd[:, 0, k]"),
        ('if state["weights"] != own:', 'if state["weights"].keys() != own.keys():'),
        ("    if per_prompt < 2:", "    if per_prompt < 1:"),
    )
]
MUTANTS += [("src/holdfast/losses/scalarise.py", "(level + eps).where(level > 0, 0.0)", "(level + eps)", TESTS)]
# The numbers for the log are those of all processes.
STEP, CUT = "src/holdfast/engine/step.py", "tests/invariance/test_grpo_cut.py"
CORRECTION, OBJECTIVES = "src/holdfast/training/correction.py", "src/holdfast/training/objectives.py"
MUTANTS += [
    (STEP, "values[~values.isnan()].double()", "values.double()", TESTS),
    (OBJECTIVES, "told = column_means(columns, self.processes)", "told = column_means(columns, Processes())", CUT),
    (CORRECTION, "processes or Processes()", "Processes()", CUT),
]
