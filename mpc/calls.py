"""One operation after the other: computed beforehand where nothing in it is secret, else written down in secure forms.

What has no secure form is said otherwise (rewrites.py), or taken apart by torch's own decompositions, down to what has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

import torch
from torch._decomp import decomposition_table
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes

from compute import interpreter as clear
from compute import numbers
from compute.operations import NUMBERS
from compute.table import lookup
from compute.tracing import quiet
from mpc.backward import RULES
from mpc.in_place import COPIES, in_place, plain_form, taken_anew
from mpc.loops import CARRIED, Inside
from mpc.operations import SECURE
from mpc.sheet import Reference, Sheet
from mpc.traces import Traces
from mpc.varying import Varying
from protocol.errors import OperationNotAllowed

_OF_SHAPE: Final = frozenset(
    f"aten::{name}"
    for name in (
        *("zeros_like", "ones_like", "full_like", "empty_like", "new_zeros", "new_ones", "new_full", "new_empty"),
        *("scalar_tensor", "sym_size", "sym_numel", "sym_stride", "rand_like", "randn_like", "randint_like"),
    )
)
"""What they give hangs on the shape of a secret, which all know, and not on its value. What is drawn so (dropout's
masks) is public: it tells nothing of any data."""
_EXPANDED: Final[Any] = torch.ops.aten.expand.default


class Calls:
    """Of a program; or, `inside` one, of the body of a loop.

    Attributes:
        sheet: what was written down.
        traces: what is known of tensors.
        varying: what is public and differs from iteration to iteration.
    """

    def __init__(self, inside: Inside | None = None) -> None:
        self.loop = inside
        if inside is None:
            self.varying = Varying(1)
            self.sheet = Sheet(self.varying)
        else:
            self.varying = inside.varying
            self.sheet = Sheet(self.varying, inside.outside.sheet, inside.slice_of)
        self.traces = Traces(self.sheet)
        self.more: dict[int, int] = {}  # fractional bits of secret inputs, by their numbers
        self._inside: list[str] = []  # what is being taken apart
        self._mode = _Recording(self)

    def call(self, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """One node: here and now where nothing in it is secret, else written down."""
        if operation in NUMBERS:
            return numbers.compute(operation, args)
        entry = lookup(operation)
        if not self.is_secret((args, kwargs)):
            return self.public_result(lambda *a, **k: clear.execute(entry, a, k), entry.overload, args, kwargs)
        bound, named = entry.bind(args, kwargs)
        if entry.category == "size":
            return entry.overload(*bound, **named)
        return self.secret(operation, entry.overload, bound, named)

    def public_result(
        self, function: Callable[..., Any], overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> Any:
        """What an operation on what all know gives, which `function` does. What is empty holds zeros: some of it may
        go on with secrets, and whatever lay there may be no number."""
        if "empty" in overload._schema.name:

            def zeros(*args: Any, **kwargs: Any) -> Any:
                return function(*args, **kwargs).zero_()

            return self._seen(self.varying.run(zeros, overload, args, kwargs))
        return self._seen(self.varying.run(function, overload, args, kwargs))

    def _seen(self, made: Any) -> Any:
        for each in pytree.tree_leaves(made):
            if isinstance(each, torch.Tensor):
                self.traces.seen(each)
        return made

    def secret(self, operation: str, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """An operation on a secret: as it is, or in parts."""
        if overload._schema.name in _OF_SHAPE:
            return self.public_result(overload, overload, args, kwargs)
        if overload._schema.name == "aten::_linalg_check_errors":
            return None  # what is secret is not looked at
        rule = RULES.get(operation)
        if rule is not None:
            with self._mode if self.loop is not None else nullcontext():
                result = rule(self, self._named(overload, args, kwargs))
            if result is not None:
                if any(result is each for each in pytree.tree_leaves((args, kwargs))):
                    return self.copy(result)
                if overload.is_view and isinstance(result, torch.Tensor):
                    return self._as_view(overload(*args, **kwargs), result)
                if isinstance(result, torch.Tensor) and self.is_secret(result):
                    self.traces.came_from(result, operation, self._named(overload, args, kwargs))
                return result
        if operation in SECURE and not self._is_plainer(overload, args, kwargs):
            made = overload(*args, **kwargs)
            if any(made is each for each in pytree.tree_leaves((args, kwargs))):
                return made  # nothing is done: of the same dtype already, say
            if _is_nothing(made):
                return self._seen(made)
            self._write(operation, args, kwargs, made)
            return made
        if overload._schema.is_mutable:
            plain = _EXPANDED if operation in COPIES else plain_form(operation, overload)
            if plain is None:
                raise self._has_none(operation)
            return in_place(self, operation, plain, args, kwargs)
        parts = decomposition_table.get(overload)
        if parts is None and overload.has_kernel_for_dispatch_key(torch._C.DispatchKey.CompositeImplicitAutograd):
            parts = overload.decompose
        if operation.startswith("prims."):
            parts = overload.impl_aten
        if parts is None or operation in self._inside:
            raise self._has_none(operation)
        self._inside.append(operation)
        try:
            with self._mode, quiet():
                return parts(*args, **kwargs)
        finally:
            self._inside.pop()

    def _as_view(self, view: torch.Tensor, made: torch.Tensor) -> torch.Tensor:
        """What was made otherwise stands for a view still: what is written to that is written to the whole."""
        if view._base is None:
            return made
        self.traces.note(view, self.traces.reference(made))
        return view

    def made(self, operation: str, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What an operation gives: as it is or in parts, or here and now where nothing in it is secret."""
        if self.is_secret((args, kwargs)):
            return self.secret(operation, overload, args, kwargs)
        return self.varying.run(overload, overload, args, kwargs)

    def _has_none(self, operation: str) -> OperationNotAllowed:
        """What was written is named; what of it there is no form for, too."""
        written = self._inside[0] if self._inside else operation
        because = f" (it needs {operation})" if written != operation else ""
        return OperationNotAllowed(f"{written} has no secure form{because}: it cannot run on shares", operation=written)

    def written(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of torch operations gives."""
        with self._mode, quiet():
            return function(*args)

    def apply(self, overload: Any, *args: Any, **kwargs: Any) -> Any:
        """What an operation gives: here and now where nothing in it is secret, else written down."""
        if not self.is_secret((args, kwargs)):
            return self.public_result(overload, overload, args, kwargs)
        with _disable_current_modes() if self.loop is not None else nullcontext():
            return self.secret(str(overload), overload, args, kwargs)

    @staticmethod
    def _named(overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments by their names in the schema, those left out as it has them."""
        named = dict(kwargs)
        for at, each in enumerate(overload._schema.arguments):
            if at < len(args):
                named[each.name] = args[at]
            elif each.name not in named and each.has_default_value():
                named[each.name] = each.default_value
        return named

    def _is_plainer(self, overload: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
        """Whether the secure form is for secret labels, and these are public: then the decomposition is better."""
        name = overload._schema.name.removeprefix("aten::")
        return name.startswith("nll_loss") and not self.is_secret(self._named(overload, args, kwargs)["target"])

    def _write(self, operation: str, args: Sequence[Any], kwargs: Mapping[str, Any], made: Any) -> None:
        number = self.sheet.add(operation, args, kwargs, self.traces.reference)
        given = self._named(lookup(operation).overload, args, kwargs)
        if isinstance(made, torch.Tensor):
            self._wrote(made, {"made": number}, operation, given)
            return
        for item, each in enumerate(made):
            if isinstance(each, torch.Tensor):
                self._wrote(each, {"made": number, "item": item}, operation, given)

    def _wrote(self, made: torch.Tensor, reference: Reference, operation: str, given: Mapping[str, Any]) -> None:
        self.traces.note(made, reference)
        self.traces.came_from(made, operation, given)

    def copy(self, value: Any) -> Any:
        """The same value under a name of its own, so that what is done to one in place is not done to the other."""
        if not isinstance(value, torch.Tensor):
            return value
        self.is_secret(value)  # as it is now
        copy = self.varying.copy(value)
        self.traces.same(copy, value)
        return copy

    # --- what rules ask (rewrites.py) -------------------------------------------------------------------------------

    def is_secret(self, value: Any) -> bool:
        """Whether there is a secret in it. All that looks at a value asks this first, so that views of what was written
        to are taken anew here."""
        for view in self.traces.take_outdated(value):
            with _disable_current_modes():
                taken_anew(self, view)
        return self.traces.is_secret(value)

    def made_by(self, tensor: torch.Tensor) -> tuple[str, Mapping[str, Any]] | None:
        return self.traces.made_by(tensor)

    def remembered(self, tensor: torch.Tensor, purpose: Any, make: Callable[[], Any]) -> Any:
        return self.traces.remembered(tensor, purpose, make)

    def remember(self, tensor: torch.Tensor, purpose: Any, made: torch.Tensor) -> None:
        self.traces.remember(tensor, purpose, made)

    def refer(self, value: torch.Tensor) -> Reference:
        """The reference of a value, which is written down where it is public."""
        return self.traces.reference(value)

    def given(self, stand_in: torch.Tensor, reference: dict[str, Any]) -> torch.Tensor:
        """A secret that a body is given."""
        self.traces.note(stand_in, reference)
        return stand_in

    def varies(self, value: Any) -> bool:
        """Whether something in it is public and differs from iteration to iteration."""
        return self.varying.has(value)

    def values_of(self, tensor: torch.Tensor) -> list[torch.Tensor]:
        """Of what is public: its value in each iteration; one, where it is the same in all."""
        with _disable_current_modes():
            return [each.detach() for each in self.varying.of(tensor)]

    def differing(self, values: Sequence[torch.Tensor]) -> torch.Tensor:
        """One public tensor that has these values in the iterations."""
        return self.varying.note(values) if len(values) > 1 else values[0]

    def carried_as(self, tensor: torch.Tensor, purpose: Any, make: Callable[[Any, Any], Any]) -> torch.Tensor | None:
        """What a loop carries, in the form that `make` gives it; None where it carries no such thing."""
        kind, place = self.traces.reference(tensor).get("given", (None, 0))
        if self.loop is None or kind != CARRIED:
            return None
        return self.given(*self.loop.carried_as(place, purpose, make, tensor))

    def finer(self, tensor: torch.Tensor, bits: int) -> None:
        """Has a secret that is given be given with so many more fractional bits; nothing of one that is made."""
        reference = self.traces.reference(tensor)
        if "secret" in reference:
            at = reference["secret"]
            self.more[at] = max(bits, self.more.get(at, 0))
        elif "given" in reference and self.loop is not None:
            kind, at = reference["given"]
            self.loop.outside.finer(self.loop.given[kind][at], bits)


def _is_nothing(made: Any) -> bool:
    """Whether there is no element in what an operation gives, and nothing can be written through it: all know it."""
    leaves = pytree.tree_leaves(made)
    return all(isinstance(each, torch.Tensor) and not each.numel() and each._base is None for each in leaves)


class _Recording(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees what a decomposition calls."""

    def __init__(self, calls: Calls) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._calls = calls

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not self._calls.is_secret((args, kwargs)):
            return self._calls.public_result(func, func, args, kwargs)
        return self._calls.secret(str(func), func, args, kwargs)
