"""What each party does with its share alone: sums, and everything that only moves elements about."""

from __future__ import annotations

from typing import Any, Final

import torch

from compute.table import lookup
from mpc.party import Party
from mpc.ring import encode
from mpc.secret import Secret, aligned, bits_of, known, rescaled
from mpc.table import Arguments, local
from protocol.errors import BadRequest

# Operations of one tensor whose result's elements are elements of it, or sums of some.
MOVES: Final = """
    view reshape permute transpose.int expand squeeze squeeze.dim squeeze.dims unsqueeze select.int slice.Tensor
    take flip roll repeat tile clone detach alias contiguous diagonal tril triu unfold
    split.Tensor split_with_sizes chunk unbind.int movedim.int movedim.intlist flatten.using_ints unflatten.int narrow
    swapaxes swapdims ravel rot90 fliplr flipud diag diag_embed _unsafe_view
    lift_fresh_copy unsafe_chunk select_backward slice_backward diagonal_backward unsafe_split.Tensor
    tensor_split.sections tensor_split.indices
    hsplit.int vsplit.int trace broadcast_to
    sum sum.dim_IntList cumsum neg
""".split()


@local(*MOVES)
def move(party: Party, name: str, arguments: Arguments) -> Any:  # a Secret, or a list of them
    """The operation itself, on the share. No round, no error."""
    source: Secret | None = None
    given: dict[str, Any] = {}
    for key, value in arguments.items():
        if isinstance(value, Secret):
            if source is not None:
                raise BadRequest(f"{name}: where elements go is not to be secret: {key} is", operation=name)
            source = value
            given[key] = value.share
        else:
            given[key] = value
    assert source is not None
    given = {key: _beside(value, source.share) for key, value in given.items()}
    dtype = given.pop("dtype", None) or (counted(source) if name in _SUMS else source.dtype)
    check_converts(name, source, dtype)
    made = _call(name, given)
    if isinstance(made, list | tuple):
        return [source.of(each) for each in made]
    return Secret(made, source.bits, dtype)


_SUMS: Final = {"aten.sum.default", "aten.sum.dim_IntList", "aten.cumsum.default", "aten.trace.default"}


def counted(source: Secret) -> torch.dtype:
    """The dtype of a sum: integers where truth values are counted."""
    return source.dtype if source.is_real else torch.int64


def as_number(source: Secret) -> torch.dtype:
    """Its own dtype; of truth values that of numbers."""
    return torch.int64 if source.dtype == torch.bool else source.dtype


@local("expand_as", "view_as", "reshape_as")
def shape_as(party: Party, name: str, arguments: Arguments) -> Secret:
    """The shape is that of a tensor that may be secret itself. No round."""
    source: Secret = arguments["self"]
    shape = arguments["other"].shape
    return source.of(source.share.expand(shape) if "expand" in name else source.share.reshape(shape))


@local("index_put", "index_add", "index_copy", "slice_scatter", "select_scatter", "diagonal_scatter")
def put(party: Party, name: str, arguments: Arguments) -> Any:
    """Elements of one tensor put at public places of another. No round."""
    keys = [key for key in ("self", "src", "source", "value", "values") if key in arguments]
    for key, value in arguments.items():
        if key not in keys and _is_secret(value):
            raise BadRequest(f"{name}: where elements go is not to be secret: {key} is", operation=name)
    dtype = arguments["self"].dtype
    if isinstance(arguments[keys[1]], bool | int | float):
        arguments = {**arguments, keys[1]: as_it_is(arguments["self"], arguments[keys[1]])}
    into, what = aligned(as_secrets(party, [arguments[key] for key in keys]))
    given = {**{key: _beside(value, into.share) for key, value in arguments.items()}}
    given |= {keys[0]: into.share, keys[1]: what.share}
    if not isinstance(arguments[keys[1]], Secret | torch.Tensor):
        given[keys[1]] = int(what.share) if not what.share.is_meta else 0
    return Secret(_call(name, given), into.bits, dtype)


def _beside(value: Any, share: torch.Tensor) -> Any:
    """Public indices where the share is."""
    if isinstance(value, list | tuple):
        return [_beside(each, share) for each in value]
    return value.to(share.device) if isinstance(value, torch.Tensor) else value


def _is_secret(value: Any) -> bool:
    return any(map(_is_secret, value)) if isinstance(value, list | tuple) else isinstance(value, Secret)


@local("t", "mT", "numpy_T", "adjoint")
def transpose(party: Party, name: str, arguments: Arguments) -> Secret:
    """A matrix transposed stays fixed, where it was."""
    source: Secret = arguments["self"]
    rank = source.share.dim()
    if rank > 2 and "numpy_T" in name:  # all dimensions the other way around
        return source.of(source.share.permute(*reversed(range(rank))))
    return source if rank < 2 else source.mT


