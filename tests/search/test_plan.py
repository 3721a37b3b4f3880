import pytest

from protocol import limits
from protocol.errors import ProtocolError, QueryError, TimedOut, Unreachable
from search import Fanout, PeerRef

ALICE = PeerRef("alice", "a" * 52)
BOB = PeerRef("bob", "b" * 52)
CAROL = PeerRef("carol", "c" * 52)
PEERS = (ALICE, BOB, CAROL)


def fanout(query, peers=PEERS):
    return Fanout(query, peers, now=100.0, deadline=103.0)


def seen(records):
    return [(record["peer"], record["id"][-1]) for record in records]


# --- whom to ask ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("query", "names"),
    [
        ("", "alice bob carol"),
        ("#a", "alice bob carol"),
        ("peer:alice #a", "alice"),
        ("-peer:alice #a", "bob carol"),
        ("peer!=alice peer!=bob", "carol"),
        ("peer:alice | peer:bob", "alice bob"),
        ("peer:alice | #a", "alice bob carol"),
        ("-(peer:alice #a)", "alice bob carol"),
        ("-(peer:alice | #a)", "bob carol"),
        ("--peer:alice", "alice"),
        ("peer:alice peer:bob", ""),
        ("(peer:alice | peer:bob) -peer:bob", "alice"),
        ("peer:bbbbbbbb", "bob"),
        ("peer:*a*", ""),
        ("peer:c*", "carol"),
        ("-*", ""),
    ],
)
def test_only_peers_that_can_have_a_match_are_asked(query, names):
    search = fanout(query)
    assert [peer.name for peer in search.ask] == names.split()
    assert search.is_done == (not names)


def test_two_peers_of_one_name_are_two_and_one_id_twice_is_one():
    twin = PeerRef("alice", "d" * 52)
    assert fanout("peer:alice", [ALICE, twin, BOB, ALICE]).ask == (ALICE, twin)


def test_a_wrong_query_asks_nobody():
    with pytest.raises(QueryError):
        fanout("(#a")


def test_the_text_to_send_is_canonical():
    assert fanout("#A   kind=Tensor").text == "#a kind:tensor"


# --- answers ----------------------------------------------------------------------------------------------
def test_answers_come_together_by_peer_then_newest_first(make_record):
    search = fanout("#a")
    one, two, three = make_record("a"), make_record("a"), make_record("a")
    assert seen(search.answered(BOB.id, [one, three], False, 100.5)) == [("bob", 1), ("bob", 3)]
    assert not search.is_done and search.waiting == (ALICE, CAROL)
    search.answered(ALICE.id, [two], False, 101.0)
    search.answered(CAROL.id, [], False, 102.0)
    assert search.is_done
    assert seen(search.hits) == [("alice", 2), ("bob", 3), ("bob", 1)]
    assert search.unreachable == {} and search.truncated == ()


def test_an_object_that_two_peers_hold_is_found_at_both_and_at_each_once(make_record):
    search, record = fanout("#a"), make_record("a")
    search.answered(ALICE.id, [record, record], False, 101.0)
    search.answered(BOB.id, [record], False, 101.0)
    assert seen(search.hits) == [("alice", 1), ("bob", 1)]
    assert search.statistics().dropped == 0


def test_who_holds_it_is_what_we_know_and_not_what_the_answer_says(make_record):
    search = fanout("#a")
    search.answered(BOB.id, [make_record("a") | {"peer": "alice", "peer_id": ALICE.id}], False, 101.0)
    assert [(hit["peer"], hit["peer_id"]) for hit in search.hits] == [("bob", BOB.id)]


def test_peer_terms_are_checked_against_the_answering_peer(make_record):
    search = fanout("peer:alice | #a")
    search.answered(BOB.id, [make_record("b")], False, 101.0)
    search.answered(ALICE.id, [make_record("b")], False, 101.0)
    assert [hit["peer"] for hit in search.hits] == ["alice"]
    assert search.statistics().dropped == 1


def test_hits_that_do_not_match_are_dropped_and_counted(make_record):
    search = fanout("#a -#b rows>=10")
    lies = [make_record("b"), make_record("a", "b"), make_record("a", shape=[9])]
    assert seen(search.answered(ALICE.id, [*lies, make_record("a")], False, 101.0)) == [("alice", 4)]
    assert search.statistics().dropped == 3


