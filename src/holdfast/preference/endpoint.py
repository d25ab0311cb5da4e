"""A scorer behind HTTP: any service that answers a list of conversations with a list of named scores.

The request is a POST of JSON, `{"conversations": [[{"role": "user", "content": "..."}, ...], ...]}`. The answer is
`{"scores": [{"NAME": number or null, ...}, ...]}`, one object for each conversation in their order, with every name
that the settings list; further names are left alone. `null` says that there is no such score, and becomes NaN.
Conversations are text: one that holds an image is refused.
"""

import json
import math
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from http.client import HTTPException
from typing import Any
from urllib.error import URLError
from urllib.parse import urlsplit
from urllib.request import HTTPErrorProcessor, Request, build_opener

import torch
from pydantic import Field, field_validator
from torch import Tensor

from holdfast.config import Settings
from holdfast.data.schema import Conversation
from holdfast.errors import RunError, UserError
from holdfast.preference.score import called

_LONGEST_PAUSE = 60.0


class EndpointSettings(Settings):
    """A service that scores answers."""

    url: str
    """Where it listens, http or https; without name and password, which belong into a header."""
    names: tuple[str, ...] = Field(min_length=1)
    """The scores that are read from its answers."""
    headers_from_env: dict[str, str] = {}
    """By header the environment variable that holds its value, so that no secret stands in a recipe."""
    batch: int = Field(default=32, ge=1)
    """Conversations of one request."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds without a sign of life after which a request has failed."""
    retries: int = Field(default=3, ge=0)
    """Further attempts when the service is overloaded, fails, or does not answer."""
    pause: float = Field(default=1.0, ge=0)
    """Seconds before the first further attempt; doubled before each next. `Retry-After` may ask for more, up to 60."""
    concurrency: int = Field(default=4, ge=1)
    """Requests at one time."""

    @field_validator("url")
    @classmethod
    def _reachable(cls, url: str) -> str:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write http://host/path or https://host/path")
        if parts.username or parts.password:
            raise ValueError("it holds a name or password; send them in a header from the environment")
        return url


