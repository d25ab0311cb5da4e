"""A small generated world in which the truth is known."""
