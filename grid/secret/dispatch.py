"""ATen operations on secrets: which are written down as they are, which are said in others, and which are refused.

An operation that has no secure form is refused here and now, by name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch._decomp import decomposition_table

from compute.nested import mapped
from compute.operations import OPERATIONS, substitute
from compute.rewrites import rewritten
from compute.table import lookup
from grid.secret import refusals
from grid.secret.memory import View
from grid.secret.recording import Call, Recorder, Results, meta_of
from grid.secret.team import Secrets
from grid.secret.values import Value
from mpc.in_place import plain_form
from mpc.rewrites import overload
from protocol.errors import NotCollocated, OperationNotAllowed

if TYPE_CHECKING:
    from grid.secret.tensor import SecretTensor

_SAME: Final = frozenset({"aten.detach.default", "aten.alias.default", "aten.lift_fresh.default"})
_WHERE: Final = frozenset({"device", "layout", "pin_memory"})
# They change a tensor's shape in place: it is that view from then on.
_RESHAPED: Final[Mapping[str, str]] = {
    f"aten.{name}_.{which}": f"aten.{plain}.{which}"
    for name, plain, which in (
        *(("squeeze", "squeeze", "default"), ("squeeze", "squeeze", "dim"), ("squeeze", "squeeze", "dims")),
        *(("unsqueeze", "unsqueeze", "default"), ("t", "t", "default"), ("as_strided", "as_strided", "default")),
    )
} | dict.fromkeys(("aten.transpose_.default", "aten.swapaxes_.default", "aten.swapdims_.default"), "aten.transpose.int")
_OF_SHAPE: Final = frozenset(
    f"aten::{name}"
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like", "randint_like"),
        *("new_zeros", "new_ones", "new_full", "new_empty", "new_empty_strided"),
    )
)
"""They give what hangs on a secret's shape alone, and is public."""
_FILLS: Final = frozenset(
    f"aten::{name}_"
    for name in (
        *("zero", "fill", "uniform", "normal", "bernoulli", "random", "exponential", "log_normal", "cauchy"),
        "geometric",
    )
)
"""They write over a tensor what does not hang on it, and is public where their arguments are."""
_LISTS: Final = frozenset({"aten.unbind.int", "aten.split.Tensor", "aten.split_with_sizes.default"})
"""Views of parts, one after the other along a dimension."""


