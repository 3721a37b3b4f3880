"""A pair of sessions back to back: many requests at once, answers in any order, and what ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from protocol import codec, limits
from protocol.errors import BadRequest, Denied, NotFound, PeerError, ProtocolError, QueryError, TooLarge
from protocol.messages import Abort, Chunk, Credit, Fault, Reply, Request

Raw = Callable[..., bytes]


def both(pair: Any, direction: str) -> tuple[Any, Any]:
    return (pair.dialer, pair.acceptor) if direction == "up" else (pair.acceptor, pair.dialer)


ways = pytest.mark.parametrize("direction", ["up", "down"])


# --- requests ---------------------------------------------------------------------------------------------


@ways
def test_a_request_is_answered(pair: Any, direction: str) -> None:
    asker, other = both(pair, direction)
    asker.session.request("describe", {"id": bytes(16)}, b"payload")
    pair.pump()
    (request,) = other.of(Request)
    assert (request.op, request.args, bytes(request.payload)) == ("describe", {"id": bytes(16)}, b"payload")
    other.session.reply(request.id, {"record": {}}, b"back")
    pair.pump()
    (reply,) = asker.of(Reply)
    assert (reply.id, reply.result, bytes(reply.payload)) == (request.id, {"record": {}}, b"back")
    assert not asker.session.unanswered


def test_answers_come_in_any_order(pair: Any) -> None:
    for number in range(5):
        pair.dialer.session.request("fetch", {"number": number})
    pair.pump()
    for request in reversed(pair.acceptor.of(Request)):
        pair.acceptor.session.reply(request.id, request.args)
    pair.pump()
    assert [(reply.id, reply.result["number"]) for reply in pair.dialer.of(Reply)] == [
        (5, 4),
        (4, 3),
        (3, 2),
        (2, 1),
        (1, 0),
    ]


def test_requests_arrive_in_the_order_of_asking(pair: Any) -> None:
    for number in range(100):
        pair.dialer.session.request("run", {"number": number}, bytes(number * 600))
    pair.pump()
    assert [request.args["number"] for request in pair.acceptor.of(Request)] == list(range(100))


def test_both_ends_ask_at_once_with_the_same_numbers(pair: Any) -> None:
    ours = pair.dialer.session.request("status", {})
    theirs = pair.acceptor.session.request("peers", {})
    assert ours.id == theirs.id
    pair.pump()
    pair.acceptor.session.reply(ours.id, {"to": "dialer"})
    pair.dialer.session.reply(theirs.id, {"to": "acceptor"})
    pair.pump()
    assert pair.dialer.of(Reply)[0].result == {"to": "dialer"}
    assert pair.acceptor.of(Reply)[0].result == {"to": "acceptor"}


def test_small_requests_of_one_turn_share_a_message(pair: Any) -> None:
    for _ in range(50):
        pair.dialer.session.request("peers", {})
    assert len(pair.dialer.session.data_to_send()) == 1


def test_no_message_is_larger_than_the_transport_lets_through(pair: Any) -> None:
    for size in (60_000, limits.INLINE_PAYLOAD, 10, 63_000) * 15:
        pair.dialer.session.request("put", {"note": "x" * 900}, bytes(size))
    sent = pair.dialer.session.data_to_send()
    assert max(map(len, sent)) <= limits.MAX_FRAME
    pair.acceptor.take(sent)
    assert len(pair.acceptor.of(Request)) == 60


def test_no_message_has_more_frames_than_allowed(pair: Any) -> None:
    for stream in range(3 * limits.MAX_FRAMES):
        pair.dialer.session.abort_stream(2 * stream + 2, "")
    sent = pair.dialer.session.data_to_send()
    assert [sum(1 for _ in codec.decode(message)) for message in sent] == [limits.MAX_FRAMES] * 3


def test_a_payload_may_change_after_it_was_queued(pair: Any) -> None:
    for payload in (bytearray(b"before"), bytearray(limits.INLINE_PAYLOAD)):
        pair.dialer.session.request("put", {}, payload)
        payload[:] = b"\xff" * len(payload)
    pair.pump()
    first, second = pair.acceptor.of(Request)
    assert bytes(first.payload) == b"before" and not any(second.payload)


def test_arguments_that_cannot_travel_leave_the_session_as_it_was(pair: Any) -> None:
    with pytest.raises(BadRequest):
        pair.dialer.session.request("put", {"id": object()}, stream_bytes=100_000)
    with pytest.raises(TooLarge):
        pair.dialer.session.request("put", {"id": bytes(limits.MAX_HEADER)})
    assert not pair.dialer.session.unanswered and not pair.dialer.session.has_data
    assert pair.dialer.session.has_stream_room
    pair.dialer.session.request("peers", {})
    pair.pump()
    assert len(pair.acceptor.of(Request)) == 1


# --- faults -----------------------------------------------------------------------------------------------


def test_a_fault_answers_its_request_and_the_session_goes_on(pair: Any) -> None:
    pair.dialer.session.request("fetch", {})
    pair.dialer.session.request("peers", {})
    pair.pump()
    pair.acceptor.session.fault(1, Denied("no", peer="alice", owners=["x"]))
    pair.acceptor.session.reply(2, {"peers": []})
    pair.pump()
    (fault,) = pair.dialer.of(Fault)
    assert fault.id == 1 and isinstance(fault.error(), Denied) and fault.error().fields == {"owners": ["x"]}
    assert [reply.id for reply in pair.dialer.of(Reply)] == [2]
    assert pair.dialer.session.is_open and pair.acceptor.session.is_open


@pytest.mark.parametrize(
    "error",
    [
        NotFound("x" * 200_000),
        NotFound("no", operation="o" * 70_000),
        NotFound("no", hint=object()),
        NotFound("no", hint=b"x" * 70_000),
        NotFound("a surrogate \udc80"),
        NotFound("no", hint=2**70),
    ],
    ids=["text", "operation", "unpackable", "large field", "surrogate", "number"],
)
def test_an_error_that_cannot_travel_is_answered_all_the_same(pair: Any, error: NotFound) -> None:
    pair.dialer.session.request("fetch", {})
    pair.pump()
    pair.acceptor.session.fault(1, error)
    pair.pump()
    (fault,) = pair.dialer.of(Fault)
    assert (fault.id, fault.code) == (1, "not_found")
    assert fault.message and len(fault.message) <= limits.MAX_FAULT_TEXT


def test_an_answer_that_cannot_travel_can_still_be_a_fault(pair: Any) -> None:
    pair.dialer.session.request("search", {})
    pair.pump()
    with pytest.raises(TooLarge) as caught:
        pair.acceptor.session.reply(1, {"records": ["x" * 1000] * 100}, stream_bytes=100_000)
    pair.acceptor.session.fault(1, caught.value)
    pair.pump()
    assert isinstance(pair.dialer.of(Fault)[0].error(), TooLarge)
    assert pair.acceptor.session.has_stream_room


def test_a_request_is_answered_once(pair: Any) -> None:
    pair.dialer.session.request("peers", {})
    pair.pump()
    pair.acceptor.session.reply(1, {"first": True})
    pair.acceptor.session.reply(1, {"second": True})
    pair.acceptor.session.fault(1, NotFound("third"))
    pair.pump()
    assert [reply.result for reply in pair.dialer.of(Reply)] == [{"first": True}]
    assert pair.dialer.of(Fault) == []


def test_a_fault_without_id_ends_the_session(pair: Any, raw: Raw) -> None:
    with pytest.raises(ProtocolError, match="that was wrong"):
        pair.dialer.session.receive(raw(7, {"code": "protocol", "message": "that was wrong", "fields": {}}))
    assert pair.dialer.session.is_dead and not pair.dialer.session.has_data


def test_a_fault_of_an_unknown_kind_ends_the_session_as_a_broken_rule(pair: Any, raw: Raw) -> None:
    with pytest.raises(ProtocolError, match="closed: tired"):
        pair.dialer.session.receive(raw(7, {"code": "tired_of_you", "message": "tired", "fields": {}}))


def test_a_query_error_from_a_stranger_is_shown_in_reasonable_length(pair: Any, raw: Raw) -> None:
    fields = {"query": "#a &", "column": 2**62}
    (fault,) = pair.dialer.session.receive(raw(7, {"id": 1, "code": "query", "message": "no", "fields": fields})) or [
        None
    ]
    assert fault is None  # nobody asked
    pair.dialer.session.request("search", {})
    (fault,) = pair.dialer.session.receive(raw(7, {"id": 1, "code": "query", "message": "no", "fields": fields}))
    error = fault.error()
    assert isinstance(error, QueryError) and len(str(error)) < 100


# --- giving up --------------------------------------------------------------------------------------------


def test_the_answer_to_a_request_that_was_given_up_is_ignored(pair: Any) -> None:
    pair.dialer.session.request("fetch", {})
    pair.pump()
    pair.acceptor.session.reply(1, {})
    pair.dialer.session.abort_request(1)
    pair.pump()
    assert pair.dialer.of(Reply) == [] and pair.dialer.session.is_open
    assert [abort.request for abort in pair.acceptor.of(Abort)] == [1]


def test_a_request_that_was_given_up_needs_no_answer(pair: Any) -> None:
    pair.dialer.session.request("fetch", {})
    pair.pump()
    pair.dialer.session.abort_request(1)
    pair.pump()
    pair.acceptor.session.reply(1, {}, stream_bytes=100_000)
    pair.acceptor.session.fault(1, NotFound("no"))
    assert not pair.acceptor.session.has_data and pair.acceptor.session.has_stream_room


def test_requests_that_were_given_up_do_not_count(pair: Any) -> None:
    for _ in range(3 * limits.MAX_REQUESTS):
        made = pair.dialer.session.request("fetch", {})
        pair.dialer.session.abort_request(made.id)
        if not made.id % 500:
            pair.pump()
    pair.pump()
    assert pair.acceptor.session.is_open


def test_a_payload_that_answers_a_request_given_up_is_refused(pair: Any) -> None:
    pair.dialer.session.request("fetch", {})
    pair.pump()
    stream = pair.acceptor.session.reply(1, {}, stream_bytes=100_000).stream
    pair.dialer.session.abort_request(1)
    pair.acceptor.send_chunk(pair.dialer, stream, bytes(100_000))
    pair.pump()
    assert pair.dialer.of(Chunk) == [] and pair.dialer.session.is_open
    assert [abort.stream for abort in pair.acceptor.of(Abort) if abort.stream] == [stream]
    assert pair.acceptor.session.room(stream) is None


@pytest.mark.parametrize("kind", [6, 7])
def test_an_answer_to_nothing_is_ignored(pair: Any, raw: Raw, kind: int) -> None:
    header = {"id": 77, "result": {}, "code": "denied", "message": "", "fields": {}}
    assert pair.dialer.session.receive(raw(kind, header)) == []
    assert pair.dialer.session.is_open


def test_aborts_of_what_does_not_exist_mean_nothing(pair: Any, raw: Raw) -> None:
    for header in ({"stream": 9}, {"stream": 10}, {"request": 9}):
        pair.acceptor.session.receive(raw(10, header))
    assert pair.acceptor.session.is_open


# --- streams ----------------------------------------------------------------------------------------------


@ways
def test_a_payload_of_any_size_goes_in_chunks(pair: Any, direction: str) -> None:
    sender, receiver = both(pair, direction)
    data = bytes(range(256)) * 10_000
    stream = sender.session.request("put", {}, stream_bytes=len(data)).stream
    assert stream == (1 if direction == "up" else 2)
    at = 0
    while (room := sender.session.room(stream)) is not None:
        assert room, "no credit, though everything was put away"
        sender.send_chunk(receiver, stream, data[at : at + room])
        at += room
        pair.pump()
        for chunk in receiver.of(Chunk)[-1:]:
            receiver.session.consumed(stream, len(chunk.payload))
        pair.pump()
    (request,) = receiver.of(Request)
    assert (request.stream, request.nbytes) == (stream, len(data))
    assert b"".join(chunk.payload for chunk in receiver.of(Chunk)) == data


def test_the_acceptors_window_rules_in_both_directions(make_pair: Any) -> None:
    pair = make_pair(window=limits.CHUNK).pump()
    for end in (pair.dialer, pair.acceptor):
        stream = end.session.request("put", {}, stream_bytes=limits.WINDOW).stream
        assert end.session.room(stream) == limits.CHUNK
        end.session.chunk(stream, memoryview(bytes(limits.CHUNK)))
        assert end.session.room(stream) == 0


def test_credits_of_one_turn_are_one_frame(pair: Any) -> None:
    stream = pair.dialer.session.request("put", {}, stream_bytes=4 * limits.WINDOW).stream
    for _ in range(4):
        pair.dialer.send_chunk(pair.acceptor, stream, bytes(limits.CHUNK))
    for _ in range(4):
        pair.acceptor.session.consumed(stream, limits.CHUNK)
    assert pair.acceptor.session.has_data
    pair.pump()
    assert [credit.nbytes for credit in pair.dialer.of(Credit)] == [4 * limits.CHUNK]


def test_a_chunk_carries_its_hash_and_the_last_one_the_digest(pair: Any) -> None:
    stream = pair.dialer.session.request("put", {}, stream_bytes=100_000).stream
    pair.dialer.send_chunk(pair.acceptor, stream, bytes(100_000), hash=(1 << 64) - 1, digest=bytes(16))
    (chunk,) = pair.acceptor.of(Chunk)
    assert (chunk.hash, chunk.digest) == ((1 << 64) - 1, bytes(16))


def test_what_is_sent_and_credited_is_progress(pair: Any) -> None:
    session = pair.dialer.session
    stream = session.request("put", {}, stream_bytes=4 * limits.WINDOW).stream
    seen = [session.progress(stream)]
    pair.dialer.send_chunk(pair.acceptor, stream, bytes(limits.CHUNK))
    seen.append(session.progress(stream))
    pair.acceptor.session.consumed(stream, limits.CHUNK)
    pair.pump()
    seen.append(session.progress(stream))
    assert seen == sorted(set(seen)) and session.progress(99) == -1


def test_a_chunk_that_is_expected_is_taken_before_its_bytes_are_parsed(pair: Any) -> None:
    pair.dialer.session.request("put", {}, stream_bytes=limits.CHUNK + 5)
    pair.pump()
    ours = pair.acceptor.session
    assert ours.expects(1, 0, limits.CHUNK)
    for stream, offset, nbytes in ((3, 0, limits.CHUNK), (1, 1, limits.CHUNK), (1, 0, 5), (1, 0, limits.CHUNK + 1)):
        assert not ours.expects(stream, offset, nbytes)
    assert ours.arrived(Chunk(1, 0, memoryview(bytes(limits.CHUNK))))
    assert ours.expects(1, limits.CHUNK, 5) and not ours.expects(1, limits.CHUNK, 4)
    ours.abort_stream(1, "")
    assert not ours.arrived(Chunk(1, limits.CHUNK, memoryview(bytes(5))))  # it was under way


def test_a_sender_beyond_its_window_ends_the_session(pair: Any, raw: Raw) -> None:
    take = pair.acceptor.session.receive
    take(raw(5, {"id": 1, "op": "put", "args": {}, "stream": 1, "nbytes": 2 * limits.WINDOW}))
    for number in range(limits.WINDOW // limits.CHUNK):
        take(raw(8, {"stream": 1, "offset": number * limits.CHUNK}, bytes(limits.CHUNK)))
    with pytest.raises(ProtocolError, match="credit"):
        take(raw(8, {"stream": 1, "offset": limits.WINDOW}, bytes(limits.CHUNK)))


@pytest.mark.parametrize("nbytes", [1, limits.CHUNK - 1])
def test_a_chunk_that_is_not_whole_ends_the_session(pair: Any, raw: Raw, nbytes: int) -> None:
    take = pair.acceptor.session.receive
    take(raw(5, {"id": 1, "op": "put", "args": {}, "stream": 1, "nbytes": 2 * limits.CHUNK}))
    with pytest.raises(ProtocolError, match="are due"):
        take(raw(8, {"stream": 1, "offset": 0}, bytes(nbytes)))


def test_either_end_may_give_a_stream_up(pair: Any) -> None:
    for giver, other in ((pair.dialer, pair.acceptor), (pair.acceptor, pair.dialer)):
        stream = pair.dialer.session.request("put", {}, stream_bytes=100_000).stream
        pair.pump()
        giver.session.abort_stream(stream, "enough")
        pair.pump()
        assert (other.of(Abort)[-1].stream, other.of(Abort)[-1].message) == (stream, "enough")
        assert pair.dialer.session.room(stream) is None


# --- rules ------------------------------------------------------------------------------------------------


def broken(session: Any, message: bytes) -> str:
    with pytest.raises(ProtocolError) as caught:
        session.receive(message)
    assert session.is_dead
    (last,) = session.data_to_send()
    *_, frame = codec.decode(last)
    assert (frame.type, frame.header["code"]) == (7, "protocol")
    return caught.value.message


def test_too_many_requests_end_the_session(pair: Any, raw: Raw) -> None:
    for number in range(1, limits.MAX_REQUESTS + 1):
        pair.acceptor.session.receive(raw(5, {"id": number, "op": "peers", "args": {}}))
    assert "requests at once" in broken(
        pair.acceptor.session, raw(5, {"id": limits.MAX_REQUESTS + 1, "op": "peers", "args": {}})
    )


def test_answers_that_were_not_sent_count_as_requests(pair: Any, raw: Raw) -> None:
    """An end that asks and never reads makes us store no more than that many answers."""
    for number in range(1, limits.MAX_REQUESTS + 1):
        pair.acceptor.session.receive(raw(5, {"id": number, "op": "peers", "args": {}}))
        pair.acceptor.session.reply(number, {})
    with pytest.raises(ProtocolError, match="requests at once"):
        pair.acceptor.session.receive(raw(5, {"id": limits.MAX_REQUESTS + 1, "op": "peers", "args": {}}))


def test_an_end_that_sends_and_never_reads_is_cut_off(pair: Any, raw: Raw) -> None:
    refusals = range(2, 2 * limits.MAX_UNSENT + 10, 2)
    frames = [raw(6, {"id": 1, "result": {}, "stream": stream, "nbytes": 1}) for stream in refusals]
    frames.append(raw(10, {"stream": 2}))
    with pytest.raises(ProtocolError, match="goes on sending"):
        for at in range(0, len(frames), 100):
            pair.dialer.session.receive(b"".join(frames[at : at + 100]))
        pair.dialer.session.receive(raw(10, {"stream": 2}))


@pytest.mark.parametrize("number", [5, 4, 1])
def test_request_numbers_only_rise(pair: Any, raw: Raw, number: int) -> None:
    pair.acceptor.session.receive(raw(5, {"id": 5, "op": "peers", "args": {}}))
    assert "only rise" in broken(pair.acceptor.session, raw(5, {"id": number, "op": "peers", "args": {}}))


def test_request_numbers_may_leave_gaps(pair: Any, raw: Raw) -> None:
    for number in (3, 4, 900, 2**62):
        pair.acceptor.session.receive(raw(5, {"id": number, "op": "peers", "args": {}}))
    assert pair.acceptor.session.is_open


@pytest.mark.parametrize("kind", [1, 2, 3, 4])
def test_the_handshake_is_not_repeated(pair: Any, raw: Raw, kind: int) -> None:
    header = {
        "versions": [1],
        "version": 1,
        "key": bytes(32),
        "nonce": bytes(32),
        "role": "client",
        "name": "",
        "signature": bytes(64),
        "window": limits.WINDOW,
    }
    assert "after the handshake" in broken(pair.acceptor.session, raw(kind, header))


def test_a_chunk_of_nothing_ends_the_session(pair: Any, raw: Raw) -> None:
    assert "never announced" in broken(pair.acceptor.session, raw(8, {"stream": 1, "offset": 0}, b"x"))


def test_garbage_ends_the_session(pair: Any) -> None:
    assert "magic" in broken(pair.acceptor.session, b"GET / HTTP/1.1\r\nHost: alice\r\n\r\n")


def test_types_of_a_later_version_are_ignored(pair: Any, raw: Raw) -> None:
    message = raw(42, {"anything": [1]}, b"payload") + raw(5, {"id": 1, "op": "peers", "args": {}})
    assert [type(event) for event in pair.acceptor.session.receive(message)] == [Request]


def test_a_reply_with_a_wrong_stream_ends_the_session(pair: Any, raw: Raw) -> None:
    pair.dialer.session.request("fetch", {})
    assert "not a new stream" in broken(pair.dialer.session, raw(6, {"id": 1, "result": {}, "stream": 1, "nbytes": 5}))


def test_an_error_of_an_unknown_code_is_a_peer_error(pair: Any, raw: Raw) -> None:
    pair.dialer.session.request("fetch", {})
    (fault,) = pair.dialer.session.receive(raw(7, {"id": 1, "code": "later", "message": "new", "fields": {}}))
    assert type(fault.error()) is PeerError
