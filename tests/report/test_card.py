import json
from pathlib import Path

import pytest
import yaml

from holdfast.errors import UserError
from holdfast.report.card import card, write_card
from holdfast.report.read import read


def test_the_card_has_a_header_a_verdict_and_the_measures(finished: Path, tmp_path: Path) -> None:
    out = write_card(finished, tmp_path / "model")
    assert out == tmp_path / "model" / "README.md"
    text = out.read_text(encoding="utf-8")
    _, header, body = text.split("---\n", 2)
    assert yaml.safe_load(header) == {
        "library_name": "transformers",
        "tags": ["holdfast", "alignment", "rlhf"],
    }
    assert "**CERTIFIED. At most 4.5% of replies are judged harmful; the limit was 5%.**" in body
    assert "| True harm | 37.2% (33.4% to 41.0%, n\u202f=\u202f600) | 2.8% (1.5% to 4.1%, n\u202f=\u202f600) |" in body
    assert "| KL from the start (nats) | 0 | 9.12 |" in body
    assert "- claim concerns scorer output, not human judgement" in body


def test_a_bare_run_has_a_card_without_tables(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 3\n")
    text = card(read(tmp_path))
    assert "NOT TESTED" in text
    assert "|" not in text
    assert "- Seed: 3" in text


def test_names_cannot_break_the_card(run_folder: Path) -> None:
    summary = {"method": "<b>|\n# loud", "a|b_before": 1.0, "a|b_after": 2.0}
    (run_folder / "summary.json").write_text(json.dumps(summary))
    text = card(read(run_folder))
    assert "- Method: \\<b\\>\\| \\# loud\n" in text
    assert "| A\\|b | 1.00 | 2.00 |" in text


def test_an_unreadable_run_leaves_the_old_card(tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text("mine")
    with pytest.raises(UserError, match=r"no config\.yaml"):
        write_card(tmp_path, tmp_path)
    assert (tmp_path / "README.md").read_text() == "mine"
