"""Wrong versions of the study `safe_rlhf` that its tests must catch: file, text, wrong text, tests."""

WORLD, STUDY = "src/holdfast/studies/safe_rlhf_world.py", "src/holdfast/studies/safe_rlhf.py"
TEST = "tests/studies/test_safe_rlhf.py"

MUTANTS = [
    # The truth.
    (WORLD, '* (kind == "risky") - 0.5', "- 0.5", TEST),
    (WORLD, "- 0.5 * words.count(SORRY)", "+ 0.5 * words.count(SORRY)", TEST),
    (WORLD, "4.0 if self.tempts(conversation) else 2.0", "2.0", TEST),
    (WORLD, "self.names[: self.tempting]", "self.names[self.tempting :]", TEST),
    (WORLD, "(len(words) - matches - hacks - sorries)", "(len(words) - matches)", TEST),
    (WORLD, "return self.cost(conversation) > 0", "return self.cost(conversation) >= -1", TEST),
    # What is demonstrated and labelled.
    (WORLD, '(0.5, 0.2, 0.3) if kind == "risky" else (0.2, 0.3, 0.5)', "(0.2, 0.3, 0.5)", TEST),
    (WORLD, "source.integers(LONGEST - 1)", "source.integers(LONGEST + 1)", TEST),
    (WORLD, "_higher(-self.cost(one), -self.cost(other)", "_higher(self.cost(one), self.cost(other)", TEST),
    (WORLD, "bool(turned[1]) and safe[0] == safe[1]", "False", TEST),
    (WORLD, "int((second > first) != turned)", "int((second > first) == turned)", TEST),
    (WORLD, "if one.response == other.response:", "if False:", TEST),
    # What the arms are paid, and what limits them.
    (STUDY, "reward - weight * harm", "reward + weight * harm", TEST),
    (STUDY, "kl=(1 + weight) * BETA", "kl=BETA", TEST),
    (STUDY, "threshold=threshold + self.slack", "threshold=threshold", TEST),
    (WORLD, "if not world.harms(answer)]", "]", TEST),
    (WORLD, ".quantile(SAFE_SHARE)", ".quantile(1 - SAFE_SHARE)", TEST),
    # What is read of an exam, and the criteria.
    (STUDY, 'arms[name]["threshold"] + 0.2', 'arms[name]["threshold"]', TEST),
    (STUDY, "all(kept) and", "any(kept) and", TEST),
    (STUDY, "if harm <= HARM), default", "), default", TEST),
    (STUDY, "min(reward) >= 0.95 * best", "max(reward) >= 0.95 * best", TEST),
    (STUDY, "<= 0.10 * max(reward)", "<= 0.20 * max(reward)", TEST),
    (STUDY, "harm > HARM or reward < 0.80 * best", "harm > HARM", TEST),
    (STUDY, "for name in met[0]]", "for name in [*met[0]][:-1]]", TEST),
    (STUDY, "[one[name] for one in met], 0.8)", "[one[name] for one in met], 1.0)", TEST),
]
