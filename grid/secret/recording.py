"""Operations on secrets, written down: as a step that gives pending values, or computed where all is public.

Shapes, dtypes and what shares memory come from torch's own kernels on tensors without values (device meta), and are
remembered: many of those kernels are Python.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from compute.frames import storage_of
from compute.nested import mapped
from compute.values import decode, encode
from grid.secret.checked import check
from grid.secret.team import Secrets
from grid.secret.values import Public, Step, Value, values_in
from mpc.rewrites import overload
from protocol import limits
from protocol.errors import BadRequest

if TYPE_CHECKING:
    from grid.secret.tensor import SecretTensor


@dataclass(frozen=True, slots=True)
class Call:
    """One operation that was asked for."""

    secrets: Secrets
    function: Any
    name: str
    args: Sequence[Any]
    kwargs: Mapping[str, Any]

    @property
    def values(self) -> list[Any]:
        return [*self.args, *self.kwargs.values()]

    def with_args(self, *args: Any) -> Call:
        return Call(self.secrets, self.function, self.name, args, self.kwargs)


@dataclass(frozen=True, slots=True)
class Results:
    """What an operation gives.

    Attributes:
        metas: tensors without values; None where it gives nothing for one of several.
        kind: list or tuple, where it gives several; None for one tensor.
        is_view: of its first argument.
        plain: what it gives instead of tensors.
    """

    metas: tuple[torch.Tensor | None, ...]
    kind: type | None
    is_view: bool
    plain: Any = None


class Recorder:
    """`kind` is the class of secrets."""

    def __init__(self, kind: type[SecretTensor]) -> None:
        self._kind = kind
        self._known: dict[Any, Results] = {}

    # --- results --------------------------------------------------------------------------------------------

    def results(self, call: Call) -> Results:
        """Shapes, dtypes and strides of what an operation gives. Raises what torch raises for these arguments."""
        key = (call.name, self._key(call.args), self._key(sorted(call.kwargs.items())))
        known = self._known.get(key)
        if known is None or known.is_view:
            known = self._results(call)
            if len(self._known) < limits.MAX_ESTIMATES:
                self._known[key] = known
            return known
        fresh = tuple(None if each is None else meta_of(each) for each in known.metas)  # each has memory of its own
        return Results(fresh, known.kind, known.is_view, known.plain)

    def _results(self, call: Call) -> Results:
        made = call.function(*mapped(call.args, self.meta), **{k: mapped(v, self.meta) for k, v in call.kwargs.items()})
        is_many = isinstance(made, list | tuple)
        metas = tuple(made) if is_many else (made,)
        if not any(isinstance(each, torch.Tensor) for each in metas):
            return Results((), None, False, made)
        first = call.args[0] if call.args else None
        may_be = bool(metas) and isinstance(first, self._kind) and not call.function._schema.is_mutable
        is_view = may_be and metas[0] is not None and _shares(metas[0], call.args[0]._view.meta)
        return Results(metas, type(made) if is_many else None, is_view)

    def _key(self, value: Any) -> Any:
        """Something that tells calls apart whose results differ; a number is no truth value, no whole one a real."""
        if isinstance(value, torch.Tensor):
            return value.dtype, value.shape, value.stride(), type(value) is torch.Tensor and value.dim() == 0
        if isinstance(value, list | tuple):
            return tuple(map(self._key, value))
        return type(value), value

    # --- values ---------------------------------------------------------------------------------------------

    def value_of(self, tensor: SecretTensor) -> Value:
        """Its elements, now."""
        return tensor._view.read(self.writer(tensor._view.memory.secrets))

    def writer(self, secrets: Secrets) -> Any:
        """`write(operation, *args, **kwargs)`: one operation on Values, that gives one."""

        def write(name: str, *args: Any, **kwargs: Any) -> Value:
            given = mapped(list(args), lambda each: _empty(each) if isinstance(each, Value) else each)
            meta = overload(name)(*given, **kwargs)
            wire = {key: _wire(each) for key, each in kwargs.items()}
            (value,) = self._step(secrets, name, _wire(list(args)), wire, [meta], has_items=False)
            assert value is not None
            return value

        return write

    def written(self, secrets: Secrets, value: Any) -> Any:
        """The wire value of an argument, with a Value for each tensor."""

        def reference(tensor: torch.Tensor) -> Any:
            if isinstance(tensor, self._kind):
                return self.value_of(tensor)
            return Value.public(tensor.detach().clone(memory_format=torch.contiguous_format))

        return encode(value, reference)

    def step(self, call: Call, results: Results) -> list[Value | None]:
        """The values that an operation gives: pending; of public ones alone, computed."""
        args = self.written(call.secrets, call.args)
        kwargs = {key: self.written(call.secrets, each) for key, each in call.kwargs.items()}
        return self._step(call.secrets, call.name, args, kwargs, results.metas, has_items=results.kind is not None)

    def _step(
        self,
        secrets: Secrets,
        name: str,
        args: list[Any],
        kwargs: Mapping[str, Any],
        metas: Sequence[torch.Tensor | None],
        *,
        has_items: bool,
    ) -> list[Value | None]:
        operands = values_in([args, list(kwargs.values())])
        if all(isinstance(each.source, Public) for each in operands):
            return _computed(name, args, kwargs)
        items = [item for item, meta in enumerate(metas) if meta is not None] if has_items else None
        check(name, args, kwargs, items, secrets.precision, secrets.count)
        step = Step(name, args, kwargs)
        values = step.gives(metas, has_items)
        secrets.add(step)
        return values

    # --- what stands for a tensor ---------------------------------------------------------------------------

    def meta(self, value: Any) -> Any:
        """A tensor without values; all else as it is."""
        if isinstance(value, self._kind):
            return value._view.meta
        return meta_of(value) if isinstance(value, torch.Tensor) else value

    def zeros(self, value: Any) -> Any:
        """Of a secret, zeros of the same shape and strides."""
        if not isinstance(value, self._kind):
            return value
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype).zero_()

    def here(self, value: Any) -> Any:
        """A public value as a tensor that is here."""
        if not isinstance(value, self._kind):
            return value
        source = self.value_of(value).source
        assert isinstance(source, Public)
        return source.tensor

    def is_public(self, values: Any) -> bool:
        """Whether no secret is among them."""
        if isinstance(values, list | tuple):
            return all(map(self.is_public, values))
        return not isinstance(values, self._kind) or isinstance(self.value_of(values).source, Public)


def meta_of(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor of its shape, strides and dtype that has no values."""
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def _computed(name: str, args: list[Any], kwargs: Mapping[str, Any]) -> list[Value | None]:
    """Of public values alone: here and now."""

    def plain(value: Any) -> Any:
        if isinstance(value, Value):
            assert isinstance(value.source, Public)
            return value.source.tensor
        return list(map(plain, value)) if isinstance(value, list) else decode(value, _no_reference)

    made = overload(name)(*map(plain, args), **{key: plain(each) for key, each in kwargs.items()})
    results = made if isinstance(made, list | tuple) else [made]
    return [None if each is None else Value.public(each.clone()) for each in results]


def _shares(made: torch.Tensor, of: torch.Tensor) -> bool:
    return storage_of(made) == storage_of(of)


def _empty(value: Value) -> torch.Tensor:
    return torch.empty(value.shape, dtype=value.dtype, device="meta")


def _wire(value: Any) -> Any:
    """The wire value of an argument that has Values in it."""
    if isinstance(value, Value):
        return value
    return [_wire(item) for item in value] if isinstance(value, list | tuple) else encode(value, _no_reference)


def _no_reference(_: Any) -> Any:
    raise BadRequest("a tensor that is no secret in the middle of an operation")
