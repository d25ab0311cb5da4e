"""Each format by hand: what a row becomes, and every way in which it can be unusable."""

import math

import pytest

from holdfast.data.formats import FORMATS, recognise
from holdfast.data.schema import Classified, Conversation, DualPair, Labelled, Pair, Rated
from holdfast.data.values import Place, transcript
from holdfast.errors import UserError

PNG = bytes.fromhex(
    "89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de"
    "0000000c49444154789c63f8cfc0000003010100c9fe92ef0000000049454e44ae426082"
)
PLACE = Place("file-1")
PKU = {
    "prompt": "q",
    "response_0": "first",
    "response_1": "second",
    "better_response_id": 0,
    "safer_response_id": 1,
    "is_response_0_safe": False,
    "is_response_1_safe": True,
}
BEAVER = {
    "question": "q",
    "image": {"bytes": PNG, "path": None},
    "category": "animal_abuse",
    "image_severity": 2,
    "response_1": "first",
    "response_2": "second",
    "more_helpful_response_id": 1,
    "safer_response_id": 2,
    "response_1_harmless_rate": -2,
    "response_2_harmless_rate": 1,
    "is_response_1_safe": "no",
    "is_response_2_safe": "yes",
}
HH = {
    "chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: yes\n\nplease",
    "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: no",
}
STEER = {
    "prompt": "q",
    "response": "x",
    "helpfulness": 3,
    "correctness": 4,
    "coherence": 4,
    "complexity": 0,
    "verbosity": None,
}
ULTRA = {
    "source": "sharegpt",
    "instruction": "q",
    "models": ["one", "two"],
    "completions": [
        {"response": "x", "overall_score": 7.5, "annotations": {"honesty": {"Rating": "5", "Rationale": "r"}}},
        {"response": "y", "annotations": {"honesty": {"Rating": "N/A"}, "helpfulness": {"Rating": "1", "Type": ["1"]}}},
    ],
}
RPR = {
    "id": 3,
    "prompt": "q",
    "response_a": "first",
    "response_b": "second",
    "criteria_x": "Be plain.",
    "criteria_y": "Be exact.",
    "category_x": "Tone & Style",
    "category_y": "Scientific Rigor",
    "profile_0": "p",
}
CLASS = {"id": "c1", "group_id": "g", "text": "q", "label": 12, "label_name": "card_arrival", "split": "train"}
SINGLE = {"prompt": "q", "chosen": "x", "rejected": "y", "same_prompt": True, "split": "test", "id": "s1"}


def user(text: str) -> dict:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict:
    return {"role": "assistant", "content": text}


def convert(row: dict, place: Place = PLACE):
    return FORMATS[recognise(row, "file")].convert(row, place)


def test_pku_safe_rlhf_counts_from_zero() -> None:
    pair = convert(PKU)
    assert isinstance(pair, DualPair)
    assert (pair.id, pair.responses) == ("file-1", ("first", "second"))
    assert (pair.helpful_id, pair.safer_id, pair.safe) == (0, 1, (False, True))
    assert pair.harmless_rate == (None, None)
    more = convert({**PKU, "response_0_severity_level": 3, "response_0_harm_category": {"fraud": True, "war": False}})
    assert more.severity == (3, None)
    assert more.categories == (("fraud",), ())


def test_pku_safe_rlhf_from_a_table_of_text() -> None:
    texts = {name: str(value) for name, value in PKU.items()}
    assert convert(texts) == convert(PKU)


def test_beavertails_v_counts_from_one(tmp_path) -> None:
    pair = convert(BEAVER, Place("file-1", image_folder=tmp_path))
    assert (pair.helpful_id, pair.safer_id, pair.safe) == (0, 1, (False, True))
    assert pair.harmless_rate == (-2, 1)
    assert pair.categories == (("animal_abuse",), ())
    assert pair.image_severity == 2
    (image,) = pair.prompt.images
    assert (tmp_path / f"{image.sha256}.png").read_bytes() == PNG


