"""What operations cost, known before they run: so little that honest work passes, and enough to refuse the rest."""

import math
import random
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from compute import cost as costs
from compute import estimate
from compute.cost import ALLOWED, Cost, Rule
from compute.estimate import check_size, infer
from compute.forecast import check_program
from compute.operations import OPERATIONS, substitute
from compute.program import Input, Node, Program
from compute.table import Entry, lookup
from protocol import limits
from protocol.errors import GridError, OperationNotAllowed, TooLarge
from tests.compute import random_calls

GIB = 1 << 30


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def cost_of(name: str, *args: Any, **kwargs: Any) -> Cost:
    entry = lookup(name)
    return infer(entry, *entry.bind(args, kwargs)).cost


@pytest.fixture(autouse=True)
def own_allowance() -> Iterator[None]:
    yield

    ALLOWED.limit(None, None)


# --- what it is -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args", "work"),
    [
        ("aten.mm.default", [meta(30, 40), meta(40, 50)], 30 * 40 * 50),
        ("aten.matmul.default", [meta(7, 30, 40), meta(7, 40, 50)], 7 * 30 * 40 * 50),
        ("aten.addmm.default", [meta(50), meta(30, 40), meta(40, 50)], 30 * 40 * 50),
        ("aten.conv2d.default", [meta(2, 8, 10, 10), meta(16, 8, 3, 3)], 2 * 16 * 8 * 8 * 8 * 9),
        (
            "aten.conv2d.default",
            [meta(2, 8, 10, 10), meta(16, 2, 3, 3), None, [1, 1], [0, 0], [1, 1], 4],
            2 * 16 * 8 * 8 * 2 * 9,
        ),
        ("aten.conv_transpose2d.input", [meta(2, 8, 10, 10), meta(8, 16, 3, 3)], 2 * 8 * 100 * 16 * 9),
        ("aten.bilinear.default", [meta(4, 5), meta(4, 6), meta(7, 5, 6)], 4 * 5 * 6 * 7),
        ("aten.cdist.default", [meta(40, 6), meta(50, 6)], 40 * 50 * 6),
        ("aten.linalg_svd.default", [meta(40, 30)], None),
        ("aten.add.Tensor", [meta(100, 1), meta(1, 200)], 100 + 200 + 100 * 200),
        ("aten.relu_.default", [meta(100)], 100),
        ("aten.view.default", [meta(100, 100), [10_000]], 0),
        ("aten.expand.default", [meta(1), [10_000]], 0),
        ("aten.sort.default", [meta(1_000_000)], 20_000_000),
        ("aten.max_pool2d.default", [meta(1, 1, 100, 100), [3, 3], [1, 1]], 100 * 100 + 2 * 98 * 98 * 9),
    ],
)
def test_the_work_of_a_kernel(name: str, args: list[Any], work: int | None) -> None:
    found = cost_of(name, *args)
    if work is None:  # some times m * n * min(m, n), but no less
        work = 40 * 30 * 30
        assert work <= found.work <= 3 * work
    else:
        assert found.work == work, found
    assert found.seconds <= 1.1 * found.work / costs.COMPARES


def test_a_recurrent_layer_counts_each_weight_at_each_step() -> None:
    weights = [meta(80, 10), meta(80, 20), meta(80), meta(80)]
    state = [meta(1, 3, 20), meta(1, 3, 20)]
    found = cost_of("aten.lstm.input", meta(50, 3, 10), state, weights, True, 1, 0.0, False, False, False)
    assert found.work == 50 * 3 * (80 * 10 + 80 * 20)


class Totals(TorchDispatchMode):
    """Adds up what the operations of a model cost; each must be in the table, and pass at the limits of a new peer."""

    def __init__(self) -> None:
        super().__init__()
        self.total = costs.NOTHING

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f"{function.namespace}.{function._opname}.{function._overloadname}"
        other, its_args, its_kwargs = substitute(name, args, kwargs or {})
        entry = lookup(other)
        given = {key: value for key, value in its_kwargs.items() if key not in ("device", "layout", "pin_memory")}
        self.total = self.total.plus(check_size(entry, *entry.bind(its_args, given)).cost)
        return function(*args, **(kwargs or {}))


def bottleneck(inside: int, width: int, stride: int) -> torch.nn.Module:
    nn = torch.nn
    body = nn.Sequential(
        *(nn.Conv2d(inside, width, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, width, 3, stride, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()),
        *(nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)),
    )
    return body


