"""The requests about programs and what runs: `execute`, `running`, `cancel` (SPEC.md, 10)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable
from functools import partial

from peer.calls import Answer, Call, GiveUp
from peer.leases import LeaseKey
from peer.objects import check_id
from peer.payloads import MemoryPayload
from peer.programs import Asked, Programs, answer_of
from peer.runs import Runs
from peer.worker.remote import Made
from protocol import limits
from protocol.errors import BadProgram, BadRequest, GridError
from protocol.rows import pack_rows


class ProgramRequests:
    """Serves them. Gets its parts from `Requests`; `name` is the peer's."""

    def __init__(self, programs: Programs, runs: Runs, name: str, lease_of: Callable[[Call], LeaseKey]) -> None:
        self._programs = programs
        self._runs = runs
        self._name = name
        self._lease_of = lease_of

    def at_once(self, call: Call, answer: Callable[[Answer | GridError], None]) -> bool | GiveUp:
        """`execute` without a task; see AtOnce."""

        def then(made: Made | GridError) -> None:
            if isinstance(made, GridError):
                made.peer = made.peer or self._name
                answer(made)
            else:
                answer(Answer(*answer_of(made)))

        if call.nbytes:
            return False
        try:
            asker, asked = call.connection.remote.id, Asked.of(call.args)
            return self._programs.execute_at_once(asker, partial(self._lease_of, call), asked, then) or False
        except GridError:
            return False  # `execute` says what is wrong

    async def execute(self, call: Call) -> Answer:
        """Run a program, which comes along where it is not known here."""
        asked = Asked.of(call.args)
        if call.nbytes > limits.MAX_PROGRAM:
            raise BadRequest(f"a program of {call.nbytes} bytes; at most {limits.MAX_PROGRAM}")
        code = None
        if call.nbytes:
            code = bytes(call.payload) if call.stream is None else b"".join([bytes(c) async for c in call.stream])
            if hashlib.sha256(code).hexdigest() != asked.program:
                raise BadProgram("these bytes are not the program of that id")
        made = await self._programs.execute(call.connection.remote.id, self._lease_of(call), asked, code)
        return Answer(*answer_of(made))

    async def running(self, call: Call) -> Answer:
        """What runs, of what the asker may see."""
        id, seen = call.args.get("id"), self._runs.seen_by(call.connection.remote.id)
        shown = [run.record() for run in seen if id is None or run.id == id]
        return Answer({"truncated": len(shown) > limits.MAX_HITS}, MemoryPayload(pack_rows(shown[: limits.MAX_HITS])))

    async def cancel(self, call: Call) -> Answer:
        """End a run; answered when it has ended."""
        over: asyncio.Future[None] = asyncio.get_running_loop().create_future()

        def told() -> None:
            if not over.done():
                over.set_result(None)

        self._runs.stop(call.connection.remote.id, check_id(call.args.get("id")), told)
        await over
        return Answer({})
