"""LSTM, GRU and RNN of ONNX as torch's layers: the same mathematics, its gates and weights in another order."""

from __future__ import annotations

from typing import Any, Final

import torch

from compute.importing.onnx_nodes import Node, operator, rank
from compute.importing.worlds import Operand
from protocol.errors import BadFile

# Where each of torch's gates is among ONNX's.
_GATES: Final = {"LSTM": (0, 2, 3, 1), "GRU": (1, 0, 2), "RNN": (0,)}
_USUAL: Final = {"LSTM": [b"Sigmoid", b"Tanh", b"Tanh"], "GRU": [b"Sigmoid", b"Tanh"], "RNN": [b"Tanh"]}


@operator("LSTM", "GRU", "RNN")
def _recurrent(node: Node) -> Any:
    way = node.is_one_of("direction", "forward", "reverse", "bidirectional")
    ways = 2 if way == "bidirectional" else 1
    name = _kernel(node, ways)
    x = node.tensor(0)
    if node.attr("layout", 0):
        raise BadFile(f"{node.op} in it has its batch first, which is not read")
    batch, hidden = node.world.size(x, 1), node.attr("hidden_size")
    weights = [weight for at in range(ways) for weight in _weights(node, at, hidden)]
    states = [_state(node, at, x, [ways, batch, hidden]) for at in ((5, 6) if node.op == "LSTM" else (5,))]
    given = node.call("flip.default", x, [0]) if way == "reverse" else x
    state: Any = states if node.op == "LSTM" else states[0]
    out, *last = node.call(name, given, state, weights, True, 1, 0.0, False, ways == 2, False)
    if way == "reverse":
        out = node.call("flip.default", out, [0])
    length = node.world.size(x, 0)
    out = node.call("permute.default", node.call("reshape.default", out, [length, batch, ways, hidden]), [0, 2, 1, 3])
    return (out, *last)


def _kernel(node: Node, ways: int) -> str:
    if node.has(4) and not isinstance(node.raw(4), torch.Tensor):
        raise BadFile(f"{node.op} in it takes lengths of sequences, which is not read")
    if node.has(4) and len(set(node.raw(4).tolist())) > 1:
        raise BadFile(f"{node.op} in it takes sequences of different lengths, which is not read")
    if node.has(7) or node.attr("clip") is not None or node.attr("input_forget", 0):
        raise BadFile(f"{node.op} in it has peepholes, clipping or coupled gates, which are not read")
    found = [bytes(name) for name in node.attr("activations") or _USUAL[node.op] * ways]
    if node.op == "RNN" and found == [b"Relu"] * ways:
        return "rnn_relu.input"
    if found != _USUAL[node.op] * ways:
        raise BadFile(f"{node.op} in it has activations of its own, which are not read")
    if node.op == "GRU" and not node.attr("linear_before_reset", 0):
        raise BadFile("GRU in it resets before its product, which torch's layer does not")
    return {"LSTM": "lstm.input", "GRU": "gru.input", "RNN": "rnn_tanh.input"}[node.op]


def _weights(node: Node, way: int, hidden: int) -> list[Any]:
    """Of one direction: for the input, for the state, and both biases, in torch's order of gates."""
    gates = _GATES[node.op]

    def ordered(part: Operand) -> Any:
        each = [node.call("slice.Tensor", part, 0, gate * hidden, (gate + 1) * hidden) for gate in gates]
        return node.call("cat.default", each) if len(each) > 1 else part

    found = [ordered(node.call("select.int", node.tensor(at), 0, way)) for at in (1, 2)]
    size = len(gates) * hidden
    if not node.has(3):
        zeros = torch.zeros(size, dtype=node.tensor(1).dtype)
        return [*found, zeros, zeros.clone()]
    both = node.call("select.int", node.tensor(3), 0, way)
    return [*found, *(ordered(node.call("slice.Tensor", both, 0, at * size, (at + 1) * size)) for at in range(2))]


def _state(node: Node, at: int, x: Operand, shape: list[Any]) -> Any:
    if node.has(at):
        state = node.tensor(at)
        return node.call("expand.default", state, shape) if rank(state) == 3 else state
    return node.call("zeros.default", shape, dtype=x.dtype)
