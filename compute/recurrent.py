"""One layer of an LSTM, and its gradient, without the kernels of oneDNN.

Forward it is one operation. Backward nothing is kept from it but the outputs: with them the gates of all steps
are two products, and only the cells and the gradients go from step to step.
Hochreiter and Schmidhuber, "Long Short-Term Memory", Neural Computation 9 (1997); gates in torch's order.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F


def lstm_layer(
    input: Any,
    weight0: Any,
    weight1: Any,
    weight2: Any,
    weight3: Any,
    hx_: Any,
    cx_: Any,
    reverse: bool,
    batch_sizes: list[int],
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    bidirectional: bool,
    batch_first: bool,
    train: bool,
) -> tuple[Any, Any, Any, Any]:
    """`mkldnn_rnn_layer`: the outputs (steps, batch, hidden), the last of them, the last cell, and no workspace."""
    hidden, cell = (value.reshape(1, -1, hidden_size) for value in (hx_, cx_))
    weights = [weight0, weight1, weight2, weight3] if has_biases else [weight0, weight1]
    steps = _in_order(input, reverse)
    out, hy, cy = torch.ops.aten.lstm.input(steps, [hidden, cell], weights, has_biases, 1, 0.0, False, False, False)
    return _in_order(out, reverse), hy.reshape(hx_.shape), cy.reshape(cx_.shape), input.new_zeros(0)


def lstm_layer_backward(
    input: Any,
    weight1: Any,
    weight2: Any,
    weight3: Any,
    weight4: Any,
    hx_: Any,
    cx_tmp: Any,
    output: Any,
    hy_: Any,
    cy_: Any,
    grad_output: Any,
    grad_hy: Any,
    grad_cy: Any,
    reverse: bool,
    mode: int,
    hidden_size: int,
    num_layers: int,
    has_biases: bool,
    train: bool,
    bidirectional: bool,
    batch_sizes: list[int],
    batch_first: bool,
    workspace: Any,
) -> tuple[Any, ...]:
    """Gradients of the input, of both weights, of both biases, of the first hidden state and of the first cell."""
    steps, out = _in_order(input, reverse), _in_order(output, reverse)
    first, cell = hx_.reshape(-1, hidden_size), cx_tmp.reshape(-1, hidden_size)
    before = torch.cat([first.unsqueeze(0), out[:-1]])
    gates = F.linear(steps, weight1, weight3 if has_biases else None)
    gates = gates + F.linear(before, weight2, weight4 if has_biases else None)
    forget, slopes, leak = _slopes(gates, cell)
    grads = _in_order(grad_output, reverse).unbind(0) if grad_output is not None else [None] * len(steps)
    hidden = grad_hy.reshape(-1, hidden_size) if grad_hy is not None else torch.zeros_like(first)
    carried = grad_cy.reshape(-1, hidden_size) if grad_cy is not None else torch.zeros_like(cell)
    found = []
    walk = list(zip(grads, forget.unbind(0), slopes.unbind(0), leak.unbind(0), strict=True))
    for grad, kept, slope, through in reversed(walk):
        if grad is not None:
            hidden = hidden + grad
        carried = torch.addcmul(carried, hidden, through)
        found.append(torch.cat([carried, carried, carried, hidden], 1) * slope)
        hidden, carried = found[-1] @ weight2, carried * kept
    of_gates = torch.stack(found[::-1])
    flat = of_gates.flatten(0, 1)
    bias = flat.sum(0) if has_biases else None
    of_input = _in_order(of_gates @ weight1, reverse)
    of_weights = flat.t() @ steps.flatten(0, 1), flat.t() @ before.flatten(0, 1)
    return of_input, *of_weights, bias, bias, hidden.reshape(hx_.shape), carried.reshape(cx_tmp.shape)


def _slopes(gates: Any, cell: Any) -> tuple[Any, Any, Any]:
    """For all steps: the forget gates; how the gates' inputs act on the cell (three of them) and on the output (the
    fourth); and how the cell acts on the output."""
    entry, forget, fresh, exit = gates.chunk(4, -1)
    entry, forget, fresh, exit = entry.sigmoid(), forget.sigmoid(), fresh.tanh(), exit.sigmoid()
    cells = [cell]
    for kept, added in zip(forget.unbind(0), (entry * fresh).unbind(0), strict=True):
        cells.append(torch.addcmul(added, kept, cells[-1]))
    before, shown = torch.stack(cells[:-1]), torch.stack(cells[1:]).tanh()
    slopes = [
        fresh * entry * (1 - entry),
        before * forget * (1 - forget),
        entry * (1 - fresh * fresh),
        shown * exit * (1 - exit),
    ]
    return forget, torch.cat(slopes, -1), exit * (1 - shown * shown)


def _in_order(steps: Any, reverse: bool) -> Any:
    return steps.flip(0) if reverse else steps
