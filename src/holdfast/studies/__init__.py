"""One central claim per file, tested with the criterion written down first."""

STUDIES = ("hc_rlhf", "micro", "micro_hh")
