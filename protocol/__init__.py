"""What two ends say to each other, without doing any of the saying: no sockets, no clock, no tensors library.

Files in import order:

    SPEC.md        the wire, enough for a second implementation; the code cites its sections
    errors.py      every error, as a tree by blame, and its form on the wire
    limits.py      every limit, with its reason
    sizes.py       sizes: as people read them, and held to their limits
    ids.py         ids of objects
    tensors.py     tensor headers: dtype and shape, checked before anything is allocated
    identity.py    peer ids, and the bytes that each end signs to prove its key
    codec.py       frames: prelude, checked msgpack header, raw payload
    rows.py        long lists as payloads
    messages.py    the messages, as dataclasses that check themselves
    streams.py     chunks with credits: one payload under way, from either side
    handshake.py   the four messages that open a session, as a table of states
    session.py     one session: bytes in, events out
"""
