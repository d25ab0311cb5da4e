"""One central claim per file, tested with the criterion written down first."""

STUDIES = (
    "a_lol",
    "a_lol_hh",
    "attributes",
    "collapse",
    "hc_rlhf",
    "hc_stages",
    "micro",
    "micro_hh",
    "mo_grpo",
    "ppo_max",
    "safe_rlhf",
    "w2s_chess",
    "w2s_dial",
    "w2s_reward",
    "w2s_text",
)
