"""The fields of a query: which there are, what their values may be, how a value is read and printed.

One table, FIELDS. `read` turns what the user wrote into a value, or raises ValueError with a sentence for
them; `show` turns it back into text that reads as the same value.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from fractions import Fraction
from types import MappingProxyType
from typing import Any, Final

from protocol import limits
from protocol.tensors import ITEMSIZE
from search.text import first_control, fold

KINDS: Final = ("tensor", "model", "plan", "pointer")


@dataclass(frozen=True, slots=True)
class Span:
    """A stretch of time, [start, end) in Unix seconds: what a date written to some precision stands for.

    A moment is before a span, in it, or after it; `created>2026-01-01` means after that whole day.
    """

    start: int
    end: int

    def __post_init__(self) -> None:
        if not 0 <= self.start < self.end:
            raise ValueError("a span of time begins in 1970 or later and ends after it begins")


Shape = tuple[int | None, ...]
"""Dimensions; None stands for any."""

Value = str | int | bool | Span | Shape


@dataclass(frozen=True, slots=True)
class Rule:
    """How the values of one field are read and shown; `is_ordered` if < <= > >= make sense of them."""

    read: Callable[[str], Value]
    show: Callable[[Any], str]
    is_ordered: bool = False

    @property
    def operators(self) -> tuple[str, ...]:
        return (":", "<", "<=", ">", ">=") if self.is_ordered else (":",)


def _shown(text: str) -> str:
    return ascii(text if len(text) <= 40 else text[:37] + "...")


# --- text -------------------------------------------------------------------------------------------------
def _read_text(text: str) -> str:
    if not fold(text) or first_control(text) is not None:
        raise ValueError("a text is missing here")
    return text


def _read_kind(text: str) -> str:
    return _one_of(text.lower(), KINDS, "kind")


def _read_dtype(text: str) -> str:
    return _one_of(text.lower().removeprefix("torch."), tuple(ITEMSIZE), "dtype")


def _one_of(text: str, known: tuple[str, ...], what: str) -> str:
    """`text` if it is one of `known`, or begins one and ends with '*'."""
    if text in known or (text.endswith("*") and any(name.startswith(text[:-1]) for name in known)):
        return text
    close = difflib.get_close_matches(text, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"one of: {', '.join(known)}"
    raise ValueError(f"{_shown(text)} is not a {what}; {hint}")


def _read_owner(text: str) -> str:
    if not re.fullmatch(r"[a-z2-7]{1,52}", text.lower()):
        raise ValueError(f"{_shown(text)} is not an owner's id or the beginning of one; ids are made of a-z and 2-7")
    return text.lower()


def _read_id(text: str) -> str:
    if not re.fullmatch(r"[0-9a-f]{1,32}", text.lower()):
        raise ValueError(f"{_shown(text)} is not an id or the beginning of one; ids are up to 32 digits 0-9 a-f")
    return text.lower()


# --- yes or no --------------------------------------------------------------------------------------------
def _read_flag(text: str) -> bool:
    flags = {"yes": True, "true": True, "no": False, "false": False}
    if text.lower() not in flags:
        raise ValueError(f"{_shown(text)} is neither yes nor no")
    return flags[text.lower()]


def _show_flag(flag: bool) -> str:
    return "yes" if flag else "no"


# --- numbers ----------------------------------------------------------------------------------------------
def _read_count(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,19}", text):
        raise ValueError(f"{_shown(text)} is not a whole number, such as 1000")
    return _bounded(int(text))


_UNITS: Final[Mapping[str, int]] = {
    "": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGTP", 1)},
    **{f"{letter}iB": 1024**power for power, letter in enumerate("KMGTP", 1)},
}
_FOLDED_UNITS: Final[Mapping[str, int]] = {"b": 1, **{unit.lower(): size for unit, size in _UNITS.items()}}


def _read_size(text: str) -> int:
    found = re.fullmatch(r"([0-9]{1,19}(?:\.[0-9]{1,9})?) ?([A-Za-z]*)", text)
    unit = _FOLDED_UNITS.get(found[2].lower()) if found else None
    if found is None or unit is None:
        raise ValueError(f"{_shown(text)} is not a size; write 500, 10KB, 1.5GB or 64MiB")
    return _bounded(round(Fraction(found[1]) * unit))


def _show_size(size: int) -> str:
    exact = [f"{size // unit}{name}" for name, unit in _UNITS.items() if size % unit == 0]
    # The shortest text; of two as short the one with a unit says more.
    return min(reversed(exact), key=len) if size else "0"


def _bounded(number: int) -> int:
    if number > limits.MAX_ID:
        raise ValueError(f"{number} is beyond every limit; at most {limits.MAX_ID}")
    return number


# --- shapes -----------------------------------------------------------------------------------------------
def _read_shape(text: str) -> Shape:
    if text.lower() == "scalar":
        return ()
    if not re.fullmatch(r"(?:\*|[0-9]{1,13})(?:[xX](?:\*|[0-9]{1,13}))*", text):
        raise ValueError(f"{_shown(text)} is not a shape; write 10x784, *x784 (any first dimension) or scalar")
    shape = tuple(None if dim == "*" else int(dim) for dim in text.lower().split("x"))
    if len(shape) > limits.MAX_NDIM:
        raise ValueError(f"{len(shape)} dimensions; at most {limits.MAX_NDIM}")
    if any(dim is not None and dim >= limits.MAX_DIM for dim in shape):
        raise ValueError(f"a dimension is at most {limits.MAX_DIM - 1}")
    return shape


def _show_shape(shape: Shape) -> str:
    return "x".join("*" if dim is None else str(dim) for dim in shape) or "scalar"


# --- dates ------------------------------------------------------------------------------------------------
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_LAST: Final = int(datetime(9999, 1, 1, tzinfo=UTC).timestamp())  # years end before datetime does
_DATE: Final = re.compile(
    r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2})(?:[Tt ]([0-9]{2}):([0-9]{2})(?::([0-9]{2}))?"
    r"(?:[Zz]|([+-])([0-9]{2}):([0-9]{2}))?)?)?)?"
)
_FORMS: Final = ("%Y", "%Y-%m", "%Y-%m-%d", "%Y-%m-%dT%H:%M", "%Y-%m-%dT%H:%M:%S")


def _read_date(text: str) -> Span:
    found = _DATE.fullmatch(text)
    if found is None:
        raise ValueError(f"{_shown(text)} is not a date; write 2026-01-31 or 2026-01-31T12:30 (UTC)")
    *parts, sign, hours, minutes = found.groups()
    numbers = [int(part) for part in parts if part is not None]
    try:
        year, month, day, hour, minute, second = (*numbers, *(1970, 1, 1, 0, 0, 0)[len(numbers) :])
        begin = datetime(year, month, day, hour, minute, second, tzinfo=UTC)
        start, end = _seconds(begin), _seconds(_after(begin, len(numbers)))
    except ValueError as error:
        raise ValueError(f"{_shown(text)} is not a date: {error}") from None
    offset = _offset(sign, int(hours), int(minutes)) if sign else 0
    if not 0 <= start - offset < _LAST:
        raise ValueError(f"{_shown(text)} is out of range; years run from 1970 to 9998")
    return Span(start - offset, end - offset)


def _offset(sign: str, hours: int, minutes: int) -> int:
    if hours > 23 or minutes > 59:
        raise ValueError(f"{sign}{hours:02}:{minutes:02} is not an offset from UTC, such as +01:00")
    return (hours * 3600 + minutes * 60) * (1 if sign == "+" else -1)


def _after(begin: datetime, precision: int) -> datetime:
    """The end of the year (1), month, day, minute (5) or second that begins at `begin`."""
    if precision == 1:
        return begin.replace(year=begin.year + 1)
    if precision == 2:
        return begin.replace(year=begin.year + begin.month // 12, month=begin.month % 12 + 1)
    return begin + {3: timedelta(days=1), 5: timedelta(minutes=1), 6: timedelta(seconds=1)}[precision]


def _seconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(seconds=1)


def _show_date(span: Span) -> str:
    begin = _EPOCH + timedelta(seconds=span.start)
    for form in _FORMS:
        text = begin.strftime(form)
        if _read_date(text) == span:
            return text
    raise ValueError("this span of time is not a year, a month, a day, a minute or a second")


FIELDS: Final[Mapping[str, Rule]] = MappingProxyType(
    {
        "kind": Rule(_read_kind, str),
        "name": Rule(_read_text, str),
        "peer": Rule(_read_text, str),
        "owner": Rule(_read_owner, str),
        "id": Rule(_read_id, str),
        "dtype": Rule(_read_dtype, str),
        "shape": Rule(_read_shape, _show_shape),
        "private": Rule(_read_flag, _show_flag),
        "rows": Rule(_read_count, str, is_ordered=True),
        "size": Rule(_read_size, _show_size, is_ordered=True),
        "created": Rule(_read_date, _show_date, is_ordered=True),
    }
)

# What people write who have not read the manual, and what to write instead.
HINTS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "tag": "tags are written #like-this",
        "tags": "tags are written #like-this",
        "description": "words without a field search descriptions",
        "text": "words without a field search descriptions",
        "type": "write kind: or dtype:",
        "bytes": "write size:",
        "nbytes": "write size:",
        "length": "write rows:",
        "date": "write created:",
        "http": "put an address in quotes to search for it",
        "https": "put an address in quotes to search for it",
    }
)


def hint_for(name: str) -> str:
    """What somebody who wrote an unknown field may have meant."""
    close = difflib.get_close_matches(name, FIELDS, n=1)
    return HINTS.get(name) or (f"did you mean {close[0]}?" if close else f"the fields are {', '.join(FIELDS)}")