@pytest.mark.parametrize("junk", [None, 7, "record", [], {}, {"id": b"x" * 16}])
def test_malformed_records_are_dropped_and_the_others_kept(make_record, junk):
    search = fanout("")
    search.answered(ALICE.id, [junk, make_record()], False, 101.0)
    assert seen(search.hits) == [("alice", 1)]
    assert search.statistics().dropped == 1


@pytest.mark.parametrize("field", ["id", "kind", "owner", "tags", "description", "shape", "nbytes", "created"])
def test_a_field_of_the_wrong_type_drops_its_record(make_record, field):
    search = fanout("")
    search.answered(ALICE.id, [make_record() | {field: object()}], False, 101.0)
    assert search.hits == [] and search.statistics().dropped == 1


@pytest.mark.parametrize("junk", [None, {}, "records", 5, b""])
def test_an_answer_that_is_no_list_counts_as_a_failure(junk):
    search = fanout("", [ALICE])
    assert search.answered(ALICE.id, junk, False, 101.0) == ()
    assert isinstance(search.unreachable[ALICE], ProtocolError)
    assert search.is_done


def test_a_peer_that_has_more_is_named(make_record):
    search = fanout("")
    search.answered(BOB.id, [make_record()], True, 101.0)
    assert search.truncated == (BOB,)


def test_more_records_than_one_peer_may_give_are_cut(make_record):
    search = fanout("")
    search.answered(ALICE.id, [make_record() for _ in range(limits.MAX_HITS + 5)], False, 101.0)
    assert len(search.hits) == limits.MAX_HITS
    assert search.truncated == (ALICE,)


def test_the_hits_of_all_peers_together_are_limited(make_record, monkeypatch):
    monkeypatch.setattr(limits, "MAX_MERGED_HITS", 3)
    search = fanout("")
    search.answered(ALICE.id, [make_record(), make_record()], False, 101.0)
    assert len(search.answered(BOB.id, [make_record(), make_record()], False, 101.0)) == 1
    assert len(search.hits) == 3 and search.truncated == (BOB,)


# --- failures and time ------------------------------------------------------------------------------------
def test_a_failure_is_kept_with_its_reason():
    search = fanout("", [ALICE, BOB])
    error = Unreachable("nobody answers")
    search.failed(BOB.id, error, 101.0)
    assert search.unreachable == {BOB: error}
    assert not search.is_done


def test_at_the_deadline_whoever_is_silent_is_unreachable(make_record):
    search = fanout("")
    search.answered(ALICE.id, [make_record()], False, 101.0)
    search.expired(102.9)
    assert not search.is_done
    search.expired(103.0)
    assert search.is_done
    assert set(search.unreachable) == {BOB, CAROL}
    assert isinstance(search.unreachable[BOB], TimedOut)
    assert "within 3 s" in str(search.unreachable[BOB]) and "bob" in str(search.unreachable[BOB])
    assert seen(search.hits) == [("alice", 1)]


def test_what_comes_late_or_twice_or_unasked_changes_nothing(make_record):
    search = fanout("-peer:carol")
    search.answered(ALICE.id, [make_record()], False, 101.0)
    before = search.statistics(), search.hits
    assert search.answered(ALICE.id, [make_record()], False, 101.0) == ()
    search.failed(ALICE.id, Unreachable("late"), 101.0)
    assert search.answered(CAROL.id, [make_record()], False, 101.0) == ()
    assert search.answered("x" * 52, [make_record()], False, 101.0) == ()
    assert (search.statistics(), search.hits) == before
    assert search.answered(BOB.id, [make_record()], False, 103.0) == ()
    assert set(search.unreachable) == {BOB} and search.hits == before[1]


def test_the_counts_add_up_at_each_moment(make_record):
    search = fanout("")
    search.answered(ALICE.id, [make_record()], False, 101.0)
    search.failed(BOB.id, Unreachable("gone"), 101.0)
    counts = search.statistics()
    assert (counts.asked, counts.answered, counts.failed, counts.waiting, counts.hits) == (3, 1, 1, 1, 1)
    assert repr(search) == "<Fanout '*': 1 of 3 answered, 1 hits>"


def test_nobody_to_ask_is_done_at_once():
    search = fanout("", [])
    assert search.is_done and search.hits == []
