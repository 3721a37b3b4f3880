"""Places that are secret: what stands at them, and what is put there. A place is looked for by comparing it with all.

Where places come from an argmax, a pool or a sort, they are known as rows of 0 and 1 already, and nothing is compared.
"""

from __future__ import annotations

from typing import Any

import torch

from mpc.bilinear import MatrixProduct, Multiply
from mpc.operations.comparisons import zero
from mpc.operations.linear import add, as_it_is, as_secrets, put
from mpc.operations.linear import move as move_elements
from mpc.operations.products import on, product
from mpc.party import Party
from mpc.rounds import Protocol
from mpc.secret import Secret, aligned
from mpc.table import Arguments, secure
from protocol.errors import BadRequest


def rows_of(party: Party, places: Any, count: int) -> Protocol[Any]:
    """[..., count]: 1 at the place, 0 elsewhere; all 0 where the place is none of 0 to count - 1. Four rounds, or none
    where that is known."""
    if not isinstance(places, Secret):
        return torch.as_tensor(places).unsqueeze(-1) == torch.arange(count)
    if places.rows is not None and places.rows.shape[-1] == count:
        return places.rows
    if places.bits:
        raise BadRequest("places are integers")
    every = torch.arange(count, device=places.share.device)
    share = places.share.unsqueeze(-1)
    gap = Secret(share - every if party.is_first else share.expand(*places.shape, count), 0, torch.int64)
    return (yield from zero(party, gap))


def _picked(party: Party, rows: Any, values: Any) -> Protocol[Secret]:
    """rows [..., k] times values [k, ...], as an exact choice: no truncation."""
    flat = values.share.reshape(values.shape[0], -1) if isinstance(values, Secret) else values.flatten(1)
    flat = values.of(flat) if isinstance(values, Secret) else flat
    made = yield from product(party, MatrixProduct(), rows, flat, values.dtype)
    return made.of(made.share.view(*rows.shape[:-1], *values.shape[1:]))


@secure("one_hot")
def one_hot(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """Rows of 0 and 1. Four rounds, exact. The number of classes has to be given."""
    count = arguments.get("num_classes", -1)
    if count < 0:
        raise BadRequest("one_hot of secrets: say how many classes there are", operation=name)
    rows = yield from rows_of(party, arguments["self"], count)
    return Secret(rows.share, 0, torch.int64)


@secure("embedding")
def embedding(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
    """Rows of a table. Of public indices: no round. Of secret ones six: one comparison for each row of the table."""
    weight, indices = arguments["weight"], arguments["indices"]
    if not isinstance(indices, Secret):
        return weight.of(torch.nn.functional.embedding(indices.to(weight.share.device), weight.share))
    rows = yield from rows_of(party, indices, weight.shape[0])
    return (yield from _picked(party, rows, weight))


@secure("embedding_dense_backward")
def embedding_backward(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
    """The gradient of the table. No round where the indices are public, else as embedding."""
    gradient, indices, count = arguments["grad_output"], arguments["indices"], arguments["num_weights"]
    rows = yield from rows_of(party, indices, count)
    flat = on(gradient, lambda each: each.reshape(-1, each.shape[-1]))
    if isinstance(rows, Secret):
        turned = rows.of(rows.share.reshape(-1, count).mT)
        return (yield from product(party, MatrixProduct(), turned, flat, gradient.dtype))
    made = flat.share.new_zeros(count, flat.shape[-1])
    return flat.of(made.index_add(0, indices.reshape(-1).to(made.device), flat.share))


@secure("index.Tensor", "index_select", "gather", "take_along_dim")
def pick(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
    """Elements at public places: no round. At secret ones (of one dimension) six, exact."""
    x = arguments["self"]
    index = arguments.get("index", arguments.get("indices"))
    if isinstance(index, list | tuple):
        given = [(dim, each) for dim, each in enumerate(index) if each is not None]
        if not any(isinstance(each, Secret) for _, each in given):
            return move_elements(party, name, arguments)
        if len(given) > 1:
            raise BadRequest(f"{name}: a secret index stands alone", operation=name)
        ((dim, index),) = given
    elif not isinstance(index, Secret):
        return move_elements(party, name, arguments)
    else:
        dim = arguments["dim"]
    if "gather" in name or "take_along" in name:
        return (yield from _gathered(party, x, dim % len(x.shape), index))
    rows = yield from rows_of(party, index, x.shape[dim])
    moved = x.of(x.share.movedim(dim, 0)) if isinstance(x, Secret) else x.movedim(dim, 0)
    made = yield from _picked(party, rows, moved)
    at = tuple(range(len(index.shape)))
    return made.of(made.share.movedim(at, tuple(dim + each for each in at)))


def _gathered(party: Party, x: Any, dim: int, index: Secret) -> Protocol[Secret]:
    rows = yield from rows_of(party, index, x.shape[dim])  # [*index, count]
    kept = tuple(slice(None) if at == dim else slice(0, size) for at, size in enumerate(index.shape))
    share = (x.share if isinstance(x, Secret) else x)[kept].movedim(dim, -1).unsqueeze(dim)
    values = x.of(share) if isinstance(x, Secret) else share
    made = yield from product(party, Multiply(), rows, values, x.dtype)
    return made.of(made.share.sum(-1))


def _last_ones(party: Party, rows: Secret, dim: int) -> Protocol[Secret]:
    """rows [*index, count] without those that later ones along the dimension go to the same place as. Five rounds."""
    later = rows.share.flip(dim).cumsum(dim).flip(dim) - rows.share
    is_last = yield from zero(party, Secret(later, 0, torch.int64))
    return (yield from product(party, Multiply(), rows, is_last, torch.bool))


@secure("scatter.src", "scatter.value", "scatter_add")
def scatter(party: Party, name: str, arguments: Arguments) -> Protocol[Any]:
    """Puts, or adds, elements at places along a dimension. No round where the places are public; at secret ones six.
    Of several that are put at one place the last stays: five rounds more."""
    index = arguments["index"]
    if not isinstance(index, Secret):
        return put(party, name, arguments)
    x, dim = arguments["self"], arguments["dim"] % len(index.shape)
    rows = yield from rows_of(party, index, x.shape[dim])
    if "_add" not in name and index.shape and index.shape[dim] > 1:
        rows = yield from _last_ones(party, rows, dim)
    source = arguments.get("src", arguments.get("value"))
    if isinstance(source, bool | int | float):
        source = as_it_is(x, source)
    if isinstance(source, Secret | torch.Tensor):
        kept = tuple(slice(0, size) for size in index.shape)
        share = (source.share if isinstance(source, Secret) else source)[kept].unsqueeze(-1)
        source = source.of(share) if isinstance(source, Secret) else share
    spread = yield from product(party, Multiply(), rows, source, x.dtype)
    total = spread.of(spread.share.sum(dim).movedim(-1, dim))  # [*x], where the other sizes are those of index
    if tuple(total.shape) != tuple(x.shape):
        raise BadRequest(f"{name}: secret places are given for all of the other dimensions", operation=name)
    if "_add" in name:
        return add(party, "aten.add.Tensor", {"self": x, "other": total})
    if not isinstance(x, Secret):
        x = as_secrets(party, [x, total])[0] if bool(x.any()) else None
    if x is None:
        return total
    hit = rows.of(rows.share.sum(dim).movedim(-1, dim))
    lost = yield from product(party, Multiply(), hit, x, x.dtype)
    terms = aligned([x, lost, total])
    return terms[0].of(terms[0].share - terms[1].share + terms[2].share)
