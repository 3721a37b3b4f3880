"""Pools of one to three dimensions, and their gradients. Where a largest element was is kept as rows of 0 and 1."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, Final

import torch

from mpc.bilinear import Multiply
from mpc.operations.comparisons import zero
from mpc.operations.contest import MOST, winners
from mpc.operations.largest import first_of_all_pairs, tournament
from mpc.operations.products import product
from mpc.party import Party
from mpc.ring import MAGNITUDE
from mpc.rounds import Protocol
from mpc.secret import Secret
from mpc.table import Arguments, secure

Sizes = tuple[int, ...]

_LOWEST: Final = -(1 << (MAGNITUDE - 2))


def _each(value: Any, rank: int, otherwise: Any = 0) -> Sizes:
    if isinstance(value, int):
        return (value,) * rank
    if not value:
        return _each(otherwise, rank)
    return tuple(value) * rank if len(value) == 1 else tuple(value)


def windows(share: torch.Tensor, arguments: Arguments, fill: int, rank: int) -> torch.Tensor:
    """[..., *out, window]: what each window of a pool over the last dimensions sees."""
    kernel = _each(arguments["kernel_size"], rank)
    stride = _each(arguments.get("stride"), rank, kernel)
    padding, dilation = _each(arguments.get("padding"), rank), _each(arguments.get("dilation"), rank, 1)
    share = torch.nn.functional.pad(share, [each for each in reversed(padding) for _ in range(2)], value=fill)
    reach = [dilation[at] * (kernel[at] - 1) + 1 for at in range(rank)]
    if arguments.get("ceil_mode"):
        extra = [_missing(share.shape[at - rank], reach[at], stride[at], padding[at]) for at in range(rank)]
        share = torch.nn.functional.pad(share, [each for at in reversed(extra) for each in (0, at)], value=fill)
    seen = share
    for at in range(rank):
        seen = seen.unfold(-rank, reach[at], stride[at])  # moves the next dimension to its place
    places: list[Any] = [..., *(slice(None, None, each) for each in dilation)]
    return seen[tuple(places)].flatten(-rank)


def _missing(size: int, reach: int, stride: int, padding: int) -> int:
    """What a last window wants beyond the end, where there is one: it has to begin before the padding at the end."""
    missing = -(size - reach) % stride
    return missing if missing and size - reach + missing < size - padding else 0


def _places(shape: Sizes, arguments: Arguments, rank: int) -> torch.Tensor:
    """[*out, window]: where each window's elements are among the last dimensions, as one number; -1 is padding."""
    numbers = torch.arange(math.prod(shape[-rank:])).reshape(shape[-rank:])
    return windows(numbers, arguments, -1, rank)


