"""One eager operation, from its wire form to its results' ids."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

import torch

from compute import interpreter, table, values
from compute.dtypes import NAME_OF
from compute.estimate import Estimate
from compute.writes import CHECK, written_positions
from peer.seeds import SEED
from peer.worker import repeated
from peer.worker.faults import as_error
from peer.worker.mapped import Guarded
from peer.worker.objects import Objects
from peer.worker.operation import name_of, result_ids, unpacked
from peer.worker.picking import check_rows, picked
from peer.worker.randomness import GENERATOR, drawn_by, seed
from protocol.errors import BadRequest, GridError

# torch.utils.deterministic's, without the property around them: two of them are in each operation that is repeated.
is_filling: Final = torch._C._get_deterministic_fill_uninitialized_memory
fill: Final = torch._C._set_deterministic_fill_uninitialized_memory


def execute(objects: Objects, operation: Any) -> list[torch.Tensor] | GridError:
    """Runs it and keeps the results under the ids that it names; gives the results, or what went wrong.

    What went wrong is also kept under those ids, so that everything which needs them fails for the same reason, and
    under the ids of what was to be changed in place, and of all that shares memory with that.
    """
    entry: table.Entry | None = None
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    try:
        name, args, kwargs, outs = unpacked(operation)
        if name == SEED:
            seed(args)
            return []
        entry = table.lookup(name)
        if GENERATOR in kwargs:
            with drawn_by(kwargs.pop(GENERATOR)):
                tensors = _call(objects, entry, args, kwargs)
        else:
            tensors = _call(objects, entry, args, kwargs)
        keep(objects, tensors, outs, entry)
        return tensors
    except Exception as problem:
        return refused(objects, operation, entry, args, kwargs, problem)


def refused(
    objects: Objects,
    operation: Any,
    entry: table.Entry | None,
    args: list[Any],
    kwargs: dict[str, Any],
    problem: Exception,
) -> GridError:
    """Notes what went wrong for those whom it concerns; `args` and `kwargs` have ids in them."""
    error = as_error(problem, name_of(operation))
    ids = list(result_ids(operation))
    viewed = None if entry is None else _viewed(entry, args, kwargs)
    for out in ids:
        objects.fail(out, error, viewed)
    changed = _meant_to_be_written(operation, args) if entry is None else _to_be_written(entry, args, kwargs)
    if name_of(operation) == CHECK and objects.factored[-1:] == tuple(args[:1]):
        # of a singular matrix there is no inverse, whatever stands in its place
        changed = [*changed, *objects.factored]
    objects.spoil(changed, error)
    return error


def _call(objects: Objects, entry: table.Entry, args: list[Any], kwargs: dict[str, Any]) -> list[torch.Tensor]:
    reading = repeated.read(entry, args, kwargs, objects.tensors) if objects.is_on_cpu else None
    plan = None if reading is None else repeated.find(reading)
    if reading is not None and plan is not None and not guarded_among(objects, reading.args, reading.kwargs):
        check_writable(objects, entry, reading.args, reading.kwargs)
        value = repeated.execute(plan, entry, reading)
    else:
        resolve = objects.get
        args = [values.decode(value, resolve) for value in args]
        kwargs = {key: values.decode(value, resolve) for key, value in kwargs.items()}
        value = run(objects, entry, args, kwargs)
        if reading is not None:
            repeated.learn(entry, reading)
    return [value] if isinstance(value, torch.Tensor) else list(tensors_in(value))


def run(objects: Objects, entry: table.Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
    """Runs an operation as it runs anywhere, but what is read-only is not written, and of a stored file nothing is
    used that has not been checked. Where it fails, what it was to change is spoiled."""
    try:
        check_writable(objects, entry, args, kwargs)
        guarded = guarded_among(objects, args, kwargs)
        if not guarded or entry.category == "size" or entry.name in _READ_NOTHING:
            return objects.execute(entry, args, kwargs)
        return _checked(objects, guarded, entry, args, kwargs)
    except Exception as problem:
        spoil_written(objects, entry, args, kwargs, problem)
        raise


def check_writable(objects: Objects, entry: table.Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
    """ReadOnly where it would write what is published."""
    if entry.writes:
        for position in entry.written(args, kwargs):
            for tensor in _listed(entry.argument(position, args, kwargs)):
                if isinstance(tensor, torch.Tensor):
                    objects.check_writable(tensor)


def spoil_written(
    objects: Objects, entry: table.Entry, args: Sequence[Any], kwargs: Mapping[str, Any], problem: Exception
) -> None:
    """An operation on these tensors has failed. In a program they have no ids, but may be views of what has one."""
    if entry.writes:
        given = [_listed(entry.argument(position, args, kwargs)) for position in entry.written(args, kwargs)]
        tensors = [tensor for items in given for tensor in items if isinstance(tensor, torch.Tensor)]
        objects.spoil_memory(tensors, as_error(problem, entry.name))


def guarded_among(objects: Objects, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Guarded]:
    """Those of the arguments that lie on memory which is to be checked before it is read."""
    return objects.guarded([*args, *kwargs.values()]) if objects.guards else []


def executor(objects: Objects) -> interpreter.Execute:
    """How the operations of a program run on these objects."""
    return _Executor(objects) if objects.is_on_cpu else partial(run, objects)


class Unfilled:
    """What `process.warm` has torch fill is not filled in this context."""

    __slots__ = ("_was",)

    def __enter__(self) -> None:
        self._was = is_filling()
        fill(False)

    def __exit__(self, *_: object) -> None:
        fill(self._was)


class _Executor:
    """`run`; and of operations that look like one which was checked, only what hangs on these tensors is looked at."""

    __slots__ = ("_objects",)

    unfilled = Unfilled

    def __init__(self, objects: Objects) -> None:
        self._objects = objects

    def __call__(self, entry: table.Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        return run(self._objects, entry, args, kwargs)

    def again(
        self, entry: table.Entry, args: Sequence[Any], kwargs: Mapping[str, Any], estimate: Estimate, guard: Any
    ) -> Any:
        """See compute.interpreter.again."""
        objects = self._objects
        if objects.guards and guarded_among(objects, args, kwargs):
            return run(objects, entry, args, kwargs)
        try:
            if entry.writes:
                check_writable(objects, entry, args, kwargs)
            return interpreter.again(entry, args, kwargs, estimate, guard)
        except Exception as problem:
            spoil_written(objects, entry, args, kwargs, problem)
            raise

    def is_free(self, largest: int, seconds: float) -> bool:
        """See compute.interpreter.is_free."""
        return not self._objects.guards and interpreter.is_free(largest, seconds)


def _checked(
    objects: Objects, guarded: list[Guarded], entry: table.Entry, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> Any:
    """Runs an operation that has inputs on stored files. Corrupt where what it reads is not what was stored."""
    may_be_view = not entry.writes and (entry.category == "view" or any(at is not None for at in entry.aliases))
    if may_be_view:
        # Whether it copies is known when it is done; a copy is checked then, before anybody has it.
        value = objects.execute(entry, args, kwargs)
        if _shares_memory(value, guarded):
            return value
    picks = picked(entry, args, kwargs)
    rows = [each for each in guarded if picks is not None and each.tensor is picks[0] is not picks[1]]
    wholes = [each for each in guarded if each not in rows]
    for each in wholes:
        each.check()
    for each in rows:
        assert picks is not None
        check_rows(each, picks[1])
    if not may_be_view:
        value = objects.execute(entry, args, kwargs)
    for each in wholes:
        each.was_read()
    return value


def _shares_memory(value: Any, guarded: list[Guarded]) -> bool:
    """Whether all results are views of these: nothing was read to make them."""
    given = {each.tensor.untyped_storage().data_ptr() for each in guarded}
    return all(tensor.untyped_storage().data_ptr() in given for tensor in tensors_in(value))


_READ_NOTHING: Final = frozenset(
    f"aten.{name}.default"
    for name in (
        "zeros_like ones_like full_like new_zeros new_ones new_full rand_like randn_like randint_like zero"
    ).split()
)


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """The tensors of a result, in order, whatever they are nested in; those of a map by their sorted names."""
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for name in sorted(value):  # the order in which a program travels
            yield from tensors_in(value[name])


def check_describable(tensor: torch.Tensor) -> None:
    """BadTensor or TooLarge for what the peer would not take for a tensor: an unknown dtype, [0, 2**31, 2**31]."""
    if not tensor.numel() or tensor.dtype not in NAME_OF:
        values.header_of(tensor)


def keep(objects: Objects, tensors: list[torch.Tensor], outs: list[Any], entry: table.Entry) -> None:
    """Under the ids that the operation names. BadRequest where these are too many or too few: there is one for each
    tensor that it gives, and none for a gradient that was not asked for. An operation in place may name none."""
    if len(outs) != len(tensors) and (outs or not entry.writes):
        raise BadRequest(f"{entry.name} gives {len(tensors)} tensors, but {len(outs)} result ids came with it")
    for tensor in tensors:
        check_describable(tensor)
    for out, tensor in zip(outs, tensors, strict=False):
        if out is not None:
            objects.put(out, tensor)
    if entry.category == "linalg" and len(outs) > 1:
        objects.factored = tuple(outs)


def _viewed(entry: table.Entry, args: list[Any], kwargs: dict[str, Any]) -> bytes | None:
    """The id of the argument that the results share memory with; None where there is none."""
    given = (entry.argument(position, args, kwargs) for position in entry.aliases if position is not None)
    return next((value for value in given if isinstance(value, bytes)), None)


def _meant_to_be_written(operation: Any, args: list[Any]) -> list[bytes]:
    """What is in no table may have been meant to be in place: its name says so, or a result's id is an argument's."""
    ids, positions = list(result_ids(operation)), written_positions(name_of(operation) or "")
    return [arg for at, arg in enumerate(args) if isinstance(arg, bytes) and (arg in ids or at in positions)]


def _to_be_written(entry: table.Entry, args: list[Any], kwargs: dict[str, Any]) -> list[bytes]:
    written = [_listed(entry.argument(position, args, kwargs)) for position in entry.writes]
    return [item for items in written for item in items if isinstance(item, bytes)]


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else [value]
