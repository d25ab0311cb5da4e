"""Wrong versions that the tests of rankings, pictures and several processes must catch."""

RANKINGS = "tests/systems/test_a_lol_rankings.py"
PROCESSES = "tests/systems/test_first_process.py"
MUTANTS = [
    (
        "src/holdfast/data/rewarded.py",
        "if not prompts or len(prompts) != len(answers):",
        "if len(prompts) != len(answers):",
        RANKINGS,
    ),
    ("src/holdfast/data/formats.py", 'if isinstance(row["prompt"], str):', "if False:", RANKINGS),
    ("src/holdfast/systems/reading.py", "if isinstance(record, Pair):", "if False:", RANKINGS),
    ("src/holdfast/systems/given.py", "worth = [one.rewards[0] if one.rewards else math.nan", "worth = [0.0", RANKINGS),
    (
        "src/holdfast/training/selection.py",
        "if len(reward) and bool(reward.isfinite().all())",
        "if len(reward)",
        RANKINGS,
    ),
    ("src/holdfast/report/offline.py", 'summary["rankings"] - _watching(summary)', 'summary["rankings"]', RANKINGS),
    ("src/holdfast/systems/a_lol.py", '"watching": len(watching), ', "", RANKINGS),
    ("src/holdfast/systems/reading.py", " if run.processes.is_main else None)", ")", PROCESSES),
    ("src/holdfast/engine/distributed.py", ", timeout=_PATIENCE)", ")", PROCESSES),
    (
        "src/holdfast/systems/transfer.py",
        "if not stages.on_main(self.run, file.is_file):",
        "if not file.is_file():",
        PROCESSES,
    ),
    (
        "src/holdfast/systems/transfer.py",
        "return stages.on_main(self.run, lambda: found)",
        "return found",
        PROCESSES,
    ),
    (
        "src/holdfast/rollout/generate.py",
        "distribution(_without(rows.logits, placeholder),",
        "distribution(rows.logits,",
        "tests/rollout/test_generate_words.py",
    ),
]