def _adaptive_places(shape: Sizes, out: Sizes) -> torch.Tensor:
    """The same of an adaptive pool, whose windows differ in size: those that are too small have their first element
    several times."""
    numbers = torch.arange(math.prod(shape)).reshape(shape)
    seen = []
    for at in range(math.prod(out)):
        rest, places = at, []
        for size, count in zip(reversed(shape), reversed(out), strict=True):
            rest, index = divmod(rest, count)
            places.append(slice(index * size // count, -(-(index + 1) * size // count)))
        seen.append(numbers[tuple(reversed(places))].flatten())
    most = max(map(len, seen))
    whole = [torch.cat([each, each[:1].expand(most - len(each))]) for each in seen]
    return torch.stack(whole).view(*out, most)


def _rank(name: str) -> int:
    return 3 if "3d" in name else 1 if "1d" in name else 2


# --- the largest --------------------------------------------------------------------------------------------


@secure("max_pool2d", "max_pool1d", "max_pool3d")
def max_pool(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """A tournament in each window: four rounds for each halving. Exact; padding never wins."""
    x: Secret = arguments["self"]
    fill = _LOWEST if party.is_first else 0
    return (yield from tournament(party, x.of(windows(x.share, arguments, fill, _rank(name)))))


@secure("max_pool2d_with_indices", "max_pool3d_with_indices", "max_pool1d_with_indices")
def max_pool_with_places(party: Party, name: str, arguments: Arguments) -> Protocol[tuple[Secret, Secret]]:
    """All pairs of each window, of up to 13 elements in six rounds. Exact, the first of equal ones."""
    x, rank = arguments["self"], _rank(name)
    seen = x.of(windows(x.share, arguments, _LOWEST if party.is_first else 0, rank))
    return (yield from _largest_of(party, seen, _places(tuple(x.shape), arguments, rank)))


@secure("adaptive_max_pool2d", "adaptive_max_pool3d", "adaptive_max_pool1d")
def adaptive_max_pool(party: Party, name: str, arguments: Arguments) -> Protocol[tuple[Secret, Secret]]:
    """As max_pool2d_with_indices."""
    x, rank = arguments["self"], _rank(name)
    places = _adaptive_places(tuple(x.shape[-rank:]), _each(arguments["output_size"], rank))
    seen = x.share.flatten(-rank)[..., places.to(x.share.device)]
    return (yield from _largest_of(party, x.of(seen), places))


def _largest_of(party: Party, seen: Secret, places: torch.Tensor) -> Protocol[tuple[Secret, Secret]]:
    if seen.shape[-1] <= MOST:
        ones, best = yield from winners(party, seen)
    else:
        ones = yield from first_of_all_pairs(party, seen)
        made = yield from product(party, Multiply(), replace(ones, dtype=torch.bool), seen, seen.dtype)
        best = made.of(made.share.sum(-1))
    index = (ones.share * places.to(ones.share.device)).sum(-1)
    return best, Secret(index, 0, torch.int64, rows=Secret(ones.share, 0, IN_WINDOW))


IN_WINDOW: Final = torch.uint8
"""The dtype of rows that are for the elements of a window, and not for all places."""


@secure(
    *("max_pool2d_with_indices_backward", "max_pool3d_with_indices_backward"),
    *("adaptive_max_pool2d_backward", "adaptive_max_pool3d_backward"),
)
def max_pool_backward(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """The gradient goes to where the largest was: one round. Where the indices come from elsewhere, five more."""
    gradient, x, rank = arguments["grad_output"], arguments["self"], _rank(name)
    shape = tuple(x.shape)
    if "adaptive" in name:
        places = _adaptive_places(shape[-rank:], tuple(gradient.shape[-rank:]))
    else:
        places = _places(shape, arguments, rank)
    ones = yield from _ones(party, arguments["indices"], places)
    share = gradient.share.unsqueeze(-1) if isinstance(gradient, Secret) else gradient.unsqueeze(-1)
    spread = gradient.of(share) if isinstance(gradient, Secret) else share
    made = yield from product(party, Multiply(), ones, spread, x.dtype)
    return made.of(_folded(made.share, places, shape, rank))


def _ones(party: Party, indices: Any, places: torch.Tensor) -> Protocol[Any]:
    if not isinstance(indices, Secret):
        return indices.unsqueeze(-1) == places
    if indices.rows is not None and indices.rows.dtype == IN_WINDOW:
        return replace(indices.rows, dtype=torch.bool)
    share, places = indices.share.unsqueeze(-1), places.to(indices.share.device)
    gap = share - places if party.is_first else share.expand(*indices.shape, places.shape[-1])
    return (yield from zero(party, Secret(gap, 0, torch.int64)))


def _folded(seen: torch.Tensor, places: torch.Tensor, shape: Sizes, rank: int) -> torch.Tensor:
    """What windows give back to the elements that they see, added up."""
    count = math.prod(shape[-rank:])
    rows = seen.reshape(-1, places.numel())
    total = rows.new_zeros(rows.shape[0], count + 1)  # the last is the padding's
    where = torch.where(places < 0, count, places).flatten().to(rows.device)
    return total.index_add(1, where, rows)[:, :count].reshape(shape)


# --- means --------------------------------------------------------------------------------------------------


@secure("avg_pool2d", "avg_pool1d", "avg_pool3d")
def avg_pool(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """No round; error below 2^-16 of what is added up."""
    x, rank = arguments["self"], _rank(name)
    total = x.of(windows(x.share, arguments, 0, rank).sum(-1))
    return (yield from product(party, Multiply(), total, _weights(tuple(x.shape), arguments, rank), x.dtype))


def _weights(shape: Sizes, arguments: Arguments, rank: int) -> Any:
    divisor = arguments.get("divisor_override")
    if divisor is not None:
        return 1.0 / divisor
    ones = torch.ones(shape[-rank:], dtype=torch.int64)
    if arguments.get("count_include_pad", True):
        padding = _each(arguments.get("padding"), rank)
        ones = torch.nn.functional.pad(ones, [each for each in reversed(padding) for _ in range(2)], value=1)
        arguments = {**arguments, "padding": 0, "stride": arguments.get("stride") or arguments["kernel_size"]}
    counts = windows(ones, arguments, 0, rank).sum(-1)
    return 1.0 / int(counts.max()) if bool((counts == counts.max()).all()) else 1.0 / counts.to(torch.float64)


@secure("avg_pool2d_backward", "avg_pool3d_backward")
def avg_pool_backward(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """The gradient, spread over each window. One round where the gradient is a product."""
    gradient, shape, rank = arguments["grad_output"], tuple(arguments["self"].shape), _rank(name)
    part = yield from product(party, Multiply(), gradient, _weights(shape, arguments, rank), gradient.dtype)
    places = _places(shape, arguments, rank)
    return part.of(_folded(part.share.unsqueeze(-1).expand(*part.shape, places.shape[-1]), places, shape, rank))


@secure("_adaptive_avg_pool2d_backward", "_adaptive_avg_pool3d_backward")
def adaptive_avg_pool_backward(party: Party, name: str, arguments: Arguments) -> Protocol[Secret]:
    """The same of an adaptive one."""
    gradient, rank = arguments["grad_output"], _rank(name)
    shape, out = tuple(arguments["self"].shape), tuple(arguments["grad_output"].shape[-rank:])
    places = _adaptive_places(shape[-rank:], out)
    own = torch.arange(places.shape[-1]).expand(places.shape) == 0
    own = own | (places != places[..., :1])
    weights = own / own.sum(-1, keepdim=True).to(torch.float64)
    part = yield from product(party, Multiply(), gradient.of(gradient.share.unsqueeze(-1)), weights, gradient.dtype)
    return part.of(_folded(part.share, places, shape, rank))
