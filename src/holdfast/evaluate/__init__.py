"""Policies measured on prompts they never practised on."""