class Dispatch:
    """What becomes of an operation; `kind` is the class of secrets. Called as `dispatch(function, args, kwargs)`.

    Raises:
        OperationNotAllowed, BadRequest: there is no secure form of it.
        NotCollocated: secrets of two teams, or a pointer among them.
        PrivateValue: a plain value is asked for.
    """

    def __init__(self, kind: type[SecretTensor]) -> None:
        self._kind = kind
        self._recorder = Recorder(kind)
        self.value_of = self._recorder.value_of

    def __call__(self, function: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        name = str(function)
        secrets = self._team(name, [*args, *kwargs.values()])
        if name in _SAME:
            return self._kind.of(args[0]._view)
        if kwargs:
            place = kwargs.get("device")
            if place is not None and torch.device(place).type == "meta":
                return function(*mapped(args, self._recorder.meta), **kwargs)
            refusals.check_device(place)
            kwargs = {key: value for key, value in kwargs.items() if key not in _WHERE}
        if name in refusals.FACTS:
            return refusals.FACTS[name](*args, **kwargs)
        if name in _RESHAPED:
            return self._reshaped(args, self(overload(_RESHAPED[name]), args, kwargs))
        other, args, kwargs = substitute(name, args, kwargs)
        if other != name:
            return self(overload(other), args, kwargs)
        return self._operation(Call(secrets, function, name, args, kwargs))

    # --- which way ------------------------------------------------------------------------------------------

    def _operation(self, call: Call) -> Any:
        if call.name.startswith("aten.index"):
            call, made = self._indexed(call)
            if made is not None:
                return made
        refusals.check_asks_no_value(call.name, call.args, call.kwargs, self._kind)
        kind = call.function._schema.name
        if kind in _OF_SHAPE:
            return self._of_shape(call)
        if kind in _FILLS and self._recorder.is_public([*call.args[1:], *call.kwargs.values()]):
            return self._filled(call)
        entry = lookup(call.name) if call.name in OPERATIONS else None
        if entry is None or entry.category == "random" or (entry.writes and not entry.is_inplace):
            return self._in_parts(call)
        args, kwargs = entry.bind(call.args, call.kwargs)
        bound = Call(call.secrets, call.function, call.name, args, kwargs)
        return self._in_place(bound) if entry.is_inplace else self._made(bound)

    def _in_parts(self, call: Call) -> Any:
        """What the table does not have, what draws, and what writes besides giving something: in other operations."""
        function = call.function
        outs = [argument.name for argument in function._schema.arguments if argument.is_out]
        if outs:
            return self._into(call, outs)
        parts = rewritten(call.name) or decomposition_table.get(function)
        if function.namespace == "prims":
            parts = function.impl_aten
        composite = torch._C.DispatchKey.CompositeImplicitAutograd
        if parts is None and torch._C._dispatch_has_kernel_for_dispatch_key(function.name(), composite):
            parts = function.decompose
        if parts is None:
            raise refusals.no_secure_form(call.name)
        return parts(*call.args, **call.kwargs)

    @staticmethod
    def _into(call: Call, outs: list[str]) -> Any:
        """An operation whose results are written to tensors that are there: they are computed, and copied."""
        packet = getattr(getattr(torch.ops, call.function.namespace), call.function._opname)
        made = packet(*call.args, **{key: value for key, value in call.kwargs.items() if key not in outs})
        results = [made] if len(outs) == 1 else list(made)
        written = [call.kwargs[key].copy_(result) for key, result in zip(outs, results, strict=True)]
        return written[0] if len(outs) == 1 else tuple(written)

    # --- results --------------------------------------------------------------------------------------------

    def _made(self, call: Call) -> Any:
        results = self._recorder.results(call)
        if results.is_view:
            if results.kind is not None and call.name not in _LISTS:
                return self._in_parts(call)
            made: list[Any] = self._views(call, results)
        elif not results.metas:
            return results.plain
        else:
            values = self._recorder.step(call, results)
            made = [
                None if value is None or meta is None else self._kind.of(View.whole(call.secrets, value, meta))
                for value, meta in zip(values, results.metas, strict=True)
            ]
        return made[0] if results.kind is None else results.kind(made)

    def _views(self, call: Call, results: Results) -> list[SecretTensor]:
        view: View = call.args[0]._view
        metas = [meta for meta in results.metas if meta is not None]
        if results.kind is None:
            return [self._kind.of(view.then(metas[0], call.name, call.args[1:], call.kwargs))]
        dim = lookup(call.name).named(call.args, call.kwargs)["dim"] % call.args[0].dim()
        made, at = [], 0
        for meta in metas:
            size = 1 if call.name == "aten.unbind.int" else int(meta.shape[dim])
            one = ("aten.select.int", [dim, at]) if call.name == "aten.unbind.int" else None
            made.append(self._kind.of(view.then(meta, *(one or ("aten.slice.Tensor", [dim, at, at + size])), {})))
            at += size
        return made

    def _of_shape(self, call: Call) -> SecretTensor:
        zeros = self._recorder.zeros
        here = call.function(*mapped(call.args, zeros), **call.kwargs)
        if "empty" in call.name:
            here.zero_()
        return self._kind.of(View.whole(call.secrets, Value.public(here), meta_of(here)))

    # --- changes in place -----------------------------------------------------------------------------------

    def _in_place(self, call: Call) -> Any:
        """What changes a tensor makes another value, which is its own from then on."""
        changed = call.args[0]
        if not isinstance(changed, self._kind):
            raise NotCollocated(refusals.written_here(changed), operation=call.name)
        self._recorder.results(call)  # may it?
        made = self._instead(call)
        if made.shape != changed.shape:
            made = made.expand(changed.shape)
        if made.dtype != changed.dtype:
            made = made.to(changed.dtype)
        value = self._recorder.written(call.secrets, made)
        changed._view.write(value, self._recorder.writer(call.secrets))
        return changed

    @staticmethod
    def _instead(call: Call) -> torch.Tensor:
        """What the tensor would be changed to."""
        if call.name in ("aten.copy_.default", "aten.fill_.Tensor"):
            made: torch.Tensor = call.args[1]
            return made
        plain = plain_form(call.name, call.function)
        if plain is None:
            raise refusals.no_secure_form(call.name)
        made = plain(*call.args, **call.kwargs)
        return made

    def _filled(self, call: Call) -> SecretTensor:
        changed: SecretTensor = call.args[0]
        zeros = self._recorder.zeros(changed).contiguous()
        here = call.function(zeros, *mapped(call.args[1:], self._recorder.here), **call.kwargs)
        changed._view.write(Value.public(here), self._recorder.writer(call.secrets))
        return changed

    @staticmethod
    def _reshaped(args: Sequence[Any], view: SecretTensor) -> SecretTensor:
        changed: SecretTensor = args[0]
        torch.Tensor.data.__set__(changed, view)  # type: ignore[attr-defined]  # shape and strides
        changed._view = view._view
        return changed

    # --- arguments ------------------------------------------------------------------------------------------

    def _indexed(self, call: Call) -> tuple[Call, Any]:
        """The same with numbers for truth values that all know; or what it gives, where secret ones choose."""
        if not call.name.startswith(("aten.index.Tensor", "aten.index_put")):
            return call, None
        indices = [number for each in call.args[1] for number in self._numbers(each)]
        call = call.with_args(call.args[0], indices, *call.args[2:])
        if call.name == "aten.index.Tensor" or len(indices) != 1 or len(call.args) > 3 or call.kwargs:
            return call, None
        changed, (mask,), value = call.args
        if not isinstance(mask, self._kind) or mask.dtype != torch.bool or value.numel() != 1:
            return call, None
        choice = mask.reshape(*mask.shape, *[1] * (changed.dim() - mask.dim()))
        made = torch.where(choice, value.reshape(()).to(changed.dtype), changed)
        return call, changed.copy_(made) if call.name.startswith("aten.index_put_.") else made

    def _numbers(self, index: Any) -> list[Any]:
        """An index by truth values that all know as one by numbers for each of its dimensions."""
        is_truth = isinstance(index, torch.Tensor) and index.dtype in (torch.bool, torch.uint8)
        if is_truth and self._recorder.is_public(index):
            return list(self._recorder.here(index).nonzero().unbind(1))
        return [index]

    def _team(self, name: str, values: Sequence[Any]) -> Secrets:
        """The secrets whose team they are of."""
        found: Secrets | None = None
        for value in values:
            if isinstance(value, list | tuple):
                for item in value:
                    found = self._same(name, found, item)
            else:
                found = self._same(name, found, value)
        if found is None:
            raise OperationNotAllowed(f"{name} takes no secret", operation=name)
        return found

    def _same(self, name: str, found: Secrets | None, value: Any) -> Secrets | None:
        if isinstance(value, self._kind):
            other = value._view.memory.secrets
            if found is not None and other is not found:
                raise NotCollocated(refusals.two_teams(found, other), operation=name)
            return other
        if isinstance(value, torch.Tensor) and hasattr(value, "_handle"):
            raise NotCollocated(refusals.with_pointer(value), operation=name)
        return found
