"""Free text: names, descriptions and what is searched in them."""

from __future__ import annotations

import unicodedata
from functools import lru_cache
from typing import Final

# Composing sorts the marks on one letter, in quadratic time: 4,096 marks took 14 ms. No script comes near this
# many (it is the bound of Unicode's Stream-Safe Text Format, UAX #15), so beyond it the marks stay as they are.
_MAX_MARKS: Final = 30


def fold(text: str) -> str:
    """The form in which texts are compared: no case, accents composed, any white space one blank.

    Both sides of every comparison are folded here, in Python, so that the index in SQL (whose own case
    folding knows ASCII only) and the plain evaluation agree on every script.
    """
    if text.isascii():
        return " ".join(text.lower().split())
    if _has_few_marks(text):
        text = unicodedata.normalize("NFC", text)
    return " ".join(text.casefold().split())


def _has_few_marks(text: str) -> bool:
    marks = 0
    for character in text:
        marks = marks + 1 if unicodedata.combining(character) else 0
        if marks > _MAX_MARKS:
            return False
    return True


@lru_cache(maxsize=8)  # each word of a query asks again for the same record
def searched_text(name: str | None, description: str) -> str:
    """What words are looked for in: the folded name, a line feed, the folded description.

    A folded text holds no line feed, so no phrase matches across the two, and the first line is the name.
    """
    return f"{fold(name or '')}\n{fold(description)}"


def is_text(value: object) -> bool:
    """Whether it is a str that UTF-8 can hold: a lone half of a surrogate pair cannot be stored or sent."""
    if not isinstance(value, str):
        return False
    try:
        return value.isascii() or value.encode() is not None
    except UnicodeEncodeError:
        return False


def first_control(text: str) -> int | None:
    """The index of the first character that no text here may hold (controls other than tab and line ends,
    halves of surrogate pairs), or None. Such characters rewrite terminals, or cannot be stored at all."""
    if text.isprintable():
        return None
    for index, character in enumerate(text):
        if unicodedata.category(character) in ("Cc", "Cs") and character not in "\t\n\r":
            return index
    return None
