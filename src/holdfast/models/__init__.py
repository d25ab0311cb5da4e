"""Policies, score models and critics: built, loaded, and saved so that a lost part is an error."""
