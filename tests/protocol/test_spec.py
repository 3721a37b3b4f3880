"""The specification says what the code does."""

from __future__ import annotations

import re
from pathlib import Path

import protocol
from protocol import limits, messages, tensors
from protocol.codec import FrameType

TEXT = (Path(protocol.__file__).parent / "SPEC.md").read_text()


def test_the_limits_in_the_specification_are_those_of_the_code() -> None:
    rows = re.findall(r"\| `([A-Z_]+)` \| ([0-9^ s-]+?) (?=\|)", TEXT)
    assert len(rows) == 30
    for name, written in rows:
        value = eval_limit(written.removesuffix(" s"))
        assert value == getattr(limits, name), name


def eval_limit(written: str) -> int:
    match = re.fullmatch(r"2\^(\d+)( - 1)?", written)
    return int(written) if match is None else 2 ** int(match[1]) - bool(match[2])


def test_every_limit_that_the_specification_names_exists() -> None:
    for name in set(re.findall(r"`((?:MAX|[A-Z]+_TIMEOUT)_?[A-Z_]*|CHUNK|WINDOW|[A-Z]+_[A-Z]+)`", TEXT)):
        assert hasattr(limits, name), name


def test_every_frame_type_is_in_the_specification_with_its_number() -> None:
    table = dict(re.findall(r"\| ([A-Z]+) \| (\d+) \| (?:both|dialer|acceptor)", TEXT))
    assert {name: int(number) for name, number in table.items()} == {kind.name: kind.value for kind in FrameType}


def test_every_field_of_a_message_is_in_the_specification() -> None:
    for kind in set(FrameType) - {FrameType.REPLY}:  # whose stream is "likewise"
        (row,) = re.findall(rf"^\| {kind.name} \| (`.*) \|$", TEXT, re.MULTILINE)
        missing = [name for name in messages._FIELDS[kind] if f"`{name}`" not in row]
        assert not missing, (kind.name, missing)


def test_optional_fields_are_marked_so() -> None:
    for kind in FrameType:
        (row,) = re.findall(rf"^\| {kind.name} \| (`.*) \|$", TEXT, re.MULTILINE)
        optional = set(re.findall(r"`(\w+)`\?", row))
        required = messages._REQUIRED[kind] - {"payload"}
        assert not optional & required, kind.name


def test_every_dtype_is_in_the_specification() -> None:
    section = TEXT[TEXT.index("## 8.") : TEXT.index("## 9.")]
    named = {name for names in re.findall(r"`([a-z0-9_ \n]+)`", section) for name in names.split()}
    assert set(tensors.ITEMSIZE) <= named
