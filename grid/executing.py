"""Programs to peers: each run is one request, and the program itself goes along only where the peer lacks it.

Small results ride along in the answer: their pointers have the value already, for as long as nothing else was asked of
that peer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from compute.dtypes import DTYPE_OF
from compute.outputs import references
from compute.program import Program
from compute.values import decode
from grid.handle import Handle
from grid.ids import fresh_id
from grid.pointer import Pointer
from grid.reports import RunReport
from peer.calls import Response
from protocol import limits
from protocol.errors import BadProgram, BadTensor, NotFound
from protocol.tensors import TensorHeader

if TYPE_CHECKING:
    from grid.remote import RemotePeer


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
        outs = [fresh_id() for _ in references(program.outputs)]
        args: dict[str, Any] = {"program": program.id, "inputs": list(inputs), "outs": outs}
        if contents:
            args["contents"] = dict(contents)
        if name:
            args["name"] = name[: limits.MAX_OBJECT_NAME]
        watching = watched.get()
        if watching is None:
            answer = await self._known_or_sent(home, program, args)
        else:
            answer = await self._watched(watching, home, program, args)
        headers = [TensorHeader.from_wire(header) for header in answer.result["results"]]
        if len(headers) != len(outs):
            raise BadTensor(f"{home.name} gave {len(headers)} results of a program that has {len(outs)}")
        if answer.result.get("values"):
            _keep_small(home, outs, headers, answer)
        made = (
            Pointer.of(Handle(home, out, owns=True, record=record), DTYPE_OF[header.dtype], header.shape)
            for out, header in zip(outs, headers, strict=True)
        )
        return rebuilt(program.outputs, made)

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

    async def _known_or_sent(self, home: RemotePeer, program: Program, args: dict[str, Any]) -> Response:
        """The answer; the program goes along where the peer does not have it."""
        outbox, key = home.outbox, (home.id, program.id)
        link = await outbox.flush() if outbox.has_operations else outbox.link
        released = outbox.take_released()
        if released:
            args["release"] = released
        code = b"" if key in self._known else program.to_bytes()
        try:
            answer = await link.post("execute", args, code, now=True)
        except NotFound:
            if code:
                raise
            self._known.discard(key)  # its worker is a new one
            answer = await link.post("execute", args, program.to_bytes(), now=True)
        self._known.add(key)
        return answer


def _keep_small(home: RemotePeer, outs: Sequence[bytes], headers: Sequence[TensorHeader], answer: Response) -> None:
    """The results whose values came along."""
    payload, at = memoryview(answer.payload), 0
    for number in answer.result.get("values", ()):
        if type(number) is not int or not 0 <= number < len(outs):
            raise BadTensor(f"{home.name} gave the value of a result that the program has not")
        data = bytes(payload[at : at + headers[number].nbytes])
        headers[number].check_payload(len(data))
        home.came.keep(outs[number], headers[number], data)
        at += len(data)


def rebuilt(template: Any, made: Iterator[Pointer]) -> Any:
    """The function's own result structure, with pointers in it."""
    if isinstance(template, list):
        return [rebuilt(item, made) for item in template]
    if isinstance(template, Mapping):
        if "tuple" in template:
            return tuple(rebuilt(item, made) for item in template["tuple"])
        if "map" in template:
            entries = {key: rebuilt(item, made) for key, item in sorted(template["map"].items())}
            return {key: entries[key] for key in template["map"]}
        is_value = "node" in template or "constant" in template
        return next(made) if is_value else decode(template, _no_tensor)
    return template


def _no_tensor(id: bytes) -> Any:
    raise BadProgram("a program's outputs name no objects")
