"""Secret tensors: torch tensors of which each party has a share, and nobody the value.

A secret tensor is a wrapper subclass of torch.Tensor: it has shape, strides and dtype, and no data.
`__torch_dispatch__` sees every ATen operation below autograd and writes it down (dispatch.py). So autograd, nn.Module
and torch.optim work on secrets as they are. Method: https://pytorch.org/docs/stable/notes/extending.html, "Extending
torch with a Tensor wrapper type".
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

import torch

from grid.chained import ChainedCoroutine
from grid.pointer import defer_to
from grid.secret.dispatch import Dispatch
from grid.secret.memory import View
from grid.secret.refusals import CHOOSE, OPEN_IT, check_device
from grid.secret.team import Secrets
from grid.secret.values import Source, Value
from protocol.errors import BadRequest, PrivateValue

if TYPE_CHECKING:
    from grid.remote import RemotePeer

_CPU = torch.device("cpu")


class SecretTensor(torch.Tensor):
    """A tensor on secret shares. Made by `grid.share`, by `pointer.share`, and by every operation on secrets.

    Operations return at once; they are computed, all that are needed in one run, when something is awaited:

        await s          itself, when it is shared or computed
        get()            the value, revealed to you
        reveal(to=peer)  the value, revealed to that peer: a pointer there

    Public tensors and numbers may stand anywhere in an operation. Shape, dtype and what is computed are known to all.
    Adversary: see docs/secure.md.
    """

    _view: View

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @staticmethod
    def of(view: View, requires_grad: bool = False) -> SecretTensor:
        """The tensor of a view."""
        meta = view.meta
        made: SecretTensor = torch.Tensor._make_wrapper_subclass(
            SecretTensor,
            meta.shape,
            strides=meta.stride(),
            storage_offset=int(meta.storage_offset()),
            dtype=meta.dtype,
            device=_CPU,
            requires_grad=requires_grad,
        )
        made._view = view
        return made

    @staticmethod
    def new_of(secrets: Secrets, source: Source, like: torch.Tensor) -> SecretTensor:
        """A secret of its own, of the shape and dtype of `like`."""
        meta = torch.empty(like.shape, dtype=like.dtype, device="meta")
        return SecretTensor.of(View.whole(secrets, Value(source, like.dtype, like.shape), meta))

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # torch's stub lacks the first argument
        cls, function: Any, types: Any, args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        return dispatch(function, args, kwargs or {})

    # --- what it is -----------------------------------------------------------------------------------------

    @property
    def parties(self) -> tuple[RemotePeer, ...]:
        """The peers that have a share each."""
        return self._view.memory.secrets.team.parties

    @property
    def provider(self) -> RemotePeer | None:
        """The peer that deals randomness to them, and sees nothing; None where three parties do without."""
        return self._view.memory.secrets.team.provider

    @property
    def precision(self) -> int:
        """Fractional bits of reals."""
        return self._view.memory.secrets.precision

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]  # torch passes tensor_contents
        dtype = str(self.dtype).removeprefix("torch.")
        grad = ", requires_grad=True" if self.requires_grad else ""
        return f"SecretTensor({dtype} {list(self.shape)}, {self._view.memory.secrets}{grad})"

    def __format__(self, spec: str) -> str:
        return repr(self)

    @property
    def data(self) -> SecretTensor:
        """The same secret without its history; setting it makes this one name another."""
        return self.detach()  # type: ignore[return-value]

    @data.setter
    def data(self, other: torch.Tensor) -> None:
        if not isinstance(other, SecretTensor):
            raise BadRequest("the data of a secret are secret: share the tensor first (grid.share)")
        torch.Tensor.data.__set__(self, other)  # type: ignore[attr-defined]  # shape, strides and dtype
        self._view = other._view

    # --- awaited --------------------------------------------------------------------------------------------

    def __await__(self) -> Generator[Any, None, SecretTensor]:
        """Itself, when the parties have it: shared, or computed. Raises what that failed with."""
        return self._made().__await__()

    async def _made(self) -> SecretTensor:
        await self._secrets.compute([self._value()])
        return self

    def get(self) -> ChainedCoroutine:
        """The value, revealed to you; the secret stays as it is. With a gradient, where it has one.

        Raises:
            Denied: it derives from what is private to somebody who did not let you learn it (`reveal` of `send`).
            PartyFailed: it names who failed; nothing was revealed.
        """
        return ChainedCoroutine(self._got())

    async def _got(self) -> torch.Tensor:
        grad = self.grad if self.is_leaf and isinstance(self.grad, SecretTensor) else None
        wanted = [self, *([grad] if grad is not None else [])]
        made, *more = await self._secrets.reveal([each._value() for each in wanted])
        if self.requires_grad and self.is_leaf:
            made.requires_grad_()
            if more:
                made.grad = more[0]
        return made  # type: ignore[no-any-return]

    fetch = get

    async def reveal(self, to: RemotePeer | None = None) -> torch.Tensor:
        """The value, revealed to the peer `to` alone: a pointer to it there, which is private to whom that peer
        answers; without `to`, as `get`. Nobody else learns it, you neither."""
        if to is None:
            return await self._got()
        (made,) = await self._secrets.reveal([self._value()], to)
        return await to.send(made) if type(made) is torch.Tensor else made  # what is public is here

    @property
    def _secrets(self) -> Secrets:
        return self._view.memory.secrets

    def _value(self) -> Value:
        return dispatch.value_of(self)

    # --- as torch has it ------------------------------------------------------------------------------------

    def copy(self) -> SecretTensor:
        """A second secret of the same value."""
        return self.clone()  # type: ignore[return-value]

    def float_precision(self) -> SecretTensor:
        """Itself: a secret's dtype says what it is, and `get()` decodes it."""
        return self

    float_prec = fix_prec = fix_precision = float_precision

    def __copy__(self) -> SecretTensor:
        made = self.detach()
        if self.is_leaf:
            made.requires_grad_(self.requires_grad)
        return made  # type: ignore[return-value]

    def __deepcopy__(self, memo: dict[int, Any]) -> torch.Tensor:
        if id(self) in memo:
            return memo[id(self)]  # type: ignore[no-any-return]
        with torch.no_grad():
            made: torch.Tensor = self.clone()
        made.requires_grad_(self.requires_grad)
        if isinstance(self, torch.nn.Parameter):
            made = torch.nn.Parameter(made, self.requires_grad)
        memo[id(self)] = made
        return made

    def to(self, *args: Any, **kwargs: Any) -> Any:
        for place in (*args[:1], kwargs.get("device")):
            if isinstance(place, str | torch.device) or type(place) is int:
                check_device(place)
        return torch.Tensor.to(self, *args, **kwargs)

    def cuda(self, *_: Any, **__: Any) -> NoReturn:
        check_device("cuda")
        raise AssertionError("it was refused")

    def is_shared(self) -> bool:
        return False

    # --- what it does not do --------------------------------------------------------------------------------

    def __bool__(self) -> bool:
        raise PrivateValue(f"bool() of a secret (if, while, and, or): {CHOOSE}{OPEN_IT}")

    def __contains__(self, item: object) -> bool:
        raise PrivateValue(f"`in` needs the values: (s == x).any() is a secret truth value; {OPEN_IT}")

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        raise BadRequest(
            "a secret cannot be pickled or saved: its shares are at the parties, for as long as this session. "
            "torch.save(await s.get(), path) saves its value, if you may learn it"
        )


