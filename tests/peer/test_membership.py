"""Who is in the grid: ids decide, and nobody speaks for another."""

from __future__ import annotations

from typing import Any

import pytest

from peer.keys import Identity
from peer.membership import Member, Membership, check_name, is_loopback, read_members
from protocol import limits
from protocol.errors import AmbiguousPeer, BadRequest, UnknownPeer


def member(name: str = "bob", id: str | None = None, port: int = 7701) -> Member:
    return Member(id or Identity.generate().id, name, (f"ws://127.0.0.1:{port}",))


@pytest.mark.parametrize("name", ["a", "alice", "node-7", "a.b_c", "7", "x" * limits.MAX_NAME])
def test_a_name_is_letters_digits_and_three_signs(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name",
    ["", "-a", ".a", "_a", "a b", "a/b", "../a", "a\n", "ä", "a\0", "x" * (limits.MAX_NAME + 1), None, 7, b"a"],
    ids=repr,
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(BadRequest, match="no name"):
        check_name(name)


@pytest.mark.parametrize(
    "url", ["ws://127.0.0.1:7700", "ws://localhost:1", "ws://[::1]:7700", "ws://127.9.9.9:1", "ws://LOCALHOST:1"]
)
def test_an_address_of_this_machine_is_loopback(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "ws://",
        "ws://10.0.0.5:7700",
        "ws://169.254.169.254",
        "ws://0.0.0.0:1",
        "ws://[::]:1",
        "ws://example.org",
        "ws://127.0.0.1.example.org",
        "ws://127.0.0.1@example.org",
        "ws://localhost.example.org",
        "ws://2130706433:80",
        "ws://0x7f000001:80",
        "ws://[::1",
        "127.0.0.1:7700",
    ],
)
def test_any_other_address_is_not(url: str) -> None:
    assert not is_loopback(url)


def test_a_member_comes_back_from_the_wire() -> None:
    bob = member()
    assert Member.from_wire(bob.to_wire()) == bob


@pytest.mark.parametrize(
    "wrong",
    [
        {"id": "short"},
        {"id": None},
        {"id": b"x" * 52},
        {"name": ""},
        {"name": "a/b"},
        {"name": None},
        {"urls": []},
        {"urls": None},
        {"urls": "ws://127.0.0.1:1"},
        {"urls": [7]},
        {"urls": [b"ws://127.0.0.1:1"]},
        {"urls": ["ws://127.0.0.1:1"] * (limits.MAX_URLS + 1)},
        {"urls": ["ws://127.0.0.1:1/" + "x" * limits.MAX_URL]},
        {"urls": ["ws://127.0.0.1:1", "ws://169.254.169.254:80"]},
        {"urls": ["ws://[broken"]},
    ],
    ids=repr,
)
def test_a_record_that_breaks_a_rule_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(BadRequest):
        Member.from_wire({**member().to_wire(), **wrong})


@pytest.mark.parametrize("value", [None, [], "bob", 7, {}])
def test_what_is_no_record_is_refused(value: Any) -> None:
    with pytest.raises(BadRequest):
        Member.from_wire(value)


def test_bad_records_among_good_ones_are_left_out() -> None:
    good = [member("bob"), member("carol")]
    rows = [good[0].to_wire(), {}, {**member().to_wire(), "urls": ["ws://10.0.0.1:1"]}, good[1].to_wire()]
    assert read_members(rows) == good


def test_new_members_are_told_once() -> None:
    table, bob, carol = Membership(), member("bob"), member("carol")
    assert table.learn([bob, carol]) == [bob, carol]
    assert table.learn([carol, bob]) == []
    assert table.all() == [bob, carol]


def test_a_member_may_move_and_rename_itself() -> None:
    table, bob = Membership(), member("bob")
    table.learn([bob])
    table.learn([member("robert", bob.id, port=9)])
    assert [(each.name, each.urls) for each in table.all()] == [("robert", ("ws://127.0.0.1:9",))]


