"""Prompts in, samples with their log-probabilities out."""
