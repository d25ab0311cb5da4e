"""How a row of each known data set becomes a record.

A converter gets one row and gives the record, or the several records, that it holds. It raises `ValueError` with
a reason when the row cannot be used; who reads decides what becomes of it. Numbering differs between sources
(PKU-SafeRLHF counts answers from 0, BeaverTails-V from 1) and is settled here.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from holdfast.data import rewarded
from holdfast.data.schema import Classified, Conversation, DualPair, Labelled, Pair, Ranked, Rated, Scored
from holdfast.data.values import (
    Place,
    Row,
    answer_of,
    asked,
    class_of,
    common_prompt,
    conversation_of,
    flag,
    image_of,
    index_of,
    is_transcript,
    mapping_of,
    marked_turns,
    named,
    rating,
    slug,
    text_of,
    transcript,
    turns_of,
    whole,
)
from holdfast.errors import UserError

Readable = Classified | Conversation | DualPair | Labelled | Pair | Ranked | Rated | Scored


@dataclass(frozen=True)
class Format:
    """A kind of row: the columns it needs, further conditions in words, and its converter."""

    needs: tuple[str, ...]
    convert: Callable[[Row, Place], Readable | list[Readable]]
    fits: Callable[[Row], bool] = lambda row: True
    where: str = ""

    def recognises(self, row: Row) -> bool:
        """Whether `row` has this format's columns and shape."""
        return all(name in row for name in self.needs) and self.fits(row)


def _dual(row: Row, place: Place) -> DualPair:
    if isinstance(row["prompt"], str):
        raise ValueError(
            "a judged pair has its prompt as messages, and here it is a text; if these are answers in order, best "
            "first, add rewards: null to the rows or set format: ranked"
        )
    prompt = asked(conversation_of(row["prompt"], place))
    return DualPair.model_validate({**row, "id": place.base(row)["id"], "prompt": prompt})


def _labelled(row: Row, place: Place) -> Labelled:
    conversation = conversation_of(row["conversation"], place)
    return Labelled.model_validate({**row, "id": place.base(row)["id"], "conversation": conversation})


def _rated(row: Row, place: Place) -> Rated:
    # JSON has no not-a-number, so a missing rating is written as null.
    labels = {name: float("nan") if value is None else value for name, value in row["labels"].items()}
    conversation = conversation_of(row["conversation"], place)
    return Rated.model_validate({**row, **place.base(row), "labels": labels, "conversation": conversation})


def _prompts(row: Row, place: Place) -> Conversation:
    if not row.keys() & {"messages", "prompt"}:
        raise ValueError("no column messages or prompt; format prompts needs one of them")
    turns = row["messages"] if "messages" in row else row["prompt"]
    conversation = turns_of(turns, row, place)
    if conversation.messages[-1].role == "system":
        raise ValueError("a conversation must end with a user or an assistant turn")
    return conversation.model_copy(update=_known(row, place))


def _completion(row: Row, place: Place) -> Conversation:
    conversation = asked(turns_of(row["prompt"], row, place))
    answered = conversation.answer(answer_of(row["completion"], "completion"))
    return answered.model_copy(update=_known(row, place))


def _known(row: Row, place: Place) -> dict[str, str]:
    """What a conversation keeps of the fields every record has."""
    base = place.base(row)
    return {"id": base["id"], "source": base["source"]}


def _pku_safe_rlhf(row: Row, place: Place) -> DualPair:
    return DualPair(
        **place.base(row),
        prompt=Conversation.ask(text_of(row["prompt"], "prompt")),
        responses=(text_of(row["response_0"], "response_0"), text_of(row["response_1"], "response_1")),
        helpful_id=index_of(row["better_response_id"], "better_response_id", first=0),
        safer_id=index_of(row["safer_response_id"], "safer_response_id", first=0),
        safe=(flag(row["is_response_0_safe"]), flag(row["is_response_1_safe"])),
        severity=(row.get("response_0_severity_level"), row.get("response_1_severity_level")),
        categories=(named(row.get("response_0_harm_category")), named(row.get("response_1_harm_category"))),
    )


def _beavertails_v(row: Row, place: Place) -> DualPair:
    rates = [whole(row.get(f"response_{i}_harmless_rate"), "harmless_rate") for i in (1, 2)]
    safe = [None if (v := row.get(f"is_response_{i}_safe")) is None else flag(v) for i in (1, 2)]
    category = (str(row["category"]),) if row.get("category") else ()
    return DualPair(
        **place.base(row),
        prompt=Conversation.ask(text_of(row["question"], "question"), (image_of(row["image"], place),)),
        responses=(text_of(row["response_1"], "response_1"), text_of(row["response_2"], "response_2")),
        helpful_id=index_of(row["more_helpful_response_id"], "more_helpful_response_id", first=1),
        safer_id=index_of(row["safer_response_id"], "safer_response_id", first=1),
        safe=(safe[0], safe[1]),
        harmless_rate=(rates[0], rates[1]),
        categories=(() if safe[0] else category, () if safe[1] else category),
        image_severity=whole(row.get("image_severity"), "image_severity"),
    )


