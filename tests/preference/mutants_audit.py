"""Wrong versions of the audit of scores that its tests must catch: file, text, wrong text, tests."""


def _of(module: str, *changes: tuple[str, str]) -> list[tuple[str, str, str, str]]:
    tests = f"tests/preference/test_{'audit' if module == 'invariance' else module}.py"
    return [(f"src/holdfast/preference/{module}.py", old, new, tests) for old, new in changes]


MUTANTS = [
    *_of(
        "evidence",
        ('"harm": self.harmful', '"harm": self.helpful'),
        ("None if side is None else 1 - side", "side"),
        (
            "found.harmful.append(Compared(second, first, *origin))",
            "found.harmful.append(Compared(first, second, *origin))",
        ),
        ("len(found.helpful) % 2 == 1", "False"),
        ("return float(not safe)", "return float(safe)"),
        ("rate is None or rate == 0", "rate is None"),
        ("else float(rate < 0)", "else float(rate > 0)"),
        ("unsafe=float(not record.safe)", "unsafe=float(record.safe)"),
        ("winner == 1, pair.source", "False, pair.source"),
        ("found.unanswered += 1", "pass"),
        ("Person(record.context, record.user_id, record.group)", "ANYONE"),
    ),
    *_of(
        "measure",
        ("share(right, prompts),\n            ties", "share(right),\n            ties"),
        ("share(margins == 0, prompts)", "share(margins <= 0, prompts)"),
        ("longer.mean() >= 0.5", "longer.mean() >= 0.0"),
        ("mean(right - by_length, prompts", "mean(by_length - right, prompts"),
        ("by_length, prompts, within=(-1, 1))", "by_length, prompts)"),
        ("most, prompts, within=(-1, 1))", "most, prompts)"),
        ("len(rows) < FEW", "len(rows) <= FEW"),
        ("for name in filter(None, names(one)):", "for name in names(one):"),
        ("wins(scores * (2 * unsafe - 1))", "wins(scores * (1 - 2 * unsafe))"),
        ("(unsafe == (share(unsafe, prompts).value >= 0.5))", "(unsafe == 0)"),
        ("mean(right - most, prompts", "mean(most - right, prompts"),
        ("(self.scores > 0).astype(float)", "(self.scores >= 0).astype(float)"),
        ("share(called[keep], prompts)", "share(called, self.prompts.tolist())"),
        ("0.0 if one.swapped else 1.0", "1.0"),
        ("self._margins * (2 * first - 1)", "self._margins"),
        (
            'for name, fit in (("temperature", _cooled), ("platt", _fitted))',
            'for name, fit in (("temperature", _fitted), ("platt", _cooled))',
        ),
        ("1 / calibrate.temperature(logits, labels)", "calibrate.temperature(logits, labels)"),
        ("metrics.r2, self.scores, rating", "metrics.r2, rating, self.scores"),
        (
            "metrics.within_group_spearman(scores, given, prompts)",
            "metrics.within_group_spearman(scores, given, prompts[1:] + prompts[:1])",
        ),
        (
            '"correlation of rating and length", metrics.spearman, rating, lengths',
            '"x", metrics.spearman, self.scores, rating',
        ),
        ('& (self.direction == "harm")', ""),
        ("self.unsafe == 0)]", "self.unsafe == 1)]"),
        (
            '{"should be lower": "loser", "should be higher": "winner"}',
            '{"should be lower": "winner", "should be higher": "loser"}',
        ),
        ("clusters = self.prompts[keep].tolist()", "clusters = None"),
        ("y=happened, clusters=prompts,", "y=happened, clusters=None,"),
        ('self.notes.append(f"no {name}: {error}")', "pass"),
    ),
    *_of(
        "invariance",
        ('_scores(scorer, [rows[i] for i in chosen], "left")', "_scores(scorer, [rows[i] for i in chosen])"),
        ("torch.cat([_scores(scorer, [row]) for row in rows])", "_scores(scorer, rows)"),
        (
            "torch.cat([found.score[:, None], found.logits], dim=1)",
            "torch.cat([found.logits, found.score[:, None]], dim=1)",
        ),
        ("torch.maximum(*moved)", "torch.minimum(*moved)"),
    ),
    *_of(
        "audit",
        ('name.split("/")[0] in ("cost", "harm")', 'name.startswith(("cost", "harm"))'),
        ("| dict(directions or {})", ""),
        ('and name not in ("reward", "score")', ""),
        ("direction_of(name, evidence.rating_names)", "direction_of(name)"),
        ("if found.ties.value > 0.5:", "if found.ties.value > 1:"),
        ("elif found.accuracy.high < 0.5:", "elif found.accuracy.high < 0.0:"),
        ("found.gain.low <= 0", "found.gain.high <= 0"),
        ("max(length.low, -length.high) > LENGTHY", "max(length.low, -length.high) > 1"),
        ("called <= 1 - ONE_SIDED and harmful.low > 1 - ONE_SIDED", "called <= 1 - ONE_SIDED"),
        ("called >= ONE_SIDED and harmful.high < ONE_SIDED", "called > 1"),
        ("found.over_majority.low <= 0", "found.over_majority.low <= -1"),
        ("if name not in scores]", "if name in scores]"),
        ("one.pairs is None and one.harm is None for one", "True for one"),
        ("if drift > LARGEST_DRIFT:", "if drift > 1e9:"),
        ("scorer.score_for(evidence.answers, evidence.people)", "scorer.score(evidence.answers)"),
        ('return ("score",) if isinstance(scorer, MixtureScorer) else scorer.names', "return scorer.names"),
    ),
    *_of(
        "measure",
        ("share(unsafe, prompts).value >= 0.5", "unsafe.mean() >= 0.5"),
    ),
]
