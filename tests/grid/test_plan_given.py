"""What arguments mean, and where a run goes: decided without a grid."""

from __future__ import annotations

import pytest

import grid
from grid.given import PerPeer, as_query, mapped, plain_texts, queries, walk
from grid.placement import Choice, Input, candidates, place
from protocol.errors import BadRequest, NotCollocated, QueryError

QUERIES = [
    "#digits",
    "#digits #test",
    "-#a",
    "(#a | #b) words",
    "kind:model",
    "name: relu",
    "peer:alice x",
    "#a*",
    "SIZE>3",
]
TEXTS = [
    "mean",
    "",
    "hand written",
    "ij,jk->ik",
    "a=b",
    "C#",
    "1e-3",
    "x | y",
    "same-padding",
    "((",
    "max: 3",
    '"quoted"',
]
BROKEN = ["#a!", "#a | (", "kind:modle", "x #", "rows>=many", "(kind:model"]


@pytest.mark.parametrize("text", QUERIES)
def test_a_text_with_a_tag_or_a_field_is_a_query(text: str) -> None:
    assert as_query(text) == text
    assert as_query(grid.text(text)) is None


@pytest.mark.parametrize("text", TEXTS)
def test_any_other_text_is_an_option_of_the_function(text: str) -> None:
    assert as_query(text) is None


@pytest.mark.parametrize("text", BROKEN)
def test_a_text_that_was_meant_as_a_query_and_is_none_is_refused(text: str) -> None:
    with pytest.raises(QueryError):
        as_query(text)
    assert as_query(grid.text(text)) is None


def test_words_alone_are_a_query_where_that_is_said() -> None:
    assert as_query(grid.query("hand written")) == "hand written"
    with pytest.raises(QueryError):
        grid.query("#a |")


def test_what_is_no_text_is_itself() -> None:
    assert all(as_query(value) is None for value in (3, 2.5, None, True, b"#a", ["#a"]))


def test_arguments_are_looked_through_however_deep() -> None:
    given = {"pair": ["#a", ("#b", 3)], "mode": "mean", "again": {"x": "#a"}}
    assert queries(given) == {"#a": "pair.0", "#b": "pair.1.0"}
    assert plain_texts(given) == {"mode": "mean"}
    changed = mapped(given, lambda item: item if isinstance(item, int) else f"<{item}>")
    assert changed == {"pair": ["<#a>", ("<#b>", 3)], "mode": "<mean>", "again": {"x": "<#a>"}}


def test_what_a_map_gave_is_one_argument() -> None:
    results = PerPeer({"alice": 1, "bob": 2})
    assert list(walk({"mean": results})) == [("mean", results)]
    assert results == {"alice": 1, "bob": 2}


# --- where ------------------------------------------------------------------------------------------------

ME = "me"


def at(peer: str, nbytes: int, *labels: str, what: str = "x", key: object = None) -> Input:
    return Input(what, peer, nbytes, frozenset(labels), peer, key)


def test_the_fewest_bytes_travel() -> None:
    chosen = place([at("a", 10), at("b", 900), at("a", 30)], ME)
    assert (chosen.peer, chosen.brought, chosen.nbytes) == ("b", (0, 2), 40)
    assert [one.peer for one in candidates([at("a", 10), at("b", 900), at("c", 500)], ME)] == ["b", "c", "a"]


def test_one_object_that_is_two_inputs_travels_once() -> None:
    same = [at("a", 10, key=1), at("a", 10, key=1), at("b", 15)]
    assert place(same, ME).peer == "b"
    assert place(same, ME).brought == (0,)


def test_what_is_private_stays_and_the_others_come() -> None:
    chosen = place([at("a", 1, "owner"), at("b", 10_000)], ME)
    assert (chosen.peer, chosen.nbytes) == ("a", 10_000)
    found = candidates([at("a", 1, "owner", what="images"), at("b", 10_000)], ME)
    assert [(one.peer, one.forbidden) for one in found] == [("a", ()), ("b", ("images is private and stays at a",))]


def test_ones_own_private_data_may_go() -> None:
    assert place([at("a", 1, ME), at("b", 10)], ME).peer == "b"


def test_private_data_of_two_peers_meet_nowhere_and_it_says_what_to_do() -> None:
    with pytest.raises(NotCollocated, match=r"images at a, labels at b.*copy.*g\.map"):
        place([at("a", 1, "x", what="images"), at("b", 1, "y", what="labels"), at("c", 10**9)], ME)


def test_of_as_cheap_ones_that_which_knows_the_program_is_taken() -> None:
    same = [at("a", 8), at("b", 8)]
    assert place(same, ME).peer == "a"
    assert place(same, ME, Choice(ready={"b"})).peer == "b"


def test_a_peer_may_be_given() -> None:
    assert place([at("a", 10), at("b", 900)], ME, Choice(at=("c", "carol"))).nbytes == 910
    with pytest.raises(NotCollocated, match=r"run at carol.*x at a"):
        place([at("a", 10, "owner")], ME, Choice(at=("c", "carol")))


def test_where_nothing_is_at_a_peer_it_runs_at_that_of_the_plan_if_there_is_one() -> None:
    here = Input("x", None, 10)
    assert place([here], ME, Choice(otherwise=("c", "carol"))).name == "carol"
    with pytest.raises(BadRequest, match="nothing is at a peer"):
        place([here], ME)