def test_what_others_say_of_us_changes_nothing() -> None:
    ours = member("alice")
    for table in (Membership(ours), Membership()):
        table.set_ours(ours)
        assert table.learn([member("mallory", ours.id, port=1)]) == []
        assert table.all() == [ours]


def test_a_full_table_takes_no_more_and_forgets_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_PEERS", 3)
    table, first = Membership(member("alice")), [member("bob"), member("carol")]
    table.learn(first)
    assert table.learn([member(f"m{number}") for number in range(100)]) == []
    assert len(table.all()) == 3
    table.learn([member("bobby", first[0].id)])
    assert table.find("bobby").id == first[0].id


def test_states_are_noted() -> None:
    table, bob = Membership(), member("bob")
    table.learn([bob])
    table.failed(bob.id)
    assert table.find("bob").state == "unreachable"
    table.reached(bob.id)
    assert table.find("bob").state == "alive"
    table.failed(Identity.generate().id)  # of somebody unknown: nothing
    table.forget(bob.id)
    table.forget(bob.id)
    assert table.get(bob.id) is None


def test_a_peer_is_found_by_name_id_or_the_beginning_of_its_id() -> None:
    table, bob = Membership(member("alice")), member("bob")
    table.learn([bob])
    assert table.find("bob") == table.find(bob.id) == table.find(bob.id[:8]) == bob


@pytest.mark.parametrize("name", ["dave", "", "BOB", "bo"])
def test_an_unknown_peer_is_an_error_that_lists_the_known(name: str) -> None:
    table = Membership(member("alice"))
    table.learn([member("bob")])
    with pytest.raises(UnknownPeer, match="known peers: alice, bob"):
        table.find(name)


def test_seven_characters_of_an_id_are_too_few() -> None:
    table, bob = Membership(), member("bob")
    table.learn([bob])
    with pytest.raises(UnknownPeer):
        table.find(bob.id[:7])


def test_two_of_a_name_are_ambiguous_and_both_ids_are_given() -> None:
    table, both = Membership(), [member("bob"), member("bob")]
    table.learn(both)
    with pytest.raises(AmbiguousPeer) as caught:
        table.find("bob")
    assert all(each.id[:12] in caught.value.message for each in both)
    assert table.find(both[0].id) == both[0]


def test_a_peer_that_calls_itself_by_anothers_id_is_not_found_by_it() -> None:
    table, bob = Membership(), member("bob")
    table.learn([member(bob.id), bob])
    assert table.find(bob.id) == bob


def test_of_two_of_a_name_the_one_that_is_alive_is_meant() -> None:
    membership = Membership()
    gone, here = member("bob"), member("bob")
    membership.learn([gone, here])
    membership.failed(gone.id)
    assert membership.find("bob") == here
    membership.failed(here.id)
    with pytest.raises(AmbiguousPeer):
        membership.find("bob")


def test_a_state_travels_with_its_record() -> None:
    membership = Membership()
    bob = member("bob")
    membership.learn([bob])
    membership.failed(bob.id)
    (row,) = [each.to_wire() for each in membership.all()]
    assert Member.from_wire(row).state == "unreachable"
    assert Member.from_wire({**row, "state": 7}).state == "alive"


def test_the_address_that_was_given_stays_the_first_whatever_the_peer_says_of_itself() -> None:
    table = Membership()
    alice = Member(Identity.generate().id, "alice", ("ws://127.0.0.1:7701", "ws://127.0.0.1:7702"))
    table.keep_url(alice.id, "ws://localhost:9999")
    table.learn([alice])
    assert table.find("alice").urls == ("ws://localhost:9999", *alice.urls)
    table.learn([alice])
    table.keep_url(alice.id, "ws://127.0.0.1:7702")
    assert table.find("alice").urls[0] == "ws://127.0.0.1:7702"
    assert len(table.find("alice").urls) == len(set(table.find("alice").urls))
