import unicodedata

import pytest

from search.text import first_control, fold, searched_text


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("MNIST", "mnist"),
        ("Straße", "STRASSE"),
        ("ÉTÉ", "été"),
        ("café", unicodedata.normalize("NFD", "café")),
        ("a \t\n b", "A B"),
        ("  a  ", "a"),
        ("a\u00a0b", "a b"),
    ],
)
def test_texts_that_people_take_for_the_same_fold_alike(one, other):
    assert fold(one) == fold(other)


def test_a_thousand_accents_on_one_letter_stay_in_their_order():
    marks = "a" + "\u0301\u0316" * 500
    assert fold(marks) == marks


def test_name_and_description_are_lines_of_their_own():
    assert searched_text("A\nB", "C\nD") == "a b\nc d"
    assert searched_text(None, "x") == "\nx"


@pytest.mark.parametrize(
    ("text", "index"),
    [("", None), ("a\tb\r\n", None), ("é\u00a0\u200f", None), ("a\0", 1), ("\x1b[", 0), ("a\x9b", 1), ("\udc80", 0)],
)
def test_controls_and_broken_characters_are_found(text, index):
    assert first_control(text) == index
