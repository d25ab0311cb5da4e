"""Wrong versions of `holdfast.data.grouped` that tests must catch: file, text, wrong text, tests."""

GROUPED, TEST_GROUPED = "src/holdfast/data/grouped.py", "tests/data/test_grouped.py"
TEST_READING = "tests/rollout/test_reading.py"

MUTANTS = [
    (GROUPED, "tuple(row.ids[: row.prompt_length])", "tuple(row.ids[:1])", TEST_GROUPED),
    (GROUPED, ", tuple(pixels.image for pixels in row.images)", ",", TEST_GROUPED),
    (GROUPED, "score_index=row.score_index - n", "score_index=row.score_index", TEST_GROUPED),
    (GROUPED, "        images=[],\n", "", TEST_GROUPED),
    (GROUPED, "response_mask=row.response_mask[n:]", "response_mask=[True] * (row.length - n)", TEST_GROUPED),
    (
        GROUPED,
        "len(self.rows) * self.longest / self.tokens",
        "sum(row.length for row in self.rows) / self.tokens",
        TEST_GROUPED,
    ),
    (GROUPED, "of[chosen] = number", "of[chosen] = chosen[0]", TEST_GROUPED),
    (GROUPED, "max(self.longest, other.longest)", "self.longest", TEST_GROUPED),
    (GROUPED, "self.once + other.once", "max(self.once, other.once)", TEST_GROUPED),
    (
        GROUPED,
        "return self.once if shares(plain / self.once, self.longest) else plain",
        "return self.once",
        TEST_GROUPED,
    ),
    (GROUPED, "            size = joined\n", "            pass\n", TEST_READING),
    (GROUPED, "            size = sizes[p]\n", "            pass\n", TEST_GROUPED),
    (
        GROUPED,
        "        return micro_batches(lengths, budget_tokens)",
        "        return [list(range(len(rows)))]",
        TEST_READING,
    ),
    (GROUPED, "key=lambda p: sizes[p].longest)", "key=lambda p: 0)", TEST_GROUPED),
]
