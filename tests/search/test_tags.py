import pytest

from protocol import limits
from protocol.errors import BadTag, TooLarge
from search import parse_tag, parse_tags, show_tag
from search.tags import parse_prefix


@pytest.mark.parametrize("tag", ["a", "digits", "mnist:v1.2", "radiology/chest/x-ray_2026", "0", "-", "..", "a" * 64])
def test_a_tag_within_the_grammar_stays_as_it_is(tag):
    assert parse_tag(tag) == tag


def test_one_leading_hash_is_dropped_and_shown_again():
    assert parse_tag("#digits") == "digits"
    assert show_tag("digits") == "#digits"
    assert parse_tag("#" + "a" * 64) == "a" * 64


def test_upper_case_ascii_becomes_lower_case():
    assert parse_tag("#MNIST") == "mnist"


@pytest.mark.parametrize(
    ("text", "position"),
    [
        ("", 0),
        ("#", 1),
        ("##a", 1),
        ("a b", 1),
        (" a", 0),
        ("a\n", 1),
        ("a%b", 1),
        ("#a*", 2),
        ("a,b", 1),
        ("tag'\";--", 3),
        ("a\0", 1),
        ("a\u202eb", 1),
        ("café", 3),
        ("\u212a", 0),  # the Kelvin sign: str.lower() makes a plain k of it
        ("/a", 0),
        ("#/a", 1),
        ("a/", 1),
        ("#a/", 2),
        ("a//b", 2),
        ("/", 0),
        ("a" * 65, 64),
        ("#" + "a" * 65, 65),
    ],
)
def test_anything_else_is_refused_at_its_place(text, position):
    with pytest.raises(BadTag) as caught:
        parse_tag(text)
    assert caught.value.fields["position"] == position


def test_the_error_names_the_character_and_counts_from_one():
    with pytest.raises(BadTag, match=r"'%' \(character 3\); a tag is made of a-z 0-9 . _ : / -"):
        parse_tag("ab%")


@pytest.mark.parametrize("text", ["a\0", "a\x1b[2J", "a\u202eb", "a\ud800"])
def test_the_error_shows_no_character_that_acts_on_a_terminal(text):
    with pytest.raises(BadTag) as caught:
        parse_tag(text)
    assert str(caught.value).isprintable() and str(caught.value).isascii()


def test_ten_megabytes_are_refused_in_a_short_message():
    with pytest.raises(BadTag) as caught:
        parse_tag("a" * 10_000_000)
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [None, 7, b"a", ["a"]])
def test_what_is_not_text_is_not_a_tag(value):
    with pytest.raises(BadTag, match="a tag is text"):
        parse_tag(value)


def test_several_tags_keep_their_order_and_lose_their_doubles():
    assert parse_tags(["#b", "a", "B", "#a"]) == ("b", "a")


def test_one_text_is_split_at_white_space():
    assert parse_tags("#a  #b\t#c") == ("a", "b", "c")
    assert parse_tags("") == ()


@pytest.mark.parametrize("value", [b"ab", None, 7, [1], [None], "#a, #b"])
def test_what_is_no_list_of_tags_is_refused(value):
    with pytest.raises(BadTag):
        parse_tags(value)


def test_the_number_of_tags_is_limited():
    names = [f"t{number}" for number in range(limits.MAX_TAGS)]
    assert len(parse_tags(names * 3)) == limits.MAX_TAGS
    with pytest.raises(TooLarge) as caught:
        parse_tags([*names, "one-more"])
    assert caught.value.fields["limit"] == "MAX_TAGS"


@pytest.mark.parametrize("prefix", ["", "a", "radiology/", "a/b", "a/b/"])
def test_a_prefix_may_be_empty_or_end_with_a_slash(prefix):
    assert parse_prefix("#" + prefix) == prefix


@pytest.mark.parametrize("text", ["#/", "#a//", "#a b", "#*"])
def test_a_prefix_is_a_tag_otherwise(text):
    with pytest.raises(BadTag):
        parse_prefix(text)
