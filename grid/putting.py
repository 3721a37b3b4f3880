"""Files into peers, read in pieces as they go: `grid put`. Without torch.

One file that cannot be read does not keep the others; a peer that cannot take more ends it, and what is left is named.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, Protocol

from grid.files.entries import Entry, named
from grid.files.reading import Asked, asked, entries, reader_for
from grid.files.sources import Named
from grid.ids import fresh_id, fresh_model_id
from grid.mesh import Mesh
from grid.searching import Record
from peer.membership import Member
from peer.payloads import Payload
from peer.permissions import checked_reveal
from peer.resuming import Wait, upload
from peer.worker.reader import kept
from protocol import limits
from protocol.errors import GridError, RequestError
from search.records import check_description
from search.tags import parse_tags

_AFTER: Final = "waiting for its disk"


class Bar(Protocol):
    """How far one transfer is: bytes done and in all, and whom it waits for."""

    def __call__(self, done: int, total: int) -> None: ...

    def waiting(self, wait: Wait | None) -> None: ...


class Shown(Protocol):
    """How the user sees what goes on: while the context is open, under that title."""

    def progress(self, title: str, after: str = ...) -> AbstractContextManager[Bar]: ...

    def waiting(self, title: str) -> AbstractContextManager[None]: ...


@dataclass(slots=True)
class Putting:
    """Puts files at one peer. `run` gives (name, record) of each tensor as it is there, durable.

    Attributes:
        tags, description, private, reveal: of all of them.
        name: instead of the file's; where there are several, before it.
        failures: what could not be put and why, by file; filled by `run`, as all below.
        count: how many tensors are there. at_work, file: what is being put now, or was when it ended.
        end: why the peer took no more (its disk is full, it is lost, it refuses), or None; `untried` names the rest.
    """

    mesh: Mesh
    member: Member
    tags: Sequence[str] | str
    description: str = ""
    private: bool = False
    name: str | None = None
    reveal: Sequence[str] = ()
    failures: list[tuple[str, GridError]] = field(default_factory=list)
    count: int = 0
    at_work: str | None = None
    file: str | None = None
    end: GridError | None = None
    untried: list[str] = field(default_factory=list)

    async def run(self, paths: Iterable[str], shown: Shown) -> AsyncIterator[tuple[str, Record]]:
        """What was given is there: each tensor, or model. Ends early where the peer takes no more: see `end`."""
        with kept():
            async for done in self._run(paths, shown):
                yield done

    async def _run(self, paths: Iterable[str], shown: Shown) -> AsyncIterator[tuple[str, Record]]:
        fields = self._fields()
        files = self._asked(paths)
        for number, file in enumerate(files, 1):
            self.file, self.untried = str(file), [str(later) for later in files[number:]]
            try:
                async for title, record in self._put_file(file, fields, len(files) == 1, shown):
                    self.count += 1
                    yield title, record
            except RequestError as error:
                self.failures.append((str(file), error))
            except GridError as error:
                self.end = error
                return
        self.at_work = None

    async def _put_file(
        self, file: Asked, fields: Record, is_only: bool, shown: Shown
    ) -> AsyncIterator[tuple[str, Record]]:
        found = await self._found(file, shown)
        titles = [self._title(file, entry, is_only and len(found) == 1) for entry in found]
        later = self.untried
        for number, (entry, title) in enumerate(zip(found, titles, strict=True), 1):
            self.at_work, self.untried = title, titles[number:] + later
            with shown.progress(f"{title} to {self.member.name}", _AFTER) as bar:
                record = await self._put(file, entry, {**fields, "name": title}, bar)
            yield title, record

    def _fields(self) -> Record:
        """Checked before any file is opened: what is wrong with these is so for all."""
        tags, text = parse_tags(self.tags), check_description("description", self.description)
        fields = {"tags": list(tags), "description": text, "private": self.private}
        return {**fields, "reveal": list(checked_reveal(self.reveal))} if self.reveal else fields

    def _asked(self, paths: Iterable[str]) -> list[Asked]:
        files = []
        for path in paths:
            try:
                files += asked(path)
            except RequestError as error:
                self.failures.append((path, error))
        return files

    async def _found(self, file: Asked, shown: Shown) -> list[Entry]:
        """What is in the file: all of it is looked at before any of it is sent."""
        self.at_work = str(file)
        found = []
        with shown.waiting(f"reading {file}"):
            for entry in entries(file):
                if entry is None:
                    await asyncio.sleep(0)
                else:
                    found.append(entry)
        return found

    def _title(self, file: Asked, entry: Entry, is_one: bool) -> str:
        own = file.name_of(entry)
        return own if self.name is None else self.name if is_one else f"{self.name}/{own}"

    async def _put(self, file: Asked, entry: Entry, fields: Record, bar: Bar) -> Record:
        id = fresh_model_id() if entry.kind == "model" else fresh_id()
        args = {"id": id, **fields, "kind": entry.kind, **entry.header.to_wire()}
        source = _opened(file, entry)
        try:
            await self.mesh.reach(self.member, bar.waiting)
        except BaseException:
            source.close()
            raise
        connect = partial(self.mesh.to, self.member, bulk=source.nbytes > limits.INLINE_PAYLOAD)
        answer = await upload(connect, args, source, self.member.name, bar, bar.waiting)
        return {"peer": self.member.name, "peer_id": self.member.id, **answer.result["record"]}


def _opened(file: Asked, entry: Entry) -> Payload:
    reader = reader_for(file.path)
    expects = reader.expects if reader is not None else "readable"
    name: Any = partial(named, file.path, expects)
    try:
        return Named(entry.open(), name)
    except Exception as error:
        raise name(error) from None
