"""Programs to peers: each run is one request, and the program itself goes along only where the peer lacks it.

Small results ride along in the answer: their pointers have the value already, for as long as nothing else was asked of
that peer.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final

from compute.outputs import references
from compute.program import Program
from grid.ids import fresh_id
from grid.reports import RunReport
from grid.run_results import Looks, Results, rebuilt
from peer.calls import Response
from protocol import limits
from protocol.errors import NotFound

if TYPE_CHECKING:
    from grid.remote import RemotePeer

_REMEMBERED: Final = 256  # programs of whose results it is known what they look like


@dataclass
class Watched:
    """What somebody wants to know of the runs that a call makes: of `g.start` which they are, of `g.profile` what they
    took."""

    wants_reports: bool = False
    under_way: dict[bytes, RemotePeer] = field(default_factory=dict)  # by the id of the run
    reports: list[RunReport] = field(default_factory=list)


watched: ContextVar[Watched | None] = ContextVar("watched", default=None)
"""For the runs of this task, and of those that it makes."""


class Executor:
    """Has programs run, and remembers which peer knows which program."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()  # (peer id, program id)
        self._looks: dict[str, Looks] = {}  # of the results of programs, by id

    def knowing(self, program: Program) -> set[str]:
        """The ids of the peers that have this program already."""
        return {peer for peer, known in self._known if known == program.id}

    async def run(
        self,
        home: RemotePeer,
        program: Program,
        inputs: Sequence[bytes],
        *,
        name: str | None = None,
        record: dict[str, Any] | None = None,
        contents: Mapping[str, bytes] | None = None,
    ) -> Any:
        """The program's outputs, with pointers in them, for these objects of a peer. Cancelling ends the run there.

        Args:
            name: what the run is called in `grid ps`.
            record: what is known of all results.
            inputs: for those that the program does not name by their contents.
            contents: by name, temporaries there with contents that the peer has in no published object.

        Raises:
            GridError: what the program failed with; Cancelled where somebody ended it.
        """
        looks = self._looks.get(program.id)
        outs = [fresh_id() for _ in (references(program.outputs) if looks is None else looks.headers)]
        args: dict[str, Any] = {"program": program.id, "inputs": list(inputs), "outs": outs}
        if contents:
            args["contents"] = dict(contents)
        if name:
            args["name"] = name[: limits.MAX_OBJECT_NAME]
        results = Results(home, outs, record, looks)
        watching = watched.get()
        try:
            if watching is None:
                answer = await self._known_or_sent(home, program, args, results.expect)
            else:
                answer = await self._watched(watching, home, program, args)
        except asyncio.CancelledError:
            for out in outs:  # its answer may be on its way
                home.outbox.release(out)
            raise
        made = results.read(answer)
        if results.looks is not None and results.looks is not looks:
            self._remember(program, results.looks)
        return rebuilt(program.outputs, iter(made))

    def _remember(self, program: Program, looks: Looks) -> None:
        if len(self._looks) >= _REMEMBERED:
            self._looks.clear()
        self._looks[program.id] = looks

    async def _watched(self, watching: Watched, home: RemotePeer, program: Program, args: dict[str, Any]) -> Response:
        """The same under the eyes of somebody."""
        run = args["run"] = fresh_id()
        if watching.wants_reports:
            args["report"] = True
        watching.under_way[run] = home
        try:
            answer = await self._known_or_sent(home, program, args)
            if answer.result.get("report") is not None:
                answer = Response(answer.result, memoryview(await answer.read(limits.MAX_REPORT)), None)
                report = bytes(answer.payload[answer.payload.nbytes - answer.result["report"] :])
                watching.reports.append(RunReport.of(home.name, program, report))
        finally:
            del watching.under_way[run]
        return answer

    async def _known_or_sent(
        self, home: RemotePeer, program: Program, args: dict[str, Any], meanwhile: Callable[[], None] | None = None
    ) -> Response:
        """The answer; the program goes along where the peer does not have it. `meanwhile` is done while it works."""
        outbox, key = home.outbox, (home.id, program.id)
        link = await outbox.flush() if outbox.has_operations else outbox.link
        released = outbox.take_released()
        if released:
            args["release"] = released
        code = b"" if key in self._known else program.to_bytes()
        asked = link.post("execute", args, code, now=True)
        try:
            if meanwhile is not None:
                meanwhile()
            answer = await asked
        except NotFound:
            if code:
                raise
            self._known.discard(key)  # its worker is a new one
            answer = await link.post("execute", args, program.to_bytes(), now=True)
        self._known.add(key)
        return answer
