"""What an operation gives whose result's shape depends on the data: something to await.

`rows = x[mask]` has been asked for, but how many rows there are only the peer knows: `await` learns it and gives a
pointer, with its history where the input requires grad. Until then it can be an index (`x[torch.where(mask)]`), and
all else says what to write. In a thread where nobody can be kept waiting in vain, there are pointers at once.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Final, NoReturn

import torch

from compute.bounds import Result
from compute.dtypes import DTYPE_OF
from compute.nested import flat
from grid.blocking import IN_A_THREAD
from grid.handle import Handle
from grid.operators import refuse_all
from protocol.errors import BadRequest, NeedsAwait

if TYPE_CHECKING:
    from grid.pointer import Pointer
    from grid.remote import RemotePeer

Shape = tuple[int | None, ...] | None
"""As far as it is known: None for a size, or for all of them."""


@dataclass(slots=True)
class Call:
    """The operation that gives an Unsized, to be repeated above autograd once the shape is known.

    Its graph begins at the inputs as they are then, so they must not have been changed meanwhile.
    """

    function: Any
    args: Sequence[Any]
    kwargs: Mapping[str, Any]
    versions: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.versions = self._now()

    def _now(self) -> list[int]:
        return [value._version for value in flat(self.args) if isinstance(value, torch.Tensor)]

    async def with_history(self, known: Pointer) -> Pointer:
        """`known`, as what the operation gives of its inputs."""
        if self._now() != self.versions:
            raise BadRequest(
                f"what {self.function} was asked of was changed in place before its result was awaited: await it "
                "first, or detach() the input if no gradient is wanted"
            )
        args = [await _awaited(value) for value in self.args]
        with torch.enable_grad():
            KNOWN[threading.get_ident()] = known
            try:
                made: Pointer = self.function(*args, **self.kwargs)
            finally:
                KNOWN.pop(threading.get_ident(), None)
        return made


KNOWN: Final[dict[int, Any]] = {}
"""The result of the operation that a Call repeats now, by the thread in which it does."""


def take_known() -> Any:
    """Of KNOWN what is this thread's, which is no longer there then; or None."""
    return KNOWN.pop(threading.get_ident(), None)