class Residual(torch.nn.Module):
    def __init__(self, inside: int, width: int, stride: int) -> None:
        super().__init__()
        self.body = bottleneck(inside, width, stride)
        is_same = stride == 1 and inside == 4 * width
        self.short = torch.nn.Identity() if is_same else torch.nn.Conv2d(inside, 4 * width, 1, stride, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.short(x))


def resnet50() -> torch.nn.Module:
    nn = torch.nn
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    layers += [nn.MaxPool2d(3, 2, 1)]
    inside = 64
    for width, blocks, stride in ((64, 3, 1), (128, 4, 2), (256, 6, 2), (512, 3, 2)):
        for at in range(blocks):
            layers.append(Residual(inside, width, stride if at == 0 else 1))
            inside = 4 * width
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2048, 1000))


def like_a_new_peer() -> None:
    """The limits of a worker with one thread on a machine of 8 GB, before its owner changed any."""
    ALLOWED.limit(4 * GIB, limits.OPERATION_SECONDS)


def total(model: Callable[[], torch.nn.Module], *shape: int) -> Cost:
    with torch.device("meta"):
        module = model().eval()
    with torch.no_grad(), Totals() as totals:
        module(meta(*shape))
    return totals.total


def test_resnet_50_costs_what_its_paper_says_and_passes() -> None:
    like_a_new_peer()
    found = total(resnet50, 32, 3, 224, 224)
    assert 32 * 3.8e9 < found.work < 32 * 4.4e9  # He and others, 2015, table 1: 3.8e9 multiply-adds for one image
    assert found.seconds < limits.OPERATION_SECONDS / 100


def test_a_transformer_layer_passes() -> None:
    like_a_new_peer()
    found = total(lambda: torch.nn.TransformerEncoderLayer(1024, 16, 4096, batch_first=True), 16, 512, 1024)
    weights = 16 * 512 * (4 * 1024 * 1024 + 2 * 1024 * 4096)
    assert weights < found.work < 2 * weights


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.mm.default", [meta(4096, 4096), meta(4096, 4096)]),
        ("aten.sort.default", [meta(10**8)]),
        ("aten.linalg_svd.default", [meta(4000, 4000)]),
        ("aten.linalg_inv.default", [meta(8000, 8000)]),
        ("aten.linalg_matrix_power.default", [meta(1000, 1000), 1000]),
        ("aten.embedding.default", [meta(250_000, 1024), meta(64, 512, dtype=torch.int64)]),
        ("aten.cdist.default", [meta(10_000, 128), meta(10_000, 128)]),
        ("aten.diff.default", [meta(1_000_000), 3]),
        ("aten.conv2d.default", [meta(256, 64, 56, 56), meta(64, 64, 3, 3), None, [1, 1], [1, 1]]),
    ],
)
def test_honest_work_passes_at_a_new_peer(name: str, args: list[Any]) -> None:
    like_a_new_peer()
    entry = lookup(name)
    check_size(entry, *entry.bind(args, {}))


# --- what it forbids --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("aten.special_legendre_polynomial_p.default", [meta(1), 10**9]),
        ("aten.special_laguerre_polynomial_l.default", [meta(1), 10**9]),
        ("aten.linalg_matrix_power.default", [meta(3, 3), -(2**63)]),
        ("aten.max_pool1d.default", [meta(1, 1, 10), [2**62]]),
        ("aten.max_pool2d.default", [meta(1, 64, 8192, 8192), [4096, 4096], [1, 1]]),
        ("aten.arange.start_step", [1, 2**31, 2]),
        ("aten.mm.default", [meta(20_000, 10**8), meta(10**8, 20_000)]),
        ("aten.bmm.default", [meta(1, 1).expand(10**4, 10**4).expand(10, -1, -1), meta(10, 10**4, 10**6)]),
        ("aten.linalg_svd.default", [meta(1).expand(60_000, 60_000)]),
        ("aten.cdist.default", [meta(10**5, 10**6), meta(10**4, 10**6)]),
        ("aten.conv2d.default", [meta(1).expand(1, 2000, 4000, 4000), meta(64, 2000, 513, 513)]),
        ("aten.bilinear.default", [meta(10**5, 10**4), meta(10**5, 10**4), meta(10, 10**4, 10**4)]),
    ],
)
def test_a_bomb_is_refused_at_once(name: str, args: list[Any]) -> None:
    ALLOWED.limit(4 * GIB, limits.OPERATION_SECONDS)
    with pytest.raises(GridError) as caught:
        entry = lookup(name)
        check_size(entry, *entry.bind(args, {}))
    assert caught.value.message