def _call(name: str, given: dict[str, Any]) -> Any:
    entry = lookup(name)
    positional = [given.pop(each.name) for each in entry.parameters if not each.is_keyword_only and each.name in given]
    return entry.overload(*positional, **given)


def add(party: Party, name: str, arguments: Arguments) -> Secret:
    """Sums and differences, by the operation's name; alpha is a whole number. No round."""
    one, other, alpha = arguments["self"], arguments["other"], arguments.get("alpha", 1)
    if name.startswith("aten.rsub"):
        one, other = other, one
    sign = -1 if "sub" in name else 1
    assert isinstance(alpha, int)
    dtype = result_type(one, other)
    terms = aligned(as_secrets(party, [one, other]))
    return Secret(terms[0].share + sign * alpha * terms[1].share, terms[0].bits, dtype)


@local("cat", "concat", "concatenate", "stack", "hstack", "vstack")
def join(party: Party, name: str, arguments: Arguments) -> Secret:
    parts = arguments["tensors"]
    dtype = parts[0].dtype
    for part in parts[1:]:
        dtype = torch.promote_types(dtype, part.dtype)
    terms = aligned(as_secrets(party, parts))
    made = _call(name, {**arguments, "tensors": [term.share for term in terms]})
    return Secret(made, terms[0].bits, dtype)


@local("_to_copy", "to.dtype", "type_as")
def convert(party: Party, name: str, arguments: Arguments) -> Secret:
    source: Secret = arguments["self"]
    dtype = arguments["other"].dtype if name.endswith("type_as.default") else arguments.get("dtype") or source.dtype
    check_converts(name, source, dtype)
    return Secret(source.share, source.bits, dtype)


def check_converts(name: str, source: Secret, dtype: torch.dtype) -> None:
    """BadRequest: what is to be of this dtype cannot become it."""
    if source.is_real and not dtype.is_floating_point:
        raise BadRequest(
            f"{name}: a secret real does not become an integer: compare it, or take argmax", operation=name
        )
    if dtype == torch.bool and source.dtype != torch.bool:
        raise BadRequest(f"{name}: a secret number does not become a truth value: write x != 0", operation=name)


def as_it_is(into: Any, value: float) -> Any:
    """A number as torch has it in a tensor of this dtype: of truth values whether it is 0, of whole ones cut off."""
    return float(value) if into.dtype.is_floating_point else int(torch.tensor(value).to(into.dtype))


@local("constant_pad_nd")
def pad(party: Party, name: str, arguments: Arguments) -> Secret:
    value = as_it_is(arguments["self"], float(arguments.get("value") or 0))
    source = rescaled(arguments["self"], max(arguments["self"].bits, bits_of(value, party.precision)))
    word = int(encode(torch.tensor(value, dtype=torch.float64), source.bits)) if party.is_first and value else 0
    return source.of(torch.ops.aten.constant_pad_nd.default(source.share, arguments["pad"], word))


def as_secrets(party: Party, values: Any) -> list[Secret]:
    """The values, public ones as secrets of as many bits as the secret ones have."""
    secrets = [value for value in values if isinstance(value, Secret)]
    bits = max(value.bits for value in secrets)
    made = []
    for value in values:
        if isinstance(value, Secret):
            made.append(value)
        else:
            tensor = finite(value)
            need = bits_of(value, party.precision)
            made.append(rescaled(known(party, tensor, need, secrets[0]), max(need, bits)))
    return made


_INFINITY: Final = float(1 << 28)
"""What stands for infinity in public values: more than what is computed with, and not too much to compute with."""

_LARGEST: Final = 1 << 60
"""What stands for the least and the largest integer: its difference from a secret can be compared."""


def finite(value: Any) -> torch.Tensor:
    """A public value as a tensor, what is infinite in it cut off: of integers that is the least and the largest."""
    tensor = torch.tensor(value, dtype=torch.float64) if isinstance(value, float) else torch.as_tensor(value)
    if tensor.is_floating_point():
        return torch.where(tensor.isinf(), tensor.sign() * _INFINITY, tensor)
    if tensor.dtype != torch.int64:
        return tensor
    least, most = torch.iinfo(torch.int64).min, torch.iinfo(torch.int64).max
    return torch.where(tensor == least, -_LARGEST, torch.where(tensor == most, _LARGEST, tensor))


def result_type(*values: Any) -> torch.dtype:
    """The dtype that torch gives the result of an operation of these, secret or not."""
    return torch.result_type(*(_stand_in(value) for value in values)) if len(values) == 2 else values[0].dtype


def _stand_in(value: Any) -> Any:
    return torch.empty(value.shape, dtype=value.dtype, device="meta") if isinstance(value, Secret) else value
