"""Captures that are remembered: what is as it was is not captured again, and whatever changed is."""

from __future__ import annotations

import dataclasses
import functools
import gc
import math
import types
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, ClassVar, NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from compute import remembered
from compute.capture import Captured, capture
from compute.remembered import Captures
from grid import optimizers
from protocol import limits
from protocol.errors import CannotCapture

SCALE = 2.0
SETTINGS: dict[str, Any] = {"rate": 0.5, "layers": [1, 2]}
WEIGHT = torch.ones(3)
X, Y = torch.ones(2, 3), torch.zeros(2, 3)


def helper(x: torch.Tensor) -> torch.Tensor:
    return torch.relu(x) * SCALE


class Pair(NamedTuple):
    one: Any
    other: Any


class Net(nn.Module):
    width = 2

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(3, 3), nn.Dropout(0.5), nn.BatchNorm1d(3))
        self.factor = 2.0
        self.names = ["a"]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(F.relu(self.inner(x))) * len(self.names) * self.width

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.factor


class Counted:
    """Captures, and how many were made."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.captures = Captures((optimizers.note,), lambda value: value)  # a module may have been sent before
        self.made = 0
        monkeypatch.setattr(remembered, "capture", self._capture)

    def _capture(self, *args: Any) -> Captured:
        self.made += 1
        return capture(*args)

    def __call__(self, function: Any, *arguments: Any, dynamic: Any = False, loads: Any = None) -> Captured:
        named = {f"a{at}": value for at, value in enumerate(arguments)}

        def called(**given: Any) -> Any:
            return function(*given.values())

        return self.captures.capture(function, called, named, loads or {}, dynamic)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counted:
    return Counted(monkeypatch)


def _nested(x: torch.Tensor, y: torch.Tensor) -> Any:
    def each(item: torch.Tensor) -> torch.Tensor:
        return helper(item) @ y.T + math.pi * SETTINGS["rate"]

    with torch.no_grad():
        made = [each(item) for item in (x, y)]
    return made, {"shape": x.shape[0]}


def _trained(net: Any, optimizer: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
    optimizer.zero_grad()
    loss = F.mse_loss(net(x), y)
    loss.backward()
    optimizer.step()
    return loss, net


def test_what_is_as_it_was_is_not_captured_again(counted: Counted) -> None:
    one, other = counted(_nested, X, Y), counted(_nested, X + 1, Y)
    assert counted.made == 1 and other.program is one.program
    given = {name: tensor for name, tensor in other.given.items()}
    assert given["a0"] is not one.given["a0"] and torch.equal(given["a0"], X + 1)
    assert counted(_nested, X.double(), Y.double()).program.id != one.program.id
    assert counted(_nested, X[:1], Y).program.id != one.program.id
    assert counted.made == 3
    for dynamic in (None, True, {"a0": [0]}):
        before = counted.made
        built = counted(_nested, X, Y, dynamic=dynamic)
        assert counted(_nested, X, Y, dynamic=dynamic).program is built.program and counted.made == before + 1


def test_a_function_that_is_made_anew_reads_the_same(counted: Counted) -> None:
    def made(rate: float, more: Callable[..., Any]) -> Callable[..., Any]:
        return lambda x: more(x) * rate

    ids = [counted(made(rate, helper), X).program.id for rate in (0.5, 0.5, 0.25, 0.5, 0.0, -0.0, math.nan, math.nan)]
    assert counted.made == 5 and len(set(ids)) == 5


def test_training_is_captured_once_before_and_once_after_the_first_step(counted: Counted) -> None:
    torch.manual_seed(0)
    net = Net()
    optimizer = torch.optim.Adam(net.parameters())
    first = counted(_trained, net, optimizer, X, Y)
    assert counted(_trained, net, optimizer, X, Y).program is first.program
    _trained(net, optimizer, X, Y)
    later = counted(_trained, net, optimizer, X, Y)
    assert counted.made == 2 and later.program.id != first.program.id
    other = Net()
    others = torch.optim.Adam(other.parameters())
    _trained(other, others, X, Y)
    again = counted(_trained, other, others, X, Y)
    assert counted.made == 2 and again.program is later.program
    assert again.returned[1].value is other and later.returned[1].value is net  # whose module it is
    assert again.given["a0.inner.0.weight"] is other.inner[0].weight


def test_what_is_left_in_the_arguments_is_remembered_too(counted: Counted) -> None:
    for net in (Net(), Net()):
        captured = counted(lambda m, x: m.eval()(x), net, X)
        assert {(left.path, left.part) for left in captured.left} == {("a0", name) for name, _ in net.named_modules()}
    assert counted.made == 1
    kinds = [counted(lambda w: w * 2 if isinstance(w, nn.Parameter) else w * 3, w) for w in (X, nn.Parameter(X))]
    assert kinds[0].program.id != kinds[1].program.id


def test_arguments_that_are_nested_too_deeply_are_refused(counted: Counted) -> None:
    deep: Any = X
    for _ in range(5_000):
        deep = [deep]
    with pytest.raises(CannotCapture, match="nested too deeply"):
        counted(lambda x, more: x, X, deep)


def test_nothing_of_the_arguments_stays_alive(counted: Counted) -> None:
    net, x = Net().eval(), torch.ones(2, 3)
    kept = [weakref.ref(each) for each in (net, net.inner[0].weight, x)]
    counted(lambda module, x: (module(x), module), net, x)
    assert len(counted.captures._found) == 1
    del net, x
    gc.collect()
    assert [each() for each in kept] == [None] * 3


def test_a_query_that_is_to_be_found_first_is_remembered_too(counted: Counted) -> None:
    from compute.capture import load

    captures = Captures((load,), lambda value: value)

    def loading(x: torch.Tensor) -> torch.Tensor:
        return load("#data") + x

    for _ in range(2):
        with pytest.raises(CannotCapture) as caught:
            captures.capture(loading, loading, {"x": X}, {}, False)
        assert caught.value.fields["load"] == "#data"
        assert captures.capture(loading, loading, {"x": X}, {"#data": Y}, False).inputs == ("x", "load:#data")
    assert counted.made == 2


def test_no_more_are_remembered_than_there_is_a_limit(counted: Counted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "MAX_CAPTURES", 2)
    for rows in (1, 2, 3, 2, 1):
        counted(helper, torch.ones(rows, 3))
    assert counted.made == 4 and len(counted.captures._found) == 2


# --- whatever changed is captured again -------------------------------------------------------------------


@contextmanager
def _set(owner: Any, name: str, value: Any) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


@contextmanager
def _global(name: str, value: Any) -> Iterator[None]:
    before = globals()[name]
    globals()[name] = value
    try:
        yield
    finally:
        globals()[name] = before


@contextmanager
def _item(owner: Any, key: Any, value: Any) -> Iterator[None]:
    before = owner[key]
    owner[key] = value
    try:
        yield
    finally:
        owner[key] = before


@contextmanager
def _default_dtype() -> Iterator[None]:
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(torch.float32)


@contextmanager
def _hooked(module: nn.Module) -> Iterator[None]:
    handle = module.register_forward_hook(lambda *_: Y * 7)
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _hooked_for_all() -> Iterator[None]:
    handle = nn.modules.module.register_module_forward_hook(lambda *_: Y * 7)  # type: ignore[arg-type]
    try:
        yield
    finally:
        handle.remove()


def _other_relu(x: torch.Tensor, inplace: bool = False) -> torch.Tensor:
    return x * 3


def _with_default(x: torch.Tensor, factor: float = 2.0, *, more: float = 1.0) -> torch.Tensor:
    return x * factor + more


class Box:
    value = 2.0


BOX = Box()


def _of_box(box: Box, x: torch.Tensor) -> torch.Tensor:
    return x * box.value


EXAMPLES = Net()
TOGGLES = [0]


def _toggling(x: torch.Tensor) -> torch.Tensor:
    TOGGLES[0] = 1 - TOGGLES[0]
    return x + TOGGLES[0]


def _counting(x: torch.Tensor) -> torch.Tensor:
    return x + _counting.calls  # type: ignore[attr-defined]


_counting.calls = 0  # type: ignore[attr-defined]


def _loop(x: torch.Tensor) -> Any:
    return [helper(x) for _ in SETTINGS["layers"]]


@contextmanager
def _new_global(name: str, value: Any) -> Iterator[None]:
    globals()[name] = value
    try:
        yield
    finally:
        del globals()[name]


@contextmanager
def _own_forward(net: Net) -> Iterator[None]:
    net.forward = lambda x: x * 5  # type: ignore[method-assign]
    try:
        yield
    finally:
        del net.forward


class _Doubling(torch.overrides.TorchFunctionMode):
    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = function(*args, **(kwargs or {}))
        return made * 2 if function is torch.Tensor.relu else made


class _Varying:
    """A number among the arguments, and the next."""

    current: ClassVar[list[_Varying]] = []

    def __init__(self, *numbers: int) -> None:
        self.numbers, self.at = numbers, 0
        _Varying.current[:] = [self]

    @staticmethod
    @contextmanager
    def next() -> Iterator[None]:
        _Varying.current[0].at = 1
        yield


Case = tuple[Callable[..., Any], tuple[Any, ...], Callable[[], Any]]


@contextmanager
def _stepping_hook() -> Iterator[None]:
    def double(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        with torch.no_grad():
            optimizer.param_groups[0]["params"][0].mul_(2)

    handle = register_optimizer_step_pre_hook(double)
    try:
        yield
    finally:
        handle.remove()


def _stepped(net: Net) -> tuple[Net, torch.optim.Optimizer, torch.Tensor, torch.Tensor]:
    return net.eval(), torch.optim.SGD(net.parameters(), lr=0.1), X, Y


def _rate(arguments: Any) -> Any:
    return _item(arguments[1].param_groups[0], "lr", 0.2)


CHANGES: dict[str, Callable[[Net], Case]] = {
    "a global number": lambda net: (helper, (X,), lambda: _global("SCALE", 3.0)),
    "a global number that is equal": lambda net: (lambda x: x.long() * SCALE, (X,), lambda: _global("SCALE", 2)),
    "a global of what is called": lambda net: (lambda x: helper(x) + 1, (X,), lambda: _global("SCALE", 3.0)),
    "what is called": lambda net: (lambda x: helper(x), (X,), lambda: _global("helper", _other_relu)),
    "the code of what is called": lambda net: (
        lambda x: helper(x),
        (X,),
        lambda: _set(helper, "__code__", (lambda x: x * 9).__code__),
    ),
    "a default": lambda net: (_with_default, (X,), lambda: _set(_with_default, "__defaults__", (5.0,))),
    "a default by name": lambda net: (_with_default, (X,), lambda: _item(_with_default.__kwdefaults__, "more", 5.0)),
    "in a dict": lambda net: (lambda x: x * SETTINGS["rate"], (X,), lambda: _item(SETTINGS, "rate", 0.1)),
    "in a list in a dict": lambda net: (_loop, (X,), lambda: _item(SETTINGS, "layers", [1, 2, 3])),
    "a tensor from outside": lambda net: (lambda x: x * WEIGHT, (X,), lambda: _global("WEIGHT", torch.zeros(3))),
    "an object": lambda net: (lambda x: x * BOX.value, (X,), lambda: _set(BOX, "value", 7.0)),
    "a class": lambda net: (lambda x: x * Box.value, (X,), lambda: _set(Box, "value", 7.0)),
    "an attribute of a function": lambda net: (_counting, (X,), lambda: _set(_counting, "calls", 100)),
    "a method of an object": lambda net: (
        types.MethodType(lambda self, x: x * self.value, BOX),
        (X,),
        lambda: _set(BOX, "value", 7.0),
    ),
    "a partial": lambda net: (functools.partial(_of_box, BOX), (X,), lambda: _set(BOX, "value", 7.0)),
    "a function of torch's": lambda net: (lambda x: torch.relu(x), (X,), lambda: _set(torch, "relu", _other_relu)),
    "one in a part of torch": lambda net: (lambda x: F.relu(x), (X,), lambda: _set(F, "relu", _other_relu)),
    "a method of tensors": lambda net: (lambda x: x.relu(), (X,), lambda: _set(torch.Tensor, "relu", _other_relu)),
    "a constant of torch's": lambda net: (lambda x: x * torch.pi, (X,), lambda: _set(torch, "pi", 3.0)),
    "a builtin": lambda net: (lambda x: x * abs(-2), (X,), lambda: _new_global("abs", lambda _: 5)),
    "the dtype of what is made": lambda net: (lambda x: x + torch.ones(3), (X,), _default_dtype),
    "mixed precision": lambda net: (
        lambda x: x @ x.T,
        (X,),
        lambda: torch.autocast("cpu", dtype=torch.bfloat16),
    ),
    "a mode": lambda net: (lambda x: x.relu(), (X,), lambda: _Doubling()),
    "a number among the arguments": lambda net: (lambda x, n: x * n, (X, _Varying(2, 3)), lambda: _Varying.next()),
    "train and eval": lambda net: (lambda m, x: m(x), (net.eval(), X), lambda: _set(net.inner[2], "training", True)),
    "an attribute of a module": lambda net: (lambda m, x: m(x), (net.eval(), X), lambda: _set(net, "factor", 3.0)),
    "a list in a module": lambda net: (lambda m, x: m(x), (net.eval(), X), lambda: _set(net, "names", ["a", "b"])),
    "what a module's class has": lambda net: (lambda m, x: m(x), (net.eval(), X), lambda: _set(Net, "width", 5)),
    "what a module's class does": lambda net: (
        lambda m, x: m(x),
        (net.eval(), X),
        lambda: _set(Net, "scaled", lambda self, x: x - 1),
    ),
    "a part of a module": lambda net: (lambda m, x: m(x), (net.eval(), X), lambda: _item(net.inner, 1, nn.Tanh())),
    "a probability": lambda net: (lambda m, x: m(x), (net.train(), X), lambda: _set(net.inner[1], "p", 0.25)),
    "a hook of a module": lambda net: (lambda m, x: m(x), (net.eval(), X), lambda: _hooked(net.inner)),
    "a hook of all modules": lambda net: (lambda m, x: m(x), (net.eval(), X), _hooked_for_all),
    "a method of one module": lambda net: (
        lambda m, x: m(x),
        (net.eval(), X),
        lambda: _own_forward(net),
    ),
    "tied weights": lambda net: (
        lambda m, x: (m(x), m),
        (net.eval(), X),
        lambda: _set(net.inner[2], "bias", net.inner[0].bias),
    ),
    "a rate": lambda net: (lambda a: (_trained, a, lambda: _rate(a)))(_stepped(net)),
    "a hook of all optimisers": lambda net: (_trained, _stepped(net), _stepping_hook),
    "what is trained": lambda net: (
        lambda m, x: torch.autograd.grad(m(x).sum(), [p for p in m.parameters() if p.requires_grad]),
        (net.eval(), X),
        lambda: _set(net.inner[0].bias, "requires_grad", False),
    ),
}


class Scaling:
    """What is mixed into a module."""

    def scaled(self, x: torch.Tensor) -> torch.Tensor:
        return x * SCALE


class Mixed(nn.Linear, Scaling):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scaled(torch.relu(x))


class Rates(NamedTuple):
    rate: Any

    def scaled(self) -> Any:
        return self.rate * SCALE


class Numbers(list[float]):
    rate = 2.0


class Holding(nn.Module):
    """One that goes by one attribute."""

    def __init__(self, held: Any, read: Callable[[Any], Any]) -> None:
        super().__init__()
        self.held_hooks, self.read = held, read
        self._spec = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x * self.read(self.held_hooks) * self._spec


@contextmanager
def _added(owner: Any, name: str, value: Any) -> Iterator[None]:
    setattr(owner, name, value)
    try:
        yield
    finally:
        delattr(owner, name)


class Shown(nn.Module):
    def extra_repr(self) -> str:
        return "-" * int(SCALE)


class Asked(types.ModuleType):
    @property
    def rate(self) -> float:
        return SCALE


ASKED = Asked("asked")
vars(ASKED)["rate"] = 2.0
LISTS = [[1]] * 2


def _scale() -> float:
    return SCALE


def _by_a_frame(x: torch.Tensor) -> torch.Tensor:
    return x * (each for each in (1, 2)).gi_frame.f_globals["SCALE"]  # type: ignore[no-any-return]


def _holding(held: Any, read: Callable[[Any], Any], other: Any) -> Case:
    module = Holding(held, read)
    return lambda m, x: m(x), (module, X), lambda: _set(module, "held_hooks", other)


CHANGES |= {
    "what a mixin reads": lambda net: (lambda m, x: m(x), (Mixed(3, 3), X), lambda: _global("SCALE", 7.0)),
    "what a method of a named tuple reads": lambda net: (
        lambda pair: pair.scaled(),
        (Rates(X),),
        lambda: _global("SCALE", 7.0),
    ),
    "the same in a module": lambda net: (
        lambda m, x: m(x),
        (Holding(Rates(1.0), lambda held: held.scaled()), X),
        lambda: _global("SCALE", 7.0),
    ),
    "a list with attributes": lambda net: (
        lambda m, x: m(x),
        (Holding(Numbers(), lambda held: held.rate), X),
        lambda: _set(Numbers, "rate", 7.0),
    ),
    "a set": lambda net: _holding({1}, lambda held: 2 if 1 in held else 3, {"1"}),
    "a set of functions": lambda net: (
        lambda m, x: m(x),
        (Holding({_scale}, lambda held: next(each() for each in held)), X),
        lambda: _global("SCALE", 7.0),
    ),
    "None or nothing": lambda net: _holding(None, lambda held: 2 if held is None else 3, 0),
    "what a frame knows": lambda net: (_by_a_frame, (X,), lambda: _global("SCALE", 7.0)),
    "what a module of torch's calls": lambda net: (
        lambda m, x: m(x),
        (nn.ReLU(), X),
        lambda: _set(F, "relu", _other_relu),
    ),
    "what a module of torch's does": lambda net: (
        lambda m, x: m(x),
        (nn.ReLU(), X),
        lambda: _set(nn.ReLU, "forward", lambda self, x: x * 3),
    ),
    "what a module is shown as": lambda net: (
        lambda m, x: x * len(f"{m}"),
        (Shown(), X),
        lambda: _global("SCALE", 7.0),
    ),
    "one list by two names": lambda net: (
        lambda x: x * (2 if LISTS[0] is LISTS[1] else 3),
        (X,),
        lambda: _item(LISTS, 1, [1]),
    ),
    "a module that is a property's": lambda net: (
        lambda x: x * ASKED.rate,
        (X,),
        lambda: _global("SCALE", 7.0),
    ),
    "an operator of tensors": lambda net: (
        lambda x: x + 1,
        (X,),
        lambda: _added(torch.Tensor, "__add__", lambda self, other: self * 7),
    ),
}

CHANGES |= {
    "whether an argument is the module's": lambda net: (
        lambda given, m, x: torch.autograd.grad(m(x).sum(), given, allow_unused=True),
        ([net.inner[0].bias], net.eval(), X),
        lambda: _set(net.inner[0], "bias", nn.Parameter(torch.zeros(3))),
    ),
    "a gradient that is there": lambda net: (
        lambda m, x: x * (2 if m.inner[0].bias.grad is None else 3),
        (net, X),
        lambda: _set(net.inner[0].bias, "grad", torch.zeros(3)),
    ),
}

OPEN = {
    "a tensor from outside",
    "an object",
    "a class",
    "an attribute of a function",
    "a method of an object",
    "a partial",
    "what a mixin reads",
    "what a method of a named tuple reads",
    "the same in a module",
    "a list with attributes",
    "a set of functions",
    "what a frame knows",
    "a module that is a property's",
}
"""Of these nothing is remembered at all."""


def _seen(run: Callable[[], Captured]) -> tuple[str, Any]:
    captured = run()
    consts = {name: tensor.tolist() for name, tensor in captured.constants.items()}
    return captured.program.id, consts


@pytest.mark.parametrize("name", CHANGES)
def test_whatever_changed_is_captured_again(name: str, counted: Counted) -> None:
    function, arguments, change = CHANGES[name](Net())

    def given() -> list[Any]:
        return [each.numbers[each.at] if isinstance(each, _Varying) else each for each in arguments]

    def fresh() -> Captured:
        named = {f"a{at}": value for at, value in enumerate(given())}
        return capture(lambda **items: function(*items.values()), named)

    before = _seen(lambda: counted(function, *given()))
    assert _seen(lambda: counted(function, *given())) == before
    assert counted.made == (2 if name in OPEN else 1)
    with change():
        now = _seen(lambda: counted(function, *given()))
        assert now != before and now == _seen(fresh)


def test_what_somebody_put_into_torch_is_read_by_nobody(counted: Counted) -> None:
    def by_name(x: torch.Tensor) -> Any:
        return x.doubled()  # type: ignore[attr-defined]

    def as_property(x: torch.Tensor) -> Any:
        return x.doubled  # type: ignore[attr-defined]

    def of_a_module(module: nn.Module, x: torch.Tensor) -> Any:
        return module.doubled(x)  # type: ignore[operator]

    def double(x: torch.Tensor) -> torch.Tensor:
        return x * SCALE

    cases: list[tuple[Any, Any, Any, tuple[Any, ...]]] = [
        (torch.Tensor, double, by_name, (X,)),
        (torch.Tensor, property(double), as_property, (X,)),
        (nn.Module, staticmethod(double), of_a_module, (nn.ReLU(), X)),
    ]
    for owner, value, function, arguments in cases:
        with _added(owner, "doubled", value):
            before = counted(function, *arguments)
            with _global("SCALE", 7.0):
                assert counted(function, *arguments).program.id != before.program.id
    with _added(torch.Tensor, "doubled", 2):
        ids = [counted(lambda x: x * x.doubled, X.long()).program.id]
        with _set(torch.Tensor, "doubled", 2.0):
            ids.append(counted(lambda x: x * x.doubled, X.long()).program.id)
    assert ids[0] != ids[1]


def test_what_a_function_does_to_what_it_reaches_is_done_each_time(counted: Counted) -> None:
    TOGGLES[0] = 0
    ids = [counted(_toggling, X).program.id for _ in range(6)]
    assert ids[0] != ids[1] and ids == ids[:2] * 3 and counted.made == 6


def test_what_is_remembered_is_still_refused_where_it_must_be(counted: Counted) -> None:
    def decided(x: torch.Tensor) -> torch.Tensor:
        return x * 2 if x.sum() > 0 else x

    for _ in range(2):
        with pytest.raises(CannotCapture, match=r"torch\.where"):
            counted(decided, X)
    assert counted.made == 2


@dataclasses.dataclass
class _Config:
    rate: float


def test_what_may_be_another_tomorrow_is_captured_each_time(counted: Counted) -> None:
    config = _Config(0.5)
    functions: list[Callable[..., Any]] = [
        lambda x: x * config.rate,
        lambda x: x * WEIGHT,
        lambda x: Pair(x, x),
        lambda x: x * int(torch.initial_seed() > 0),
        lambda x: x * getattr(math, "pi"),  # noqa: B009
        lambda x: x + len(globals()["SETTINGS"]),
    ]
    for function in functions:
        counted(function, X), counted(function, X)
    assert counted.made == 2 * len(functions)
