"""What needs a tensor's value or memory here: of a pointer it is waited for, or refused with a sentence.

Values are waited for in a thread in which no event loop runs (grid/blocking.py). In the loop's own thread that cannot
be, and NeedsAwait says what to write.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping
from typing import Any, Final, NoReturn

import torch

from compute.values import header_of, tensor_bytes
from grid import hints
from grid.blocking import IN_A_THREAD, block, can_block
from grid.handle import Handle
from grid.ids import fresh_id
from grid.unsized import parts
from protocol import limits
from protocol.errors import BadRequest, NeedsAwait, NotCollocated


class LocalForms:
    """Mixed into Pointer, before torch.Tensor."""

    _handle: Handle

    def _value(self, call: str, hint: str = "") -> torch.Tensor:
        """The value, for a call that cannot be awaited: waited for in a thread without a loop; NeedsAwait elsewhere.

        `hint`: what to write instead, where torch's own code looks at it.
        """
        home, pointer = self._handle.home, self._as_pointer()
        if not can_block():
            hint, asker = hint or hints.for_library(), hints.asker()
            raise NeedsAwait(
                f"{call}{asker and f', asked by {asker},'} needs the value, which is at {home.name}: "
                f"{hint + ', ' if hint else ''}use (await "
                f"pointer.get()) or (await pointer.fetch()) first, keep computing on the pointer, {IN_A_THREAD}",
                peer=home.name,
            )
        while pointer._handle.target is not None:  # of a chain that of its end
            pointer._handle.check()
            pointer = pointer._handle.target
        value: torch.Tensor = block(pointer._handle.home, pointer.fetch).detach()
        return value

    def _as_pointer(self) -> Any:
        return self

    def __bool__(self) -> bool:
        return bool(self._value("bool()"))

    def __float__(self) -> float:
        return float(self._value("float()"))

    def __int__(self) -> int:
        return int(self._value("int()"))

    def __index__(self) -> int:
        return operator.index(self._value("an index"))

    def __complex__(self) -> complex:
        return complex(self._value("complex()"))

    def __contains__(self, item: object) -> bool:
        return (item._value("in") if isinstance(item, LocalForms) else item) in self._value("in")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self._array("a numpy array").__array__(*args, **kwargs)

    def __dlpack__(self, *args: Any, **kwargs: Any) -> Any:
        return self._array("another library").__dlpack__(*args, **kwargs)

    def _array(self, call: str, *, force: bool = False) -> Any:
        """The value as an array of numpy's. It refuses to be written to: torch's own shares the tensor's memory, and
        nothing of what is written to this one would reach the peer."""
        value = self._value(call)
        if self._as_pointer().requires_grad and not force:
            raise RuntimeError(
                "Can't call numpy() on Tensor that requires grad. Use tensor.detach().numpy() instead."
            )  # torch's words
        array: Any = value.numpy()
        array.flags.writeable = False
        return array

    def __format__(self, spec: str) -> str:
        return format(self._value("a number in text"), spec) if spec and can_block() else repr(self)

    def item(self) -> Any:
        return self._value(".item()").item()

    def tolist(self) -> Any:
        return self._value(".tolist()").tolist()

    def numpy(self, *, force: bool = False) -> Any:
        """The value; a copy is what can be written to: `x.numpy().copy()`."""
        return self._array(".numpy()", force=force)

    def backward(self, gradient: torch.Tensor | None = None, *args: Any, **kwargs: Any) -> None:
        """As torch's. A gradient that is here goes along, like all that is part of a call."""
        if isinstance(gradient, torch.Tensor) and not hasattr(gradient, "_handle") and not gradient.requires_grad:
            gradient = self.new_tensor(gradient, dtype=gradient.dtype)
        torch.Tensor.backward(self._as_pointer(), gradient, *args, **kwargs)  # type: ignore[no-untyped-call]

    # --- made like it, where it is ------------------------------------------------------------------------

    def new_tensor(self, data: Any, *, dtype: Any = None, device: Any = None, requires_grad: bool = False) -> Any:
        """As torch's: a tensor of these values, of this one's dtype, at its peer. Larger values are sent."""
        check_place(self._handle, "cpu" if device is None else device)
        pointer = self._as_pointer()
        if isinstance(data, LocalForms):
            made = data._as_pointer().detach().clone().to(dtype or pointer.dtype)
        else:
            values = torch.as_tensor(data, dtype=dtype or pointer.dtype)
            made = pointer.of(self._put(values.detach()), values.dtype, values.shape)
        return made.requires_grad_(requires_grad)

    def new(self, *args: Any, device: Any = None) -> Any:
        """As torch's: of sizes, filled with zeros; or of values."""
        pointer = self._as_pointer()
        sizes = args[0] if len(args) == 1 and isinstance(args[0], torch.Size) else args or (0,)
        if all(isinstance(size, int) for size in sizes):
            return pointer.new_empty(sizes, device=device)
        return pointer.new_tensor(*args, device=device)

    def _put(self, values: torch.Tensor) -> Handle:
        home, header = self._handle.home, header_of(values)
        if header.nbytes > limits.INLINE_PAYLOAD:
            raise NotCollocated(
                f"these values are {header.nbytes} bytes, and at most {limits.INLINE_PAYLOAD} go along with a call: "
                f"y = await g[{home.name!r}].send(torch.tensor(values))"
            )
        handle = Handle(home, fresh_id(), owns=True)
        home.put_soon(handle, {"kind": "tensor", **header.to_wire()}, bytes(tensor_bytes(values)))
        return handle

    # --- several results, awaited as a whole --------------------------------------------------------------

    def nonzero(self, *, as_tuple: bool = False) -> Any:
        pointer = self._as_pointer()
        return parts(torch.nonzero(pointer, as_tuple=True) if as_tuple else torch.nonzero(pointer))

    def unique(self, *args: Any, **kwargs: Any) -> Any:
        return parts(torch.unique(self._as_pointer(), *args, **kwargs))

    def unique_consecutive(self, *args: Any, **kwargs: Any) -> Any:
        return parts(torch.unique_consecutive(self._as_pointer(), *args, **kwargs))

    # --- where the memory is ------------------------------------------------------------------------------

    def cuda(self, *_: Any, **__: Any) -> None:
        check_place(self._handle, "cuda")

    def to(self, *args: Any, **kwargs: Any) -> Any:
        for place in (*args[:1], kwargs.get("device")):
            if isinstance(place, str | torch.device) or type(place) is int:
                check_place(self._handle, place)
            elif hasattr(place, "outbox"):
                raise BadRequest(f"to() takes a dtype or another tensor: to bring it to {place!r}, await x.move(peer)")
        return torch.Tensor.to(self._as_pointer(), *args, **kwargs)

    def is_shared(self) -> bool:
        return False

    def is_pinned(self, *_: Any) -> bool:
        return False

    def __copy__(self) -> Any:
        """Another name for the same object, as a shallow copy is."""
        pointer = self._as_pointer()
        made = pointer.detach()
        if pointer.is_leaf:
            made.requires_grad_(pointer.requires_grad)
        return made

    def __deepcopy__(self, memo: dict[Any, Any]) -> torch.Tensor:
        """A copy of the data at the same peer. As with torch's, what is the same object by two names is so again, and
        a gradient is copied along; of parameters neither."""
        pointer: torch.Tensor = self._as_pointer()
        is_parameter = isinstance(pointer, torch.nn.Parameter)
        handle, at = self._handle, (pointer.dtype, pointer.shape, pointer.stride(), pointer.storage_offset())
        _, copies = memo.setdefault((id(handle), "copies"), (handle, {}))  # held, so that its id is no other's
        with torch.no_grad():
            if is_parameter:
                made = torch.nn.Parameter(pointer.clone(), pointer.requires_grad)
            else:
                made = copies[at].detach() if at in copies else copies.setdefault(at, pointer.clone())
                made.requires_grad_(pointer.requires_grad)
        memo[id(pointer)] = made
        if not is_parameter and pointer.is_leaf and pointer.grad is not None:
            made.grad = copy.deepcopy(pointer.grad, memo)
        return made

    def set_(self, source: Any = None, *more: Any, **options: Any) -> Any:
        """Name the object of another pointer from now on: what parametrizations do."""
        if not isinstance(source, LocalForms) or more or options:
            _of_memory("set_")(self)
        self._as_pointer().data = source
        return self

    def resize_(self, *size: Any, memory_format: Any = None) -> Any:
        """As torch's, where nobody would see memory that nothing was written to: to as many elements or fewer, and from
        none, which gives zeros."""
        pointer = self._as_pointer()
        shape = torch.Size(size[0] if len(size) == 1 and not isinstance(size[0], int) else size)
        if pointer.requires_grad:
            raise RuntimeError("cannot resize variables that require grad")
        if not pointer.is_contiguous() or 0 < pointer.numel() < shape.numel():
            _of_memory("resize_")(self)
        flat = pointer.view(-1)[: shape.numel()] if pointer.numel() else pointer.new_zeros(shape.numel())
        pointer.data = flat.view(shape)
        return pointer

    def resize_as_(self, other: torch.Tensor, memory_format: Any = None) -> Any:
        return self.resize_(other.shape)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BadRequest(
            "a pointer cannot be pickled or saved: it is good only in the session that made it. Save its value "
            "(torch.save(await pointer.fetch(), path), or await pointer.save(path); of a state dict: "
            "torch.save(await g.fetch(net.state_dict()), path)), or publish the object (await "
            "pointer.tag('#...')) and search for it elsewhere"
        )


