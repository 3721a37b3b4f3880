"""Transfers that go on after the line broke, seen from the end that asks: `Download` and `upload`.

A transfer fails for lack of progress, however long it takes: STALL_TIMEOUT without a byte on an open line ends that
line's part of it, RESUME_TIMEOUT without a new block ends the transfer. In between it is opened again, over a
new connection where need be, at the last block that was checked (a download) or that the peer says it has (an upload).

    value = await Download.begin(connect, "fetch", {"id": id}, "alice")
    value.result             the map of the first answer; `value.nbytes` bytes follow
    await value.into(memory) all of it into memory of that size, or
    async for piece in value piece by piece, in order, each good until the next is asked for; or
    value.abort()            not wanted after all. One of these three has to be done, once.

    answer = await upload(connect, {"id": id, "kind": "tensor", ...}, payload, "alice")

`connect` gives an open connection, dialling where there is none: `lambda: links.to(member, bulk=True)`. A Download
can stand where a Call or a Response brings bytes (`payload` beside the answer, or `stream`), as in Transfers.receive.
`upload` takes any Payload (peer/payloads.py) that can be read again from an earlier offset; it closes it at the end.

Both tell `progress` how far they are and `waiting` for whom they stand still, from when on and for how long at most.

What the peer answers is final (NotFound, Denied, ...), as is the end of patience: PeerLost or TimedOut, with `done` and
`nbytes`. A block that is not what its hash says is asked for again, BLOCK_TRIES times in all; then another peer with
the same contents is looked for, where `others` are given (elsewhere.py), or it is Corrupt, naming the source. So is the
whole at its end: the digest over the hashes of all blocks is the source's, or Corrupt. The token of the first answer
names the one version that is fetched: where the peer has another one by now, the download fails with Changed, and never
mixes them.
"""

from __future__ import annotations

from peer.downloads import Connect, Download, Origin, Others, Progress
from peer.patience import Wait, Waiting
from peer.uploading import upload

__all__ = ["Connect", "Download", "Origin", "Others", "Progress", "Wait", "Waiting", "upload"]