def _hh_rlhf(row: Row, place: Place) -> DualPair:
    chosen, rejected = transcript(row["chosen"]), transcript(row["rejected"])
    if chosen.prompt != rejected.prompt:
        raise ValueError("the two dialogues have different prompts, so their answers cannot be compared")
    return _on_axis(chosen.prompt, chosen.response, rejected.response, row, place)


def _single_turn_pairs(row: Row, place: Place) -> DualPair:
    if not flag(row["same_prompt"]):
        raise ValueError("the two answers belong to different prompts (same_prompt is false)")
    text = text_of(row["prompt"], "prompt")
    if text.startswith("Human:"):
        prompt = transcript(f"\n\n{text}", answered=False)
    else:
        prompt = Conversation.ask(text)
    return _on_axis(prompt, answer_of(row["chosen"], "chosen"), answer_of(row["rejected"], "rejected"), row, place)


def _trl_pairs(row: Row, place: Place) -> Pair:
    chosen, rejected = row["chosen"], row["rejected"]
    prompt = row.get("prompt")
    if prompt is None:
        prompt, chosen, rejected = common_prompt(chosen, rejected)
    answers = answer_of(chosen, "chosen"), answer_of(rejected, "rejected")
    if answers[0].strip() == answers[1].strip():
        raise ValueError("the chosen and the rejected answer are equal")
    question = asked(turns_of(prompt, row, place))
    return Pair(**place.base(row), prompt=question, chosen=answers[0], rejected=answers[1], **_judged(row))


def _judged(row: Row) -> dict[str, Any]:
    """Who judged a pair and how, from columns that may be absent; tables fill what is absent with None or nothing."""
    given = {name: row[name] for name in _JUDGED if row.get(name) not in (None, "")}
    if "context" in given:
        text_of(given["context"], "context")
    return given | {name: str(given[name]) for name in ("user_id", "group", "pair_id") if name in given}


_JUDGED = ("context", "user_id", "group", "pair_id", "weight", "margin")


def _diasafety(row: Row, place: Place) -> Labelled:
    prompt = Conversation.ask(text_of(row["context"], "context"))
    safe = not flag(row["label"])
    return Labelled(
        **place.base(row),
        conversation=prompt.answer(answer_of(row["response"], "response")),
        safe=safe,
        categories=() if safe or not row.get("category") else (str(row["category"]),),
    )


def _helpsteer2(row: Row, place: Place) -> Rated:
    answered = marked_turns(row["prompt"]).answer(answer_of(row["response"], "response"))
    labels = {name: rating(row[name], name, 0, 4) for name in _HELPSTEER2}
    return Rated(**place.base(row), conversation=answered, labels=labels)


def _ultrafeedback(row: Row, place: Place) -> list[Readable]:
    prompt = Conversation.ask(text_of(row["instruction"], "instruction"))
    base = place.base(row)
    if not isinstance(row["completions"], list) or not row["completions"]:
        raise ValueError("completions must be a list of rated answers")
    rated: list[Readable] = []
    for number, given in enumerate(row["completions"], start=1):
        completion = mapping_of(given, f"completion {number}")
        answer = text_of(completion.get("response"), f"response of completion {number}")
        notes = mapping_of(completion.get("annotations"), "annotations")
        labels = {name: rating(mapping_of(note, name).get("Rating"), name, 1, 5) for name, note in notes.items()}
        own = {**base, "id": f"{base['id']}-{number}"}
        rated.append(Rated(**own, conversation=prompt.answer(answer), labels=labels))
    return rated


def _rpr(row: Row, place: Place) -> list[Readable]:
    """Each criterion with the answer it prefers: the first under x, the second under y."""
    prompt = Conversation.ask(text_of(row["prompt"], "prompt"))
    answers = [answer_of(row[name], name) for name in ("response_a", "response_b")]
    if answers[0].strip() == answers[1].strip():
        raise ValueError("the two answers are equal")
    base = place.base(row)
    return [
        Pair(
            **{**base, "id": f"{base['id']}-{axis}"},
            prompt=prompt,
            chosen=chosen,
            rejected=rejected,
            context=text_of(row[f"criteria_{axis}"], f"criteria_{axis}"),
            group=f"rpr-{slug(row[f'category_{axis}'])}" if row.get(f"category_{axis}") else "",
        )
        for axis, (chosen, rejected) in (("x", answers), ("y", answers[::-1]))
    ]


