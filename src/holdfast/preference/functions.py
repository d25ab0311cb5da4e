"""Python functions that a recipe names, as scorers.

A recipe that names a function runs that function's code, and the code of its file, with the rights of whoever starts
the run: read it before you use a recipe that is not yours.
"""

import importlib
import sys
from collections.abc import Callable, Sequence
from importlib.machinery import SourceFileLoader
from importlib.util import module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import Field, model_validator

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.errors import UserError
from holdfast.preference.score import FunctionScorer


class FunctionSettings(Settings):
    """A Python function that scores answers."""

    call: str
    """The function: `package.module:function`, or `path/to/file.py:function`. Its code runs on this machine."""
    names: tuple[str, ...] = Field(min_length=1)
    """What it scores: a name for each number that it returns."""
    each: bool = False
    """Whether it takes one `(prompt, response)`, both texts, and returns one number; otherwise it takes a list of
    conversations and returns a row of numbers for each. `None` for a number means that there is no such score."""

    @model_validator(mode="after")
    def _consistent(self) -> "FunctionSettings":
        if len(set(self.names)) != len(self.names):
            raise ValueError(f"a name stands twice in {', '.join(self.names)}")
        if self.each and len(self.names) > 1:
            raise ValueError(
                "a function of one prompt and response gives one number; name one score, or set each: false"
            )
        return self


def load_function(settings: FunctionSettings) -> FunctionScorer:
    """The scorer that asks the function of `settings`; loading it runs the code of its module.

    An error inside the function passes through with its traceback. With `each` the prompt is the text of the last
    user turn. Raises `UserError` when there is no such module or function, or it cannot be called.

    >>> scorer = load_function(FunctionSettings(call="operator:countOf", names=("commas",), each=True))
    >>> scorer.score([Conversation.ask("one, two, three").answer(",")]).tolist()
    [[2.0]]
    """
    where, _, name = settings.call.rpartition(":")
    if not where or not name:
        raise UserError(
            f"{settings.call!r} names no function; write package.module:function or path/to/file.py:function"
        )
    module = _from_file(Path(where)) if where.endswith(".py") else _from_name(where)
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        problem = "has no" if function is None else "holds something that cannot be called as"
        raise UserError(f"{where} {problem} {name}; it offers {', '.join(sorted(known)[:8]) or 'no functions'}")
    return FunctionScorer(settings.names, _of_each(function) if settings.each else function)


def _of_each(function: Callable[[str, str], float | None]) -> Callable[[Sequence[Conversation]], list[list[Any]]]:
    """A function of one prompt and response as one of conversations."""
    return lambda rows: [[function(one.prompt.messages[-1].text, one.response)] for one in rows]


def _from_file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UserError(f"no file at {path.absolute()}; give the path of the file that holds the function")
    name = f"holdfast_function_{path.stem}"
    loader = SourceFileLoader(name, str(path))
    spec = spec_from_loader(name, loader)
    assert spec is not None, "a loader was given"
    # Dataclasses look their module up by its name.
    module = sys.modules[name] = module_from_spec(spec)
    _run(lambda: loader.exec_module(module), str(path))
    return module


def _from_name(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise UserError(f"{name} is neither the name of a module nor the path of a .py file")
    return _run(lambda: importlib.import_module(name), name)


def _run(load: Callable[[], Any], where: str) -> Any:
    """What `load` returns, with the errors of a module that cannot be loaded told to a person."""
    try:
        return load()
    except ModuleNotFoundError as error:
        if error.name and (where == error.name or where.startswith(f"{error.name}.")):
            raise UserError(
                f"no module {error.name}; install the package that holds it, or give the path of a .py file"
            ) from error
        raise UserError(f"{where} needs the module {error.name}, which is not installed; install it") from error
    except Exception as error:
        raise UserError(f"{where} cannot be loaded: {type(error).__name__}: {error}; correct it") from error