def _of_memory(name: str) -> Any:
    def refuse(self: LocalForms, *_: Any, **__: Any) -> NoReturn:
        raise BadRequest(
            f"{name}() works on a tensor's memory, and that is at {self._handle.home.name}: write it with torch's own "
            "functions, or take the value first (await pointer.get())",
            peer=self._handle.home.name,
        )

    return refuse


def _without(self: LocalForms, name: str) -> NoReturn:
    hint = hints.for_name(name)
    raise AttributeError(f"a pointer has no {name!r}{hint and f': {hint}'}", name=name, obj=self)


setattr(LocalForms, "__getattr__", _without)  # noqa: B010  # in the class it would tell mypy that there is every name
for _name in "share_memory_ pin_memory data_ptr storage untyped_storage apply_ map_ map2_".split():
    setattr(LocalForms, _name, _of_memory(_name))


def check_place(handle: Handle, place: object) -> None:
    """BadRequest where a tensor's device is asked to be another one: that is for its peer to decide."""
    if isinstance(place, str | torch.device) and torch.device(place).type in ("cpu", "meta"):
        return
    home = handle.home.name
    raise BadRequest(
        f"the tensor is at {home}, which decides on what device it lies (grid start --device cuda): leave out "
        f".to({str(place)!r}); to bring it to another peer, await x.move(peer)",
        peer=home,
    )


