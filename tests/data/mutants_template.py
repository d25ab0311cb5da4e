"""Wrong versions of what a template remembers, each of which some test must catch: file, text, wrong text, tests."""

TEMPLATE, TEST = "src/holdfast/data/template.py", "tests/data/test_template.py"
TEST_IMAGES = "tests/data/test_images.py"

MUTANTS = [
    (TEMPLATE, "lru_cache(_KEPT) if not self._dated else", "lru_cache(_KEPT) if True else", TEST),
    (TEMPLATE, "lru_cache(_KEPT) if not self._dated else", "lru_cache(_KEPT) if False else", TEST),
    # What is remembered belongs to one prompt, and what stands behind an answer to one prompt as well.
    (
        TEMPLATE,
        "if known else self._encode(prompt.messages)",
        "if known else self._start(prompt.messages)",
        TEST_IMAGES,
    ),
    (TEMPLATE, "self._start(prompt.messages) if known", "self._start(prompt.messages[-1:]) if known", TEST),
    (TEMPLATE, "tail = self._tail(conversation.messages[:-1])", "tail = self._tail(conversation.messages)", TEST),
    (TEMPLATE, 'marked = [*messages, Message.of("assistant", _MARK)]', "marked = [*messages]", TEST),
    (TEMPLATE, "if not pieces and self._bos", "if self._bos", TEST),
    (TEMPLATE, "[answer for tokens, answer in start.pieces for _ in tokens]", "[False for _ in ids]", TEST),
    (TEMPLATE, 'array("q", tokens), stretch.answer', 'array("q", tokens), not stretch.answer', TEST),
    (TEMPLATE, "pixels, id=prompt.id)", "pixels)", TEST),
]
