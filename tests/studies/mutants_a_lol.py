"""Wrong versions of the studies `a_lol` and `a_lol_hh` that their tests must catch: file, text, wrong text, tests."""

WORLD, ARMS = "src/holdfast/studies/a_lol_world.py", "src/holdfast/studies/a_lol_arms.py"
STUDY, HH = "src/holdfast/studies/a_lol.py", "src/holdfast/studies/a_lol_hh.py"
IN_WORLD, TEST, IN_HH = (f"tests/studies/test_{name}.py" for name in ("a_lol_world", "a_lol", "a_lol_hh"))

MUTANTS = [
    # The world.
    (WORLD, "WORTH[best] * agree[best]", "agree[best]", IN_WORLD),
    (WORLD, "(WORTH * agree).argmax()", "(WORTH * agree).argmin()", IN_WORLD),
    (WORLD, "(1.0 if ended else 0.5)", "1.0", IN_WORLD),
    (WORLD, "ended = len(words) == PLACES", "ended = len(words) <= PLACES", IN_WORLD),
    (WORLD, "(source.random() < self.corrupted)", "(source.random() > self.corrupted)", IN_WORLD),
    (WORLD, "source.random(PLACES) < WRONG", "source.random(PLACES) < 1", IN_WORLD),
    (WORLD, "+= found.reward > GOOD", "+= 1", IN_WORLD),
    (WORLD, "(shares * np.log(shares)).sum()", "np.log(shares).mean()", IN_WORLD),
    (WORLD, "source.permutation(len(given))[: round(share * len(given))]", "source.permutation(len(given))", IN_WORLD),
    (WORLD, "source.integers(1, len(given), size=len(rows))", "source.integers(len(given), size=len(rows))", IN_WORLD),
    (WORLD, "source.integers(1, len(given), size=len(rows))", "source.integers(1, len(given))", IN_WORLD),
    # What the arms learn from.
    (ARMS, "key=lambda row: row.reward, reverse=True", "key=lambda row: row.reward", TEST),
    (ARMS, "if best.reward > worst.reward:", "if True:", TEST),
    (ARMS, "(gap * best.reward, gap * worst.reward)", "(best.reward, worst.reward)", TEST),
    (ARMS, "(_whole(best), _whole(worst))", "(_whole(worst), _whole(best))", TEST),
    (ARMS, "answers(bench.start, reference, asked, seed)", "bench.data[: len(asked)]", TEST),
    (ARMS, "world.rewards(bench.data), noise,", "world.rewards(bench.data), 0.0,", TEST),
    (ARMS, "asked, seed)), noise, source)", "asked, seed)), 0.0, source)", TEST),
    (ARMS, "policy, pad_id = copy.deepcopy(start.policy)", "policy, pad_id = start.policy", TEST),
    (ARMS, "scale_steps_by_kept=False", "scale_steps_by_kept=True", TEST),
    (ARMS, "order=Lasting(order, course.steps)", "order=order", TEST),
    (ARMS, "prompts_per_iteration=PPO_STEPS * plan.batch", "prompts_per_iteration=plan.batch", TEST),
    (ARMS, "iterations=plan.steps // PPO_STEPS", "iterations=plan.steps", TEST),
    # The criteria.
    (STUDY, '(("nll", 0.25), ("wbc", 0.08))', '(("nll", 0.08), ("wbc", 0.25))', TEST),
    (STUDY, 'best = max(values(arms, arm("wbc")))', 'best = min(values(arms, arm("wbc")))', TEST),
    (STUDY, "paired_t(one, other).difference", "paired_t(other, one).difference", TEST),
    (STUDY, '("a_lol", "r_gold"), -0.03)', '("a_lol", "r_gold"), 0.03)', TEST),
    (STUDY, '("a_lol", "r_gold"), 0.3, "diversity")', '("r_gold", "a_lol"), 0.3, "diversity")', TEST),
    (STUDY, "np.std(found, ddof=1)", "np.std(found)", TEST),
    (STUDY, "all(low <= value <= high for value in found)", "low <= np.mean(found) <= high", TEST),
    (STUDY, '*_better(arms, "v", corrupted)', '*_better(arms, "v", str)', TEST),
    (STUDY, "return min((_gap(arms", "return max((_gap(arms", TEST),
    (STUDY, 'misled("a_lol", NOISE[-1]), "a_lol"), -0.1', 'misled("a_lol", NOISE[0]), "a_lol"), -0.1', TEST),
    # Real answers.
    (HH, "if row.id not in known]", "]", IN_HH),
    (HH, "split()[-words:]", "split()[:words]", IN_HH),
    (HH, "1 / (1 + math.exp(-logit))", "1 / (1 + math.exp(logit))", IN_HH),
    (HH, "(order[: plan.known], order[plan.known :])", "(order[: plan.known], order)", IN_HH),
    (HH, "- bench.ref) / tokens", "- bench.ref) * tokens", IN_HH),
    (HH, "- bench.ref) / tokens", ") / tokens", IN_HH),
    (HH, "better, worse = lead.view(-1, 2)", "worse, better = lead.view(-1, 2)", IN_HH),
    (HH, "if len(set(row.rewards or ())) > 1]", "]", IN_HH),
    (HH, "ours, theirs = (_by_pair(arms[name])", "theirs, ours = (_by_pair(arms[name])", IN_HH),
    (HH, "raw[pair.id]", "pair.quality", IN_HH),
]
