import hashlib
import json

import pytest
from pydantic import ValidationError

from holdfast.certificate.gate import Row
from holdfast.certificate.records import canonical, digest


def test_one_spelling_whatever_the_order():
    assert (
        canonical({"b": [1, 2.5], "a": "\u00e9"})
        == '{"a":"\\u00e9","b":[1,2.5]}'
        == canonical({"a": "\u00e9", "b": [1, 2.5]})
    )


@pytest.mark.parametrize("number", [0.1, 1 / 3, 5e-324, 1.7976931348623157e308, -0.0])
def test_numbers_read_back_exactly(number):
    assert repr(json.loads(canonical(number))) == repr(number)


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_infinite_numbers_have_no_spelling(number):
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical({"x": number})


def test_digest_is_of_the_spelling():
    assert digest({"a": 1}) == hashlib.sha256(b'{"a":1}').hexdigest()


def test_records_are_frozen_and_know_their_fields():
    row = Row(key="k", responses=(), costs={}, harmful={})
    with pytest.raises(ValidationError, match="frozen"):
        row.key = "other"
    with pytest.raises(ValidationError, match="Extra inputs"):
        Row(key="k", responses=(), costs={}, harmful={}, note="x")