def test_what_no_peer_ever_finishes_is_refused_everywhere() -> None:
    ALLOWED.limit(None, None)  # as in a client, who does not know the peer's limits
    with pytest.raises(TooLarge) as caught:
        cost_of("aten.mm.default", meta(100_000, 10**7), meta(10**7, 100_000))
    assert caught.value.fields["limit"] == "MAX_OPERATION"


def test_to_find_out_what_it_costs_costs_little_itself() -> None:
    with pytest.raises(TooLarge) as caught:
        cost_of("aten.diff.default", meta(10**6), 10**6)  # as many subtractions
    assert caught.value.fields["limit"] == "MAX_KERNELS"


def test_a_refusal_says_what_it_would_take_and_what_to_do() -> None:
    ALLOWED.limit(None, 2.0)
    entry = lookup("aten.mm.default")
    with pytest.raises(TooLarge) as caught:
        check_size(entry, *entry.bind([meta(10_000, 10_000), meta(10_000, 10_000)], {}))
    error = caught.value
    assert error.operation == "aten.mm.default"
    assert error.fields == {"limit": "worker_seconds", "size": 10, "allowed": 2, "work": 10**12}
    assert "1000000000000 steps" in error.message
    assert "smaller pieces" in error.message
    assert "--worker-seconds" in error.message


def test_more_threads_may_do_more() -> None:
    entry = lookup("aten.mm.default")
    call = entry.bind([meta(10_000, 10_000), meta(10_000, 10_000)], {})
    ALLOWED.limit(None, 2.0, 4.0)
    with pytest.raises(TooLarge, match=r"2\.5 s or more; at most 2 s"):
        check_size(entry, *call)
    ALLOWED.limit(None, 2.0, 8.0)
    check_size(entry, *call)


def test_what_is_held_counts() -> None:
    entry = lookup("aten.zeros.default")
    ALLOWED.limit(1000, None)
    check_size(entry, *entry.bind([[100]], {}))
    ALLOWED.held = 700
    with pytest.raises(TooLarge) as caught:
        check_size(entry, *entry.bind([[100]], {}))
    assert caught.value.fields["limit"] == "worker_memory"
    assert caught.value.fields["held"] == 700
    assert "700 bytes are held" in caught.value.message
    assert "100 bytes too much" in caught.value.message
    lookup_view = lookup("aten.neg_.default")
    check_size(lookup_view, *lookup_view.bind([meta(10**6)], {}))  # it needs no memory


# --- the whole table --------------------------------------------------------------------------------------


def random_call(entry: Entry, seed: int) -> tuple[Any, Any]:
    chance = random.Random(f"{entry.name} {seed}")
    maker = random_calls.Maker(chance)
    args, kwargs = [], {}
    for parameter in entry.parameters:
        if not parameter.is_required and chance.random() < 0.5:
            break
        value = maker.make(parameter.kind, parameter.name)
        if parameter.is_keyword_only:
            kwargs[parameter.name] = value
        else:
            args.append(value)
    return entry.bind(args, kwargs)