def test_beavertails_v_images_by_path(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    pair = convert({**BEAVER, "image": "a.png"}, Place("file-1", folder=tmp_path))
    assert pair.prompt.images[0].path == str(tmp_path / "a.png")
    assert len(pair.prompt.images[0].sha256) == 64
    with pytest.raises(UserError, match="no image file at"):
        convert({**BEAVER, "image": "b.png"}, Place("file-1", folder=tmp_path))
    with pytest.raises(UserError, match="set image_folder"):
        convert(BEAVER)


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"safer_response_id": 2}, "safer_response_id must be 0 or 1, got 2"),
        ({"better_response_id": -1}, "better_response_id must be 0 or 1, got -1"),
        ({"better_response_id": None}, "better_response_id must be 0 or 1, got None"),
        ({"better_response_id": 0.5}, "must be a whole number, got 0.5"),
        ({"better_response_id": "first"}, "must be a whole number, got 'first'"),
        ({"is_response_0_safe": "perhaps"}, "expected yes or no, got 'perhaps'"),
        ({"prompt": ""}, "prompt is empty"),
        ({"response_0": " \n"}, "response_0 is empty"),
        ({"response_1": None}, "response_1 must be text, not NoneType"),
        ({"response_1": "first "}, "the two responses are equal"),
        ({"safer_response_id": 0}, "labels contradict"),
    ],
)
def test_pku_rows_that_cannot_be_used(change, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        convert({**PKU, **change})


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"safer_response_id": 0}, "safer_response_id must be 1 or 2, got 0"),
        ({"response_1_harmless_rate": 1, "safer_response_id": 2}, "safe=False and harmless_rate=1"),
        ({"response_1_harmless_rate": -4}, "greater than or equal to -3"),
    ],
)
def test_beavertails_v_rows_that_cannot_be_used(change, reason, tmp_path) -> None:
    with pytest.raises(ValueError, match=reason):
        convert({**BEAVER, **change}, Place("file-1", image_folder=tmp_path))


def test_hh_rlhf_labels_one_axis_only() -> None:
    pair = convert(HH)
    assert [message.role for message in pair.prompt.messages] == ["user", "assistant", "user"]
    assert [message.text for message in pair.prompt.messages] == ["a", "b", "c"]
    # A blank line inside an answer belongs to the answer.
    assert pair.responses == ("yes\n\nplease", "no")
    assert (pair.safer_id, pair.helpful_id, pair.safe) == (0, None, (None, None))
    helpful = convert(HH, Place("file-1", axis="helpful"))
    assert (helpful.safer_id, helpful.helpful_id) == (None, 0)