class Unsized(torch.Tensor):
    """A tensor at a peer whose shape is not known here yet: `pointer = await unsized`.

    `get` and `fetch` are those of the pointer. Everything else raises NeedsAwait.
    """

    _handle: Handle
    _sizes: Shape
    _operation: str
    _call: Call | None
    _hop: RemotePeer | None
    _pointer: Pointer | None

    dispatch: ClassVar[Callable[[Any, Sequence[Any], Mapping[str, Any]], Any]]
    pointer_to: ClassVar[Callable[..., Pointer]]

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(
        handle: Handle,
        dtype: torch.dtype,
        sizes: Shape,
        operation: str,
        call: Call | None = None,
        *,
        is_differentiated: bool = False,
    ) -> Unsized:
        """`call` is what gives the result its history. Where it is differentiated, autograd looks at sizes while the
        operation is under way, and gets those of an empty tensor; else whoever looks, in C++ too, gets an error."""
        made: Unsized = torch.Tensor._make_wrapper_subclass(
            Unsized,
            torch.Size([0] * len(sizes or ())),
            dtype=dtype,
            device=torch.device("cpu"),
            dispatch_sizes_strides_policy=None if is_differentiated else "sizes",
        )
        made._handle, made._sizes, made._operation, made._call = handle, sizes, operation, call
        made._hop = made._pointer = None
        return made

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks the first argument
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        first = next((value for value in flat(args) if isinstance(value, Unsized)), None)
        if function is torch.ops.aten.dim.default and first is not None and first._sizes is not None:
            return len(first._sizes)
        if first is None or str(function) not in TAKES_UNSIZED:
            asked = _any_of(kwargs) if first is None else first
            asked._needs_await(f"{function.namespace}.{function._opname}")
        return cls.dispatch(function, args, kwargs or {})

    def __await__(self) -> Generator[Any, None, Pointer]:
        return self._resolved().__await__()

    async def _resolved(self) -> Pointer:
        if self._pointer is None:
            handle = self._handle
            known = Unsized.pointer_to(handle, await described(handle, self._operation))
            if self._call is not None:
                known = await self._call.with_history(known)
                self._call = None
            self._pointer = known if self._hop is None else await self._hop.link(known)
        return self._pointer

    async def get(self) -> torch.Tensor:
        return await (await self).get()

    async def fetch(self) -> torch.Tensor:
        return await (await self).fetch()

    def _needs_await(self, call: str, example: str = "") -> NoReturn:
        home = self._handle.home.name
        example = example or EXAMPLES.get(self._operation, "rows = await x[mask]")
        raise NeedsAwait(
            f"{call} of what {self._operation} gives: its shape depends on the data, which are at {home}. Await it "
            f"first, like {example}, {IN_A_THREAD}",
            operation=self._operation,
            peer=home,
        )

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch passes tensor_contents
        dtype = str(self.dtype).removeprefix("torch.")
        return f"Unsized({self._handle.home.name}:{self._handle.id.hex()[:12]}, {dtype}, to be awaited)"

    def __format__(self, spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        self._needs_await("pickling")

    def __deepcopy__(self, memo: object) -> NoReturn:
        self._needs_await("a copy")


def _refusing(name: str, example: str = "") -> Any:
    def refuse(self: Unsized, *_: Any, **__: Any) -> NoReturn:
        self._needs_await(name, example)

    return refuse


for _name in ("shape", "ndim", "grad", "data", "T", "mT", "location", "tags", "record"):
    setattr(Unsized, _name, property(_refusing(f".{_name}")))
for _name in (
    "__array__ item tolist numpy size stride dim numel nelement backward move copy send tag register_hook retain_grad "
    "requires_grad_"
).split():
    setattr(Unsized, _name, _refusing(f"{_name.strip('_')}()"))
refuse_all(Unsized, _refusing, lambda name: _refusing(name, "x[mask] = (await x[mask]) + 1"))


async def described(handle: Handle, operation: str) -> Result:
    """What the peer says of the result, when the operation is done. Raises what that failed with."""
    await handle.recheck()
    record = await handle.home.describe_object(handle.id)
    shape = tuple(record["shape"])
    result = Result.contiguous(DTYPE_OF[record["dtype"]], shape)
    if operation in _COLUMNS and len(shape) == 2:
        return Result(result.dtype, shape, (1, max(shape[0], 1)))
    return result


def results_of(name: str, call: Mapping[str, Any], count: int) -> list[tuple[torch.dtype, Shape]]:
    """dtype and shape of the `count` results of an operation, as far as they are known before it ran."""
    given: Any = call.get("self", call.get("condition"))
    if name in _COLUMNS:
        return [(torch.int64, (None, given.dim()))]
    if name in ("aten.repeat_interleave.Tensor", "aten.bincount.default"):
        return [(torch.int64, (None,))]
    if name == "aten.masked_select.default":
        return [(given.dtype, (None,))]
    if name == "aten._unique2.default":
        return [(given.dtype, (None,)), (torch.int64, tuple(given.shape)), (torch.int64, (None,))]
    dtype = given.dtype if isinstance(given, torch.Tensor) else torch.int64
    return [(torch.int64 if number else dtype, None) for number in range(count)]


def results_of_unsized(name: str, args: Sequence[Any]) -> list[tuple[torch.dtype, Shape]]:
    """The same for an operation of TAKES_UNSIZED."""
    given = args[0]
    if name == "aten.unbind.int":
        dim = args[1] if len(args) > 1 else 0
        sizes: Any = given._sizes or ()
        if not -len(sizes) <= dim < len(sizes) or sizes[dim] is None:
            given._needs_await("unbind()")
        return [(given.dtype, (None,)) for _ in range(sizes[dim])]
    return [(given.dtype, None)]


_COLUMNS: Final = frozenset({"aten.nonzero.default", "aten.argwhere.default"})  # one column after the other in memory

TAKES_UNSIZED: Final = frozenset(
    {
        "aten.unbind.int",
        "aten.index_select.default",
        "aten.index.Tensor",
        "aten.index_put_.default",
        "aten.index_put.default",
        "aten.detach.default",
        "aten.alias.default",
    }
)
"""Operations that need no sizes of an Unsized: torch makes `where`, `repeat_interleave` and the like out of them."""

EXAMPLES: Final[Mapping[str, str]] = {
    "aten.nonzero.default": "rows = await x.nonzero()",
    "aten.unbind.int": "rows, columns = await asyncio.gather(*torch.where(mask))",
    "aten.argwhere.default": "rows = await torch.argwhere(x)",
    "aten.masked_select.default": "values = await x.masked_select(mask)",
    "aten._unique2.default": "values = await x.unique(), or values, counts = await x.unique(return_counts=True)",
    "aten.unique_dim.default": "rows = await x.unique(dim=0)",
    "aten.unique_consecutive.default": "values = await x.unique_consecutive()",
    "aten.bincount.default": "counts = await x.bincount()",
    "aten.repeat_interleave.Tensor": "y = await x.repeat_interleave(repeats)",
    "aten.index_select.default": "y = await x.repeat_interleave(repeats)",
}


class Parts(tuple[Any, ...]):
    """Several results: awaited as a whole, `values, counts = await x.unique(return_counts=True)`, or one by one."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, tuple[Any, ...]]:
        return self._resolved().__await__()

    async def _resolved(self) -> tuple[Any, ...]:
        return tuple([await _awaited(each) for each in self])


def parts(value: Any) -> Any:
    """What a method gives that has several results, to be awaited as a whole."""
    return Parts(value) if isinstance(value, tuple) else value


async def _awaited(value: Any) -> Any:
    if isinstance(value, list | tuple):
        return [await _awaited(item) for item in value]
    return await value if isinstance(value, Unsized) else value


def _any_of(kwargs: Mapping[str, Any] | None) -> Unsized:
    return next(value for value in flat(list((kwargs or {}).values())) if isinstance(value, Unsized))
