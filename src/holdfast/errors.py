"""Two ways to end early: the user must act, or the run cannot go on.

Every message says what is wrong, what was given, and what to do. The command line prints the message without
a traceback and exits with the code of its class.
"""


class HoldfastError(Exception):
    """A message for people; `exit_code` is what the command line returns."""

    exit_code = 1


class UserError(HoldfastError):
    """Something the user gave cannot be used: a path, a row, a setting, a label (exit code 2)."""

    exit_code = 2


class RunError(HoldfastError):
    """A run that was started cannot go on: not-a-number, a full disk, a broken checkpoint (exit code 3)."""

    exit_code = 3
