"""Whole layers and losses on shares: taken apart down to secure forms. What is public is computed before."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from compute.capture import capture
from mpc.interpreter import run
from mpc.lowering import Lowered, lower
from mpc.party import Party
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import Protocol
from mpc.script import script_of
from mpc.secret import Secret
from mpc.together import run_together, shares_of
from protocol.errors import BadRequest, OperationNotAllowed
from tests.mpc.shares import on_shares


def _lowered(function: Callable[..., Any], inputs: Mapping[str, Any]) -> tuple[Lowered, list[torch.Tensor]]:
    captured = capture(function, inputs)
    flat: dict[str, torch.Tensor] = dict(captured.constants)
    for name, value in inputs.items():
        if isinstance(value, nn.Module):
            flat |= {f"{name}.{inner}": each.detach() for inner, each in value.state_dict(keep_vars=True).items()}
        else:
            flat[name] = value
    values = [flat[name] for name in captured.inputs]
    secret = [value.is_floating_point() and name not in captured.constants for name, value in flat.items()]
    by_name = dict(zip(flat, secret, strict=True))
    chosen = [by_name[name] for name in captured.inputs]
    return lower(captured.program, values, chosen), [
        v for v, is_secret in zip(values, chosen, strict=True) if is_secret
    ]


def _run(function: Callable[..., Any], inputs: Mapping[str, Any], count: int = 2) -> torch.Tensor:
    lowered, values = _lowered(function, inputs)
    parties: list[list[Any]] = [[] for _ in range(count)]
    for value in values:
        for party, share in zip(parties, shares_of(encode(value), count), strict=True):
            party.append(Secret(share, PRECISION, value.dtype))

    def protocol(party: Party, *given: Any) -> Protocol[Any]:
        return (yield from run(party, lowered.program, [*given, *lowered.public]))

    results, _ = run_together(protocol, parties)
    words = torch.stack([each.share for each in results]).sum(0)
    return decode(words, results[0].bits, results[0].dtype)


def _seeded(make: Callable[[], Any]) -> Any:
    torch.manual_seed(1)
    return make()


_X = _seeded(lambda: torch.randn(4, 6))
_LABELS = torch.tensor([1, 0, 3, 5])

_CASES: dict[str, tuple[Callable[..., Any], dict[str, Any]]] = {
    "layer_norm": (lambda x, m: m(x), {"x": _X, "m": nn.LayerNorm(6)}),
    "batch_norm": (lambda x, m: m(x), {"x": _seeded(lambda: torch.randn(3, 2, 4, 4)), "m": nn.BatchNorm2d(2).eval()}),
    "cross_entropy": (lambda x: functional.cross_entropy(x, _LABELS), {"x": _X}),
    "mse_loss": (lambda x: functional.mse_loss(x, torch.ones(4, 6)), {"x": _X}),
    "binary_cross_entropy": (
        lambda x: functional.binary_cross_entropy_with_logits(x, torch.ones(4, 6)),
        {"x": _X},
    ),
    "var and std": (lambda x: x.var(1) + x.std(0).mean(), {"x": _X}),
    "norm": (lambda x: x.norm(dim=1), {"x": _X}),
    "softplus and elu": (lambda x: functional.softplus(x) + functional.elu(x), {"x": _X}),
    "logsumexp": (lambda x: x.logsumexp(1), {"x": _X}),
    "cosine_similarity": (lambda x: functional.cosine_similarity(x, x.flip(0)), {"x": _X}),
    "einsum": (lambda x: torch.einsum("ij,kj->ik", x, x), {"x": _X}),
    "conv1d": (lambda x, m: m(x), _seeded(lambda: {"x": torch.randn(1, 2, 7), "m": nn.Conv1d(2, 3, 3, padding=1)})),
    "conv_transpose2d": (
        lambda x, m: m(x),
        _seeded(lambda: {"x": torch.randn(2, 4, 3, 3), "m": nn.ConvTranspose2d(4, 6, 3, 2, 1, 1, groups=2)}),
    ),
    "embedding": (lambda m: m(torch.tensor([0, 2])), {"m": _seeded(lambda: nn.Embedding(3, 4))}),
    "lstm": (lambda x, m: m(x)[0], _seeded(lambda: {"x": torch.randn(3, 2, 4), "m": nn.LSTM(4, 5)})),
    "transformer": (
        lambda x, m: m(x),
        _seeded(lambda: {"x": torch.randn(1, 4, 8), "m": nn.TransformerEncoderLayer(8, 2, 8, batch_first=True).eval()}),
    ),
    "public parts": (
        lambda x: x * torch.arange(6).float().exp().softmax(0) + torch.eye(4)[:, :1] - torch.rand(4, 6).sign(),
        {"x": _X},
    ),
}


@pytest.mark.parametrize("name", list(_CASES))
def test_it_gives_the_same_on_shares(name: str) -> None:
    function, inputs = _CASES[name]
    assert torch.allclose(_run(function, inputs), function(**inputs).detach(), atol=1e-3)


def test_what_is_public_is_computed_once_and_beforehand() -> None:
    lowered, _ = _lowered(lambda x: x @ (torch.arange(60_000).reshape(6, -1).float().sin() + 1), {"x": _X})
    assert [node.operation for node in lowered.program.nodes] == ["aten.matmul.default"]
    assert [tuple(each.shape) for each in lowered.public] == [(6, 10_000)]


_ONE = torch.ones(1, 1)


@pytest.mark.parametrize(
    "function",
    [
        lambda x, v: torch.where(_ONE > 0, x, 2 * x),
        lambda x, v: x / (v.sqrt() * _ONE + 1e-6),
        lambda x, v: x / ((v * (0.5 * _ONE) * v).sqrt() + 1e-6),
        lambda x, v: x[0] / (v[0].sqrt() + 1e-6),
    ],
)
def test_public_numbers_have_shapes_and_dtypes_of_their_own(function: Callable[..., torch.Tensor]) -> None:
    """Also where they are left out, or become part of another number."""
    inputs = {"x": torch.tensor([1.0, 2.0]), "v": torch.tensor([1.0, 4.0])}
    made, want = on_shares(function, inputs), function(**inputs)
    assert (made.shape, made.dtype) == (want.shape, want.dtype) and torch.allclose(made, want, atol=1e-3)


@pytest.mark.parametrize("scale", [0.1, 10.0, 1000.0])
def test_what_is_divided_by_its_deviation_may_be_large(scale: float) -> None:
    """It is no mean of squares of gradients: nothing of it is made larger first."""
    x = torch.randn(20, 2, generator=torch.Generator().manual_seed(0)) * scale

    def standard(x: torch.Tensor) -> torch.Tensor:
        return (x - x.mean(0)) / (x.std(0) + 1e-6)

    assert torch.allclose(on_shares(standard, {"x": x}), standard(x), atol=5e-3)


def test_what_has_no_secure_form_is_named() -> None:
    with pytest.raises(OperationNotAllowed, match=r"has no secure form: it cannot run on shares"):
        _lowered(lambda x: torch.special.i0e(x), {"x": _X})


def test_a_view_is_not_written() -> None:
    def function(x: torch.Tensor) -> torch.Tensor:
        y = x * 2
        y[0].add_(1)
        return y

    try:
        got = _run(function, {"x": _X})
    except OperationNotAllowed as error:
        assert "in place" in error.message
    else:  # capture has made a new one of it
        assert torch.allclose(got, function(_X), atol=1e-3)


def test_an_inverse_by_either_name() -> None:
    """What stands for a secret while a program is lowered has no inverse."""
    x = torch.tensor([[2.0, 0.5], [0.25, 1.5]])
    for function in (torch.inverse, torch.linalg.inv):
        assert torch.allclose(_run(lambda x, f=function: f(x), {"x": x}), torch.inverse(x), atol=1e-3)


def test_a_complex_secret_is_refused_by_name() -> None:
    captured = capture(lambda x: x * 2, {"x": torch.randn(3, dtype=torch.complex64)})
    with pytest.raises(BadRequest, match=r"x is complex64: complex numbers cannot be secrets"):
        lower(captured.program, [torch.randn(3, dtype=torch.complex64)], [True])


_UNFIT: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "aten.add.Tensor": lambda x: x + 1e30,
    "aten.mul.Tensor": lambda x: x * torch.tensor([[1e15]]),
    "aten.clamp.default": lambda x: x.clamp(min=1e38),
    "aten.lt.Scalar": lambda x: x < 1e30,
}


@pytest.mark.parametrize("operation", list(_UNFIT))
def test_a_public_number_that_does_not_fit_is_told_before_anything_is_shared(operation: str) -> None:
    made, values = _lowered(_UNFIT[operation], {"x": _X})
    shapes = [Secret(torch.empty(v.shape, dtype=torch.int64, device="meta"), PRECISION, v.dtype) for v in values]
    with pytest.raises(BadRequest) as raised:
        script_of(lambda party: run(party, made.program, [*shapes, *made.public]), 2)
    assert operation in str(raised.value)


def test_bounds_that_no_secret_is_beyond_are_none() -> None:
    assert torch.allclose(_run(lambda x: x.clamp(-1e38, 0.5), {"x": _X}), _X.clamp(max=0.5), atol=1e-3)
    assert torch.allclose(_run(torch.nan_to_num, {"x": _X}), _X, atol=1e-3)
    wide = torch.vander(_X[0], 30)[:, -4:]
    assert torch.allclose(_run(lambda x: torch.vander(x[0], 30)[:, -4:], {"x": _X}), wide, atol=1e-2)


def test_in_inference_mode_the_same_is_lowered() -> None:
    """What is public and written to meanwhile is another value each time, though torch does not count the writes."""

    def function(x: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, ...]:
        weight = torch.zeros(3)
        first = x * weight
        weight.add_(1)
        weight[0] = 5
        return first, x * weight, x * ~mask

    program = capture(function, {"x": torch.ones(3), "mask": torch.tensor([True, False, True])}).program
    mask = torch.tensor([True, False, True])
    outside = lower(program, [torch.empty(3), mask.clone()], [True, False])
    with torch.inference_mode():
        inside = lower(program, [torch.empty(3), mask.clone()], [True, False])
    assert inside.program == outside.program and len(inside.public) == len(outside.public)
    again = [torch.equal(one, other) for one, other in zip(inside.public, outside.public, strict=True)]
    assert all(again)
