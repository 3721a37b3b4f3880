"""The ATen table: `lookup(name)` gives the Entry of an allowed operation, and its checks of the arguments.

A name is a key of compute.operations.OPERATIONS and nothing else: no dotted look-up of what a stranger wrote. An Entry
knows from the operator's schema what each argument must be, which arguments the operation writes, and which results
share memory with an argument.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch

from compute.arguments import Beyond, Refused, checker
from compute.operations import OPERATIONS, suggestions
from protocol.errors import BadRequest, OperationNotAllowed, TooLarge
from protocol.sizes import beyond

# Batch normalisation moves its running statistics when it trains, though its schema does not say so: operation ->
# (the flag that says whether, the arguments written).
_TRAINED: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "aten.batch_norm.default": ("training", ("running_mean", "running_var")),
    "aten.native_batch_norm.default": ("training", ("running_mean", "running_var")),
    "aten._native_batch_norm_legit.default": ("training", ("running_mean", "running_var")),
    "aten.instance_norm.default": ("use_input_stats", ("running_mean", "running_var")),
}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One argument of an operation, by its schema. `kind` is the schema's type: "Tensor", "Optional[List[int]]"..."""

    name: str
    kind: str
    check: Any  # Callable[[object], object]: the value to pass, or Refused
    default: object
    is_required: bool
    is_keyword_only: bool
    is_written: bool