def test_no_rule_breaks_and_no_cost_is_negative_or_without_bound(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[str] = []
    found: list[Cost] = []

    def strict(rule: Rule, call: costs.Call, results: int) -> Cost:
        try:
            return real(rule, call, results)
        except Exception as error:
            name = next(name for name, known in costs._RULES.items() if known is rule)
            broken.append(f"{name}: {error!r}")
            raise

    real = costs.by_rule
    monkeypatch.setattr(costs, "by_rule", strict)
    monkeypatch.setattr(random_calls, "guarded", lambda tensor: tensor)
    monkeypatch.setattr(estimate, "_seen", type(estimate._seen)())
    for name, category in OPERATIONS.items():
        if category == "size":
            continue
        for seed in range(6):
            try:
                entry = lookup(name)
                found.append(infer(entry, *random_call(entry, seed)).cost)
            except (GridError, OperationNotAllowed):
                continue
    assert not broken
    assert len(found) > 1000
    assert all(each.work >= 0 and 0 <= each.seconds < math.inf for each in found)


GROWING: dict[str, Callable[[int], list[Any]]] = {
    "aten.mm.default": lambda n: [meta(n, 2 * n), meta(2 * n, n)],
    "aten.einsum.default": lambda n: ["ij,jk->ik", [meta(n, n), meta(n, n)]],
    "aten.conv2d.default": lambda n: [meta(1, n, n + 3, n + 3), meta(4, n, 3, 3)],
    "aten.conv_transpose2d.input": lambda n: [meta(1, n, n, n), meta(n, 4, 3, 3)],
    "aten.linalg_qr.default": lambda n: [meta(n, n)],
    "aten.linalg_solve.default": lambda n: [meta(n, n), meta(n, n)],
    "aten.sort.default": lambda n: [meta(n, n)],
    "aten.topk.default": lambda n: [meta(n, 8), 3],
    "aten.searchsorted.Tensor": lambda n: [meta(n), meta(n)],
    "aten.isin.Tensor_Tensor": lambda n: [meta(n), meta(n)],
    "aten.cdist.default": lambda n: [meta(n, 3), meta(n, 3)],
    "aten.avg_pool2d.default": lambda n: [meta(1, 1, n + 3, n + 3), [3, 3]],
    "aten.max_pool2d.default": lambda n: [meta(1, 1, 100, 100), [n, n], [1, 1]],
    "aten.nonzero.default": lambda n: [meta(n, n)],
    "aten.cumsum.default": lambda n: [meta(n, n), 0],
    "aten.layer_norm.default": lambda n: [meta(n, 8), [8]],
    "aten.scaled_dot_product_attention.default": lambda n: [meta(1, 2, n, 8), meta(1, 2, n, 8), meta(1, 2, n, 8)],
    "aten.repeat.default": lambda n: [meta(4), [n]],
    "aten.linalg_matrix_power.default": lambda n: [meta(4, 4), 2**n],
    "aten.diff.default": lambda n: [meta(100), n],
}


@pytest.mark.parametrize("name", GROWING)
def test_more_of_the_same_never_costs_less(name: str) -> None:
    found = [cost_of(name, *GROWING[name](n)) for n in range(4, 30)]
    assert found == sorted(found)
    assert found[0].work < found[-1].work
    assert found[0].seconds < found[-1].seconds


def test_a_refusal_does_not_depend_on_what_was_asked_before() -> None:
    entry = lookup("aten.mm.default")
    call = entry.bind([meta(10_000, 10_000), meta(10_000, 10_000)], {})
    check_size(entry, *call)
    ALLOWED.limit(None, 1.0)
    for _ in range(2):
        with pytest.raises(TooLarge):
            check_size(entry, *call)


# --- programs ---------------------------------------------------------------------------------------------


def products(count: int, *more: Node) -> Program:
    nodes = [Node("aten.mm.default", [{"node": at}, {"node": 0}]) for at in range(count)]
    return Program((Input("x"),), (*nodes, *more), {"node": count + len(more)})


def test_a_program_costs_all_of_its_operations() -> None:
    assert check_program(products(7), [meta(100, 100)]).work == 7 * 10**6


def test_a_program_of_small_steps_that_is_too_long_is_refused_before_the_first() -> None:
    ALLOWED.limit(None, 5.0)
    for _ in range(2):  # also where its cost is known already
        with pytest.raises(TooLarge, match=r"program is 875000000000 steps, 8\.75 s or more; at most 5 s"):
            check_program(products(7), [meta(5_000, 5_000)])
    assert check_program(products(3), [meta(5_000, 5_000)]).seconds == pytest.approx(3.75)


def test_of_a_program_whose_shapes_depend_on_data_the_beginning_is_counted() -> None:
    unknown = Node("aten.nonzero.default", [{"node": 2}])
    program = products(2, unknown, Node("aten.add.Tensor", [{"node": 3}, 1]))
    assert check_program(program, [meta(100, 100)]).work == pytest.approx(2 * 10**6, rel=0.1)


def test_an_estimate_is_made_once() -> None:
    entry = lookup("aten.linalg_matrix_power.default")
    call = entry.bind([meta(5, 5), 2**31 - 1], {})
    assert infer(entry, *call) is infer(entry, *call)