@pytest.mark.parametrize(
    "chosen, reason",
    [
        ("\n\nHuman: other\n\nAssistant: yes", "different prompts"),
        ("\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: ", "the last turn is empty"),
        ("\n\nHuman: a\n\nHuman: c\n\nAssistant: yes", "two turns of one role"),
        ("\n\nHuman: a", "must end with Assistant"),
        ("\n\nAssistant: a", "must begin with Human"),
    ],
)
def test_hh_rows_that_cannot_be_used(chosen, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        FORMATS["hh_rlhf"].convert({**HH, "chosen": chosen}, PLACE)


def test_transcripts_must_begin_with_a_mark() -> None:
    with pytest.raises(ValueError, match="must begin with Human"):
        transcript("Well.\n\nHuman: a\n\nAssistant: b")


def test_single_turn_pairs() -> None:
    pair = convert(SINGLE)
    assert (pair.id, pair.split, pair.responses, pair.safer_id) == ("s1", "test", ("x", "y"), 0)
    talk = convert({**SINGLE, "prompt": "Human: a\n\nAssistant: b\n\nHuman: c"})
    assert [message.text for message in talk.prompt.messages] == ["a", "b", "c"]
    with pytest.raises(ValueError, match="same_prompt is false"):
        convert({**SINGLE, "same_prompt": False})
    with pytest.raises(ValueError, match="rejected is empty"):
        convert({**SINGLE, "rejected": ""})


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "q", "chosen": "x", "rejected": "y"},
        {"prompt": [user("q")], "chosen": [assistant("x")], "rejected": [assistant("y")]},
        {"prompt": [user("q")], "chosen": "x", "rejected": "y"},
        {"chosen": [user("q"), assistant("x")], "rejected": [user("q"), assistant("y")]},
        {"prompt": {"messages": [user("q")]}, "chosen": "x", "rejected": "y"},
    ],
)
def test_trl_pairs_in_all_their_forms(row) -> None:
    pair = convert(row)
    assert isinstance(pair, Pair)
    assert (pair.prompt.messages[0].text, pair.chosen, pair.rejected) == ("q", "x", "y")
    assert len(pair.prompt.messages) == 1


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"chosen": "y "}, "chosen and the rejected answer are equal"),
        ({"chosen": ""}, "chosen is empty"),
        ({"chosen": [user("x")]}, "exactly one assistant message"),
        ({"chosen": [user("q"), assistant("x")]}, "exactly one assistant message, got .'user', 'assistant'"),
        ({"prompt": [user("q"), assistant("x")]}, "must end with a user turn"),
        ({"prompt": [{"role": "bot", "content": "q"}]}, "'system', 'user' or 'assistant'"),
        ({"prompt": [{"text": "q"}]}, "needs role and content"),
        ({"prompt": []}, "expected a list of messages"),
        ({"prompt": 7}, "expected a list of messages"),
        ({"prompt": [user([{"type": "audio"}])]}, "text or image, not 'audio'"),
        ({"prompt": [user([{"type": "image"}])]}, "names no file"),
    ],
)
def test_trl_rows_that_cannot_be_used(change, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        FORMATS["trl_pairs"].convert({"prompt": "q", "chosen": "x", "rejected": "y", **change}, PLACE)


def test_trl_pairs_of_many_people() -> None:
    row = {"prompt": "q", "chosen": "x", "rejected": "y"}
    said = {"context": "c", "user_id": 0, "group": 2, "pair_id": "p", "weight": "0.5", "margin": 2}
    pair = convert({**row, **said, "model": "m"})
    assert (pair.context, pair.user_id, pair.group, pair.pair_id) == ("c", "0", "2", "p")
    assert (pair.weight, pair.margin) == (0.5, 2.0)
    # A table fills in what a row does not have.
    assert convert({**row, **dict.fromkeys(said)}) == convert({**row, **dict.fromkeys(said, "")}) == convert(row)
    for change, reason in (
        ({"weight": 0}, "greater than 0"),
        ({"margin": "far"}, "valid number"),
        ({"context": ["c"]}, "context must be text, not list"),
    ):
        with pytest.raises(ValueError, match=reason):
            convert({**row, **change})


def test_helpsteer2_rates_one_answer() -> None:
    rated = convert(STEER)
    assert isinstance(rated, Rated)
    assert (rated.id, rated.conversation.messages[0].text, rated.conversation.response) == ("file-1", "q", "x")
    assert math.isnan(rated.labels.pop("verbosity"))
    assert rated.labels == {"helpfulness": 3, "correctness": 4, "coherence": 4, "complexity": 0}
    turns = "a\n\n<extra_id_1>Assistant\n\nb\n\nb\n\n<extra_id_1>User\n\nc"
    talk = convert({**STEER, "prompt": turns}).conversation.prompt
    assert [(turn.role, turn.text) for turn in talk.messages] == [("user", "a"), ("assistant", "b\n\nb"), ("user", "c")]


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"helpfulness": 5}, "helpfulness must be 0 to 4, got 5"),
        ({"coherence": -1}, "coherence must be 0 to 4, got -1"),
        ({"verbosity": 1.5}, "verbosity must be a whole number"),
        ({"response": ""}, "response is empty"),
        ({"prompt": "a\n<extra_id_1>Assistant\nb"}, "must alternate and end with the user"),
        ({"prompt": "a\n<extra_id_1>User\nb"}, "must alternate and end with the user"),
        ({"prompt": "a\n<extra_id_1>Assistant\n<extra_id_1>User\nb"}, "a turn of the prompt is empty"),
    ],
)
def test_helpsteer2_rows_that_cannot_be_used(change, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        convert({**STEER, **change})


def test_ultrafeedback_rates_several_answers() -> None:
    first, second = convert(ULTRA)
    assert (first.id, second.id, first.source) == ("file-1-1", "file-1-2", "sharegpt")
    assert (first.conversation.response, second.conversation.response) == ("x", "y")
    assert first.conversation.key == second.conversation.key
    assert first.labels == {"honesty": 5.0}
    assert math.isnan(second.labels["honesty"])
    assert second.labels["helpfulness"] == 1.0


@pytest.mark.parametrize(
    "completions, reason",
    [
        ([], "completions must be a list"),
        (None, "completions must be a list"),
        ("x", "completions must be a list"),
        (["x"], "completion 1 must have named parts, not str"),
        ([{}], "response of completion 1 must be text"),
        ([{"response": "x"}, {"response": " "}], "response of completion 2 is empty"),
        ([{"response": "x", "annotations": {"honesty": {"Rating": "6"}}}], "honesty must be 1 to 5, got 6"),
        ([{"response": "x", "annotations": {"honesty": "5"}}], "honesty must have named parts, not str"),
    ],
)
def test_ultrafeedback_rows_that_cannot_be_used(completions, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        convert({**ULTRA, "completions": completions})


def test_rpr_turns_its_preference_around() -> None:
    under_x, under_y = convert(RPR)
    assert (under_x.id, under_y.id) == ("3-x", "3-y")
    assert (under_x.chosen, under_x.rejected, under_x.context) == ("first", "second", "Be plain.")
    assert (under_y.chosen, under_y.rejected, under_y.context) == ("second", "first", "Be exact.")
    assert (under_x.group, under_y.group) == ("rpr-tone-and-style", "rpr-scientific-rigor")
    assert under_x.unordered == under_y.unordered
    assert convert({**RPR, "category_x": None})[0].group == ""
    with pytest.raises(ValueError, match="the two answers are equal"):
        convert({**RPR, "response_b": "first "})
    with pytest.raises(ValueError, match="criteria_y is empty"):
        convert({**RPR, "criteria_y": ""})


def test_an_implicit_prompt_must_be_shared() -> None:
    row = {"chosen": [user("q"), assistant("x")], "rejected": [user("other"), assistant("y")]}
    with pytest.raises(ValueError, match="share no prompt"):
        convert(row)
    with pytest.raises(ValueError, match="lists of messages"):
        convert({"chosen": "x", "rejected": "y"})


def test_trl_images_take_their_places_in_order(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    place = Place("file-1", folder=tmp_path)
    text, slot = {"type": "text", "text": "q"}, {"type": "image"}
    row = {"prompt": [user([slot, text])], "images": ["a.png"], "chosen": "x", "rejected": "y"}
    content = convert(row, place).prompt.messages[0].content
    assert [part.type for part in content] == ["image", "text"]
    (tmp_path / "b.png").write_bytes(PNG + b"other")
    both = convert(
        {**row, "prompt": [user([slot]), assistant("x"), user([slot, text])], "images": ["a.png", "b.png"]},
        place,
    )
    assert [image.path for image in both.prompt.images] == [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    assert convert({**row, "prompt": "q"}, place).prompt.messages[0].content == content
    with pytest.raises(ValueError, match="1 of its images have no place"):
        convert({**row, "prompt": [user([text])]}, place)
    with pytest.raises(ValueError, match="images are used up"):
        convert({**row, "prompt": [user([slot, slot, text])]}, place)


def test_prompts_and_completions() -> None:
    assert convert({"prompt": "q"}) == Conversation.ask("q", id="file-1")
    assert convert({"prompt": [user("q")], "id": "p"}).id == "p"
    assert convert({"messages": [user("q"), assistant("x")]}).response == "x"
    assert convert({"prompt": "q", "completion": "x"}) == Conversation.ask("q", id="file-1").answer("x")
    with pytest.raises(ValueError, match="end with a user or an assistant turn"):
        convert({"messages": [{"role": "system", "content": "s"}]})


def test_diasafety_labels_one_are_unsafe() -> None:
    row = {"context": "q", "response": "x", "category": "Biased Opinion", "label": 1}
    unsafe, safe = convert(row), convert({**row, "label": 0})
    assert isinstance(unsafe, Labelled)
    assert (unsafe.safe, unsafe.categories) == (False, ("Biased Opinion",))
    assert (safe.safe, safe.categories) == (True, ())
    assert (unsafe.conversation.prompt.messages[0].text, unsafe.conversation.response) == ("q", "x")
    with pytest.raises(ValueError, match="response is empty"):
        convert({**row, "response": ""})


def test_a_class_has_the_name_that_the_row_gives_it() -> None:
    row = convert(CLASS)
    assert isinstance(row, Classified)
    assert (row.id, row.label, row.group, row.split) == ("c1", "card_arrival", "g", "train")
    assert row.conversation == Conversation.ask("q")
    assert convert({"text": "q", "label": 0, "votes": {"n": 3}}).label == "0"
    assert convert({"text": "q", "label": 2.0, "label_name": None, "group": "own"}).group == "own"
    assert convert({"text": "q", "label": -1.0, "group": None, "group_id": 0}).group == "0"
    assert convert({"text": "q", "label": -1.0}).label == "-1"
    assert convert({"text": "q", "label": "yes", "label_name": ""}).label == "yes"
    talk = {"messages": [user("q"), assistant("x")]}
    assert convert({"conversation": talk, "label": "yes"}).conversation.response == "x"


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"label": None}, "label must be the name or the number of a class, got None"),
        ({"label": " "}, "label must be the name or the number of a class"),
        ({"label": 0.5}, "label must be the name or the number of a class, got 0.5"),
        ({"label": True}, "label must be the name or the number of a class, got True"),
        ({"label": [1]}, "label must be the name or the number of a class"),
        ({"label_name": 0.5}, "label_name must be the name or the number of a class, got 0.5"),
        ({"text": ""}, "text is empty"),
        ({"text": None}, "text must be text, not NoneType"),
    ],
)
def test_classified_rows_that_cannot_be_used(change, reason) -> None:
    with pytest.raises(ValueError, match=reason):
        convert({"text": "q", "label": 1, **change})


