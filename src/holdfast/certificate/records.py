"""What the certificate writes: frozen records, one spelling in JSON, and the hash of that spelling."""

import hashlib
import json
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Record(BaseModel):
    """Base of all records: frozen, no unknown fields, no infinite numbers."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


def canonical(value: Any) -> str:
    """The one JSON spelling of `value`: sorted keys, no spaces, ASCII, floats that read back exactly.

    >>> canonical({"b": 0.1, "a": None})
    '{"a":null,"b":0.1}'
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest(value: Any) -> str:
    """The SHA-256 of the canonical spelling, as 64 hexadecimal digits.

    >>> digest([])[:12]
    '4f53cda18c2b'
    """
    return hashlib.sha256(canonical(value).encode()).hexdigest()
