"""Align language and vision-language models with human preferences, under limits that hold."""

__version__ = "0.1.0"
