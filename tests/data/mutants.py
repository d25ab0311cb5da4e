"""Wrong versions of the data package, each of which some test must catch."""

_TEMPLATE = ("src/holdfast/data/template.py", "tests/data/test_template.py")
_COLLATE = ("src/holdfast/data/collate.py", "tests/data/test_collate.py")
_FORMATS = ("src/holdfast/data/formats.py", "tests/data/test_formats.py")
_VALUES = ("src/holdfast/data/values.py", "tests/data/test_formats.py")
_SOURCES = ("src/holdfast/data/sources.py", "tests/data/test_sources.py")
_SPLIT = ("src/holdfast/data/split.py", "tests/data/test_split.py")
_CHECK = ("src/holdfast/data/check.py", "tests/data/test_check.py")
_SCHEMA = ("src/holdfast/data/schema.py", "tests/data/test_schema.py")
_CONTEXT = ("src/holdfast/data/context.py", "tests/data/test_context.py")
_EXPAND = ("src/holdfast/data/expand.py", "tests/data/test_expand.py")
_CENSUS = ("src/holdfast/data/census.py", "tests/data/test_census.py")
_IMAGES = ("src/holdfast/data/images.py", "tests/data/test_images.py")
_TOKENIZER = ("src/holdfast/data/tokenizer.py", "tests/data/test_tokenizer.py")