def test_classified_rows_need_a_text() -> None:
    with pytest.raises(ValueError, match="text must be text, not NoneType"):
        FORMATS["classified"].convert({"label": 1}, PLACE)


def test_a_missing_rating_is_not_a_number() -> None:
    talk = {"messages": [user("q"), assistant("x")]}
    rated = convert({"conversation": talk, "labels": {"help": 2.5, "tone": None}})
    assert isinstance(rated, Rated)
    assert rated.labels["help"] == 2.5
    assert math.isnan(rated.labels["tone"])


def test_a_recorded_image_must_be_the_same_file(tmp_path) -> None:
    (tmp_path / "a.png").write_bytes(PNG)
    image = {"type": "image", "path": "a.png", "sha256": "0" * 64}
    with pytest.raises(ValueError, match="another hash"):
        convert({"prompt": [user([image])]}, Place("file-1", folder=tmp_path))


@pytest.mark.parametrize(
    "row, name",
    [
        (PKU, "pku_safe_rlhf"),
        (BEAVER, "beavertails_v"),
        (HH, "hh_rlhf"),
        (SINGLE, "single_turn_pairs"),
        (STEER, "helpsteer2"),
        (ULTRA, "ultrafeedback"),
        (RPR, "rpr"),
        (CLASS, "classified"),
        ({"prompt": "q", "responses": ["x", "y"], "safer_id": 0}, "dual"),
        ({"prompt": "q", "responses": ["x", "y"], "rewards": None}, "ranked"),
        ({"prompt": "q", "response": "x", "reward": 0.5}, "scored"),
        ({"prompt": "q", "response": "x", "rewards": {"help": 0.5}}, "scored"),
        ({"conversation": {}, "scores": {}}, "scored"),
        ({"conversation": {}, "labels": {}}, "rated"),
        ({"conversation": {}, "safe": True}, "labelled"),
        ({"conversation": {}, "label": "yes"}, "classified"),
        ({"prefix": [], "suffix": [], "reward": []}, "pro"),
        ({"context": "q", "response": "x", "label": 1}, "diasafety"),
        # A prompt whose answer is absent stays a prompt, whatever reward it names.
        ({"prompt": "q", "reward": 0.5}, "prompts"),
        # An answer without ratings does not make a prompt anything else.
        ({"prompt": "q", "response": "x"}, "prompts"),
    ],
)
def test_each_data_set_is_recognised_as_itself(row, name) -> None:
    assert recognise(row, "file") == name


def test_unknown_and_ambiguous_columns_are_listed() -> None:
    with pytest.raises(UserError, match=r"file: no known format fits its columns \(colour, text\)") as error:
        recognise({"text": "a", "colour": 1}, "file")
    for name in FORMATS:
        assert f"\n  {name}: " in str(error.value)
    with pytest.raises(UserError, match=r"several formats fit .*pku_safe_rlhf, trl_pairs"):
        recognise({**PKU, "chosen": "x", "rejected": "y"}, "file")
    # A completion labelled good or bad is no example to imitate.
    with pytest.raises(UserError, match="no known format"):
        recognise({"prompt": "q", "completion": "x", "label": False}, "file")
