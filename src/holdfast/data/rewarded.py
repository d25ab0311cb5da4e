"""How rows whose answers carry rewards become records: one scored answer, or several in order.

Converters as in `holdfast.data.formats`. Rewards are kept as they are given: raw scores of a reward model stay raw.
"""

import re
from collections.abc import Sequence
from typing import Any

from holdfast.data.schema import Conversation, Message, Ranked, Scored
from holdfast.data.values import Place, Row, answer_of, asked, conversation_of, mapping_of, number_of, text_of, turns_of

_PRO_TURN = re.compile(r"<\|(prompter|assistant)\|>(.*)", re.DOTALL)


def scored(row: Row, place: Place) -> Scored:
    """An answer with one `reward`, with `rewards` by name, or our own record."""
    if "scores" in row:
        scores = _numbers(row["scores"], "scores")
        return Scored(**place.base(row), conversation=conversation_of(row.get("conversation"), place), scores=scores)
    if missing := [name for name in ("prompt", "response") if name not in row]:
        raise ValueError(f"no column {', '.join(missing)}; format scored needs it")
    prompt = asked(turns_of(row["prompt"], row, place))
    answered = prompt.answer(answer_of(row["response"], "response"))
    return Scored(**place.base(row), conversation=answered, scores=_reward_columns(row))


def _reward_columns(row: Row) -> dict[str, float]:
    """Everything that the columns `reward` and `rewards` tell; a total may stand beside its parts."""
    found = _numbers(row.get("rewards"), "rewards")
    if "reward" in row and "reward" in found:
        raise ValueError("reward is given twice: as a column and by name in rewards")
    if "reward" in row:
        found["reward"] = number_of(row["reward"], "reward")
    if not found:
        raise ValueError("there is no reward: give a column reward, or rewards by name")
    return found


def ranked(row: Row, place: Place) -> Ranked:
    """Answers with a list of rewards, which then order them; without rewards they are given best first."""
    prompt = asked(turns_of(row["prompt"], row, place))
    answers = [answer_of(answer, f"response {i}") for i, answer in enumerate(_several(row["responses"], "responses"))]
    fields = {**place.base(row), "prompt": prompt, "preferred": row.get("preferred")}
    if row.get("rewards") is None:
        return Ranked(responses=tuple(answers), **fields)
    return Ranked.by_reward(answers, _rewards(row["rewards"], "rewards"), **fields)


def pro(row: Row, place: Place) -> Ranked:
    """Candidates of one prompt as PRO writes them (arXiv 2306.17492); the first is the one that a person chose.

    Rewards order the answers, and `preferred` keeps which one was chosen: the two agree in about 60 % of the rows of
    Anthropic HH. A row that says where it is from is named after that place, so that copies have one name.
    """
    prompts = [_pro_prompt(prefix) for prefix in _several(row["prefix"], "prefix")]
    answers = [text_of(answer, f"suffix {i}") for i, answer in enumerate(_several(row["suffix"], "suffix"))]
    if not prompts or len(prompts) != len(answers):
        raise ValueError(f"{len(prompts)} prefixes were given for {len(answers)} suffixes")
    if any(prompt != prompts[0] for prompt in prompts):
        raise ValueError("the prefixes differ, so the answers cannot be compared")
    fields = place.base({**_pro_place(row.get("meta")), **row})
    return Ranked.by_reward(answers, _rewards(row["reward"], "reward"), preferred=0, prompt=prompts[0], **fields)


def _pro_prompt(prefix: Any) -> Conversation:
    """The turns `<|prompter|>...` and `<|assistant|>...`, which end with a bare `<|assistant|>`."""
    found = [_PRO_TURN.fullmatch(text_of(turn, "turn of a prefix")) for turn in _several(prefix, "prefix")]
    turns = [(match[1], match[2].strip()) for match in found if match]
    if len(turns) < len(found):
        raise ValueError("a turn of the prefix begins with neither <|prompter|> nor <|assistant|>")
    if any(mark != ("prompter", "assistant")[i % 2] for i, (mark, _) in enumerate(turns)):
        raise ValueError("the turns of the prefix must alternate and begin with <|prompter|>")
    if turns[-1:] != [("assistant", "")]:
        raise ValueError("the prefix must end with a bare <|assistant|>")
    if not all(text for _, text in turns[:-1]):
        raise ValueError("a turn of the prefix is empty")
    said = [Message.of("user" if mark == "prompter" else "assistant", text) for mark, text in turns[:-1]]
    return Conversation(messages=tuple(said))


def _pro_place(meta: Any) -> dict[str, str]:
    """The name of the file's folder as source, and as id with the line behind it, where the row tells both."""
    path, line = (mapping_of(meta, "meta").get(name) for name in ("path", "line_num"))
    if not isinstance(path, str) or "/" not in path or line is None:
        return {}
    folder = path.split("/")[-2]
    return {"id": f"{folder}-{line}", "source": folder}


def _rewards(value: Any, name: str) -> list[float]:
    return [number_of(each, f"{name} {i}") for i, each in enumerate(_several(value, name))]


def _numbers(value: Any, name: str) -> dict[str, float]:
    """Numbers by name, each of them given and finite."""
    return {str(key): number_of(each, f"{name}.{key}") for key, each in mapping_of(value, name).items()}


def _several(value: Any, name: str) -> Sequence[Any]:
    if not isinstance(value, Sequence) or isinstance(value, str):
        raise ValueError(f"{name} must be a list, not {type(value).__name__}")
    return value