# --- operations that are answered here -----------------------------------------------------------------------


def _item(value: Any) -> Any:
    # Python's own item() does not come here.
    return value._value("torch's own code in this call", hints.for_library() or hints.ITEM).item()


def _is_nonzero(value: Any) -> bool:
    return bool(value._value("bool()"))


def _equal(one: Any, other: Any) -> bool:
    if one.shape != other.shape:
        return False
    same: Any = (one == other).all()
    return bool(same._value("torch.equal(), called or used by torch's own code,", hints.for_library() or hints.EQUAL))


def _allclose(one: Any, other: Any, rtol: float = 1e-5, atol: float = 1e-8, equal_nan: bool = False) -> bool:
    close: Any = torch.isclose(one, other, rtol, atol, equal_nan).all()
    return bool(close._value("torch.allclose()"))


def zeros_like_feature(given: Any, other: Any, *, self_num_batch_dims: int = 0) -> Any:
    """Zeros as forward mode asks for them: as `other`, under the batch dimensions of `given`."""
    if not self_num_batch_dims:
        return torch.zeros_like(other)
    return other.new_zeros((*given.shape[:self_num_batch_dims], *other.shape))


def _resize(value: Any, size: Any, memory_format: Any = None) -> Any:
    """Asked by what writes to a tensor that has the size already, or is empty and is to have it."""
    if not value.numel():
        value.data = value.new_zeros(size)
    elif list(value.shape) != list(size):
        _of_memory("resize_")(value)
    return value


def _extent(value: Any) -> int:
    return int(torch.Tensor.untyped_storage(value).nbytes()) // int(value.itemsize)


ANSWERED_HERE: Final[Mapping[str, Callable[..., Any]]] = {
    "aten._local_scalar_dense.default": _item,
    "aten.item.default": _item,
    "aten.is_nonzero.default": _is_nonzero,
    "aten.equal.default": _equal,
    "aten.allclose.default": _allclose,
    "aten._new_zeros_with_same_feature_meta.default": zeros_like_feature,  # asked by forward mode, as the next two
    "aten._has_same_storage_numel.default": lambda one, other: _extent(one) == _extent(other),
    "aten.resize_.default": _resize,
    "aten.is_same_size.default": lambda one, other: one.shape == other.shape,
    "aten.is_pinned.default": lambda *_: False,
    "aten._has_compatible_shallow_copy_type.default": lambda *_: True,  # asked when `data` is set
}
"""Plain values and facts about shapes, by name; an argument of theirs is a pointer."""
