"""Writes down the operations of a function that runs on fake tensors, which have shapes and no values.

Below autograd (`has_gradients` False) composite operations come whole: linear, batch_norm, einsum. With gradients they
come as autograd takes them apart, and what `backward` computes comes too. What the table does not have is said in what
it has (compute/rewrites.py, torch's own decompositions), as for pointers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch._decomp import decomposition_table
from torch._subclasses.fake_tensor import DynamicOutputShapeException, FakeTensor, FakeTensorMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from compute import constants, sizes
from compute.bounds import BOUNDS
from compute.dtypes import DEFAULT, is_by_default, with_default
from compute.frames import LITERAL, Call, Constant, Frame, Ref, Source, storage_of
from compute.operations import OPERATIONS, substitute, suggestions
from compute.refusals import refusal
from compute.rewrites import rewritten
from compute.table import Entry, lookup
from compute.values import encode, header_of
from protocol import limits
from protocol.errors import CannotCapture, RequestError

_COMPOSITE: Final = torch._C.DispatchKey.CompositeImplicitAutograd
_DROPPED: Final = frozenset({"device", "layout", "pin_memory", "generator"})
# They give the same memory, or memory made here: nothing happens.
_SAME: Final = frozenset({"aten.detach.default", "aten.alias.default", "aten.detach_.default"})
# Where they drop nothing they give what they are given, itself; torch's fake tensors make a copy.
_DROPOUTS: Final = frozenset(f"aten.{name}dropout.default" for name in ("", "feature_", "alpha_", "feature_alpha_"))
_NUMBERS: Final = ("aten._local_scalar_dense.default", "aten.item.default")
_WRITTEN_OUT: Final = frozenset({"aten.lift_fresh.default", "aten.lift_fresh_copy.default", "aten.lift.default"})
# Changes of shape in place are views here, so that no other name of the tensor changes with it.
_RESHAPED: Final = {
    f"aten.{name}_.{overload}": f"aten.{name}.{overload}"
    for name, overload in [
        *(("t", "default"), ("unsqueeze", "default"), ("squeeze", "default")),
        *(("squeeze", "dim"), ("squeeze", "dims"), ("swapaxes", "default"), ("swapdims", "default")),
    ]
} | {"aten.transpose_.default": "aten.transpose.int"}
_PLAIN: Final = (int, float, torch.dtype, torch.device, torch.layout, torch.memory_format, type(None))


class WantsGradients(Exception):
    """The function takes gradients, which the quicker of two ways of capturing would get wrong."""


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """One capture: its frames, its constants, and the sizes that were left open."""

    def __init__(self, fake: FakeTensorMode, has_gradients: bool, open_sizes: sizes.OpenSizes | None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.fake = fake
        self.has_gradients = has_gradients
        self.open_sizes = open_sizes
        self.root = self.frame = Frame()
        self.outside: dict[str, torch.Tensor] = {}  # large tensors from outside, and pointers: the last inputs
        self._constants: dict[int, Constant | Ref] = {}
        self._views: set[int] = set()  # storages
        self._stand_ins: dict[int, torch.Tensor] = {}
        self._foreign: list[torch.Tensor] = []
        self._is_paused = False

    # --- operations ---------------------------------------------------------------------------------------

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self._is_paused or func.namespace in ("prim", "profiler"):
            return func(*args, **kwargs)
        if _takes_gradients():
            self.want_gradients()
        name = str(func)
        if name in _SAME:
            return func(*args, **kwargs)
        if name in _WRITTEN_OUT:
            return self._written_out(func, args, kwargs)
        if name in _NUMBERS:
            known = constants.known(self.frame, args[0])
            if known is None:
                return func(*args, **kwargs)
            with _disable_current_modes():
                return known.item()
        called, given, named = substitute(name, args, kwargs)
        if called not in OPERATIONS and _asks_only(func):
            return self._run(func, args, kwargs)
        if called not in OPERATIONS:
            return self._in_others(func, args, kwargs)
        if called in _DROPOUTS and not _drops(lookup(called).named(given, named)):
            return args[0]
        try:
            result = self._run(func, args, kwargs)
        except DynamicOutputShapeException:
            return self._of_known(func, args, kwargs)
        if torch.get_default_dtype() is not DEFAULT and _is_by_default(given, named, result):
            if "dtype" in lookup(called)._by_name:
                named = {**named, "dtype": result.dtype}
            else:
                with self:
                    return func(*pytree.tree_map(with_default, args), **kwargs)
        self._record(_RESHAPED.get(called, called), given, named, result)
        return result

    def want_gradients(self) -> None:
        """What the function does now it does by whether there are gradients."""
        if not self.has_gradients:
            raise WantsGradients

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        if self.open_sizes is None:
            return func(*args, **kwargs)
        with self.open_sizes.inside():
            return func(*args, **kwargs)

    def _of_known(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation whose result's shape may depend on values: where a rule tells it all the same, or the function
        wrote these values out (then it is done now)."""
        bound = BOUNDS.get(str(func))
        found = bound(lookup(str(func)).named(args, kwargs)) if bound is not None else None
        if isinstance(found, tuple):
            results = [self.empty(result.shape, result.dtype) for result in found]
            made = tuple(results) if len(results) > 1 else results[0]
            self._record(str(func), args, kwargs, made)
            return made

        said = None if kwargs else constants.with_known(self.frame, func, args)
        if said is not None:
            with self:
                return said[0](*said[1])

        def value(tensor: torch.Tensor) -> torch.Tensor:
            found = constants.known(self.frame, tensor)
            if found is None:
                raise DynamicOutputShapeException(func)
            return found

        args, kwargs = pytree.tree_map_only(torch.Tensor, value, (list(args), kwargs))
        with _disable_current_modes():
            real = func(*args, **kwargs)
        return pytree.tree_map_only(torch.Tensor, self._literal, real)

    def _literal(self, real: torch.Tensor) -> torch.Tensor:
        made = self.empty(real.shape, real.dtype)
        self.literal(real, made)
        return made

    def _in_others(self, func: Any, args: Any, kwargs: Any) -> Any:
        """An operation that the table does not have, in what it has."""
        name = str(func)
        parts = getattr(func, "impl_aten", None) if func.namespace == "prims" else rewritten(name)
        if parts is None and torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), _COMPOSITE):
            parts = func.decompose
        parts = parts or decomposition_table.get(func)
        if parts is None:
            self._run(func, args, kwargs)  # where it cannot be run either, that says more
            near = suggestions(name)
            hint = f"; {' or '.join(near)} are" if near else ""
            raise refusal(f"{name[:100]} is not in the table of operations that peers run{hint}", operation=name[:100])
        with self:
            return parts(*args, **kwargs)

    def _record(self, name: str, args: Any, kwargs: Any, result: Any) -> None:
        entry = lookup(name)
        tensors = result if isinstance(result, tuple | list) else [result]
        if not any(isinstance(tensor, torch.Tensor) for tensor in tensors):
            return  # a size, a truth about shapes: known while the function is captured
        try:
            call = Call(
                name,
                [self._wire(value) for value in args],
                {key: self._wire(value) for key, value in kwargs.items() if key not in _DROPPED},
            )
        except RequestError as error:
            raise refusal(f"{name}: {error.message}", operation=name) from None
        if kwargs.get("generator") is not None:
            raise refusal("a generator cannot travel: leave it out, and seed the peer (alice.manual_seed(0))")
        written = [entry.argument(position, args, kwargs) for position in entry.written(args, kwargs)]
        call.written = frozenset(storage_of(tensor) for tensor in written if isinstance(tensor, torch.Tensor))
        call.is_kept = entry.category == "random"
        for storage in call.written:
            self.check_write(storage)
        if not entry.is_inplace:
            self._note_views(entry, args, kwargs, tensors)
            call.tensors = list(tensors) if entry.gives_list or entry.n_results > 1 else (result,)
        self.frame.add_call(call)

    def call(self, operation: str, args: list[Any], tensors: Sequence[Any] = (), **kwargs: Any) -> Call:
        """Adds a call that was not dispatched: one of a loop, or of what a loop leaves behind."""
        call = Call(operation, args, kwargs, tensors)
        self.frame.add_call(call)
        return call

    def write(self, tensor: torch.Tensor, value: Any) -> None:
        """What the tensor stands for changes in place: it is `value` of the frame from now on."""
        storage = storage_of(tensor)
        self.check_write(storage)
        self.frame.add_call(Call("aten.copy_.default", [self.frame.find(tensor), value], written=frozenset({storage})))

    def check_write(self, storage: int) -> None:
        """Refuses a change in place of what is not the function's own."""
        constants = {storage_of(each.tensor) for each in self._constants.values() if isinstance(each, Constant)}
        if storage in constants | self._views:
            raise refusal(
                "the function changes a tensor from outside in place; take it as an argument, return the new one"
            )
        frame: Frame | None = self.frame
        while frame is not None:
            for source in frame.sources:
                if not source.may_write and storage_of(source.tensor) == storage:
                    raise refusal(
                        f"the function changes its input {source.name} in place; inputs are not written: use x = x + 1 "
                        "instead of x += 1, or begin with x = x.clone()"
                    )
            frame = frame.parent

    def _note_views(self, entry: Entry, args: Any, kwargs: Any, tensors: Sequence[Any]) -> None:
        """Of tensors from outside: torch makes fake memory anew for each use, so a write to it would go unseen."""
        for position, made in zip(entry.aliases, tensors, strict=False):
            of = None if position is None else entry.argument(position, args, kwargs)
            if isinstance(of, torch.Tensor) and id(of) in self._constants:
                if _shares_memory(entry, of, args, kwargs, made):
                    self._views.add(storage_of(made))

    # --- values -------------------------------------------------------------------------------------------

    def find(self, tensor: torch.Tensor) -> Any:
        """What stands for the tensor in the frame of now.

        Raises:
            CannotCapture: it is of a body that ended.
        """
        found = self.frame.find(tensor)
        if found is not None:
            source = source_of(found)
            if source is not None and tensor.requires_grad and not source.tensor.requires_grad:
                source.tensor = tensor  # the same memory, but this is what gradients are taken of
            return found
        if isinstance(tensor, FakeTensor):
            raise refusal(
                "a tensor that was made in the body of a loop or branch is used outside of it: return it from the body"
            )
        return self._from_outside(tensor)

    def stand_in(self, tensor: torch.Tensor) -> torch.Tensor:
        """The fake tensor that stands for a tensor whose values are not here (a pointer): one of the last inputs."""
        found = self._stand_ins.get(id(tensor))
        if found is None:
            found = self._stand_ins[id(tensor)] = self.empty(tuple(tensor.shape), tensor.dtype)
            self._foreign.append(tensor)
            self._add_outside(found, tensor)
        return found

    def empty(self, shape: Sequence[Any], dtype: torch.dtype) -> torch.Tensor:
        """A fake tensor of the function's world that nothing is known of yet."""
        with self.paused(), torch.no_grad(), self.fake:
            return torch.empty(tuple(shape), dtype=dtype, device="cpu")

    def scalar(self, value: float | int | bool) -> torch.Tensor:
        """A plain number as a tensor of the frame: float32 (or torch's default dtype), int64 or bool."""
        with _disable_current_modes():
            real = torch.tensor(value)
        return self._literal(real)

    def literal(self, real: torch.Tensor, made: torch.Tensor) -> None:
        """`made` is a tensor whose values the function wrote out. A copy of them: it may change in place later."""
        self.frame.add_call(Call(LITERAL, [Constant(real, is_outside=False)], tensors=(made,)))

    @contextmanager
    def paused(self) -> Iterator[None]:
        before, self._is_paused = self._is_paused, True
        try:
            yield
        finally:
            self._is_paused = before

    def _from_outside(self, tensor: torch.Tensor) -> Any:
        found = self._constants.get(id(tensor))
        if found is None:
            self._foreign.append(tensor)
            value = _plain(tensor)
            with _disable_current_modes():
                is_large = value.device.type == "meta" or header_of(value).nbytes > limits.MAX_CONSTANT
            if is_large:
                found = self._add_outside(tensor, value)
            else:
                found = Constant(value, is_outside=True)
            self._constants[id(tensor)] = found
        if isinstance(found, Ref):
            return self.frame.find(tensor)
        return found

    def _add_outside(self, known_as: torch.Tensor, value: torch.Tensor) -> Ref:
        taken = {source.name for source in self.root.inputs}
        number, name = 2, "constant"
        while name in taken:
            name, number = f"constant.{number}", number + 1
        self.outside[name] = value
        return Ref(self.root.add_input(name, known_as, may_write=False))

    def _written_out(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        if isinstance(args[0], FakeTensor):
            if result is not args[0]:
                self._record("aten.clone.default", args, {}, result)
        else:
            self.literal(_plain(args[0], copy=True), result)
        return result

    def _wire(self, value: Any) -> Any:
        return encode(value, self.find, self._size)

    def _size(self, value: object) -> Any:
        if isinstance(value, torch.SymInt | torch.SymFloat) and self.open_sizes is not None:
            return self.open_sizes.value(value, self.frame)
        raise CannotCapture(f"{type(value).__name__} is no argument of an operation in a program")


def _plain(tensor: torch.Tensor, copy: bool = False) -> torch.Tensor:
    with _disable_current_modes():
        return tensor.detach().clone() if copy else tensor.detach()


def _shares_memory(entry: Entry, real: torch.Tensor, args: Any, kwargs: Any, made: torch.Tensor) -> bool:
    """Whether `made`, which the operation gave of a real tensor, is a view of it: some copy where they must."""
    if not all(value is real or isinstance(value, _PLAIN) for value in pytree.tree_leaves((args, kwargs))):
        return made.dtype == real.dtype
    with _disable_current_modes(), torch.no_grad():
        again = pytree.tree_leaves(entry.overload(*args, **kwargs))[0]
    return storage_of(again) == storage_of(real)


def _asks_only(func: Any) -> bool:
    """Whether it gives no tensor: a number or truth about shapes, which is known. Of values it fails by itself."""
    returns = func._schema.returns
    return bool(returns) and not any("Tensor" in str(result.type) for result in returns)


def _drops(named: Mapping[str, Any]) -> bool:
    return bool(named["train"] and named["p"])


def _is_by_default(args: Any, kwargs: Any, result: Any) -> bool:
    given = [each for each in pytree.tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)]
    if kwargs.get("dtype") is not None or any(isinstance(value, torch.dtype) for value in args):
        return False
    made = [each for each in pytree.tree_leaves(result) if isinstance(each, torch.Tensor)]
    return (bool(given) or len(made) == 1) and any(is_by_default(given, each.dtype) for each in made)


def _takes_gradients() -> bool:
    return torch.is_grad_enabled() or torch._C._functorch.peek_interpreter_stack() is not None


def source_of(value: Any) -> Source | None:
    """The input that a value is; None for what was computed."""
    return value.of if isinstance(value, Ref) and isinstance(value.of, Source) else None
