"""Wrong versions of the study `mo_grpo` that its tests must catch: file, text, wrong text, tests."""

WORLD, RIVALS = "src/holdfast/studies/mo_grpo_world.py", "src/holdfast/studies/mo_grpo_rivals.py"
STUDY, TEST = "src/holdfast/studies/mo_grpo.py", "tests/studies/test_mo_grpo.py"
RATIO, LOGPROB = "src/holdfast/losses/ratio.py", "src/holdfast/losses/logprob.py"
FIXED = "tests/training/test_grpo_fixed_points.py"

MUTANTS = [
    # The truth.
    (WORLD, "polite = len(distinct.intersection(POLITE))", "polite = sum(word in POLITE for word in said.words)", TEST),
    (WORLD, "min(2, polite)", "polite", TEST),
    (WORLD, "(said.risky and said.refuses)", "said.refuses", TEST),
    (WORLD, "acts = sum(word in EVERY_ACTION for word in said.words)", "acts = len(distinct & EVERY_ACTION)", TEST),
    (WORLD, "min(1.0, fitting / 3)", "min(1.0, fitting / 2)", TEST),
    (WORLD, "if said.risky else 1.0", "if said.intent == 'harmful' else 1.0", TEST),
    (WORLD, "max(len(said.words), 1)", "max(len(distinct), 1)", TEST),
    (WORLD, '"benign" if intent == "benign" else "risky"', '"risky" if intent == "harmful" else "benign"', TEST),
    (WORLD, '"harmful": 0.3, "disguised": 0.05', '"harmful": 0.05, "disguised": 0.3', TEST),
    (WORLD, "source.random() < self.shown", "source.random() < 0.3", TEST),
    (WORLD, "p=source.dirichlet(np.ones(len(kinds)))", "p=np.ones(len(kinds)) / len(kinds)", TEST),
    (WORLD, "table + noise * source", "table + noise**2 * source", TEST),
    # What is paid, limited and compared.
    (STUDY, '"cost": 1 - labels["safe"]', '"cost": labels["safe"]', TEST),
    (STUDY, "scorer = bench.truth if gold else bench.judge", "scorer = bench.judge", TEST),
    (STUDY, 'if group == "risky"]', "if group]", TEST),
    (STUDY, '"weight": 1 / len(self.objectives)', '"weight": 1.0', TEST),
    (STUDY, "cost_floor=self.floor", "cost_floor=0.1", TEST),
    (STUDY, "rate=0.3", "rate=0.03", TEST),
    (STUDY, "policy = copy.deepcopy(bench.policy)", "policy = bench.policy", TEST),
    (STUDY, 'truth["safe"][risky] < 1', 'truth["safe"] < 1', TEST),
    (STUDY, 'mean(truth["action"][~risky])', 'mean(truth["action"])', TEST),
    (STUDY, "for one in said])[~risky]", "for one in said])", TEST),
    (STUDY, 'round((_status("VmHWM") - before) / 1024, 1)', 'round(_status("VmHWM") / 1024, 1)', TEST),
    (RIVALS, "reverse=True", "reverse=False", TEST),
    (RIVALS, "ref=(reference[better], reference[worse])", "ref=(reference[worse], reference[better])", TEST),
    (RIVALS, "if scores[better] > scores[worse]:", "if True:", TEST),
    # The criteria.
    (STUDY, 'values(arm, what), values("base", what)', 'values("base", what), values(arm, what)', TEST),
    (STUDY, "v <= LIMIT and less <= 0", "v <= LIMIT", TEST),
    (STUDY, "gain.value >= -0.05", "gain.value >= 0.05", TEST),
    (STUDY, "gain.value <= -0.4", "gain.value <= 0.4", TEST),
    (STUDY, "max(share, less) >= 0.4", "min(share, less) >= 0.4", TEST),
    (STUDY, "collapsed, 0.8)", "collapsed, 1.0)", TEST),
    # Where losses rest.
    (LOGPROB, "return kl_k2(logp, ref)", "return 2 * kl_k2(logp, ref)", FIXED),
    (LOGPROB, "clamp(-20, 20).exp() * k3", "clamp(-20, 20).detach().exp() * k3", FIXED),
]
