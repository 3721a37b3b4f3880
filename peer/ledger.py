"""What was asked once and for all: so that a request that comes again over another connection takes no effect again.

Decides; waits for nothing. A client numbers its requests (`once`, rising), a ledger keeps for each lease which numbers
were begun and what they came to, until the client says (`seen`) that it has the answers. Numbers rise on every
connection of a lease, and what was unanswered is sent again in order: so a number up to the highest begun, of which
nothing is known here, was begun and its answer is not kept.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Callable
from typing import Final
from weakref import WeakValueDictionary

import msgpack

from peer.calls import Answer
from peer.leases import LeaseKey
from protocol import limits
from protocol.errors import GridError, PeerLost, TooLarge

Heard = Answer | GridError
_ENTRY_BYTES: Final = 512  # what an answer without anything to speak of takes here
_MAX_RUNNING: Final = 2 * limits.MAX_REQUESTS  # of one lease: those of a connection that broke, and their successors
_MAX_RUNNING_OF_ONE: Final = 4 * _MAX_RUNNING  # of all leases of one principal
_MAX_WAITERS: Final = 4  # of one entry: each stands for a connection, and all but the newest of them are broken
_SMALL: Final = frozenset({int, float, bool, str, type(None)})
_LISTS: Final = frozenset({list, tuple})


def forgotten(op: str) -> PeerLost:
    """The answer to a request that was begun before, where the first answer is not there any more."""
    return PeerLost(
        f"this {op} was begun before the connection broke, and its answer is not kept: whether it took effect is not "
        "known; look before you ask again",
        operation=op,
    )


class Entry:
    """One request that was begun. `answer` once it is known; until then `waiters` are those who came for it again."""

    __slots__ = ("answer", "end", "is_running", "nbytes", "once", "op", "task", "waiters")

    def __init__(self, once: int, op: str) -> None:
        self.once = once
        self.op = op
        self.answer: Heard | None = None
        self.is_running = True
        self.nbytes = 0
        self.task: asyncio.Task[None] | None = None  # what works on it, where that is a task
        self.end: Callable[[], None] | None = None  # ends what works on it, where that is none and may take long
        self.waiters: list[Callable[[Heard], None]] | None = None


class _Running:
    """How many requests of one principal are under way, of all its leases."""

    __slots__ = ("__weakref__", "count")

    def __init__(self) -> None:
        self.count = 0


class Ledger:
    """The requests of one lease: at most `limits.LEDGER_BYTES` of answers, and 2 x limits.MAX_REQUESTS of them."""

    def __init__(self, book: Ledgers, of_all: _Running) -> None:
        self._book = book
        self._of_all = of_all
        self._entries: dict[int, Entry] = {}  # in the order of their numbers
        self._last = 0
        self._running = 0  # begun, and what works on it has not ended: whatever became of the entry
        self.tasks: set[asyncio.Task[None]] = set()  # that work on requests of this lease
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._entries)

    def started(self, entry: Entry, task: asyncio.Task[None]) -> None:
        """This task works on it, whether its connection is there or not."""
        entry.task = task
        self.tasks.add(task)
        task.add_done_callback(lambda ended: self._ended(entry, ended))

    def _ended(self, entry: Entry, task: asyncio.Task[None]) -> None:
        self.tasks.discard(task)
        self._rests(entry)

    def _rests(self, entry: Entry) -> None:
        """Nothing works on it any more."""
        if entry.is_running:
            entry.is_running = False
            self._running -= 1
            self._of_all.count -= 1

    def begin(self, once: int, op: str, seen: int | None = None) -> Entry | None:
        """A request of this number is begun; None where it was begun before. Answers to numbers below `seen` have
        arrived: they go, up to the first one that is under way.

        Raises:
            TooLarge: too many of this lease, or of this principal, are under way; it was not begun.
        """
        entries = self._entries
        if seen is not None:
            gone = 0
            while entries and (first := next(iter(entries))) < seen and entries[first].answer is not None:
                gone += entries.pop(first).nbytes
            self.nbytes -= gone
            self._book.nbytes -= gone
        if once <= self._last:
            return None
        if self._running >= _MAX_RUNNING or self._of_all.count >= _MAX_RUNNING_OF_ONE:
            raise TooLarge(
                f"{self._running} requests of this client are under way: wait for answers", limit="MAX_REQUESTS"
            )
        self._last = once
        self._running += 1
        self._of_all.count += 1
        entry = entries[once] = Entry(once, op)
        return entry

    def again(self, once: int, op: str, waiter: Callable[[Heard], None]) -> Entry | None:
        """One that was begun came again: `waiter` is called with the answer, now or when it is there. The entry, if
        it is to be waited for. Of many waiters only the newest wait on: the others hear that the answer is gone."""
        entry = self._entries.get(once)
        if entry is None:
            waiter(forgotten(op))
        elif entry.answer is not None:
            waiter(entry.answer)
        else:
            if entry.waiters is None:
                entry.waiters = []
            entry.waiters.append(waiter)
            if len(entry.waiters) > _MAX_WAITERS:
                entry.waiters.pop(0)(forgotten(op))
            return entry
        return None

    def leave(self, entry: Entry, waiter: Callable[[Heard], None]) -> None:
        """It does not wait any more: its connection is over."""
        if entry.waiters is not None and waiter in entry.waiters:
            entry.waiters.remove(waiter)

    def answered(self, entry: Entry, answer: Heard | None) -> None:
        """What it came to; None for an answer that cannot be kept, being large."""
        heard = forgotten(entry.op) if answer is None else answer
        if isinstance(heard, GridError):
            heard = heard.again()  # without what its traceback holds on to
        waiters, entry.waiters = entry.waiters, None
        if entry.task is None:
            self._rests(entry)
        if self._entries.get(entry.once) is entry:
            nbytes = _size(heard)
            self._count(nbytes - entry.nbytes)
            entry.answer, entry.nbytes = heard, nbytes
            if self.nbytes > limits.LEDGER_BYTES or len(self._entries) > _MAX_RUNNING:
                self._shrink()
        for waiter in waiters or ():
            waiter(heard)

    def give_up(self, entry: Entry) -> None:
        """The client does not want it any more: what works on it ends."""
        self._remove(entry)
        if entry.task is not None:
            entry.task.cancel()
        elif entry.end is not None:
            entry.end()
        waiters, entry.waiters = entry.waiters, None
        for waiter in waiters or ():
            waiter(forgotten(entry.op))

    def end(self) -> None:
        """Nobody will come for any of them."""
        for entry in list(self._entries.values()):
            self.give_up(entry)
            if entry.task is None:
                self._rests(entry)
        for task in self.tasks:
            task.cancel()  # of those that are in no entry, too

    def _remove(self, entry: Entry) -> None:
        if self._entries.pop(entry.once, None) is not None:
            self._count(-entry.nbytes)

    def _count(self, nbytes: int) -> None:
        self.nbytes += nbytes
        self._book.nbytes += nbytes
        if self._book.nbytes > MAX_BYTES:
            self._book.shrink()

    def _shrink(self) -> None:
        """The oldest answers go."""
        for entry in list(self._entries.values()):
            if self.nbytes <= limits.LEDGER_BYTES and len(self._entries) <= _MAX_RUNNING:
                return
            if entry.answer is not None:
                self._remove(entry)

    def drop_answers(self) -> None:
        for entry in list(self._entries.values()):
            if entry.answer is not None:
                self._remove(entry)


MAX_BYTES: Final = 16 * limits.LEDGER_BYTES  # of all ledgers of a peer


class Ledgers:
    """All ledgers of one peer. When they hold more than MAX_BYTES, those longest unused lose their answers."""

    def __init__(self) -> None:
        self._ledgers: OrderedDict[LeaseKey, Ledger] = OrderedDict()
        self._ending: set[asyncio.Task[None]] = set()  # of ledgers that were forgotten
        self._running: WeakValueDictionary[str, _Running] = WeakValueDictionary()  # by principal; ledgers hold them
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._ledgers)

    def of(self, key: LeaseKey) -> Ledger:
        """The ledger of a lease, for one more connection of it."""
        ledger = self._ledgers.get(key)
        if ledger is None:
            of_all = self._running.setdefault(key[0], _Running())
            ledger = self._ledgers[key] = Ledger(self, of_all)
        self._ledgers.move_to_end(key)
        return ledger

    def forget(self, key: LeaseKey) -> None:
        """The lease is over: what is still under way for it ends."""
        ledger = self._ledgers.pop(key, None)
        if ledger is not None:
            ledger.end()
            for task in ledger.tasks:
                self._ending.add(task)
                task.add_done_callback(self._ending.discard)

    @property
    def tasks(self) -> list[asyncio.Task[None]]:
        """All that works on requests which take effect once."""
        return [*self._ending, *(task for ledger in self._ledgers.values() for task in ledger.tasks)]

    def shrink(self) -> None:
        for ledger in self._ledgers.values():
            if self.nbytes <= MAX_BYTES // 2:
                return
            ledger.drop_answers()


def _size(heard: Heard) -> int:
    """About the bytes that an answer takes here."""
    if isinstance(heard, GridError):
        return _ENTRY_BYTES + len(heard.message) + (len(msgpack.packb(heard.fields)) if heard.fields else 0)
    size = _ENTRY_BYTES
    if type(heard.payload) is bytes:
        size += len(heard.payload)
    for value in heard.result.values():
        if not value or type(value) in _SMALL:
            continue
        is_shape = type(value) in _LISTS and len(value) <= limits.MAX_NDIM and type(value[0]) is int
        if not is_shape:
            size += len(msgpack.packb(value))
    return size
