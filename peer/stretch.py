"""A stretch of operations that comes again and again, as the steps of a training do: what is the same each time.

What is not the same are the objects that it is given, the ids of its results, and floats. Whoever has the stretch
needs these alone (SPEC.md, Stretches). Torch-free: client, peer and worker take operations apart in the same way.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from compute.operations import OPERATIONS
from compute.writes import written_positions
from peer.operations import Operation, check_operation
from protocol import limits
from protocol.errors import BadRequest
from protocol.ids import ID_BYTES, splitter

_PLAIN: Final = frozenset({int, bool, str, type(None)})
_FLOATS: Final = frozenset({float})
_CONTAINER: Final = 64  # bytes of memory that an empty list or map takes, about; in a message it takes one
_ITEM: Final = 40  # one item of them, such as a number; of text its characters besides
_STAND_IN: Final = 40  # and a Slot or a Float, which has a number


@dataclass(frozen=True, slots=True)
class Slot:
    """Stands for an object: the ids that a use gives are counted first, then those of the results."""

    number: int


@dataclass(frozen=True, slots=True)
class Float:
    """Stands for a float, by its number among those of the stretch."""

    number: int


class Stretch:
    """Operations without what varies.

    Attributes:
        operations: [name, args, kwargs, outs], with a Slot for each id and a Float for each float.
        given, made, floats: how many of them a use brings.
        written: slots of given objects that it may change in place, in ascending order.
        is_writing: whether it changes anything in place, what it makes itself included.
        nbytes: of memory that it takes, about.
    """

    __slots__ = ("floats", "given", "is_writing", "made", "nbytes", "operations", "written")

    def __init__(self, operations: list[Operation], given: int, made: int, floats: int, nbytes: int) -> None:
        self.operations = operations
        self.given = given
        self.made = made
        self.floats = floats
        self.nbytes = nbytes
        written = [slot.number for operation in operations for slot in _written(operation)]
        self.is_writing = bool(written)
        self.written = tuple(sorted({number for number in written if number < given}))

    @classmethod
    def of(cls, operations: Sequence[Any]) -> Stretch | None:
        """None for what cannot be kept as one: an operation is not in the table (a seed is not), an argument that may
        be changed is not given by position, a result has the id of something else, or an argument is of another form
        than most are."""
        reader = _Reader()
        try:
            read = [reader.read(check_operation(operation)) for operation in operations]
        except (BadRequest, _Unusual):
            return None
        given = len(reader.given)
        slots = {id: number for number, id in enumerate((*reader.given, *reader.made))}
        made = [_numbered(operation, slots) for operation in read]
        return cls(made, given, len(reader.made), reader.floats, reader.nbytes)

    def numbered(self) -> list[Operation]:
        """The operations with the number of each object in place of its id, and 0.0 for each float."""
        ids = [number.to_bytes(ID_BYTES, "big") for number in range(self.given + self.made)]
        return self.filled(ids, [0.0] * self.floats)

    def filled(self, ids: Sequence[bytes], floats: Sequence[float]) -> list[Operation]:
        """The operations of one use; `ids` are those given, and then those of the results."""
        return [_filled(operation, ids, floats) for operation in self.operations]


class Use:
    """A stretch with what the arguments of a `run` request bring for it. BadRequest unless that is what it needs.

    Attributes:
        given, made: the ids, one behind the other.
        ids: those that it is given.
        outs: those of what it makes, in order; each once.
    """

    __slots__ = ("_operations", "floats", "given", "ids", "made", "outs", "stretch")

    def __init__(self, stretch: Stretch, args: dict[str, Any]) -> None:
        given, made, floats = args.get("given", b""), args.get("outs", b""), args.get("floats", [])
        if type(given) is not bytes or type(made) is not bytes or len(given) != ID_BYTES * stretch.given:
            raise BadRequest(f"this stretch is given {stretch.given} objects, of {ID_BYTES} bytes each")
        if len(made) != ID_BYTES * stretch.made:
            raise BadRequest(f"this stretch makes {stretch.made} objects: one id for each of them is needed")
        if type(floats) is not list or len(floats) != stretch.floats or not _FLOATS.issuperset(map(type, floats)):
            raise BadRequest(f"this stretch takes {stretch.floats} floats")
        self.stretch = stretch
        self.given: bytes = given
        self.made: bytes = made
        self.floats: Sequence[float] = floats
        self.ids = splitter(stretch.given)(given)
        self.outs = dict.fromkeys(splitter(stretch.made)(made))
        self._operations: list[Operation] | None = None
        if len(self.outs) != stretch.made:
            raise BadRequest("the outs of a stretch are different object ids")

    @property
    def operations(self) -> list[Operation]:
        """As they would have come one by one."""
        if self._operations is None:
            self._operations = self.stretch.filled([*self.ids, *self.outs], self.floats)
        return self._operations


class Kept:
    """The stretches that the other end of one connection has asked to be kept, each under a number of its choice.

    Attributes:
        principal: who is there.
        nbytes: of memory that they take, about.
    """

    __slots__ = ("_stretches", "nbytes", "principal")

    def __init__(self, principal: str = "") -> None:
        self.principal = principal
        self.nbytes = 0
        self._stretches: dict[int, Stretch] = {}

    def keep(self, number: Any, operations: Sequence[Any], nbytes: int, room: int = limits.STRETCH_MEMORY) -> bool:
        """From now on the stretch of this number is these operations, of so many bytes in a message. False where they
        are not kept, as where all of them would take more memory than `room`; then nothing is, under this number.

        BadRequest: it is no number for a stretch.
        """
        if type(number) is not int or not 0 <= number < limits.MAX_STRETCHES:
            raise BadRequest(f"a stretch has a number from 0 to {limits.MAX_STRETCHES - 1}")
        before = self._stretches.pop(number, None)
        if before is not None:
            self.nbytes -= before.nbytes
        if nbytes > limits.MAX_STRETCH or not 0 < len(operations) <= limits.MAX_BATCH:
            return False
        stretch = Stretch.of(operations)
        if stretch is None or self.nbytes + stretch.nbytes > room:
            return False
        self._stretches[number] = stretch
        self.nbytes += stretch.nbytes
        return True

    def asked(self, args: dict[str, Any]) -> list[Any] | Use:
        """What a `run` request with these arguments asks for: operations (not looked at), or the use of a stretch that
        is kept. BadRequest where it is neither."""
        operations, number = args.get("operations"), args.get("again")
        if type(operations) is list:
            return operations
        if number is None:
            raise BadRequest("operations is a list")
        found = self._stretches.get(number) if type(number) is int else None
        if found is None:
            raise BadRequest("no stretch of this number is kept for this connection: send the operations themselves")
        return Use(found, args)


class _Unusual(Exception):
    """Operations that are not kept."""


class _Reader:
    """Finds what varies. Ids stay where they are for now: how many are given is known at the end."""

    def __init__(self) -> None:
        self.given: dict[bytes, None] = {}
        self.made: dict[bytes, None] = {}
        self.floats = 0
        self.containers = 0
        self.nbytes = 0

    def read(self, operation: Operation) -> Operation:
        name, args, kwargs, outs = operation
        if name not in OPERATIONS:
            raise _Unusual
        name = sys.intern(name)
        self.nbytes += 4 * _CONTAINER + (_ITEM + _STAND_IN) * len(outs) + sum(2 * _ITEM + len(key) for key in kwargs)
        positions = written_positions(name)
        if positions and (len(args) <= max(positions) or any(_has_id(value) for value in kwargs.values())):
            raise _Unusual
        read = [name, [self._value(value) for value in args], {k: self._value(v) for k, v in kwargs.items()}, outs]
        if self.containers > limits.STRETCH_CONTAINERS * limits.MAX_BATCH:
            raise _Unusual
        for out in outs:
            if out in self.given or out in self.made:
                raise _Unusual
            self.made[out] = None
        return read

    def _value(self, value: Any) -> Any:
        kind = type(value)
        if kind is list:
            self.containers += 1
            self.nbytes += _CONTAINER
            return [self._item(item) for item in value]
        if kind is dict:
            self.containers += 1
            self.nbytes += _CONTAINER + sum(2 * _ITEM + len(key) + len(item) for key, item in _constant(value).items())
            return value
        return self._item(value)

    def _item(self, value: Any) -> Any:
        kind = type(value)
        self.nbytes += _ITEM
        if kind is bytes and len(value) == ID_BYTES:
            self.nbytes += _STAND_IN
            if value not in self.made:
                self.given[value] = None
        elif kind is float:
            self.nbytes += _STAND_IN
            self.floats += 1
            return Float(self.floats - 1)
        elif kind not in _PLAIN:
            raise _Unusual
        elif kind is str:
            self.nbytes += len(value)
        return value


def _constant(value: dict[str, Any]) -> dict[str, Any]:
    """The name of a dtype or the like; a tensor that is written out varies, as a rule."""
    if len(value) != 1 or not all(type(item) is str for item in value.values()):
        raise _Unusual
    return value


def _has_id(value: Any) -> bool:
    return type(value) is bytes or (type(value) is list and any(type(item) is bytes for item in value))


def _numbered(value: Any, slots: dict[bytes, int]) -> Any:
    kind = type(value)
    if kind is bytes:
        return Slot(slots[value])
    if kind is list:
        return [_numbered(item, slots) for item in value]
    if kind is dict:
        return {key: _numbered(item, slots) for key, item in value.items()}
    return value


def _filled(value: Any, ids: Sequence[bytes], floats: Sequence[float]) -> Any:
    kind = type(value)
    if kind is Slot:
        return ids[value.number]
    if kind is Float:
        return floats[value.number]
    if kind is list:
        return [_filled(item, ids, floats) for item in value]
    if kind is dict:
        return {key: _filled(item, ids, floats) for key, item in value.items()}
    return value


def _written(operation: Operation) -> list[Slot]:
    """The slots of what an operation may change in place."""
    name, args = operation[0], operation[1]
    return [args[position] for position in written_positions(name) if isinstance(args[position], Slot)]
