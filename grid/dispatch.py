"""ATen operations on pointers: each is queued at the peer of its pointers, and its results are pointers at once.

The shapes of the results come from the shapes of the inputs (compute/estimate.py); no data are needed here. Where a
shape depends on data, the result is to be awaited (grid/unsized.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import torch

from compute.bounds import Result
from compute.dtypes import DEFAULT, is_by_default, with_default
from compute.estimate import Estimate, check_size
from compute.lazy import bits_of, with_bits
from compute.nested import mapped, tensors_in
from compute.operations import OPERATIONS, substitute
from compute.rewrites import rewritten
from compute.table import Entry, lookup
from grid import hints, outs
from grid.arguments import Arguments
from grid.awaited import Awaited
from grid.local_forms import ANSWERED_HERE, check_place
from grid.recomputed import drawn
from grid.repeated import PLACES, UNREAD, Plan, Reading, Repeated
from grid.unsized import KNOWN, Unsized, take_known
from protocol.errors import BadRequest, NotCollocated

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer

_SAME_OBJECT: Final = frozenset({"aten.detach.default", "aten.alias.default", "aten.lift_fresh.default"})
# In place they give a tensor another shape. At the peer that is a view, which the pointer names from then on: who else
# points to the object goes on seeing it as it was.
_VIEWS_IN_PLACE: Final[Mapping[str, str]] = {
    f"aten.{name}_.{overload}": f"aten.{plain}.{overload}"
    for name, plain, overload in (
        ("squeeze", "squeeze", "default"),
        ("squeeze", "squeeze", "dim"),
        ("squeeze", "squeeze", "dims"),
        ("unsqueeze", "unsqueeze", "default"),
        ("t", "t", "default"),
        ("as_strided", "as_strided", "default"),
    )
} | dict.fromkeys(("aten.transpose_.default", "aten.swapaxes_.default", "aten.swapdims_.default"), "aten.transpose.int")
_QUEUED: Final = frozenset(OPERATIONS) - frozenset(_VIEWS_IN_PLACE)
_OF_CONVOLUTION: Final = "aten.convolution_backward.default"
"""Asked for the gradient of the bias and not for that of the weight, some of its kernels give both, and some do not."""
_operations: dict[int, tuple[str, bool, Any]] = {}
"""The name of an operation, and whether it draws random numbers, by its id; it is kept here with them, so that the id
stays its own. torch's hash of one is a call of Python."""


