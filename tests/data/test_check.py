"""The report on data sets: every number by hand, and no text of a row anywhere."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from holdfast.data.check import check, disagreements, label_counts, render
from holdfast.data.schema import Classified, Conversation, DualPair, Labelled, Pair, Ranked, Rated, Scored
from holdfast.data.sources import DataSettings, write_jsonl
from holdfast.data.template import Template

NAN = float("nan")
ASK = Conversation.ask("one two three")


def dual(
    id: str, responses: tuple[str, str] = ("yes it is", "no"), prompt: str = "one two three", **labels
) -> DualPair:
    return DualPair(id=id, prompt=Conversation.ask(prompt), responses=responses, **labels)


TRAIN = [
    dual("1", safer_id=0, helpful_id=0, safe=(True, False), harmless_rate=(1, -2)),
    dual("2", ("no", "yes it is"), safer_id=0, helpful_id=1),
    dual("3", prompt="four", safer_id=0, harmless_rate=(1, 2)),
    dual("4", prompt="five"),
]
TEST = [dual("5", prompt="Four!"), dual("6", prompt="six")]


def word_template(max_length: int) -> Template:
    words = [
        "[END]",
        "one",
        "two",
        "three",
        "four",
        "five",
        "six",
        "yes",
        "it",
        "is",
        "no",
        "User",
        "Assistant",
        ":",
    ]
    core = Tokenizer(models.WordLevel({word: i for i, word in enumerate([*words, "[UNK]"])}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="[UNK]", eos_token="[END]")
    return Template(tokenizer, max_length=max_length, chat_template="plain")


@pytest.fixture
def sources(tmp_path: Path) -> dict[str, DataSettings]:
    write_jsonl(TRAIN, tmp_path / "train.jsonl")
    write_jsonl(TEST, tmp_path / "test.jsonl")
    with (tmp_path / "train.jsonl").open("a") as stream:
        stream.write('{"broken": \n')
    return {name: DataSettings(path=str(tmp_path / f"{name}.jsonl")) for name in ("train", "test")}


def test_the_report_by_hand(sources) -> None:
    report = check(sources)
    train, test = report.sources
    assert (train.name, train.format, train.rows, test.rows) == ("train", "dual", 4, 2)
    assert train.same_prompt == train.same_row == 1
    assert test.same_prompt == test.same_row == 0
    assert [(row, reason.split(":")[0]) for _, row, reason in train.bad] == [(5, "not valid JSON")]
    assert report.leaks == {"train / test": 1}
    assert train.lengths.unit == "words"
    # Prompts of 3, 3, 1 and 1 words; answers of 3 and 1 words, four times each.
    assert train.lengths.prompt[0] == 2.0
    assert train.lengths.prompt[-1] == 3.0
    assert train.lengths.response[0] == 2.0
    assert train.lengths.truncated is None


def test_labels_are_counted_with_the_missing_ones() -> None:
    assert label_counts(TRAIN) == {
        "harmless rate +1": 2,
        "harmless rate +2": 1,
        "harmless rate -2": 1,
        "helpful: response 0": 1,
        "helpful: response 1": 1,
        "helpful: unlabelled": 2,
        "safe": 1,
        "safer: response 0": 3,
        "safer: unlabelled": 1,
        "safety unlabelled": 6,
        "unsafe": 1,
    }
    answered = ASK.answer("x")
    assert label_counts(
        [
            Labelled(id="1", conversation=answered, safe=False, categories=("war",)),
            Rated(id="2", conversation=answered, labels={"help": 1.0, "tone": float("nan")}),
            Pair(id="3", prompt=ASK, chosen="a", rejected="b"),
            ASK,
            answered,
        ]
    ) == {"answered": 1, "category war": 1, "preferred pair": 1, "prompt": 1, "rated help": 1, "unsafe": 1}


def test_disagreements_by_hand() -> None:
    # Rows 1 and 2 are the same row with its answers in the other order: they call another answer the safer
    # one, and the same answer the more helpful one.
    assert disagreements(TRAIN) == {
        "more helpful is not the safer": (1, 2),
        "safer one has the lower harmless rate": (1, 2),
        "equal rows, opposite safer label": (1, 1),
        "equal rows, opposite helpful label": (0, 1),
    }
    assert disagreements([ASK]) == {}
    even = [
        dual("7", safer_id=1, helpful_id=0, harmless_rate=(2, 2)),
        dual("8", prompt="six", harmless_rate=(1, 2)),
    ]
    assert disagreements(even) == {
        "more helpful is not the safer": (1, 1),
        "safer one has the lower harmless rate": (0, 1),
    }


def test_with_a_template_lengths_are_tokens_and_cuts_are_counted(sources) -> None:
    wide = check({"test": sources["test"]}, word_template(100)).sources[0].lengths
    # "User : Four ! Assistant :" is six tokens, with "six" it is five, and each answer brings its end.
    assert (wide.unit, wide.prompt[0], wide.prompt[-1]) == ("tokens", 5.5, 6.0)
    assert (wide.response[0], wide.response[-1]) == (3.0, 4.0)
    assert (wide.truncated, wide.too_long) == (0.0, 0)
    # Two or three tokens of room cut the answer of three words, which needs four, and not that of one.
    narrow = check({"test": sources["test"]}, word_template(8)).sources[0].lengths
    assert narrow.truncated == 0.5
    none = check({"train": sources["train"]}, word_template(6)).sources[0].lengths
    assert none.too_long == 2


def test_the_report_can_be_read_and_shows_no_text(sources) -> None:
    report = check(sources)
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render(report))
    shown = console.export_text()
    for expected in (
        "train",
        "usable rows",
        "safer: response 0",
        "1 of 2",
        "bad rows",
        "Leaks",
        "train / test",
    ):
        assert expected in shown
    for hidden in ("three", "yes it is"):
        assert hidden not in shown
        assert hidden not in json.dumps(report.to_dict())
    assert report.to_dict()["sources"][0]["rows"] == 4


def test_people_and_scales_are_reported(tmp_path) -> None:
    pairs = [
        Pair(id=str(i), prompt=ASK, chosen="ab"[i % 2], rejected="ba"[i % 2], user_id="zoe", group="[brief]")
        for i in range(3)
    ]
    rated = [Rated(id=str(i), conversation=ASK.answer("a"), labels={"help": i, "tone": NAN}) for i in range(4)]
    sources = {
        name: DataSettings(path=str(write_jsonl(rows, tmp_path / f"{name}.jsonl")))
        for name, rows in (("pairs", pairs), ("rated", rated))
    }
    report = check(sources)
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(render(report))
    shown = " ".join(console.export_text().split())
    for expected in (
        "group [brief] \u2502 3",
        "people \u2502 1",
        "pairs for each \u2502 3 to 3, median 3",
        "equal pair, no context, opposite preference \u2502 1 of 2",
        "warning \u2502 1 pairs without context prefer",
        "label help \u2502 0 to 3, 0% missing",
        "label tone \u2502 never given, 100% missing",
    ):
        assert expected in shown, shown
    first, second = report.to_dict()["sources"]
    assert first["census"]["people"]["most"] == 3
    assert len(first["warnings"]) == len(second["warnings"]) == 1
    assert "zoe" not in json.dumps(report.to_dict())


def test_markup_in_reasons_is_shown_as_it_is(tmp_path) -> None:
    rows = [{"prompt": "q", "chosen": [{"role": "user", "content": "x"}], "rejected": "y"}]
    rows.append({"prompt": "q", "chosen": "x", "rejected": "y"})
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    console = Console(width=110, record=True, file=io.StringIO())
    console.print(render(check({"a": DataSettings(path=str(path))})))
    assert "got ['user']" in console.export_text()


def test_rewards_ranks_and_classes_are_counted(tmp_path: Path) -> None:
    ranks = [
        Ranked(id="1", prompt=ASK, responses=("yes", "no it is"), rewards=(1.0, 0.0)),
        Ranked(id="2", prompt=ASK, responses=("no it is", "yes")),
    ]
    texts = [Classified(id=str(i), conversation=ASK, label="ab"[i % 2], group="g") for i in range(3)]
    assert label_counts([*ranks, *texts, Scored(id="3", conversation=ASK.answer("no"), scores={"x": 1.0})]) == {
        "2 ranked answers, with rewards": 1,
        "2 ranked answers, without rewards": 1,
        "class a": 2,
        "class b": 1,
        "scored x": 1,
    }
    others = [texts[0].model_copy(update={"conversation": Conversation.ask("four")})]
    files = {
        name: DataSettings(path=str(write_jsonl(rows, tmp_path / f"{name}.jsonl")))
        for name, rows in {"ranks": ranks, "texts": texts, "others": others}.items()
    }
    report = check(files)
    first = report.sources[0]
    assert (first.same_prompt, first.same_row) == (1, 1)
    assert (first.lengths.prompt[-1], first.lengths.response[0], first.lengths.response[-1]) == (3.0, 2.0, 3.0)
    # The three texts and the other one are related by their group alone.
    assert report.leaks == {"ranks / texts": 3, "ranks / others": 0, "texts / others": 1}
