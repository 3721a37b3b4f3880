"""Programs on shares give what they give in the clear, and take what their script says."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import nn

from compute.capture import capture
from compute.program import Program
from mpc.interpreter import fix, run
from mpc.party import Party
from mpc.ring import PRECISION, decode, encode
from mpc.rounds import Protocol
from mpc.script import script_of
from mpc.secret import Secret
from mpc.together import run_together, shares_of
from protocol.errors import BadRequest, OperationNotAllowed


def _flat(inputs: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    flat: dict[str, torch.Tensor] = {}
    for name, value in inputs.items():
        if isinstance(value, nn.Module):
            flat |= {f"{name}.{inner}": each.detach() for inner, each in value.state_dict(keep_vars=True).items()}
        else:
            flat[name] = value
    return flat


def _secrets(values: list[torch.Tensor], count: int) -> list[list[Secret]]:
    parties: list[list[Secret]] = [[] for _ in range(count)]
    for value in values:
        bits = PRECISION if value.is_floating_point() else 0
        for party, share in zip(parties, shares_of(encode(value, bits), count), strict=True):
            party.append(Secret(share, bits, value.dtype))
    return parties


def secure(function: Callable[..., Any], inputs: Mapping[str, Any], count: int = 2) -> torch.Tensor:
    """What the function gives on shares of all its inputs. Its script is compared with what the run took."""
    captured = capture(function, inputs)
    flat = _flat(inputs)
    values = [flat[name] for name in captured.inputs]
    results, ledger = run_together(_protocol(captured.program), _secrets(values, count))
    shapes = [[Secret(each.share.to("meta"), each.bits, each.dtype) for each in row] for row in _secrets(values, 1)]
    script = script_of(lambda party: run(party, captured.program, shapes[0]), count)
    assert (script.rounds, script.nbytes, script.dealt) == (ledger.rounds, ledger.nbytes, ledger.dealt)
    words = torch.stack([each.share for each in results]).sum(0)
    return decode(words, results[0].bits, results[0].dtype)


def _protocol(program: Program) -> Callable[..., Protocol[Any]]:
    def protocol(party: Party, *inputs: Secret) -> Protocol[Any]:
        return (yield from run(party, program, inputs))

    return protocol


_X = torch.linspace(-3, 3, 24).reshape(4, 6)
_Y = torch.linspace(2, -1, 24).reshape(4, 6)

_FUNCTIONS: dict[str, Callable[..., torch.Tensor]] = {
    "sums": lambda x, y: x + y - 2 * x + (3.5 - y),
    "products": lambda x, y: (x * y) * x,
    "matrices": lambda x, y: x @ y.T,
    "a mean": lambda x, y: (x * y).mean(1) + y.sum(0, keepdim=True).mean(),
    "shapes": lambda x, y: torch.cat([x.T.reshape(6, 4)[1:3], y.reshape(6, 4)[:2]]).unsqueeze(0).flip(1),
    "order": lambda x, y: (x < y).float() + (x >= 0.5) * 2.0,
    "equality": lambda x, y: ((x.round() * 0 + y) == y).float(),
    "relu of a product": lambda x, y: torch.relu(x * y) - torch.relu(x),
    "where": lambda x, y: torch.where(x > y, x * 2, y - 1),
    "a public condition": lambda x, y: torch.where(torch.arange(6) > 2, x, y),
    "division by a number": lambda x, y: x / 3 + y / 0.5,
    "the largest": lambda x, y: x.amax(1) + y.amax(0).sum(),
}


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("name", [name for name in _FUNCTIONS if name != "equality"])
def test_a_function_gives_the_same_on_shares(name: str, count: int) -> None:
    function = _FUNCTIONS[name]
    assert torch.allclose(secure(function, {"x": _X, "y": _Y}, count), function(_X, _Y), atol=1e-3)


def test_comparisons_of_integers() -> None:
    x, y = torch.arange(12).reshape(3, 4) % 5, torch.arange(12).reshape(3, 4) % 3
    got = secure(lambda x, y: (x == y).sum() * 100 + (x != y).sum() + (x * y - x).sum(), {"x": x, "y": y})
    assert got.dtype == torch.int64
    assert int(got) == int((x == y).sum() * 100 + (x != y).sum() + (x * y - x).sum())


def test_a_network_and_the_labels_that_it_gives() -> None:
    torch.manual_seed(3)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 10))
    images = torch.rand(5, 1, 6, 6)
    assert torch.allclose(secure(lambda m, x: m(x), {"m": net, "x": images}), net(images), atol=1e-3)
    assert torch.equal(secure(lambda m, x: m(x).argmax(1), {"m": net, "x": images}), net(images).argmax(1))


def test_argmax_gives_the_first_of_equal_ones() -> None:
    x = torch.tensor([[1.0, 3.0, 3.0], [2.0, 2.0, 2.0], [0.0, -1.0, 0.0]])
    assert secure(lambda x: x.argmax(1), {"x": x}).tolist() == [1, 0, 0]


def test_independent_steps_share_their_rounds() -> None:
    def function(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return torch.relu(x) + torch.relu(y) + torch.relu(x + y)

    program = capture(function, {"x": _X, "y": _Y}).program
    _, ledger = run_together(_protocol(program), _secrets([_X, _Y], 2))
    assert ledger.rounds == 4


def test_what_has_no_secure_form_is_named_before_anything_is_opened() -> None:
    captured = capture(lambda x: torch.special.i0(x), {"x": _X})
    with pytest.raises(OperationNotAllowed, match=r"i0\.default has no secure form") as caught:
        run_together(_protocol(captured.program), _secrets([_X], 2))
    assert caught.value.fields["node"] == 0


def test_what_does_not_fit_is_refused_when_it_is_encoded() -> None:
    for value in (float("inf"), float("nan"), 2.0**46, -(2.0**46)):
        with pytest.raises(BadRequest, match="does not fit 16 fractional bits"):
            encode(torch.tensor([1.0, value]))
    assert encode(torch.tensor([2.0**45])).item() == 1 << 61


def test_fixed_weights_are_opened_once_for_all_batches() -> None:
    torch.manual_seed(5)
    net = nn.Sequential(nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 4))
    batches = [torch.rand(3, 12), torch.rand(3, 12)]
    captured = capture(lambda m, x: m(x), {"m": net, "x": batches[0]})
    flat = _flat({"m": net})
    names = [name for name in captured.inputs if name != "x"]

    def protocol(party: Party, *inputs: Secret) -> Protocol[tuple[Secret, ...]]:
        weights = yield from fix(party, inputs[: len(names)])
        results = []
        for batch in inputs[len(names) :]:
            given = [*weights, batch] if captured.inputs[-1] == "x" else [batch, *weights]
            results.append((yield from run(party, captured.program, given)))
        return tuple(results)

    results, ledger = run_together(protocol, _secrets([*(flat[name] for name in names), *batches], 3))
    for batch, parts in zip(batches, zip(*results, strict=True), strict=True):
        words = torch.stack([each.share for each in parts]).sum(0)
        assert torch.allclose(decode(words, parts[0].bits, torch.float32), net(batch), atol=1e-3)
    opened = {tuple(share.shape) for opening in ledger.openings[3:] for share in opening.sums}
    assert not opened & {(9, 12), (4, 9), (12, 9), (9, 4)}
