"""From a torch.fx graph of ATen operations to a Program: what capture and model have in common."""

from __future__ import annotations

import logging
import math
import operator
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import fx

from compute.dtypes import is_by_default
from compute.operations import OPERATIONS, substitute, suggestions
from compute.program import Input, Node, Program
from compute.table import lookup
from compute.values import encode, header_of, inline_tensor
from protocol import limits
from protocol.errors import CannotCapture, RequestError

# Arithmetic on sizes that a graph holds as Python functions, and its name in a program.
_ARITHMETIC: Final[Mapping[Any, str]] = {
    operator.add: "int.add",
    operator.sub: "int.sub",
    operator.mul: "int.mul",
    operator.floordiv: "int.floordiv",
    operator.mod: "int.mod",
    operator.neg: "int.neg",
    operator.truediv: "float.div",
    min: "int.min",
    max: "int.max",
    math.sqrt: "float.sqrt",
    torch.sym_min: "int.min",
    torch.sym_max: "int.max",
    torch.sym_float: "float.from_int",
    torch.sym_int: "int.from_float",
}
_CHECKS: Final = ("_assert", "sym_constrain_range")  # what a tracer asserts about sizes computes nothing
_SWITCHES: Final = frozenset({torch._C._set_grad_enabled})
_DROPPED: Final = frozenset({"device", "layout", "pin_memory", "generator"})


@contextmanager
def quiet() -> Iterator[None]:
    """Tracing with torch's own words on it kept back: our errors say what a user needs. Fused kernels that are not in
    the table are off meanwhile.
    """
    torch_log = logging.getLogger("torch")
    loggers = [torch_log, *_loggers_below(torch_log)]
    disabled = [logger.disabled for logger in loggers]
    fast_path, mkldnn = torch.backends.mha.get_fastpath_enabled(), torch._C._get_mkldnn_enabled()
    try:
        for logger in loggers:
            logger.disabled = True  # not by its level: that makes every logger look anew, 10 ms of them
        torch.backends.mha.set_fastpath_enabled(False)
        torch._C._set_mkldnn_enabled(False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast_path)
        torch._C._set_mkldnn_enabled(mkldnn)
        for logger, was_disabled in zip(loggers, disabled, strict=True):
            logger.disabled = was_disabled


def _loggers_below(parent: logging.Logger) -> list[logging.Logger]:
    known = list(parent.manager.loggerDict.items())
    return [logger for name, logger in known if name.startswith("torch.") and isinstance(logger, logging.Logger)]


def without_checks(graph: fx.Graph) -> None:
    """Takes out assertions about sizes, switches of the gradient mode, and then everything that nothing needs."""
    for node in reversed(list(graph.nodes)):
        if node.op == "call_function" and (node.target in _SWITCHES or _base(node.target).startswith(_CHECKS)):
            graph.erase_node(node)
    graph.eliminate_dead_code()


