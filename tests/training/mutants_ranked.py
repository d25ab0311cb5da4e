"""Wrong versions of DPO and PRO that their tests must catch: file, text, wrong text, tests."""

RANKED, TEST = "src/holdfast/training/ranked.py", "tests/training/test_ranked.py"
LOOP = "src/holdfast/engine/supervised.py"

MUTANTS = [
    (RANKED, "self.model.eval()  # `fit` has turned dropout on", "pass", TEST),
    (RANKED, "self.reader.read(batch.tokens)[0].sum(-1)", "self.reader.read(batch.tokens)[0].mean(-1)", TEST),
    (RANKED, "for chosen in reversed(found)", "for chosen in found", TEST),
    (RANKED, "Reader(model, pad_id, share=share_prompt)", "Reader(model, pad_id)", TEST),
    # DPO.
    (RANKED, "offline.dpo(better, worse,", "offline.dpo(worse, better,", TEST),
    (RANKED, "(known[:, 0] - known[:, 1]).to(better)", "(known[:, 1] - known[:, 0]).to(better)", TEST),
    (RANKED, "if self.settings.reference_free else", "if False else", TEST),
    (RANKED, "lead = ahead[:, 0] - ahead[:, 1]", "lead = ahead[:, 1] - ahead[:, 0]", TEST),
    (RANKED, '"better": over(ahead[:, 0])', '"better": over(ahead[:, 1])', TEST),
    (RANKED, '("accuracy", "lead", "better"), 0.0', '("accuracy", "lead", "better"), 1.0', TEST),
    (RANKED, "not self.settings.reference_free and len(row.ref) != 2", "len(row.ref) != 2", TEST),
    # PRO.
    (RANKED, "said / batch.tokens.mask.sum(-1).to(said)", "said / batch.tokens.mask.shape[1]", TEST),
    (RANKED, "-((n - 1) ** 2)", "-(n - 1)", TEST),
    (RANKED, "said[chosen].view(-1, n)[:, 0].sum()", "ranked[:, 0].sum()", TEST),
    (RANKED, "said[chosen].view(-1, n)[:, 0].sum()", "said[chosen].sum()", TEST),
    (RANKED, "ranked.argmax(-1) == 0", "ranked.argmin(-1) == 0", TEST),
    (RANKED, '{"sft": self.settings.sft_weight, "accuracy": 0.0}', '{"accuracy": 0.0}', TEST),
    (RANKED, "record.rewards or ()", "()", TEST),
    (RANKED, "or not all(map(math.isfinite, row.quality))", "", TEST),
    (RANKED, "sorted(row.quality, reverse=True)", "sorted(row.quality)", TEST),
    # Rows in the loop.
    (LOOP, "return task.portions(rows, micro_tokens)", "return cut(rows, micro_tokens)", TEST),
]
