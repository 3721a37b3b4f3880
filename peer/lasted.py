"""One request over a link that outlives its connections (lasting.py): until it is answered, or given up."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from peer.asking import Asked
from peer.calls import Response
from protocol import limits
from protocol.errors import GridError, PeerLost

if TYPE_CHECKING:  # it imports this file
    from peer.lasting import Lasting

READS: Final = frozenset({"peers", "status", "search", "describe", "verify", "running"})
"""Requests that change nothing and do not depend on what was asked before: they need no number."""
REPEATABLE: Final = READS | {
    "fetch",
    "put",
    "link",
    "delete",
    "release",
    "edit",
    "offer",
    "pull",
    "collected",
    "introduce",
    "cancel",
}
"""Requests of which the second has the same effect as the first, whatever the other end has forgotten."""
TRANSFERS: Final = frozenset({"pull"})
"""Requests that move objects: begun, they go on after the other end's restart, and are waited for as any transfer."""


class Lasted(Asked):
    """A request of a Lasting: it survives the connections that it was sent over."""

    def __init__(
        self,
        link: Lasting,
        number: int,
        op: str,
        args: dict[str, Any],
        payload: bytes,
        then: Callable[[Response | GridError], None] | None,
    ) -> None:
        super().__init__(loop=link.loop)
        self.link = link
        self.number = number
        self.op = op
        self.args = args
        self.payload = payload
        self.then = then
        self.memory: int | None = None  # of the end that it was sent to last
        self.once: int | None = number
        if op in READS or len(payload) > limits.INLINE_PAYLOAD or (op == "fetch" and "part" in args):
            self.once = None  # what has a stream is too large to be kept for a repetition

    def answer(self, response: Response) -> None:
        self.link.over(self.number)
        Asked.answer(self, response)  # not super(): this is done for every operation

    def fail(self, error: GridError) -> None:
        self.link.over(self.number)
        super().fail(error)

    def lost(self, error: GridError) -> None:
        if self.link.is_closed:
            self.fail(error)  # else the link asks again

    def cancel(self, msg: Any | None = None) -> bool:
        is_cancelled = super().cancel(msg)
        if is_cancelled and self.then is None:
            self.link.over(self.number)
        return is_cancelled

    def may_go_to(self, memory: int | None) -> bool:
        """Whether an end with this memory may be asked, without it taking effect twice."""
        is_remembered = memory is not None and memory == self.memory and self.once is not None
        return not self.is_sent or is_remembered or self.op in REPEATABLE

    def waits_on(self, age: float) -> bool:
        """Whether it is still waited for, so long after the line broke, when the others are not."""
        return self.is_sent and self.op in TRANSFERS and age < limits.RESUME_TIMEOUT

    def unknown(self, why: str) -> PeerLost:
        """The error of one that was sent, and is not asked again; the reason alone is its field `why`."""
        effect = ", and whether it took effect is not known"
        advice = ". Look what is there before you ask again"
        if self.op in READS or self.op == "fetch":
            effect = advice = ""
        name = self.link.name
        return PeerLost(
            f"the connection to {name} broke while {self.op} was under way{effect}: {why}{advice}",
            operation=self.op,
            peer=name,
            why=why,
        )

    def unsent(self, error: GridError) -> GridError:
        """The error of one that never left."""
        made = error.again()
        made.operation = made.operation or self.op
        return made