class ProgramBuilder:
    """Builds the program of a graph, in two steps: all inputs first, then the nodes in order."""

    def __init__(self) -> None:
        self.inputs: list[Input] = []
        self._values: dict[fx.Node, dict[str, Any]] = {}
        self._nodes: list[Node] = []
        self._constants: list[Mapping[str, Any]] = []

    def add_input(self, node: fx.Node | None, given: Input) -> None:
        """`node` stands for this input; None for one that the graph does not use. A second node: `add_alias`."""
        if node is not None:
            self._values[node] = {"node": len(self.inputs)}
        self.inputs.append(given)

    def add_alias(self, node: fx.Node, name: str) -> None:
        """`node` stands for the input `name`, which was added before."""
        self._values[node] = {"node": [given.name for given in self.inputs].index(name)}

    def add_constant(self, node: fx.Node, tensor: torch.Tensor) -> None:
        """`node` stands for a small tensor that is written into the program."""
        self._values[node] = {"constant": len(self._constants)}
        self._constants.append(inline_tensor(tensor)["tensor"])

    def add_call(self, node: fx.Node) -> None:
        """One call of the graph, after its arguments.

        Raises:
            CannotCapture: an operation outside the table; the message names it.
        """
        target: Any = node.target
        if target is operator.getitem:
            self._values[node] = self._item(node)
            return
        name = _ARITHMETIC.get(target) or str(target)
        # torch.fx lets every argument be of a dozen types; encode sorts out those that can travel.
        args: Any = node.args
        kwargs: Any = {key: value for key, value in node.kwargs.items() if key not in _DROPPED}
        name, args, kwargs = substitute(name, args, kwargs)
        if name not in OPERATIONS and target not in _ARITHMETIC:
            raise CannotCapture(f"{_unknown(name)}", operation=name[:100])
        converted: dict[fx.Node, dict[str, Any]] = {}
        if name in OPERATIONS and _is_by_default(node):
            if "dtype" in lookup(name)._by_name:
                kwargs["dtype"] = node.meta["val"].dtype
            else:
                converted = self._converted(node)
        before = self._values
        try:
            self._values = before | converted
            wire = Node(name, [self._wire(value) for value in args], {k: self._wire(v) for k, v in kwargs.items()})
        except RequestError as error:
            raise CannotCapture(f"{name}: {error.message}", operation=name) from None
        finally:
            self._values = before
        self._values[node] = self._add(wire)

    def _converted(self, node: fx.Node) -> dict[fx.Node, dict[str, Any]]:
        """What a call is given, as floating-point numbers of the default dtype here."""
        dtype = encode(torch.get_default_dtype(), _no_tensor)
        tensors = [each for each in node.all_input_nodes if isinstance(each.meta.get("val"), torch.Tensor)]
        return {each: self._add(Node("aten.to.dtype", [self._wire(each), dtype])) for each in tensors}

    def _add(self, wire: Node) -> dict[str, Any]:
        self._nodes.append(wire)
        return {"node": len(self.inputs) + len(self._nodes) - 1}

    def program(self, outputs: Any) -> Program:
        """The program with these outputs: nested tuples, lists and dicts of graph nodes and plain values."""
        return Program(tuple(self.inputs), tuple(self._nodes), self._output(outputs), tuple(self._constants))

    def _wire(self, value: Any) -> Any:
        return encode(value, _no_tensor, self._node)

    def _node(self, value: object) -> Any:
        if isinstance(value, fx.Node):
            return dict(self._values[value])
        raise CannotCapture(f"{type(value).__name__} is no argument of an operation in a program")

    def _item(self, node: fx.Node) -> dict[str, Any]:
        source, item = node.args
        value = self._values[source]  # type: ignore[index]  # the first argument of getitem is a node
        if not isinstance(item, int) or "item" in value or "constant" in value:
            raise CannotCapture("only items of a list of results can be taken")
        return {**value, "item": item}

    def _output(self, value: Any) -> Any:
        if isinstance(value, tuple):
            return {"tuple": [self._output(item) for item in value]}
        if isinstance(value, list):
            return [self._output(item) for item in value]
        if isinstance(value, Mapping):
            return {"map": {str(key): self._output(item) for key, item in value.items()}}
        return self._wire(value)


def shape_of(value: torch.Tensor) -> tuple[int | None, ...]:
    """Its shape, with None for the dimensions that were left open."""
    # A size that the tracer found to be fixed is still a SymInt; its node knows.
    return tuple(dim if isinstance(dim, int) else dim.node.maybe_as_int() for dim in value.shape)


def is_small(tensor: torch.Tensor) -> bool:
    """True for a tensor that may be written into a program."""
    return header_of(tensor).nbytes <= limits.MAX_CONSTANT


def unique(name: str, taken: Iterable[str]) -> str:
    """`name`, or `name` with a number behind it, so that it is not among `taken`."""
    taken = set(taken)
    number = 2
    found = name
    while found in taken:
        found, number = f"{name}.{number}", number + 1
    return found


def _is_by_default(node: fx.Node) -> bool:
    made = node.meta.get("val")
    if not isinstance(made, torch.Tensor) or any(
        isinstance(each, torch.dtype) for each in (*node.args, *node.kwargs.values())
    ):
        return False
    given = [each.meta.get("val") for each in node.all_input_nodes]
    return is_by_default([each for each in given if isinstance(each, torch.Tensor)], made.dtype)


def _no_tensor(tensor: torch.Tensor) -> Any:
    raise CannotCapture("a tensor that is neither an input nor a result came up in an operation")


def _base(target: Any) -> str:
    parts = str(target).split(".")
    return parts[1] if len(parts) > 1 else parts[0]


def _unknown(name: str) -> str:
    near = suggestions(name) if name.startswith("aten.") else []
    hint = f"; {' or '.join(near)} are" if near else ""
    return f"{name[:100]} is not in the table of operations that peers run{hint}"