def _classified(row: Row, place: Place) -> Classified:
    """A text with its class: the name of the class where the row has one, and else its number."""
    if "conversation" in row:
        conversation = conversation_of(row["conversation"], place)
    else:
        conversation = Conversation.ask(text_of(row.get("text"), "text"))
    name = "label_name" if row.get("label_name") else "label"
    groups = [str(row[column]) for column in ("group", "group_id") if row.get(column) not in (None, "")]
    fields = {**place.base(row), "group": groups[0] if groups else ""}
    return Classified(**fields, conversation=conversation, label=class_of(row[name], name))


def _on_axis(prompt: Conversation, chosen: str, rejected: str, row: Row, place: Place) -> DualPair:
    """A pair labelled on one axis only: the other label was not given, which is no tie."""
    winner: dict[str, Any] = {"safer_id": 0} if place.axis == "harmless" else {"helpful_id": 0}
    return DualPair(**place.base(row), prompt=prompt, responses=(chosen, rejected), **winner)


def _is_hh(row: Row) -> bool:
    return "prompt" not in row and is_transcript(row["chosen"])


_HELPSTEER2 = ("helpfulness", "correctness", "coherence", "complexity", "verbosity")
# Columns beside which a prompt does not stand alone.
_ANSWERS = {"responses", "response_0", "response_a", "chosen", "completion"}


def _only_prompts(row: Row) -> bool:
    judged = row.keys() >= {"response", *_HELPSTEER2} or _is_scored(row)
    return "messages" in row or ("prompt" in row and not judged and not row.keys() & _ANSWERS)


def _is_scored(row: Row) -> bool:
    answered = row.keys() >= {"prompt", "response"} and bool(row.keys() & {"reward", "rewards"})
    return answered or row.keys() >= {"conversation", "scores"}


def _is_classified(row: Row) -> bool:
    return "label" in row and bool(row.keys() & {"text", "conversation"})


FORMATS: dict[str, Format] = {
    "dual": Format(("prompt", "responses"), _dual, lambda row: "rewards" not in row, "and no rewards"),
    "labelled": Format(("conversation", "safe"), _labelled),
    "rated": Format(("conversation", "labels"), _rated),
    "scored": Format((), rewarded.scored, _is_scored, "prompt, response, and reward or rewards by name"),
    "ranked": Format(
        ("prompt", "responses"), rewarded.ranked, lambda row: "rewards" in row, "and rewards, which may be null"
    ),
    "pro": Format(("prefix", "suffix", "reward"), rewarded.pro),
    "classified": Format(("label",), _classified, _is_classified, "text or conversation"),
    "prompts": Format((), _prompts, _only_prompts, "messages, or prompt alone"),
    "prompt_completion": Format(("prompt", "completion"), _completion, lambda row: "label" not in row, "and no label"),
    "pku_safe_rlhf": Format(
        (
            "prompt",
            "response_0",
            "response_1",
            "better_response_id",
            "safer_response_id",
            "is_response_0_safe",
            "is_response_1_safe",
        ),
        _pku_safe_rlhf,
    ),
    "beavertails_v": Format(
        (
            "question",
            "image",
            "response_1",
            "response_2",
            "more_helpful_response_id",
            "safer_response_id",
        ),
        _beavertails_v,
    ),
    "hh_rlhf": Format(("chosen", "rejected"), _hh_rlhf, _is_hh, "dialogues with Human: and Assistant:"),
    "trl_pairs": Format(
        ("chosen", "rejected"),
        _trl_pairs,
        lambda row: "same_prompt" not in row and not _is_hh(row),
        "with or without prompt",
    ),
    "single_turn_pairs": Format(("prompt", "chosen", "rejected", "same_prompt"), _single_turn_pairs),
    "diasafety": Format(("context", "response", "label"), _diasafety),
    "helpsteer2": Format(("prompt", "response", *_HELPSTEER2), _helpsteer2),
    "ultrafeedback": Format(("instruction", "completions"), _ultrafeedback),
    "rpr": Format(("prompt", "response_a", "response_b", "criteria_x", "criteria_y"), _rpr),
}


def recognise(row: Row, source: str) -> str:
    """The name of the one format that `row` has; `UserError` with its columns when none or several fit."""
    fitting = [name for name, known in FORMATS.items() if known.recognises(row)]
    if len(fitting) == 1:
        return fitting[0]
    known = "\n".join(
        f"  {name}: {', '.join((*known.needs, *([known.where] if known.where else [])))}"
        for name, known in FORMATS.items()
    )
    raise UserError(
        f"{source}: {'several formats fit' if fitting else 'no known format fits'} its columns "
        f"({', '.join(sorted(row)) or 'none'}){': ' + ', '.join(fitting) if fitting else ''}; "
        f"rename columns or set format. Each format needs\n{known}"
    )
