"""Chunks with credits: what may be sent, and what a receiver refuses."""

from __future__ import annotations

import pytest

from protocol import limits
from protocol.errors import ProtocolError
from protocol.messages import Chunk
from protocol.streams import Streams

WINDOW = 100
CHUNK = 50


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "CHUNK", CHUNK)


def streams(*, dialer: bool = True) -> Streams:
    return Streams(dialer=dialer, window=WINDOW)


def chunk(stream: int, offset: int, nbytes: int) -> Chunk:
    return Chunk(stream, offset, memoryview(bytes(nbytes)))


# --- sending ----------------------------------------------------------------------------------------------


def test_the_dialer_counts_odd_and_the_acceptor_even() -> None:
    ours, theirs = streams(dialer=True), streams(dialer=False)
    assert [ours.open(1) for _ in range(3)] == [1, 3, 5]
    assert [theirs.open(1) for _ in range(3)] == [2, 4, 6]


def fill(ours: Streams, stream: int) -> None:
    """Send as many chunks as the window allows."""
    while ours.outgoing[stream].room:
        ours.chunk(stream, memoryview(bytes(CHUNK)))


def test_a_window_of_bytes_may_be_sent_at_first() -> None:
    ours = streams()
    stream = ours.open(1_000)
    fill(ours, stream)
    assert ours.outgoing[stream].sent == WINDOW


def test_each_credit_allows_as_many_more() -> None:
    ours = streams()
    stream = ours.open(1_000)
    fill(ours, stream)
    ours.credited(stream, CHUNK)
    assert ours.outgoing[stream].room == CHUNK


def test_a_chunk_waits_for_credit_for_all_of_it() -> None:
    ours = streams()
    stream = ours.open(1_000)
    fill(ours, stream)
    ours.credited(stream, CHUNK - 1)
    assert ours.outgoing[stream].room == 0
    ours.credited(stream, 1)
    assert ours.outgoing[stream].room == CHUNK


def test_a_chunk_is_never_larger_than_the_rest() -> None:
    ours = streams()
    assert ours.outgoing[ours.open(7)].room == 7


def test_every_chunk_but_the_last_is_whole() -> None:
    ours = streams()
    stream = ours.open(2 * CHUNK - 1)
    assert ours.outgoing[stream].room == CHUNK
    ours.chunk(stream, memoryview(bytes(CHUNK)))
    assert ours.outgoing[stream].room == CHUNK - 1


def test_chunks_carry_the_bytes_before_as_offset() -> None:
    ours = streams()
    stream = ours.open(WINDOW - 1)
    made = [ours.chunk(stream, memoryview(bytes(n))) for n in (CHUNK, CHUNK - 1)]
    assert [each.offset for each in made if each is not None] == [0, CHUNK]


def test_chunks_carry_hash_and_digest() -> None:
    ours = streams()
    made = ours.chunk(ours.open(3), memoryview(bytes(3)), 7, bytes(16))
    assert made is not None and (made.hash, made.digest) == (7, bytes(16))


def test_a_stream_is_over_with_its_last_byte() -> None:
    ours = streams()
    stream = ours.open(3)
    ours.chunk(stream, memoryview(bytes(3)))
    assert stream not in ours.outgoing
    assert ours.chunk(stream, memoryview(b"x")) is None


@pytest.mark.parametrize("nbytes", [0, CHUNK - 1, CHUNK + 1])
def test_a_chunk_beyond_the_room_is_a_mistake_of_ours(nbytes: int) -> None:
    ours = streams()
    stream = ours.open(1_000)
    with pytest.raises(ValueError, match="room"):
        ours.chunk(stream, memoryview(bytes(nbytes)))


def test_credit_for_a_finished_stream_means_nothing() -> None:
    ours = streams()
    ours.credited(1, 10)
    stream = ours.open(1)
    ours.chunk(stream, memoryview(b"x"))
    ours.credited(stream, 10)
    assert not ours.outgoing


def test_credit_without_end_does_not_grow_without_end() -> None:
    ours = streams()
    stream = ours.open(1_000)
    for _ in range(3):
        ours.credited(stream, limits.MAX_TENSOR)
    assert ours.outgoing[stream].credit == limits.MAX_TENSOR


def test_only_so_many_streams_of_ours_run_at_once() -> None:
    ours = streams()
    opened = [ours.open(5) for _ in range(limits.MAX_STREAMS)]
    assert not ours.has_room
    with pytest.raises(ValueError, match="under way"):
        ours.open(5)
    ours.chunk(opened[0], memoryview(bytes(5)))
    assert ours.has_room


# --- receiving --------------------------------------------------------------------------------------------


def test_chunks_are_taken_in_order() -> None:
    ours = streams()
    ours.announced(2, CHUNK + 5)
    assert ours.arrived(chunk(2, 0, CHUNK)) and ours.arrived(chunk(2, CHUNK, 5))
    assert not ours.incoming


