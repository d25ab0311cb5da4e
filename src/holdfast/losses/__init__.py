"""Formulas: tensors in, sums and counts or tensors out. Torch only; no device, no logging, no settings."""
