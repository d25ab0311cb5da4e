"""One central claim per file, tested with the criterion written down first."""

STUDIES = ("attributes", "hc_rlhf", "micro", "micro_hh")