@pytest.mark.parametrize("offset", [0, 1, CHUNK - 1, CHUNK + 1, 2 * CHUNK])
def test_a_gap_or_overlap_is_refused(offset: int) -> None:
    ours = streams()
    ours.announced(2, 3 * CHUNK)
    ours.arrived(chunk(2, 0, CHUNK))
    assert not ours.expects(2, offset, CHUNK)
    with pytest.raises(ProtocolError, match=f"stands at {CHUNK}"):
        ours.arrived(chunk(2, offset, CHUNK))


def test_more_bytes_than_announced_are_refused() -> None:
    ours = streams()
    ours.announced(2, 10)
    assert not ours.expects(2, 0, 11)
    with pytest.raises(ProtocolError, match="more than its 10 bytes"):
        ours.arrived(chunk(2, 0, 11))


@pytest.mark.parametrize("nbytes", [1, CHUNK - 1])
def test_a_chunk_that_is_not_whole_is_refused(nbytes: int) -> None:
    ours = streams()
    ours.announced(2, 2 * CHUNK)
    assert not ours.expects(2, 0, nbytes)
    with pytest.raises(ProtocolError, match=f"{CHUNK} are due"):
        ours.arrived(chunk(2, 0, nbytes))


def test_more_bytes_than_credited_are_refused() -> None:
    ours = streams()
    ours.announced(2, 1_000)
    for offset in range(0, WINDOW, CHUNK):
        ours.arrived(chunk(2, offset, CHUNK))
    assert not ours.expects(2, WINDOW, CHUNK)
    with pytest.raises(ProtocolError, match="credit"):
        ours.arrived(chunk(2, WINDOW, CHUNK))


def test_what_was_put_away_may_be_sent_again() -> None:
    ours = streams()
    ours.announced(2, 1_000)
    for offset in range(0, WINDOW, CHUNK):
        ours.arrived(chunk(2, offset, CHUNK))
    assert ours.consumed(2, CHUNK)
    assert ours.expects(2, WINDOW, CHUNK) and ours.arrived(chunk(2, WINDOW, CHUNK))


def test_no_credit_is_given_for_what_may_be_sent_anyway() -> None:
    ours = streams()
    ours.announced(2, WINDOW)
    ours.arrived(chunk(2, 0, CHUNK))
    assert not ours.consumed(2, CHUNK)
    assert not ours.consumed(99, CHUNK)


@pytest.mark.parametrize("stream", [1, 3, 2, 4])
def test_a_stream_that_was_never_announced_is_refused(stream: int) -> None:
    with pytest.raises(ProtocolError, match="never announced"):
        streams().arrived(chunk(stream, 0, 1))


@pytest.mark.parametrize(("dialer", "stream"), [(True, 1), (True, 7), (False, 2), (False, 8)])
def test_a_stream_of_the_wrong_parity_is_refused(dialer: bool, stream: int) -> None:
    with pytest.raises(ProtocolError, match="not a new stream"):
        streams(dialer=dialer).announced(stream, 10)


@pytest.mark.parametrize("stream", [2, 4])
def test_stream_numbers_only_rise(stream: int) -> None:
    ours = streams()
    ours.announced(4, 10)
    with pytest.raises(ProtocolError, match="not a new stream"):
        ours.announced(stream, 10)


def test_only_so_many_streams_of_theirs_run_at_once() -> None:
    ours = streams()
    for number in range(1, limits.MAX_STREAMS + 1):
        ours.announced(2 * number, 10)
    with pytest.raises(ProtocolError, match="streams at once"):
        ours.announced(2 * limits.MAX_STREAMS + 2, 10)


# --- giving up --------------------------------------------------------------------------------------------


def test_late_chunks_of_an_aborted_stream_are_ignored() -> None:
    ours = streams()
    ours.announced(2, 50)
    ours.forget(2)
    assert not ours.expects(2, 0, 50)
    assert not ours.arrived(chunk(2, 0, 5))
    assert not ours.arrived(chunk(2, 3, CHUNK))


def test_late_chunks_of_a_finished_stream_are_ignored() -> None:
    ours = streams()
    ours.announced(2, 5)
    ours.arrived(chunk(2, 0, 5))
    assert not ours.arrived(chunk(2, 5, 5))


def test_an_aborted_stream_makes_room_for_another() -> None:
    ours = streams()
    for number in range(1, limits.MAX_STREAMS + 1):
        ours.announced(2 * number, 10)
    ours.forget(2)
    ours.announced(2 * limits.MAX_STREAMS + 2, 10)


def test_what_is_aborted_here_sends_no_more() -> None:
    ours = streams()
    stream = ours.open(50)
    ours.forget(stream)
    assert ours.chunk(stream, memoryview(b"x")) is None
