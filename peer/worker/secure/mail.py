"""What comes from the others and from the peer, and what goes to them. One run at a time."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from peer.awake import Lookout, giving_way
from peer.worker import giving
from peer.worker.channel import BlockingChannel
from peer.worker.objects import Objects
from peer.worker.secure.due import Due
from peer.worker.secure.part import BUSY, CREDIT, ROUND, Blame, Part
from peer.worker.secure.wire import Broken, View, Wire
from protocol import limits
from protocol.errors import InternalError

Key = tuple[int, int, int]
"""Sender, kind, number."""


class Mail:
    """The channel to the peer, and the lines to the others, by their ids. See the package's docstring."""

    def __init__(self, channel: BlockingChannel) -> None:
        self._channel = channel
        self._wires: dict[str, Wire] = {}
        self._by_fd: dict[int, str] = {}
        self._index: dict[str, int] = {}  # in this run
        self._poll = select.poll()
        self._poll.register(channel.fileno(), select.POLLIN)
        self._came: dict[Key, bytearray] = {}
        self._said = 0.0  # that we are busy
        self._lookout = Lookout(limits.AWAKE_ROUND, give_way=giving_way())
        self._jobs: list[Mapping[str, Any]] = []
        self.objects = Objects()
        self.part: Part | None = None
        self.due: Due  # in this run
        self.sent = 0  # bytes of rounds, to each other party counted

    def add(self, id: str, wire: Wire) -> None:
        """A line to another. It is not read while there is no run, but its end is seen."""
        self._wires[id] = wire
        self._by_fd[wire.fileno()] = id
        self._poll.register(wire.fileno(), _ENDED)

    # --- runs ---------------------------------------------------------------------------------------------

    def job(self) -> Mapping[str, Any]:
        """Waits for what there is to do. Blame: somebody is gone meanwhile."""
        while not self._jobs:
            self._turn(None)
        return self._jobs.pop(0)

    def begin(self, part: Part) -> None:
        """From now on messages are about this run. InternalError: there is no line to somebody."""
        self.part, self.due = part, Due(part)
        self._index = {part.ids[at]: at for at in part.counterparts}
        self._came.clear()
        self.sent, self._said = 0, time.monotonic()
        for id in self._index:
            if id not in self._wires:
                raise InternalError("a process of a secure run was given no line to another")
            self._resume(id)
            self._poll.modify(self._wires[id].fileno(), self._wires[id].wanted | _ENDED)

    def expect(self, nbytes: int) -> None:
        """So many bytes are due from each other party in the round that this one has come to."""
        self.due.asked = nbytes
        for id in self._index:
            if self._wires[id].is_paused:
                self._resume(id)
                self._poll.modify(self._wires[id].fileno(), self._wires[id].wanted | _ENDED)

    def end(self) -> None:
        """The run is over: all that we have said is gone, and nothing more is taken."""
        self.finish_sending()
        for id in self._index:
            self._poll.modify(self._wires[id].fileno(), _ENDED)
        self.part, self._index = None, {}

    def value(self, id: bytes) -> torch.Tensor:
        """A tensor that was provided, its blocks checked."""
        tensor = self.objects.get(id)
        for each in self.objects.guarded([tensor]):
            each.check()
        return tensor

    # --- coming in ----------------------------------------------------------------------------------------

    def take(self, sender: int, kind: int, number: int, size: int | None = None) -> bytearray:
        """The whole message; of `size` bytes, where that is known. Waits."""
        return self.take_all([(sender, kind, number)], size)[0]

    def take_all(self, keys: Sequence[Key], size: int | None = None) -> list[bytearray]:
        """Several, whichever comes first. Blame: what came has another size, or one does not come."""
        began = time.monotonic()
        while missing := [key for key in keys if key not in self._came]:
            is_round = missing[0][1] == ROUND
            self._wait({sender: _due(kind, number) for sender, kind, number in missing}, began, is_round)
        found = []
        for key in keys:
            found.append(self._came.pop(key))
            if size is not None and len(found[-1]) != size:
                raise Blame(key[0], f"sent {len(found[-1])} bytes where {size} are due")
        return found

    def has(self, sender: int, kind: int, number: int) -> bool:
        return (sender, kind, number) in self._came

    def _wait(self, missing: Mapping[int, str], began: float, is_round: bool = False) -> None:
        """Until something comes or goes, from whomever. Blame: one of these was not heard for too long; and of what it
        was to do. What others send of a round comes as soon as they have computed as much as this one: it is waited
        for awake."""
        assert self.part is not None
        patience = self.part.patience
        self._turn(patience / 4, is_round)
        now = time.monotonic()
        for index, what in missing.items():
            if now - max(began, self._wires[self.part.ids[index]].heard) >= patience:
                raise Blame(index, f"has not {what} for {patience:g} s")
            if now - began >= _LONGEST:
                raise Blame(index, f"has not {what} for {_LONGEST:g} s, however busy it says it is")
        self.busy()

    def _turn(self, timeout: float | None, is_awake: bool = False) -> bool:
        """Takes what comes, and sends what there is room for; False if nothing happened in that time."""

        def sleep() -> list[tuple[int, int]]:
            return self._poll.poll(None if timeout is None else timeout * 1000)

        ready = (self._lookout.wait(lambda: self._poll.poll(0), sleep) if is_awake else sleep()) or ()
        for fd, events in ready:
            id = self._by_fd.get(fd)
            if id is None:
                self._hear_peer()
            else:
                self._attend(id, self._wires[id], events)
        return bool(ready)

    def _attend(self, id: str, wire: Wire, events: int) -> None:
        index = self._index.get(id)
        if index is None:
            if events & _ENDED:  # between runs
                raise Gone(id)
            return
        try:
            if events & select.POLLOUT:
                wire.flush()
                self._poll.modify(wire.fileno(), wire.wanted | _ENDED)
            if wire.is_paused and events & _ENDED:
                raise Broken("it closed its line")
            if events & ~select.POLLOUT and not wire.is_paused:
                wire.receive(lambda *head: self._check(index, *head), lambda *message: self._on(index, *message))
                if wire.is_paused:
                    self._poll.modify(wire.fileno(), wire.wanted | _ENDED)
        except Broken as broken:
            raise Blame(index, f"is gone: {broken}", is_lost=True) from None

    def _resume(self, id: str) -> None:
        index = self._index[id]
        self._wires[id].resume(lambda *head: self._check(index, *head), lambda *message: self._on(index, *message))

    def _check(self, index: int, tag: bytes, kind: int, number: int, total: int) -> bool:
        """Whether it is to be read now. Blame: it is not due."""
        assert self.part is not None
        if kind == BUSY or (kind == CREDIT and tag != self.part.tag):  # the latter of a run that is over
            if total > _SMALL:
                raise Blame(index, f"announced a message of {total} bytes")
            return True
        if tag != self.part.tag:
            raise Blame(index, "was told of another run, or speaks of one that is over")
        if total > limits.SECURE_MESSAGE:
            raise Blame(index, f"announced a message of {total} bytes")
        if (index, kind, number) in self._came:
            raise Blame(index, "sent twice what is due once")
        if len(self._came) >= _MOST:
            raise Blame(index, f"sent more than {_MOST} messages before they were due")
        return self.due.check(index, kind, number, total)

    def _on(self, index: int, tag: bytes, kind: int, number: int, data: bytearray) -> None:
        assert self.part is not None
        if kind != BUSY and tag == self.part.tag:
            self._came[index, kind, number] = data
            self.due.came(kind, len(data))

    def _hear_peer(self) -> None:
        messages = self._channel.receive()
        if messages is None:
            os._exit(0)  # the peer is gone, or has no more use for us
        for each, descriptors in messages:
            self._told(each, descriptors)
            for fd in descriptors:
                os.close(fd)

    def _told(self, each: Any, descriptors: list[int]) -> None:
        match each:
            case ["provide", *fields]:
                giving.take(self.objects, fields, descriptors)
            case ["line", str(id), bool(is_dialler)] if len(descriptors) == 1:
                self.add(id, Wire(descriptors.pop(), is_dialler=is_dialler))
            case ["part", dict(what)]:
                self._jobs.append(what)
            case ["drop", list(ids)]:
                self._jobs.append({"drop": ids})
            case _:
                raise InternalError("a process of a secure session was told what is no part of one")

    # --- going out ----------------------------------------------------------------------------------------

    def tell(self, to: Sequence[int], kind: int, number: int, *pieces: View) -> None:
        """One message to each of these. The bytes must not change before `finish_sending`."""
        assert self.part is not None
        if kind == ROUND:
            self.sent += sum(map(len, pieces)) * len(to)
        for index in to:
            wire = self._wires[self.part.ids[index]]
            try:
                wire.send(self.part.tag, kind, number, pieces)
            except Broken as broken:
                raise Blame(index, f"is gone: {broken}", is_lost=True) from None
            if wire.is_sending:
                self._poll.modify(wire.fileno(), wire.wanted | _ENDED)

    def finish_sending(self) -> None:
        """Until the system has all that was told. Blame: somebody does not take it."""
        assert self.part is not None
        began = time.monotonic()
        while waiting := [index for id, index in self._index.items() if self._wires[id].is_sending]:
            self._wait(dict.fromkeys(waiting, "taken what it was sent"), began)

    def unsent(self, index: int) -> bool:
        """Whether something for this one waits."""
        assert self.part is not None
        return self._wires[self.part.ids[index]].is_sending

    def busy(self) -> None:
        """Says now and then that we are there, to those who may wait for us."""
        assert self.part is not None
        now = time.monotonic()
        if now - self._said >= self.part.patience / 4:
            self._said = now
            self.tell([each for each in self.part.counterparts if not self.unsent(each)], BUSY, 0)

    def say(self, told: Any, descriptors: Sequence[int] = ()) -> None:
        """To the peer."""
        self._channel.send(told, descriptors)


class Gone(Exception):
    """Between runs somebody's line ended; its id."""


_SMALL = 8
_MOST = 1 << 20  # messages that wait: small pieces of corrections are many
_LONGEST = 3_600.0  # seconds of one wait, however busy the other says that it is
_ENDED = select.POLLHUP | select.POLLERR | getattr(select, "POLLRDHUP", 0x2000)


def _due(kind: int, number: int) -> str:
    return f"sent round {number}" if kind == ROUND else "sent what is due"
