"""Wrong versions of rankings, scores, classes and splits for weak supervision, each of which some test must catch."""

_SCHEMA = ("src/holdfast/data/schema.py", "tests/data/test_schema.py")
_REWARDED = ("src/holdfast/data/rewarded.py", "tests/data/test_rewarded.py")
_FORMATS = ("src/holdfast/data/formats.py", "tests/data/test_formats.py")
_VALUES_SCORED = ("src/holdfast/data/values.py", "tests/data/test_rewarded.py")
_VALUES_CLASS = ("src/holdfast/data/values.py", "tests/data/test_formats.py")
_RECAST = ("src/holdfast/data/recast.py", "tests/data/test_recast.py")
_SPLIT = ("src/holdfast/data/split.py", "tests/data/test_split.py")
_HALVES = ("src/holdfast/data/halves.py", "tests/data/test_halves.py")
_CHECK = ("src/holdfast/data/check.py", "tests/data/test_check.py")

_CHANGES = [
    (_SCHEMA, "key=lambda i: -rewards[i])", "key=lambda i: rewards[i])"),
    (_SCHEMA, "key=lambda i: -rewards[i])", "key=lambda i: (-rewards[i], -i))"),
    (_SCHEMA, "order.index(preferred) if preferred in order else preferred", "preferred"),
    (_SCHEMA, "if better < worse:", "if better <= worse:"),
    (_SCHEMA, "if better < worse:", "if better > worse:"),
    (_SCHEMA, "if count < 2:", "if count < 1:"),
    (_SCHEMA, "[response.strip() for response in self.responses]", "list(self.responses)"),
    (_SCHEMA, "self.preferred >= count", "self.preferred > count"),
    (_SCHEMA, "    rewards: tuple[Finite, ...] | None", "    rewards: tuple[float, ...] | None"),
    (_SCHEMA, "scores: dict[str, Finite] = Field(min_length=1)", "scores: dict[str, Finite]"),
    (_REWARDED, "preferred=0, prompt", "preferred=1, prompt"),
    (_REWARDED, "if any(prompt != prompts[0] for prompt in prompts):", "if False:"),
    (_REWARDED, "if len(turns) < len(found):", "if not found:"),
    (_REWARDED, '("prompter", "assistant")[i % 2]', '("assistant", "prompter")[i % 2]'),
    (_REWARDED, "for mark, text in turns[:-1]]", "for mark, text in turns]"),
    (_REWARDED, "if not all(text for _, text in turns[:-1]):", "if False:"),
    (_REWARDED, 'if "reward" in row and "reward" in found:', "if False:"),
    (_REWARDED, 'if row.get("rewards") is None:', "if False:"),
    (_REWARDED, "re.DOTALL", "0"),
    (_REWARDED, '{**_pro_place(row.get("meta")), **row}', '{**row, **_pro_place(row.get("meta"))}'),
    (_REWARDED, 'path.split("/")[-2]', 'path.split("/")[-1]'),
    (_FORMATS, 'lambda row: "rewards" not in row', "lambda row: True"),
    (_FORMATS, "or _is_scored(row)\n", "\n"),
    (_FORMATS, 'name = "label_name" if row.get("label_name") else "label"', 'name = "label"'),
    (_FORMATS, 'row.get(column) not in (None, "")]', "row.get(column)]"),
    (_FORMATS, '("group", "group_id")', '("group",)'),
    (_VALUES_SCORED, "not math.isfinite(number)", "math.isnan(number)"),
    (_VALUES_SCORED, 'float("nan") if isinstance(value, bool) else float(value)', "float(value)"),
    (_VALUES_CLASS, "if isinstance(value, bool | float)", "if isinstance(value, float)"),
    (_VALUES_CLASS, "isinstance(value, float) and value.is_integer()", "False"),
    (_RECAST, 'id=f"{record.id}/{k}"', 'id=f"{record.id}"'),
    (_RECAST, "if value == value}", "}"),
    (_RECAST, "return record.preferred or 0", "return 0"),
    (_RECAST, "len(record.responses) == 2", "True"),
    (_RECAST, '"safe" if record.safe else "unsafe"', '"unsafe" if record.safe else "safe"'),
    (_RECAST, "responses=(pair.chosen, pair.rejected)", "responses=(pair.rejected, pair.chosen)"),
    (_SPLIT, "isinstance(record, Classified) and record.group else []", "False else []"),
    (_SPLIT, "isinstance(record, Classified) and record.group", "isinstance(record, Classified)"),
    (_HALVES, "identities(records)  # before", "# before"),
    (_HALVES, 'f"{salt}/balance"', "salt"),
    (_HALVES, "size <= most * len(records)", "size < most * len(records)"),
    (_HALVES, "size <= most * len(records)", "2 * size <= len(records)"),
    (_HALVES, "take(inside, len(records) - size,", "take(inside, len(records) // 2,"),
    (_HALVES, "balance, salt, most=0.5)", "balance, salt)"),
    (_HALVES, "dropped = [*dropped, *surplus]", "dropped = surplus"),
    (_HALVES, '_class_counts(rows, balance, f"split {name}")', "pass"),
    (_HALVES, 'share_of(f"{salt}/{_id(records[i])}")', 'share_of(f"{salt}/{i}")'),
    (_HALVES, "for i in sorted(drawn)]", "for i in drawn]"),
    (_HALVES, "json.dumps(sorted(ids))", "json.dumps(list(ids))"),
    (_HALVES, "len(counts) < 2", "len(counts) < 1"),
    (_CHECK, "isinstance(record, DualPair | Ranked)", "isinstance(record, DualPair)"),
]

MUTANTS = [(file, old, new, tests) for (file, tests), old, new in _CHANGES]