@dataclass(frozen=True, slots=True)
class Entry:
    """One allowed operation.

    Attributes:
        name: "aten.add.Tensor".
        category: a key of compute.operations.CATEGORIES.
        overload: the torch operator, called as `overload(*args, **kwargs)` with what `bind` returned.
        kernel: the same without the function of Python around it.
        parameters: the arguments, in the order of the schema.
        is_inplace: the operation's result is its first argument, changed.
        writes: positions (in `parameters`) of arguments that it may write; see `written`.
        n_results: how many values it returns; a list of tensors counts as one.
        gives_list: its one result is a list of tensors (split, unbind).
        aliases: for each result, the position of the argument whose memory it shares, or None.
    """

    name: str
    category: str
    overload: Any
    kernel: Any
    parameters: tuple[Parameter, ...]
    is_inplace: bool
    writes: tuple[int, ...]
    n_results: int
    gives_list: bool
    aliases: tuple[int | None, ...]
    _positional: int = field(repr=False)
    _required: tuple[int, ...] = field(repr=False)
    _by_name: Mapping[str, int] = field(repr=False)

    def bind(self, args: Sequence[object], kwargs: Mapping[str, object]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments as the overload takes them, each checked against the schema.

        Raises:
            BadRequest: an argument missing, unknown, given twice, or of a wrong type or range.
            TooLarge: a size that no operation takes.
        """
        parameters = self.parameters
        if len(args) > self._positional:
            raise self._wrong(f"takes {self._positional} positional arguments, but {len(args)} were given")
        at = 0
        try:
            bound: list[Any] = []
            for at, value in enumerate(args):
                bound.append(parameters[at].check(value))
            named: dict[str, Any] = {}
            for name, value in kwargs.items():
                found = self._by_name.get(name)
                if found is None or found < len(args):
                    raise self._wrong(f"{'takes no' if found is None else 'got a second'} argument {str(name)[:60]!r}")
                at = found
                named[name] = parameters[at].check(value)
        except Beyond as beyond:
            raise self._beyond(f"argument {parameters[at].name!r} {beyond}", beyond.size) from None
        except Refused as refused:
            raise self._wrong(f"argument {parameters[at].name!r} {refused}") from None
        if len(args) + len(kwargs) < len(parameters):
            self._check_required(len(args), kwargs)
        return tuple(bound), named

    def named(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Every argument by name, defaults filled in."""
        call = {parameter.name: parameter.default for parameter in self.parameters}
        call.update(zip(call, args, strict=False))
        call.update(kwargs)
        return call

    def argument(self, position: int, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """What this call gives for the argument at `position` (in `parameters`); None where it gives nothing."""
        return args[position] if position < len(args) else kwargs.get(self.parameters[position].name)

    def written(self, args: Sequence[Any], kwargs: Mapping[str, Any]) -> tuple[int, ...]:
        """The positions of the arguments that this very call writes."""
        trained = _TRAINED.get(self.name)
        if trained is not None and not self.named(args, kwargs)[trained[0]]:
            return ()
        return self.writes

    @property
    def reshapes(self) -> bool:
        """Whether its first argument has another shape afterwards: then so does whatever else is that very tensor."""
        return torch.Tag.inplace_view in self.overload.tags and self.name != _DETACHED

    def _check_required(self, given: int, kwargs: Mapping[str, object]) -> None:
        for position in self._required:
            if position >= given and self.parameters[position].name not in kwargs:
                raise self._wrong(f"needs the argument {self.parameters[position].name!r}")

    def _wrong(self, what: str) -> BadRequest:
        return BadRequest(f"{self.name} {what}", operation=self.name)

    def _beyond(self, what: str, size: int) -> TooLarge:
        return beyond("MAX_INT", size, "{operation} {what}", operation=self.name, what=what)


_DETACHED: Final = "aten.detach_.default"  # a view in place, but of the same shape
_ENTRIES: Final[dict[str, Entry]] = {}


def lookup(name: str) -> Entry:
    """The entry of an operation of the table.

    Raises:
        OperationNotAllowed: any other name; the message suggests what was perhaps meant.
    """
    try:
        return _ENTRIES[name]
    except (KeyError, TypeError):
        return _find(name)


def _find(name: object) -> Entry:
    if not isinstance(name, str) or name not in OPERATIONS:
        raise _not_allowed(name)
    _, base, overload = name.split(".")
    try:
        operator = getattr(getattr(torch.ops.aten, base), overload)
    except AttributeError:
        raise OperationNotAllowed(
            f"{name} does not exist in torch {torch.__version__}, which runs here", operation=name
        ) from None
    _ENTRIES[name] = entry = _entry(name, operator)
    return entry


_OF_LAYOUTS: Final[Mapping[str, str]] = {
    "sparse": "tensors at a peer are dense: send matrix.to_dense() instead of a sparse matrix, or keep its row and "
    "column numbers and values, and add up with out.index_add(0, row, values[:, None] * x[column])",
    "quantize": "tensors at a peer are not quantised: round instead, (x / scale).round().clamp(low, high) * scale; or "
    "quantise where the values are (await net.get())",
    "nested": "tensors at a peer are not nested: pad them, nn.utils.rnn.pad_sequence(list, batch_first=True)",
    "mkldnn": "tensors at a peer are in no layout of a library's: leave it out",
}
"""Of an operation in whose name the word stands: what to write instead."""


def _not_allowed(name: object) -> OperationNotAllowed:
    if not isinstance(name, str):
        return OperationNotAllowed(f"an operation is named by text, not by {type(name).__name__}")
    shown = name if len(name) <= 80 else name[:77] + "..."
    return OperationNotAllowed(f"{shown!r} is not in the table of operations; {_instead(name)}", operation=shown)


def _instead(name: str) -> str:
    for word, advice in _OF_LAYOUTS.items():
        if word in name:
            return advice
    similar = suggestions(name)
    return f"did you mean {' or '.join(similar)}?" if similar else "compute/operations.py lists what is allowed"


def _entry(name: str, operator: Any) -> Entry:
    schema = operator._schema
    hidden = _TRAINED.get(name, ("", ()))[1]
    parameters = tuple(_parameter(argument, hidden) for argument in schema.arguments)
    returns = list(schema.returns)
    written = tuple(position for position, parameter in enumerate(parameters) if parameter.is_written)
    aliases = tuple(_aliased(result, schema.arguments) for result in returns)
    return Entry(
        name=name,
        category=OPERATIONS[name],
        overload=operator,
        kernel=getattr(operator, "_op", operator),
        parameters=parameters,
        is_inplace=0 in written and aliases[:1] == (0,),
        writes=written,
        n_results=len(returns),
        gives_list=len(returns) == 1 and str(returns[0].real_type) == "List[Tensor]",
        aliases=aliases,
        _positional=sum(not parameter.is_keyword_only for parameter in parameters),
        _required=tuple(position for position, parameter in enumerate(parameters) if parameter.is_required),
        _by_name={parameter.name: position for position, parameter in enumerate(parameters)},
    )


def _parameter(argument: Any, hidden: tuple[str, ...]) -> Parameter:
    kind = str(argument.real_type)
    is_written = argument.name in hidden or (argument.alias_info is not None and argument.alias_info.is_write)
    return Parameter(
        name=argument.name,
        kind=kind,
        check=checker(kind, argument.name, is_written),
        default=argument.default_value if argument.has_default_value() else None,
        is_required=not argument.has_default_value(),
        is_keyword_only=argument.kwarg_only,
        is_written=is_written,
    )


def _aliased(result: Any, arguments: Sequence[Any]) -> int | None:
    if result.alias_info is None and str(result.real_type) != "List[Tensor]":
        return None
    sets = result.alias_info.before_set | result.alias_info.after_set if result.alias_info is not None else set()
    for position, argument in enumerate(arguments):
        # A view that is a list (split) says so by the wildcard in the argument's set alone.
        alias = argument.alias_info
        if alias is not None and (sets & alias.before_set or "*" in alias.after_set):
            return position
    return None
