"""Wrong versions of the study `w2s_chess` that its tests must catch: file, text, wrong text, tests."""

DATA, TEST_DATA = "src/holdfast/studies/w2s_chess_data.py", "tests/studies/test_w2s_chess_data.py"
MODEL, TEST_MODEL = "src/holdfast/studies/w2s_chess_model.py", "tests/studies/test_w2s_chess_model.py"
STUDY, TEST = "src/holdfast/studies/w2s_chess.py", "tests/studies/test_w2s_chess.py"

MUTANTS = [
    # Moves, boards and what one move can do.
    (
        DATA,
        "(move.from_square ^ turned) + (move.to_square ^ turned)",
        "(move.to_square ^ turned) + (move.from_square ^ turned)",
        TEST_DATA,
    ),
    (DATA, "turned = 0 if white else 56", "turned = 0", TEST_DATA),
    (DATA, "chess.square_rank(end) in (0, 7)", "chess.square_rank(end) == 7", TEST_DATA),
    (DATA, "found[square ^ turned]", "found[square]", TEST_DATA),
    (DATA, "(0 if piece.color == board.turn else 6)", "(0 if piece.color else 6)", TEST_DATA),
    (DATA, "if check and not any(board.generate_legal_moves()):", "if check:", TEST_DATA),
    (DATA, "if move.promotion in (None, chess.QUEEN):\n", "if move.promotion is None:\n", TEST_DATA),
    (DATA, "return len(seen.mates) == 1 and", "return len(seen.mates) >= 1 and", TEST_DATA),
    (DATA, " and seen.mates[0].promotion in (None, chess.QUEEN)", "", TEST_DATA),
    (DATA, "np.append(0, np.cumsum(lengths))", "np.cumsum(lengths)", TEST_DATA),
    (DATA, "checking[row, self.moves[own]] = self.checks[own]", "checking[row, self.moves[own]] = True", TEST_DATA),
    # Puzzles and their files.
    (
        DATA,
        "yield board, tuple(history)\n        history.append(board.san(move))",
        "history.append(board.san(move))\n        yield board, tuple(history)",
        TEST_DATA,
    ),
    (
        DATA,
        'puzzle(board, seen, name, "game", history)',
        'puzzle(board, seen, f"{name}-{board.ply()}", "game", history)',
        TEST_DATA,
    ),
    (DATA, "np.random.default_rng((plan.seed, 0, part))", "np.random.default_rng(plan.seed)", TEST_DATA),
    (
        DATA,
        'if (found := sha256(puzzles, rules)) != facts["sha256"]:',
        "if not (found := sha256(puzzles, rules)):",
        TEST_DATA,
    ),
    (DATA, "for kind in (from_games, from_placements)", "for kind in (from_games,)", TEST_DATA),
    (
        DATA,
        'one.fen.rsplit(" ", 2)[0]: one for part',
        "(n, one.fen): one for n, part in enumerate(parts) for part",
        TEST_DATA,
    ),
    # The networks.
    (MODEL, "rank[None, :] - rank[:, None]", "rank[:, None] - rank[None, :]", TEST_MODEL),
    (MODEL, "file[None, :] - file[:, None]", "(file[None, :] - file[:, None]).abs()", TEST_MODEL),
    (MODEL, " + self.bias[:, where])", ")", TEST_MODEL),
    (MODEL, "(q @ k.mT * q.shape[-1] ** -0.5", "(q @ k.mT", TEST_MODEL),
    (MODEL, " + self.squares.weight", "", TEST_MODEL),
    (MODEL, "self.start(states) @ self.end(states).mT", "self.end(states) @ self.start(states).mT", TEST_MODEL),
    (MODEL, "copy.deepcopy(Player(self.body, self.check))", "Player(self.body, self.check)", TEST_MODEL),
    (MODEL, "Player(self.body, self.check)", "Player(self.body, self.legal)", TEST_MODEL),
    (MODEL, "_weighted(check, batch.checks, CHECK_WEIGHT)", "_weighted(check, batch.checks, LEGAL_WEIGHT)", TEST_MODEL),
    (MODEL, "over((scores > 0).float(), truth)", "over(truth.float(), scores > 0)", TEST_MODEL),
    (MODEL, "exam = range(kept, count,", "exam = range(0, count,", TEST_MODEL),
    (MODEL, "else copy.deepcopy(self.base)", "else self.base", TEST_MODEL),
    (MODEL, "untrained(Player, self.size, settings.fit.seed)", "untrained(Player, self.size, 0)", TEST_MODEL),
    # Who is told what, what is measured, and the criteria.
    (STUDY, "[one[0] for one in by_hash[:count]]", "[each for one in by_hash[:count] for each in one]", TEST),
    (STUDY, "for one in by_hash[count:] for each", "for one in by_hash for each", TEST),
    (STUDY, "hashlib.sha256(one[0].group_id.encode()).digest()", "0", TEST),
    (STUDY, "sealed=[one.id for one in world.test]", "sealed=[]", TEST),
    (STUDY, "self.own[: self.plan.few]", "self.own", TEST),
    (STUDY, 'self.follow, "bootstrapped", middle, self.fresh', 'self.follow, "bootstrapped", middle, self.told', TEST),
    (STUDY, 'self.follow, "bootstrapped", middle, self.fresh', 'self.follow, "bootstrapped", few, self.fresh', TEST),
    (STUDY, 'self.follow, "direct", few', 'self.follow, "direct", weak', TEST),
    (STUDY, 'kind = "product" if name == "product" else "hard"', 'kind = "hard"', TEST),
    (STUDY, '"agreement on its wrong": same[~its]', '"agreement on its wrong": same[its]', TEST),
    (STUDY, "weak = self.answers[supervisor]", 'weak = self.answers["weak"]', TEST),
    (STUDY, "with self.vault.locked(name):", "if name:", TEST),
    (STUDY, "played(items, labels)[0]", "played(items, labels)[1]", TEST),
    (STUDY, "mates[i] = board.is_checkmate()", "mates[i] = move.uci() == one.best_uci", TEST),
    (STUDY, "legal[i] = board.is_legal(move)", "legal[i] = True", TEST),
    (STUDY, '"bootstrapped": "few"}\n"""Whose', '"bootstrapped": "middle"}\n"""Whose', TEST),
    (STUDY, "criterion(names[0], better, 1.0)", "criterion(names[0], better, 0.5)", TEST),
    (STUDY, "pgr > 0.15", "pgr > 0.05", TEST),
    (STUDY, "pgr < most", "pgr < 1", TEST),
    (
        STUDY,
        'recovery(arms, "naive"), recovery(arms, "direct")',
        'recovery(arms, "naive"), recovery(arms, "naive")',
        TEST,
    ),
    (STUDY, "if words := missing():", "if (words := missing()) is None:", TEST),
]
