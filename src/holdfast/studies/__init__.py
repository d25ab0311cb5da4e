"""One central claim per file, tested with the criterion written down first."""

STUDIES = ("attributes", "collapse", "hc_rlhf", "hc_stages", "micro", "micro_hh", "mo_grpo", "ppo_max", "safe_rlhf")