def _private(name: str) -> Callable[..., NoReturn]:
    def refuse(self: SecretTensor, *_: Any, **__: Any) -> NoReturn:
        raise PrivateValue(f"{name} needs the value, which nobody has: {OPEN_IT}")

    return refuse


for _name, _shown in {
    "__float__": "float()",
    "__int__": "int()",
    "__index__": "an index or a range",
    "__complex__": "complex()",
    "__array__": "a numpy array",
    "__dlpack__": "another library",
    "item": ".item()",
    "tolist": ".tolist()",
    "numpy": ".numpy()",
}.items():
    setattr(SecretTensor, _name, _private(_shown))


def _of_memory(name: str) -> Callable[..., NoReturn]:
    def refuse(self: SecretTensor, *_: Any, **__: Any) -> NoReturn:
        raise BadRequest(f"{name}() works on a tensor's memory, which a secret does not have here: use operations")

    return refuse


for _name in "share_memory_ pin_memory data_ptr storage apply_ map_ map2_ new resize_ resize_as_ set_".split():
    setattr(SecretTensor, _name, _of_memory(_name))


def _at_peers(name: str) -> Callable[..., NoReturn]:
    def refuse(self: SecretTensor, *_: Any, **__: Any) -> NoReturn:
        raise BadRequest(
            f"{name}() of a secret: its shares stay with its parties. To let one peer learn it, await s.reveal(to=peer)"
        )

    return refuse


for _name in "send send_ get_ move move_ share tag describe".split():
    setattr(SecretTensor, _name, _at_peers(_name))

dispatch = Dispatch(SecretTensor)
defer_to(SecretTensor)
