"""Wrong versions of the running moments that their tests must catch."""

_FILE, _TESTS = "src/holdfast/losses/moments.py", "tests/losses/test_moments.py"

MUTANTS = [
    (_FILE, "keep * self.squares + inside", "self.squares + inside", _TESTS),
    (_FILE, " + apart**2 * before * n / whole", "", _TESTS),
    (_FILE, "self.mean += apart * n / whole", "self.mean += apart", _TESTS),
    (_FILE, "float(values.mean()), keep * self.seen", "float(values.mean()), self.seen", _TESTS),
    (_FILE, "        if not n:\n            return\n", "", _TESTS),
    (_FILE, "values = values.double()", "values = values", _TESTS),
    (_FILE, "self._spread(self.seen - 1)", "self._spread(self.seen)", _TESTS),
    (_FILE, "if count > 0 else 0.0", "if True else 0.0", _TESTS),
    (_FILE, "float32).eps * abs(self.mean)", "float32).eps * 0", _TESTS),
    (_FILE, "float32).eps * abs(self.mean)", "float32).eps * 1e4", _TESTS),
]
