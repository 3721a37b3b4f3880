"""The tag grammar: what a tag may be, how it is stored and how it is shown.

A tag is 1 to 64 characters of `a-z 0-9 . _ : / -`. '/' makes a path (`radiology/chest/xray`): it neither begins
nor ends a tag, and none follows another. Tags are stored and sent without '#', and shown with it. Two things
are forgiven on the way in, and nothing else: one leading '#', and upper-case ASCII letters, which become
lower-case ones. Nothing is trimmed and nothing is replaced.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterable
from typing import Final

from protocol import limits
from protocol.errors import BadTag
from protocol.sizes import check_limit

_PART = r"[a-z0-9._:-]+"
_TAG: Final = re.compile(rf"{_PART}(?:/{_PART})*")
_PREFIX: Final = re.compile(rf"(?:{_PART}(?:/{_PART})*/?)?")
_CHARACTERS: Final = frozenset(string.ascii_lowercase + string.digits + "._:/-")
# str.lower() would also turn letters of other scripts into ASCII ones (the Kelvin sign into k).
_LOWER: Final = str.maketrans(string.ascii_uppercase, string.ascii_lowercase)


def parse_tag(text: str) -> str:
    """The tag as it is stored: without a leading '#', ASCII letters in lower case.

    Raises:
        BadTag: anything outside the grammar. `fields`: tag (the text, cut to 80 characters), position (index
            of the first character that is wrong, from 0).
    """
    return _parse(text, _TAG)


def parse_prefix(text: str) -> str:
    """The part of a tag before a '*', as in `#radiology/*`: like a tag, but it may be empty or end with '/'.

    Raises:
        BadTag: as parse_tag.
    """
    return _parse(text, _PREFIX)


def parse_tags(tags: str | Iterable[str]) -> tuple[str, ...]:
    """Several tags, each once, in the order in which they came. A single str is split at white space.

    Raises:
        BadTag: one of them is outside the grammar.
        TooLarge: more than MAX_TAGS different ones.
    """
    if isinstance(tags, str):
        tags = tags.split()
    if isinstance(tags, bytes | bytearray | memoryview) or not isinstance(tags, Iterable):
        raise BadTag(f"tags are text or a list of texts, not {type(tags).__name__}")
    found: dict[str, None] = {}
    for tag in tags:
        found[parse_tag(tag)] = None
        check_limit("MAX_TAGS", len(found), "an object carries at most {allowed} tags")
    return tuple(found)


def show_tag(tag: str) -> str:
    """A stored tag as people read it: with '#'."""
    return f"#{tag}"


def _parse(text: str, grammar: re.Pattern[str]) -> str:
    if not isinstance(text, str):
        raise BadTag(f"a tag is text, not {type(text).__name__}")
    # Length first: a stranger's 10 MB tag is neither folded nor scanned.
    start = 1 if text.startswith("#") else 0
    if len(text) - start > limits.MAX_TAG:
        raise _bad(text, start + limits.MAX_TAG, f"has {len(text) - start} characters; at most {limits.MAX_TAG}")
    tag = text[start:].translate(_LOWER)
    if grammar.fullmatch(tag) is None:
        raise _bad(text, *_first_mistake(tag, start))
    return tag


def _first_mistake(tag: str, start: int) -> tuple[int, str]:
    """Where a text that the grammar refuses goes wrong, and how."""
    if not tag:
        return start, "is empty; a tag has at least one character"
    before = "/"
    for index, character in enumerate(tag):
        if character not in _CHARACTERS:
            place = f"{character!a} (character {start + index + 1})"
            return start + index, f"cannot hold {place}; a tag is made of a-z 0-9 . _ : / -"
        if character == before == "/":
            return start + index, "has an empty part; '/' stands between two parts of a tag"
        before = character
    return start + len(tag) - 1, "ends with '/'; '/' stands between two parts of a tag"


def _bad(text: str, position: int, why: str) -> BadTag:
    cut = text if len(text) <= 80 else text[:77] + "..."
    # ascii(): a tag may hold characters that reorder or erase what a terminal shows.
    return BadTag(f"the tag {cut!a} {why}", tag=ascii(cut)[1:-1], position=position)
