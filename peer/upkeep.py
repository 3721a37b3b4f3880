"""Looking after a running peer's store, for the operator of its machine: `verify`, `verifying`, `compact`.

The operator is whoever holds the client key of the folders that the peer runs in. Others are refused: a check reads
everything there is, and what it finds is not for strangers.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any, Final

from peer.calls import Answer
from peer.folders import Folders
from peer.keys import is_operator
from peer.payloads import MemoryPayload
from peer.store.store import Store
from peer.store.upkeep import VerifyReport
from protocol.errors import BadRequest, Denied
from protocol.rows import pack_rows

_FINDINGS: Final = 50  # of the database that are told; the log of the peer has no more use for the thousandth either
_TEXT: Final = 500  # characters of one


class Upkeep:
    """Gets the store, and the folders whose client key is the operator's."""

    def __init__(self, store: Store, folders: Folders) -> None:
        self._store = store
        self._folders = folders
        self._progress: tuple[int, int] | None = None

    async def verify(self, asker: str) -> Answer:
        """Check everything that is stored. Cancelling ends it. One at a time: BadRequest."""
        self._check_operator(asker)
        if self._progress is not None:
            raise BadRequest("a check is under way already: wait for its end")
        self._progress = 0, 0
        try:
            report = await self._store.verify_all(self._moved)
        finally:
            self._progress = None
        facts = verified(report)
        return Answer(facts, MemoryPayload(pack_rows(facts.pop("damaged"))))

    def _moved(self, done: int, of: int) -> None:
        self._progress = done, of

    def verifying(self, asker: str) -> Answer:
        """How far the check is: bytes done, bytes in all; nothing where there is none."""
        self._check_operator(asker)
        return Answer({} if self._progress is None else {"done": self._progress[0], "of": self._progress[1]})

    async def compact(self, asker: str) -> Answer:
        """Free what nothing needs any more."""
        self._check_operator(asker)
        return Answer(asdict(await self._store.compact()))

    def _check_operator(self, asker: str) -> None:
        if not is_operator(asker, self._folders.key_file("client")):
            raise Denied(
                "only the operator of this peer's machine looks after its store: ask them to run 'grid verify' or "
                "'grid compact' there, as the user who started the peer"
            )


def verified(report: VerifyReport) -> dict[str, Any]:
    """The report as a map, bounded where a message is."""
    damaged = [{**asdict(damage), "what": damage.what[:_TEXT]} for damage in report.damaged]
    database = [text[:_TEXT] for text in report.database[:_FINDINGS]]
    counts = {"objects": report.objects, "blobs": report.blobs, "bytes": report.bytes}
    return {**counts, "damaged": damaged, "database": database}
