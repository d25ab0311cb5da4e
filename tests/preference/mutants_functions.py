"""Wrong versions of scores from functions and services, and of refusals, that tests must catch."""

SCORE, FUNCTIONS = "src/holdfast/preference/score.py", "src/holdfast/preference/functions.py"
TEST_FUNCTIONS = "tests/preference/test_functions.py"
ENDPOINT, TEST_ENDPOINT = "src/holdfast/preference/endpoint.py", "tests/preference/test_endpoint.py"
REFUSAL, TEST_REFUSAL = "src/holdfast/preference/refusal.py", "tests/preference/test_refusal.py"

MUTANTS = [
    # NaN is let through only where the function said None.
    (SCORE, "finite(table.masked_fill(absent, 0.0), conv", "finite(table.nan_to_num(), conv", TEST_FUNCTIONS),
    (SCORE, "finite(table.masked_fill(absent, 0.0), conv", "finite(table, conv", TEST_FUNCTIONS),
    (SCORE, "except (TypeError, ValueError) as error:", "except KeyError as error:", TEST_FUNCTIONS),
    (SCORE, "cells.astype(np.float64)).float()", "cells.astype(np.float64))", "tests/preference/test_functions.py"),
    (FUNCTIONS, "function(one.prompt.messages[-1].text, one", "function(one.messages[0].text, one", TEST_FUNCTIONS),
    (FUNCTIONS, ".messages[-1].text, one.response)", ".messages[-1].text, one.messages[1].text)", TEST_FUNCTIONS),
    (FUNCTIONS, "module = sys.modules[name] = module_from", "module = module_from", TEST_FUNCTIONS),
    (FUNCTIONS, "if not callable(function):", "if function is None:", TEST_FUNCTIONS),
    (FUNCTIONS, 'where == error.name or where.startswith(f"{error.name}.")', "True", TEST_FUNCTIONS),
    (FUNCTIONS, "if self.each and len(self.names) > 1:", "if self.each and len(self.names) > 2:", TEST_FUNCTIONS),
    (FUNCTIONS, "_of_each(function) if settings.each else function", "function", TEST_FUNCTIONS),
    # Rows in another order, asked twice, or lost.
    (ENDPOINT, "lines[row_of[one.messages]] for one in conversations", "lines[row] for row in rows", TEST_ENDPOINT),
    (ENDPOINT, "rows = list(row_of.values())", "rows = list(range(len(conversations)))", TEST_ENDPOINT),
    (ENDPOINT, "for at in range(0, len(rows), self.settings.batch)", "for at in (0,)", TEST_ENDPOINT),
    (ENDPOINT, "math.nan if line[name] is None", "0.0 if line[name] is None", TEST_ENDPOINT),
    (ENDPOINT, "len(scores) != count", "len(scores) > count", TEST_ENDPOINT),
    (ENDPOINT, "and not isinstance(value, bool)", "", TEST_ENDPOINT),
    (ENDPOINT, "(number and abs(value) <= torch.finfo(torch.float32).max)", "number", TEST_ENDPOINT),
    # Attempts: too few, too many, without a pause, or for what will not change.
    (ENDPOINT, "range(self.settings.retries + 1)", "range(self.settings.retries)", TEST_ENDPOINT),
    (ENDPOINT, "self.settings.pause * 2**attempt", "self.settings.pause", TEST_ENDPOINT),
    (ENDPOINT, "min(wait, _LONGEST_PAUSE)", "wait", TEST_ENDPOINT),
    (ENDPOINT, "wait = max(wait, _asked_for(", "wait = min(wait, _asked_for(", TEST_ENDPOINT),
    (ENDPOINT, "if attempt < self.settings.retries:", "if True:", TEST_ENDPOINT),
    (ENDPOINT, "status not in (408, 429)", "status not in (408,)", TEST_ENDPOINT),
    (ENDPOINT, "if status < 500 and", "if status < 600 and", TEST_ENDPOINT),
    (ENDPOINT, "(URLError, HTTPException, OSError)", "(URLError, HTTPException)", TEST_ENDPOINT),
    (ENDPOINT, "timeout=self.settings.timeout)", "timeout=60)", TEST_ENDPOINT),
    # Secrets that are shown or carried elsewhere.
    (ENDPOINT, 'text = text.replace(secret, "***")', "pass", TEST_ENDPOINT),
    (ENDPOINT, 'self.settings.url.partition("?")[0].', "self.settings.url.", TEST_ENDPOINT),
    (ENDPOINT, "build_opener(_AsItCame)", "build_opener()", TEST_ENDPOINT),
    (ENDPOINT, "if parts.username or parts.password:", "if False:", TEST_ENDPOINT),
    (ENDPOINT, "**self._headers}", "}", TEST_ENDPOINT),
    (ENDPOINT, "and value.isprintable()", "", TEST_ENDPOINT),
    (ENDPOINT, "for i, one in enumerate(conversations) if one.images]", "for i, one in []]", TEST_ENDPOINT),
    # Refusals: the whole answer read, hedges and sympathy taken for one, apostrophes left in.
    (REFUSAL, "_plain(text)[:OPENING]", "_plain(text)", TEST_REFUSAL),
    (REFUSAL, "help(?! but| feel", "help(?! feel", TEST_REFUSAL),
    (REFUSAL, "(?!lie\\b|", "(?!", TEST_REFUSAL),
    (REFUSAL, "(?: \\w+)? comfortable", " comfortable", TEST_REFUSAL),
    (REFUSAL, '"[\'\\u2019\\u2018`\\u00b4]"', '"[\']"', TEST_REFUSAL),
    (REFUSAL, 'r" ([,.;:!?])", r"\\1"', 'r" ([;])", r"\\1"', TEST_REFUSAL),
    (REFUSAL, ".lower()", "", TEST_REFUSAL),
    (REFUSAL, r'        r"\bthis would hurt someone\b",' + "\n", "", TEST_REFUSAL),
    (REFUSAL, "strict=True) if known]", "strict=True) if not known]", TEST_REFUSAL),
    (REFUSAL, "clusters=self.prompts)", "clusters=None)", TEST_REFUSAL),
]
