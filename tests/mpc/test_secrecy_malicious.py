"""Arithmetic with MACs gives what plain arithmetic gives; one changed bit of any message, and nobody has a result."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import reduce
from typing import Any

import pytest
import torch

from compute.capture import capture
from compute.program import Program
from mpc import field
from mpc.authenticated import Authenticated, Tagged
from mpc.bilinear import Convolve, MatrixProduct, Multiply
from mpc.checked import Checked, run
from mpc.field import P
from mpc.lowering import lower
from mpc.party import Party
from mpc.rounds import Opening, Protocol
from mpc.script import script_of
from mpc.together import Ledger, run_together
from protocol.errors import OperationNotAllowed, PartyFailed
from tests.mpc.test_interpreter import _flat

_BITS = 16
Book = dict[int, list[torch.Tensor]]


def _elements(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int64)


# --- the field ----------------------------------------------------------------------------------------------


def test_the_field_is_that_of_the_prime() -> None:
    edges = [0, 1, 2, (1 << 31) - 1, 1 << 31, (1 << 60) - 1, 1 << 60, P - 2, P - 1]
    one, other = (each.reshape(-1) for each in torch.meshgrid(_elements(*edges), _elements(*edges), indexing="ij"))
    pairs = list(zip(one.tolist(), other.tolist(), strict=True))
    assert field.times(one, other).tolist() == [a * b % P for a, b in pairs]
    assert field.add(one, other).tolist() == [(a + b) % P for a, b in pairs]
    assert field.sub(one, other).tolist() == [(a - b) % P for a, b in pairs]
    assert int(field.total(one)) == sum(one.tolist()) % P
    assert field.to_words(field.from_words(_elements(-5, 0, 7))).tolist() == [-5, 0, 7]


@pytest.mark.parametrize("inner", [1, 7, 1024, 1025])
def test_products_of_matrices_in_the_field(inner: int) -> None:
    one, other = torch.full((2, inner), P - 1), torch.randint(0, P, (inner, 3))
    one[1] = torch.randint(0, P, (inner,))
    wanted = [[sum(a * b for a, b in zip(row, column, strict=True)) % P for column in zip(*other.tolist(), strict=True)]
              for row in one.tolist()]  # fmt: skip
    assert field.apply(MatrixProduct(), one, other).tolist() == wanted


# --- a program ----------------------------------------------------------------------------------------------

_X, _W, _K = torch.linspace(-3, 3, 32).view(2, 1, 4, 4), torch.linspace(-1, 1, 48).view(16, 3), torch.rand(1, 1, 3, 3)


def _plain() -> torch.Tensor:
    made = torch.nn.functional.conv2d(_X, _K, padding=1).view(2, 16)
    return (made * made + made) @ _W


def _words(x: torch.Tensor) -> torch.Tensor:
    return torch.round(x.double() * (1 << _BITS)).to(torch.int64)


def _input(own: Authenticated, at: int, words: torch.Tensor, book: Book) -> Protocol[Tagged]:
    """As its holder does it, who is told the mask by the dealer: here by all parties together."""
    mask = own.mask(tuple(words.shape))
    book.setdefault(at, []).append(mask.value)
    yield Opening()
    return own.plus(mask, field.sub(field.from_words(words), reduce(field.add, book[at])))


def _program(party: Party, book: Book) -> Protocol[torch.Tensor]:
    own = Authenticated(party)
    secrets = []
    for at, each in enumerate((_X, _W, _K)):
        secrets.append((yield from _input(own, at, _words(each), book)))
    x, w, k = secrets
    made = yield from own.multiply(Convolve((1, 1), (1, 1), (1, 1)), x, k)
    made = yield from own.truncate(Tagged(made.value.view(2, 16), made.tag.view(2, 16)), _BITS)
    square = yield from own.truncate((yield from own.multiply(Multiply(), made, made)), _BITS)
    made = yield from own.multiply(MatrixProduct(), square + made, w)
    (words,) = yield from own.reveal(made)
    return words


def _run(protocol: Callable[..., Protocol[Any]], count: int) -> tuple[list[Any], Ledger]:
    return run_together(protocol, [()] * count, {})


@pytest.mark.parametrize("count", [2, 3, 7])
def test_a_program_gives_what_it_gives_in_the_clear(count: int) -> None:
    results, _ = _run(_program, count)
    for words in results:
        assert torch.allclose(words.double() / (1 << 2 * _BITS), _plain().double(), atol=2e-3)


@pytest.mark.parametrize("shift", [1, 16, 40])
def test_truncation_is_off_by_at_most_one(shift: int) -> None:
    words = torch.randint(-(1 << 59) + 1, 1 << 59, (512,))
    words[:6] = _elements(0, 1, -1, (1 << 59) - 1, -(1 << 59) + 1, 1 << 16)

    def protocol(party: Party, book: Book) -> Protocol[torch.Tensor]:
        own = Authenticated(party)
        x = yield from _input(own, 0, words, book)
        (made,) = yield from own.reveal((yield from own.truncate(x, shift)))
        return made

    (got, _), _ = _run(protocol, 2)
    assert ((got - (words >> shift)) >= 0).all() and ((got - (words >> shift)) <= 1).all()


# --- cheating -----------------------------------------------------------------------------------------------


def _cheating(at: int, bit: int, outcomes: list[Any], place: int = 0) -> Callable[..., Protocol[Any]]:
    """The program, in which the second party flips a bit of its message number `at`, in the word at `place`."""

    def changed(share: torch.Tensor) -> torch.Tensor:
        share = share.clone()
        share.view(-1)[place] ^= 1 << (bit % (8 * share.element_size() - 1))
        return share

    def protocol(party: Party, book: Book) -> Protocol[None]:
        run, answer, done = _program(party, book), None, 0
        try:
            while True:
                opening = run.send(answer)  # type: ignore[arg-type]  # None begins it
                if party.rank == 1 and done == at:
                    opening = Opening(list(map(changed, opening.sums)), list(map(changed, opening.xors)))
                done += 1
                answer = yield opening
        except StopIteration as result:
            outcomes.append(result.value)
        except PartyFailed as error:
            outcomes.append(error.message)

    return protocol


def _try(at: int, bit: int, count: int, place: int = 0) -> list[Any]:
    """How it ended for those for whom it did; the others wait for a message that nobody sends."""
    outcomes: list[Any] = []
    with contextlib.suppress(AssertionError):
        _run(_cheating(at, bit, outcomes, place), count)
    return outcomes


_ROUNDS = 3 + 5 + 1 + 4 + 1 + 4  # inputs, the program, masked outputs, a check, their masks, a check


@pytest.mark.parametrize("count", [2, 3])
@pytest.mark.parametrize("place", [0, -1])
@pytest.mark.parametrize("at", range(3, _ROUNDS))
def test_one_changed_bit_of_any_message_and_nobody_has_a_result(at: int, place: int, count: int) -> None:
    outcomes = _try(at, 5 * at, count, place)
    assert outcomes
    assert all(isinstance(each, str) and "without a result" in each for each in outcomes)


def test_without_a_changed_bit_there_is_one() -> None:
    outcomes: list[Any] = []
    _, ledger = _run(_cheating(-1, 0, outcomes), 2)
    assert ledger.rounds == _ROUNDS
    assert all(isinstance(each, torch.Tensor) for each in outcomes)


@pytest.mark.parametrize("bit", [0, 30, 60, 62])
def test_every_bit_counts(bit: int) -> None:
    """Also the highest, of which the ring modulo 2^64 would see only half."""
    outcomes = _try(4, bit, 2)
    assert len(outcomes) == 2 and all(isinstance(each, str) for each in outcomes)


def test_a_cheat_before_the_reveal_sees_no_output_opened() -> None:
    """What is opened up to the check that fails is masked: two runs on the same data have nothing in common."""
    seen = []
    for _ in range(2):
        outcomes: list[Any] = []
        _, ledger = _run(_cheating(4, 3, outcomes), 2)
        assert ledger.rounds == 3 + 5 + 1 + 4
        seen.append(ledger.openings[-10].sums[0])
    assert (seen[0] != seen[1]).all()


def test_its_script_says_what_it_takes() -> None:
    def protocol(party: Party) -> Protocol[Any]:
        own = Authenticated(party)
        x = own.mask((4, 4))
        made = yield from own.truncate((yield from own.multiply(MatrixProduct(), x, x)), 16)
        return (yield from own.reveal(made))

    script = script_of(protocol, 3)
    _, ledger = run_together(protocol, [()] * 3)
    assert (script.rounds, script.nbytes, script.dealt) == (ledger.rounds, ledger.nbytes, ledger.dealt)


# --- programs -----------------------------------------------------------------------------------------------


def _function(model: Any, x: torch.Tensor) -> torch.Tensor:
    hidden = model[1](model[0](x).flatten(1) - 0.25)
    return model[2](hidden * hidden * 0.5 + hidden).sum(1, keepdim=True) - hidden[:, :1]


def _net_and_inputs() -> tuple[Program, list[torch.Tensor], torch.Tensor]:
    torch.manual_seed(4)
    net = torch.nn.ModuleList([torch.nn.Conv2d(1, 2, 3), torch.nn.Linear(32, 6), torch.nn.Linear(6, 3)])
    x = torch.rand(3, 1, 6, 6)
    captured = capture(_function, {"model": net, "x": x})
    flat = {**_flat({"model": net}), "x": x}
    return captured.program, [flat[name] for name in captured.inputs], _function(net, x).detach()


def _of_program(program: Program, values: list[torch.Tensor], *, cheats: bool) -> Callable[..., Protocol[Any]]:
    def protocol(party: Party, book: Book) -> Protocol[Any]:
        own = Authenticated(party)
        inputs = []
        for at, each in enumerate(values):
            tagged = yield from _input(own, at, _words(each), book)
            inputs.append(Checked(tagged, _BITS, torch.float32))
        if cheats and party.rank == 1:
            inputs[0].tagged.value.view(-1)[0] ^= 1
        return (yield from run(own, program, inputs))

    return protocol


def test_a_network_without_comparisons_runs_as_a_program() -> None:
    program, values, wanted = _net_and_inputs()
    lowered = lower(program, values, [True] * len(values))
    assert not lowered.public
    results, _ = _run(_of_program(lowered.program, values, cheats=False), 2)
    for got in results:
        assert torch.allclose(got, wanted, atol=2e-3)


def test_a_changed_share_of_an_input_ends_a_program() -> None:
    program, values, _ = _net_and_inputs()
    lowered = lower(program, values, [True] * len(values))
    with pytest.raises(PartyFailed, match="without a result"):
        _run(_of_program(lowered.program, values, cheats=True), 2)


def test_a_comparison_has_no_form_with_macs_and_says_so() -> None:
    program = capture(torch.relu, {"x": _X}).program
    with pytest.raises(OperationNotAllowed, match=r"relu\.default has no form with malicious security"):
        _run(_of_program(program, [_X], cheats=False), 2)