_CHANGES = [
    (_TEMPLATE, "score_index=prompt.length + n - 1,", "score_index=prompt.length + n - 2,"),
    (
        _TEMPLATE,
        "turn_mask=[*prompt.turn_mask, *[True] * n],",
        "turn_mask=[*prompt.response_mask, *[True] * n],",
    ),
    (_TEMPLATE, "[*self._tokens(_Stretch(text)), end_id]", "[*self._tokens(_Stretch(text))]"),
    (_TEMPLATE, "truncated=len(response) > room", "truncated=len(response) >= room"),
    (_TEMPLATE, "if len(ids) >= self.max_length:", "if len(ids) > self.max_length:"),
    (_TEMPLATE, "and tokens[:1] != [self._bos]:", "and True:"),
    (_TEMPLATE, "stop = end.end() if end else stop", "stop = stop"),
    (
        _TEMPLATE,
        "truncated=response_ids[-1] not in self.stop_ids",
        "truncated=response_ids[-1] != self.end_id",
    ),
    (
        _TEMPLATE,
        "known = cursor + len(answer) if text.startswith(answer, cursor) else cursor",
        "known = cursor",
    ),
    (_TEMPLATE, 'and messages[0].role != "system"', "and True"),
    (
        _TEMPLATE,
        "whole[len(before) : len(whole) - len(tail)]",
        "whole[len(before) : len(whole) - len(tail) - 1]",
    ),
    (_COLLATE, "row.score_index + offset for row", "row.score_index for row"),
    (_COLLATE, "(attention.cumsum(-1) - 1).clamp(min=0)", "torch.arange(width).expand_as(attention)"),
    (
        _COLLATE,
        "stack([[1] * row.length for row in encoded], 0)",
        "stack([row.ids for row in encoded], 0).ne(0).long()",
    ),
    (
        _COLLATE,
        "stack([row.turn_mask for row in encoded], False)",
        "stack([row.response_mask for row in encoded], False)",
    ),
    (_COLLATE, "wider * (len(groups[-1]) + 1) <= budget_tokens", "wider * len(groups[-1]) <= budget_tokens"),
    (_COLLATE, "wider = max(longest, lengths[index])", "wider = lengths[index]"),
    (_FORMATS, '"better_response_id", first=0)', '"safer_response_id", first=0)'),
    (_FORMATS, '"more_helpful_response_id", first=1)', '"more_helpful_response_id", first=0)'),
    (_FORMATS, '{"safer_id": 0} if place.axis == "harmless"', '{"safer_id": 0} if place.axis == "helpful"'),
    (_FORMATS, 'safe = not flag(row["label"])', 'safe = flag(row["label"])'),
    (_FORMATS, "if chosen.prompt != rejected.prompt:", "if False:"),
    (_FORMATS, 'if not flag(row["same_prompt"]):', "if False:"),
    (_FORMATS, "(() if safe[0] else category, () if safe[1] else category)", "(category, category)"),
    (_VALUES, "if any(role == following for", "if any(False for"),
    (_VALUES, "if number == first + 1:", "if number == first - 1:"),
    (_VALUES, "or chosen[:-1] != rejected[:-1]", ""),
    (_VALUES, "return loose.pop(0)", "return loose.pop()"),
    (_SOURCES, r'.split(b"\n"), start=1)', r'.split(b"\n"), start=0)'),
    (_SOURCES, 'if split and settings.split not in ("all", split):', "if False:"),
    (_SOURCES, "bad[:5]", "bad[:6]"),
    (_SOURCES, "enumerate(rows, start=1)", "enumerate(rows, start=0)"),
    (_SOURCES, 'os.path.relpath(value["path"], folder)', 'value["path"]'),
    (_SPLIT, "parent[high] = low", "parent[low] = high"),
    (_SPLIT, 'f"{salt}{cluster}"', 'f"{cluster}"'),
    (_SPLIT, "names = sorted(fractions)", "names = list(fractions)"),
    (_SPLIT, "border += fractions[name]", "border = fractions[name]"),
    (_SPLIT, "or lowered.strip()", 'or ""'),
    (_SPLIT, r"{message.role}\x1f{pictures}", r"{message.role}\x1f"),
    (_SPLIT, "for first, *others in own:", "for first, *others in own[:1]:"),
    (_CHECK, "(safer or 0) < (other or 0)", "(safer or 0) <= (other or 0)"),
    (_CHECK, "row.helpful_id != row.safer_id", "row.helpful_id == row.safer_id"),
    (_CHECK, "return None if number is None else pair.responses[number]", "return number"),
    (_CHECK, "sum(counts.values()) - len(counts)", "len(counts)"),
    (_CHECK, "share = cut / len(responses)", "share = cut / len(records)"),
    (_IMAGES, "if pixels > settings.max_pixels:", "if pixels >= settings.max_pixels:"),
    (_IMAGES, "if image.sha256 and sha256(content) != image.sha256:", "if False:"),
    (_IMAGES, 'return picture.convert("RGB")', "return picture"),
    (_IMAGES, "partial = target.with_name(", "partial = target or target.with_name("),
    (_IMAGES, ".{uuid4().hex}.partial", ".partial"),
    (_TOKENIZER, "            initial_alphabet=alphabet,\n", ""),
    (_TOKENIZER, "if vocab_size <= len(SPECIAL)", "if vocab_size < len(SPECIAL)"),
    (_TOKENIZER, 'eos_token="<|end|>"', 'eos_token="<|pad|>"'),
    (_TOKENIZER, 'unk_token="<|unknown|>" if kind == "word" else None', "unk_token=None"),
    (_TOKENIZER, "if add_generation_prompt %}", "if not add_generation_prompt %}"),
    (
        _SCHEMA,
        "answers = sorted((self.chosen.strip(), self.rejected.strip()))",
        "answers = (self.chosen.strip(), self.rejected.strip())",
    ),
    (_SCHEMA, "(self.prompt.key, *answers)", "answers"),
    (_SCHEMA, "exclude_if=lambda value: value == default, ", ""),
    (_SCHEMA, "weight: float = _optional(1.0, gt=0,", "weight: float = _optional(1.0, ge=0,"),
    (_CONTEXT, 'if turn.role == "user"), default', 'if turn.role != "system"), default'),
    (_CONTEXT, "last = max(", "last = min("),
    (_CONTEXT, '(texts[-1], "", after)', '(texts[0], "", after)'),
    (_CONTEXT, 'or template.count("{prompt}") != 1', ""),
    (_CONTEXT, "    if not context:\n        return conversation\n", ""),
    (_EXPAND, "if gap > 0 else (second, first)", "if gap < 0 else (second, first)"),
    (_EXPAND, "elif abs(gap) < least_gap or", "elif abs(gap) <= least_gap or"),
    (_EXPAND, " or _same_answer(first, second)", ""),
    (_EXPAND, "== 1 and len(won) == len(labels) > 1", "== 1 and len(won) > 1"),
    (_EXPAND, "and len(won) == len(labels) > 1", "and len(won) == len(labels)"),
    (_EXPAND, "setdefault(row.conversation.key, [])", 'setdefault("", [])'),
    (_EXPAND, "            if gap != gap:\n                missing += 1\n            elif", "            if"),
    (_CENSUS, "opposite += pair.chosen.strip() != before", "opposite += pair.chosen.strip() == before"),
    (_CENSUS, "reversals(pair for pair in pairs if not pair.context)", "reversals(pairs)"),
    (_CENSUS, "1 - len(values) / len(rated)", "len(values) / len(rated)"),
    (_CENSUS, "counts[-1], counts.count(1)", "counts[-1], counts.count(2)"),
    (_CENSUS, "[value] if value == value else []", "[value]"),
    (_FORMATS, '("x", answers), ("y", answers[::-1])', '("x", answers), ("y", answers)'),
    (_FORMATS, "rating(row[name], name, 0, 4)", "rating(row[name], name, 1, 5)"),
    (_FORMATS, "name, 1, 5) for name, note", "name, 0, 5) for name, note"),
    (_FORMATS, "and not judged and not row.keys()", "and not row.keys()"),
    (_FORMATS, 'if row.get(name) not in (None, "")', "if name in row"),
    (_VALUES, 'number = None if value == "N/A" else', "number ="),
    (_VALUES, 'or names[-1] != "user"', ""),
    (_SOURCES, "        usable += 1\n", "        usable = len(records)\n"),
]
MUTANTS = [(source, old, new, test) for (source, test), old, new in _CHANGES]
