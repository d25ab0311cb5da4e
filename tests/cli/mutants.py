"""Wrong versions of commands and settings that their tests must catch: (file, text, wrong text, tests)."""

_MAIN, _WORK, _CONFIG = "src/holdfast/cli/main.py", "src/holdfast/cli/work.py", "src/holdfast/config.py"
_SAFETY, _SYSTEMS = "src/holdfast/systems/safety_test.py", "src/holdfast/systems/__init__.py"
_COMMANDS, _CERTIFY, _SETTINGS = "tests/cli/test_main.py", "tests/cli/test_certify.py", "tests/test_config.py"

MUTANTS = [
    (_MAIN, '"NSF": 4', '"NSF": 0', _CERTIFY),
    (_MAIN, "raise typer.Exit(EXIT[", "print(EXIT[", _CERTIFY),
    (_MAIN, "if not all(one.ok for one in checks)", "if not any(one.ok for one in checks)", _CERTIFY),
    (_MAIN, "except (ValueError, LookupError, TypeError)", "except ValueError", _CERTIFY),
    (_MAIN, "_stop(str(error), error.exit_code)", "_stop(str(error), 1)", _COMMANDS),
    (_MAIN, "RunError.exit_code)", "0)", _COMMANDS),
    (_MAIN, "sys.exit(code)", "sys.exit(0)", _COMMANDS),
    (_MAIN, '"-n", min=1', '"-n"', _COMMANDS),
    (_MAIN, 'name, _, rest = path.rpartition("=")', 'rest, _, name = path.rpartition("=")', _COMMANDS),
    (_WORK, "if temperature == 0 else", "if temperature < 0 else", _COMMANDS),
    (_WORK, "if one.answered else []", "", _COMMANDS),
    (_WORK, "_write([*scored, *skipped], out)", "_write(scored, out)", _COMMANDS),
    (_WORK, "    if audit:\n", "    if True:\n", _COMMANDS),
    (_WORK, "isinstance(network, ScoreModel) else MixtureScorer(", "network else MixtureScorer(", _COMMANDS),
    (_WORK, "asked[one.prompt_index].id", "asked[0].id", _COMMANDS),
    (_SYSTEMS, "if name is None:", "if name == 0:", _COMMANDS),
    (_SYSTEMS, "if not given.is_file() and not shipped.is_file():", "if False:", _COMMANDS),
    (_SAFETY, "    _same_test(certificate, plan, candidate)\n", "", _CERTIFY),
    (_SAFETY, '"policy_sha256": candidate.policy_sha256,\n        "scorer', '"scorer', _CERTIFY),
    (_SAFETY, "if len(found) < plan.n_prompts:", "if len(found) < 0:", _CERTIFY),
    (_SAFETY, 'zero if kind == "rate" else 0.0', "0.0", _CERTIFY),
    (_CONFIG, "        seen.add(str(key.value))\n", "", _SETTINGS),
    (_CONFIG, "if node.style is None and", "if", _SETTINGS),
    (_CONFIG, ' and "e" in text.lower()', "", _SETTINGS),
    (_CONFIG, "if each is not Ellipsis", "", _SETTINGS),
    (_CONFIG, "allow_inf_nan=False", "allow_inf_nan=True", _SETTINGS),
    (_CONFIG, 'extra="forbid"', 'extra="ignore"', _SETTINGS),
    (_CONFIG, "frozen=True", "frozen=False", _SETTINGS),
    (_CONFIG, "if place.get(group) is None:", "if group not in place:", _SETTINGS),
    (_CONFIG, "override.partition", "override.rpartition", _SETTINGS),
    (_CONFIG, "for problem in error.errors()]", "for problem in error.errors()[:1]]", _SETTINGS),
    (_CONFIG, "sort_keys=True", "sort_keys=False", _SETTINGS),
    (_CONFIG, "yaml.load(text, Loader=_Loader)", "yaml.load(text, Loader=yaml.UnsafeLoader)", _SETTINGS),
]