class EndpointScorer:
    """A service behind the `Scorer` contract; equal conversations are asked once.

    Raises `UserError` when an environment variable is missing.
    """

    def __init__(self, settings: EndpointSettings) -> None:
        self.settings, self.names = settings, settings.names
        self._headers = {header: _secret(header, name) for header, name in settings.headers_from_env.items()}
        self._opener = build_opener(_AsItCame)

    def score(self, conversations: Sequence[Conversation]) -> Tensor:
        """Scores (B, K), NaN where the service has none.

        Raises `UserError` for an image, and `RunError` when the service refuses, keeps failing, or answers in
        another shape.
        """
        if pictured := [i for i, one in enumerate(conversations) if one.images]:
            raise UserError(
                f"{self._place} scores text, and {len(pictured)} conversations hold images (rows "
                f"{called(conversations, pictured)}); score them with a model that sees, or leave them out"
            )
        if not conversations:
            return torch.empty(0, len(self.names))
        row_of = {one.messages: i for i, one in enumerate(conversations)}
        rows = list(row_of.values())
        portions = [rows[at : at + self.settings.batch] for at in range(0, len(rows), self.settings.batch)]
        with ThreadPoolExecutor(self.settings.concurrency) as pool:
            # When one request fails, those that have not begun are given up.
            tables = list(pool.map(lambda portion: self._ask(conversations, portion), portions))
        lines = dict(zip(rows, [line for table in tables for line in table]))
        return torch.tensor([lines[row_of[one.messages]] for one in conversations], dtype=torch.float32)

    @property
    def _place(self) -> str:
        """The address without its query, which may hold a key."""
        return self.settings.url.partition("?")[0].partition("#")[0]

    def _ask(self, conversations: Sequence[Conversation], rows: Sequence[int]) -> list[list[float]]:
        """The scores of one request, a line for each row."""
        about = f"rows {called(conversations, rows)}"
        turns = [[{"role": turn.role, "content": turn.text} for turn in conversations[i].messages] for i in rows]
        return self._read(self._post(json.dumps({"conversations": turns}).encode(), about), len(rows), about)

    def _post(self, body: bytes, about: str) -> bytes:
        """What the service answers, after as many attempts as the settings allow."""
        ours = {"Content-Type": "application/json", "Accept": "application/json", **self._headers}
        request = Request(self.settings.url, data=body, headers=ours, method="POST")
        for attempt in range(self.settings.retries + 1):
            wait = self.settings.pause * 2**attempt
            try:
                with self._opener.open(request, timeout=self.settings.timeout) as response:
                    status, headers, content = response.status, response.headers, response.read()
            except (URLError, HTTPException, OSError) as error:
                problem = f"{type(error).__name__}: {self._shown(str(error).encode())}"
            else:
                if 200 <= status < 300:
                    return bytes(content)
                problem = f"status {status}, {self._shown(content)}"
                if status < 500 and status not in (408, 429):
                    raise RunError(f"{self._place} refused {about}: {problem}")
                wait = max(wait, _asked_for(headers.get("Retry-After", "")))
            if attempt < self.settings.retries:
                time.sleep(min(wait, _LONGEST_PAUSE))
        raise RunError(
            f"{self._place} failed {self.settings.retries + 1} times for {about}, at last with {problem}; see that the "
            "service runs, lower batch or concurrency, or raise timeout or retries"
        )

    def _read(self, answer: bytes, count: int, about: str) -> list[list[float]]:
        """The numbers of an answer, NaN for null."""
        needed = f'needed is {{"scores": [...]}} with {count} objects of {", ".join(self.names)}'
        try:
            scores = json.loads(answer)["scores"]
        except (ValueError, KeyError, TypeError) as error:
            raise RunError(f"{self._place} answered {self._shown(answer)} for {about}; {needed}") from error
        if not isinstance(scores, list) or len(scores) != count:
            came = f"{len(scores)} objects" if isinstance(scores, list) else f"a {type(scores).__name__}"
            raise RunError(f"{self._place} answered scores that are {came} for {about}; {needed}")
        for line in scores:
            if wrong := [name for name in self.names if not _has_number(line, name)]:
                shown = self._shown(json.dumps(line).encode())
                raise RunError(
                    f"{self._place} answered {shown} for one of {about}; {needed}, and {', '.join(wrong)} must be a "
                    "finite number or null"
                )
        return [[math.nan if line[name] is None else line[name] for name in self.names] for line in scores]

    def _shown(self, content: bytes) -> str:
        """The beginning of what a service said, without the values of our headers."""
        text = content.decode(errors="replace")
        for secret in self._headers.values():
            text = text.replace(secret, "***")
        return repr(" ".join(text.split())[:200])


class _AsItCame(HTTPErrorProcessor):
    """Leaves every status to us, and follows no redirection: it would carry our headers to whomever it names."""

    def http_response(self, request: Request, response: Any) -> Any:
        """The response itself."""
        return response

    https_response = http_response


def _secret(header: str, variable: str) -> str:
    value = os.environ.get(variable, "").strip()
    if not value or not (value.isascii() and value.isprintable()):
        problem = "holds what no header can hold" if value else "is not set"
        raise UserError(f"the header {header} needs the environment variable {variable}, which {problem}; export it")
    return value


def _asked_for(value: str) -> float:
    """The seconds that a `Retry-After` asks for; 0 for a date or nothing."""
    return float(value) if value.isdecimal() else 0.0


def _has_number(line: Any, name: str) -> bool:
    """Whether `line` has a number or null under `name`; true, false, NaN and infinity are no numbers."""
    if not isinstance(line, dict) or name not in line:
        return False
    value = line[name]
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value is None or (number and abs(value) <= torch.finfo(torch.float32).max)