class Dispatch:
    """What becomes of an operation; `kind` is the class of pointers, `kinds` are it and those below it. Called as
    `dispatch(function, args, kwargs)`.

    Raises:
        NotCollocated: the pointers are at different peers, or one argument is here.
        NeedsAwait: the result is a plain value, and this is the loop's own thread.
        OperationNotAllowed, BadRequest, OperationFailed: as the peer would refuse it.
    """

    def __init__(self, kind: type[Pointer], kinds: frozenset[type]) -> None:
        self._kind = kind
        self._kinds = (kind, Unsized)
        self._repeated = Repeated(kind, kinds)
        self.awaited = Awaited(kind, self._post)

    def __call__(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], is_drawn: bool = False) -> Any:
        name, draws, _ = _operations.get(id(function)) or _learn(function)
        if draws and not is_drawn:
            return drawn(partial(self, is_drawn=True), function, args, kwargs)
        if name in _SAME_OBJECT and isinstance(args[0], self._kind):
            return self._share(args[0])
        if KNOWN and (result := take_known()) is not None:
            return result
        found = self._repeated.again(name, args, kwargs) if torch.get_default_dtype() is DEFAULT else UNREAD
        if type(found) is not Reading:
            return found
        pointers = self._pointers(args, kwargs)
        home = pointers[0]._handle.home
        for pointer in pointers:
            handle = pointer._handle
            if handle.target is not None:
                return self._through_chain(function, args, kwargs, pointers)
            if handle.home is not home:
                home = _home(name, pointers)
        if kwargs:
            if kwargs.get("device") is not None:
                check_place(pointers[0]._handle, kwargs["device"])
                if torch.device(kwargs["device"]).type == "meta":
                    return function(*mapped(args, _meta), **kwargs)
            kwargs = {key: value for key, value in kwargs.items() if key not in PLACES}
        if name not in _QUEUED:
            return self._otherwise(home, function, name, args, kwargs)
        if name == _OF_CONVOLUTION and list(args[-1][1:]) == [False, True]:
            of_input, _, of_bias = self(function, [*args[:-1], [args[-1][0], True, True]], kwargs)
            return of_input, None, of_bias
        return self._post(home, function, name, args, kwargs, found)

    def _otherwise(
        self, home: RemotePeer, function: Any, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What is no operation of the table as it comes, but can be said by those that are."""
        if name in _VIEWS_IN_PLACE:
            return self._view_in_place(name, args, kwargs)
        if name in ANSWERED_HERE:
            return ANSWERED_HERE[name](*args, **kwargs)
        other, args, kwargs = substitute(name, args, kwargs)
        if other not in OPERATIONS:
            rewrite = rewritten(other)
            if rewrite is not None:
                return rewrite(*args, **kwargs)
            if outs.names_of(function):
                return self._into(home, function, args, kwargs)
            value = function.decompose(*args, **kwargs)  # in inference mode what is made of others comes here whole
            if value is not NotImplemented:
                return value
        return self._post(home, function, other, args, kwargs)

    def _post(
        self,
        home: RemotePeer,
        function: Any,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        reading: Reading = UNREAD,
    ) -> Any:
        seed = None
        if args and type(args[-1]) is torch.Generator:
            args, kwargs = args[:-1], {**kwargs, "generator": args[-1]}
        if "generator" in kwargs:
            seed = _next_seed(kwargs["generator"])
            kwargs = {key: value for key, value in kwargs.items() if key != "generator"}
        entry = lookup(name)
        bound, named = entry.bind(args, kwargs)
        estimate = check_size(entry, bound, named)
        if not estimate.is_exact:
            return self.awaited.post(home, function, entry, args, kwargs)
        if torch.get_default_dtype() is not DEFAULT and _becomes_float(estimate, args, kwargs):
            return function(*mapped(args, with_default), **kwargs)
        arguments = Arguments(self._kinds, home)
        wire_args, wire_kwargs = arguments.write(entry, args, kwargs)
        if seed is not None:
            wire_kwargs["generator"] = seed
        plan = self._plan(entry, estimate, args, kwargs, home)
        if reading is not UNREAD:
            self._repeated.learn(reading, plan)
        return self._repeated.queue(plan, home, tensors_in([*args, *kwargs.values()]), wire_args, wire_kwargs)

    def _into(self, home: RemotePeer, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation whose results are written to tensors that are there: they are computed, and copied."""
        others, out = outs.without(function, kwargs), kwargs[outs.names_of(function)[0]]
        factory = None if self._pointers(args, others) else outs.like_factory(function, others, out)
        if factory is None:
            return outs.into(self._kind, function, args, kwargs)
        return outs.write(out, self._post(home, function, factory[0], args, factory[1]))

    def _plan(
        self, entry: Entry, estimate: Estimate, args: Sequence[Any], kwargs: Mapping[str, Any], home: RemotePeer
    ) -> Plan:
        if not entry.is_inplace:
            tensors = [id(tensor) for tensor in tensors_in([*args, *kwargs.values()])] if entry.writes else []
            written = self._written(entry, args, kwargs)
            return Plan.of(entry, estimate, tuple(tensors.index(id(pointer)) for pointer in written))
        changed = args[0]
        if not isinstance(changed, self._kind):
            shape = list(changed.shape)
            raise NotCollocated(outs.WRITES_HERE.format(shape=shape, home=home.name), operation=entry.name)
        _check_keeps_shape(entry.name, changed, estimate.results[0])
        return Plan.of(entry, estimate, ())

    # --- parts --------------------------------------------------------------------------------------------

    def _view_in_place(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Pointer:
        changed: Pointer = args[0]
        view = self(lookup(_VIEWS_IN_PLACE[name]).overload, args, kwargs)
        torch.Tensor.data.__set__(changed, view)  # type: ignore[attr-defined]  # shape and strides
        changed._handle = view._handle
        changed._layout = None
        return changed

    def _share(self, pointer: Pointer) -> Pointer:
        """A second tensor for the same object: what detach() and alias() are."""
        if pointer.grad_fn is not None:
            pointer._handle.is_detached = True
        offset = int(pointer.storage_offset())
        shape, stride = pointer.shape, pointer.stride()
        made = self._kind.of(pointer._handle, pointer.dtype, shape, stride, offset=offset, view_of=pointer)
        made._layout = pointer._layout
        if pointer.is_conj() or pointer.is_neg():
            with_bits(made, bits_of(pointer))
        return made

    def _written(self, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Pointer]:
        if not entry.writes:
            return []
        call = entry.named(args, kwargs)
        values = [call[entry.parameters[position].name] for position in entry.written(args, kwargs)]
        return [value for value in values if isinstance(value, self._kind)]

    def _pointers(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Pointer]:
        kind = self._kind
        found: list[Pointer] = []
        for value in (*args, *kwargs.values()) if kwargs else args:
            if isinstance(value, kind):
                found.append(value)
            elif isinstance(value, list | tuple):
                found.extend(item for item in value if isinstance(item, kind))
        return found

    # --- chains -------------------------------------------------------------------------------------------

    def _through_chain(
        self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any], pointers: list[Pointer]
    ) -> Any:
        """On pointers to pointers: the operation runs where the data are, and each hop points to its result."""
        name, _, _ = _operations[id(function)]
        if name in _VIEWS_IN_PLACE:
            return self._view_in_place(name, args, kwargs)
        hop = _home(name, pointers)
        if outs.names_of(function) and self._pointers(args, outs.without(function, kwargs)):
            return outs.into(self._kind, function, args, kwargs)
        inner = self(
            function, mapped(args, self._target), {key: mapped(value, self._target) for key, value in kwargs.items()}
        )
        if name.split(".")[1].endswith("_"):
            return args[0]
        return mapped(inner, lambda value: self._linked(hop, value))

    def _linked(self, hop: RemotePeer, value: Any) -> Any:
        if isinstance(value, Unsized):
            value._hop = hop
        return hop.link_soon(value) if isinstance(value, self._kind) else value

    def _target(self, value: Any) -> Any:
        if not isinstance(value, self._kind):
            return value
        value._handle.check()
        if value._handle.target is None:
            raise NotCollocated(
                f"{value!r} holds its data itself, the others are pointers to pointers: pull those first "
                "(await pointer.remote_get())"
            )
        return value._handle.target


def _check_keeps_shape(name: str, changed: Pointer, result: Result | None) -> None:
    if result is not None and (result.shape != tuple(changed.shape) or result.dtype != changed.dtype):
        plain = name.split(".")[1].rstrip("_")
        raise BadRequest(
            f"{plain}_() would change the shape of a pointer in place: write x = x.{plain}(...) instead", operation=name
        )


def _becomes_float(estimate: Estimate, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether whole numbers become floating-point ones of torch's default dtype, which at a peer is another."""
    if kwargs.get("dtype") is not None or any(isinstance(value, torch.dtype) for value in args):
        return False
    given = [*tensors_in(args)]
    return any(result is not None and is_by_default(given, result.dtype) for result in estimate.results)


def _meta(value: Any) -> Any:
    """A tensor's shape without its data, which is known here."""
    if not isinstance(value, torch.Tensor):
        return value
    return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")


def _next_seed(generator: torch.Generator | None) -> int | None:
    """A generator that is here decides by its next number what is drawn there."""
    return None if generator is None else int(torch.randint(1 << 62, (), generator=generator))


def _home(name: str, pointers: list[Pointer]) -> RemotePeer:
    first = pointers[0]
    for other in pointers:
        if other._handle.home is not first._handle.home:
            for pointer in pointers:
                pointer._handle.check()  # of what is gone it is said where it went
            here, there = first.location.name, other.location.name
            if other.location.id == first.location.id:
                raise NotCollocated(
                    f"{first!r} and {other!r} are both at {here}, but belong to two connections (grid.connect() was "
                    "called twice): use pointers of one of them, or publish the other (await y.tag('#y')), and find it "
                    "over this one (y = await g.find('#y'))",
                    operation=name,
                )
            usual = f"bring them together first, for example 'y = await y.move(g[{here!r}])'"
            raise NotCollocated(
                f"{first!r} is at {here}, {other!r} is at {there}: {hints.for_library_apart() or usual}",
                operation=name,
            )
    return first._handle.home


def _learn(function: Any) -> tuple[str, bool, Any]:
    name = f"{function.namespace}.{function._opname}.{function._overloadname}"
    draws = torch.Tag.nondeterministic_seeded in function.tags
    _operations[id(function)] = known = name, draws, function
    return known
