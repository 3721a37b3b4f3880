"""A stretch of operations that comes again gives what its operations give one by one: values, faults, and all else."""

from __future__ import annotations

import gc
import itertools
import math
import os
import random
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.utils import deterministic

from compute.cost import ALLOWED
from compute.values import tensor_bytes
from peer.stretch import Stretch
from peer.worker import repeated, stretches
from peer.worker.runtime import Runtime
from protocol import limits
from protocol.errors import OperationFailed
from tests.full import FULL

ROUNDS = 7
SEEDS = 1_000 if FULL else 60


class World:
    """One worker; its answers by the number of the request."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self.runtime = Runtime(lambda message, _: self.said.append(message))
        self.objects = self.runtime._objects
        self._seq = 0
        self._told: dict[int, Any] = {}
        self.shortened = 0

    def provide(self, id: bytes, value: torch.Tensor, read_only: bool = False) -> None:
        name, data = str(value.dtype).removeprefix("torch."), bytes(tensor_bytes(value))
        self.runtime.handle(["provide", id, name, list(value.shape), 0, read_only, data], [])

    def begin(self, seed: int) -> None:
        """From here on it is the one worker of this process, whose random numbers begin so."""
        torch.manual_seed(seed)
        ALLOWED.held = self.objects.held

    def run(self, operations: list[Any], wanted: bytes | None, dropped: list[bytes]) -> Any:
        return self._ask("run", operations, wanted, dropped)

    def keep(self, number: int, stretch: Stretch) -> None:
        self.runtime.handle(["stretch", number, stretch.numbered(), None], [])

    def again(self, number: int, used: Used, wanted: bytes | None, dropped: list[bytes]) -> Any:
        given, made = b"".join(used.given), b"".join(used.made)
        results, value = self._ask("again", number, given, made, used.floats, wanted, dropped)
        self.shortened += results is None
        if results is not None:
            self._told[number] = results
        return self._told[number], value

    def _ask(self, kind: str, *fields: Any) -> Any:
        self._seq += 1
        self.runtime.handle([kind, self._seq, *fields], [])
        self.runtime.let_go()
        done = [message for message in self.said if message[0] == "done"][-1]
        assert done[1] == self._seq
        return done[2], done[3]

    def state(self) -> Any:
        """All that can be seen of it: values bit by bit, what shares memory, failures, what is counted."""
        objects, shares = self.objects, {}
        tensors = {}
        for id, tensor in objects.tensors.items():
            first = shares.setdefault(tensor.untyped_storage().data_ptr(), id)
            whole = bytes(tensor_bytes(tensor))
            tensors[id] = (whole, tensor.dtype, tensor.shape, tensor.stride(), tensor.storage_offset(), first)
        failures = {id: (error.code, error.message) for id, error in objects._failures.items()}
        written = sorted(each.is_written for each in objects._provided.values())
        return tensors, failures, objects.held, written


class Used:
    """What a use of a stretch brings, taken from its operations."""

    def __init__(self, operations: list[Any]) -> None:
        self.given: list[bytes] = []
        self.made: list[bytes] = []
        self.floats: list[float] = []
        for _, args, kwargs, outs in operations:
            self._see([args, list(kwargs.values())])
            self.made += outs

    def _see(self, value: Any) -> None:
        if isinstance(value, list):
            for item in value:
                self._see(item)
        elif isinstance(value, bytes) and value not in self.made and value not in self.given:
            self.given.append(value)
        elif isinstance(value, float):
            self.floats.append(value)


class Writer:
    """Writes operations at random; with the same seed the same ones, but for ids and floats."""

    def __init__(
        self, seed: int, inputs: list[bytes], labels: bytes, floats: random.Random, ids: Callable[[], bytes]
    ) -> None:
        self._kinds = [*_KINDS, Writer.wrong] if seed % 4 == 0 else _KINDS
        self._random = random.Random(seed)
        self._floats = floats
        self._ids = ids
        self._squares = list(inputs)  # float32 [4, 4], whatever became of them
        self._indices = [labels]

    def operations(self, count: int) -> list[Any]:
        return [self._random.choice(self._kinds)(self) for _ in range(count)]

    def _one(self) -> bytes:
        return self._random.choice(self._squares)

    def _made(self, name: str, args: list[Any], kwargs: dict[str, Any] | None = None) -> Any:
        out = self._ids()
        self._squares.append(out)
        return [name, args, kwargs or {}, [out]]

    def scaled(self) -> Any:
        return self._made("aten.mul.Tensor", [self._one(), self._floats.uniform(-2, 2)])

    def added(self) -> Any:
        return self._made("aten.add.Tensor", [self._one(), self._one()], {"alpha": self._floats.uniform(-1, 1)})

    def product(self) -> Any:
        return self._made("aten.mm.default", [self._one(), self._one()])

    def turned(self) -> Any:
        return self._made("aten.t.default", [self._one()])

    def in_place(self) -> Any:
        return ["aten.add_.Tensor", [self._one(), self._one()], {"alpha": self._floats.uniform(-1, 1)}, []]

    def scaled_in_place(self) -> Any:
        return ["aten.mul_.Tensor", [self._one(), 0.5], {}, []]

    def clipped(self) -> Any:
        return self._made("aten.relu.default", [self._one()])

    def part(self) -> Any:
        out = self._ids()
        return ["aten.slice.Tensor", [self._one(), 0, self._random.choice([0, 1, 7]), 3], {}, [out]]

    def joined(self) -> Any:
        out = self._ids()
        return ["aten.cat.default", [[self._one(), self._one()], self._random.choice([0, 1])], {}, [out]]

    def split(self) -> Any:
        outs = [self._ids(), self._ids()]
        return ["aten.split.Tensor", [self._one(), 2], {}, outs]

    def largest(self) -> Any:
        values, indices = self._ids(), self._ids()
        self._indices.append(indices)
        return ["aten.max.dim", [self._one(), 1], {}, [values, indices]]

    def drawn(self) -> Any:
        return ["aten.native_dropout.default", [self._one(), 0.5, True], {}, [self._ids(), self._ids()]]

    def drawn_by_seed(self) -> Any:
        return self._made("aten.bernoulli.p", [self._one(), 0.5], {"generator": 5})

    def filled(self) -> Any:
        return self._made("aten.full_like.default", [self._one(), self._random.choice([1, 2.5])])

    def counted(self) -> Any:  # as large as its float says
        return ["aten.arange.default", [float(self._floats.choice([2, 3]))], {}, [self._ids()]]

    def found(self) -> Any:  # as large as the data say
        return ["aten.nonzero.default", [self._one()], {}, [self._ids()]]

    def looked_up(self) -> Any:  # fails where the indices do not fit
        return ["aten.nll_loss_forward.default", self._loss(), {}, [self._ids(), self._ids()]]

    def _loss(self) -> list[Any]:
        return [self._one(), self._random.choice(self._indices), None, 1, -100]

    def inverted(self) -> Any:  # looks alone at the last factorisation
        return ["aten.linalg_inv_ex.default", [self._one()], {}, [self._ids(), self._ids()]]

    def wrong(self) -> Any:
        return self._made("aten.view.default", [self._one(), [self._random.choice([2, 16, 17])]])


_KINDS: list[Callable[[Writer], Any]] = [
    *(Writer.scaled, Writer.added, Writer.product, Writer.turned, Writer.in_place, Writer.clipped) * 3,
    *(
        Writer.part,
        Writer.joined,
        Writer.split,
        Writer.scaled_in_place,
        Writer.largest,
        Writer.drawn,
        Writer.drawn_by_seed,
        Writer.filled,
    ),
    *(Writer.counted, Writer.found, Writer.looked_up, Writer.inverted),
]


@pytest.fixture(autouse=True)
def unlimited() -> Iterator[None]:
    repeated._plans.clear()
    held = ALLOWED.held
    yield
    ALLOWED.limit(None, None)
    ALLOWED.held = held


def _ids(start: int) -> Callable[[], bytes]:
    numbers = iter(range(start, 1 << 60))
    return lambda: next(numbers).to_bytes(16, "big")


def _given(chance: random.Random) -> torch.Tensor:
    """As it looks mostly, or otherwise."""
    value = torch.randn(4, 4)
    strange = chance.random()
    if strange < 0.06:
        return value.double()
    if strange < 0.1:
        return torch.randn(4, 5)
    return value


@pytest.mark.parametrize("seed", range(SEEDS))
def test_a_stretch_gives_what_its_operations_give(seed: int) -> None:
    chance, one, again = random.Random(seed), World(), World()
    fresh = _ids(1)
    lasting = [fresh() for _ in range(3)]
    for at, id in enumerate(lasting):
        value = torch.randn(4, 4)
        for world in (one, again):
            world.provide(id, value, read_only=at == 2 and seed % 5 == 0)
    count = chance.randrange(1, 20)
    known: dict[str, int] = {}
    for round in range(ROUNDS):
        passing = [fresh() for _ in range(2)]
        for id in passing:
            if chance.random() > 0.03:  # else it is not there
                value = _given(chance)
                for world in (one, again):
                    world.provide(id, value)
        labels = fresh()
        wrong = chance.random() < 0.15
        for world in (one, again):
            world.provide(labels, torch.tensor([0, 3, 9 if wrong else 1, 2]))
        ALLOWED.memory = 3_000 if chance.random() < 0.05 else math.inf
        writer = Writer(seed, [*lasting, *passing], labels, chance, fresh)
        operations = writer.operations(count)
        stretch, used = Stretch.of(operations), Used(operations)
        assert stretch is not None
        form = repr(stretch.numbered())
        if form not in known:
            known[form] = len(known)
            again.keep(known[form], stretch)
        wanted = chance.choice([None, *used.made, *lasting])
        dropped = [] if round % 3 else [id for id in used.made if chance.random() < 0.5 and id != wanted]
        one.begin(seed + round)
        expected = one.run(operations, wanted, dropped)
        again.begin(seed + round)
        got = again.again(known[form], used, wanted, dropped)
        assert _told(got[0]) == _told(expected[0])
        assert got[1] == expected[1]
        assert again.state() == one.state()


def _told(results: Any) -> Any:
    return [each if isinstance(each, dict) else [[dtype, tuple(shape)] for dtype, shape in each] for each in results]


class Scene:
    """A worker with one stretch, of operations that a function makes for some given ids."""

    def __init__(self, operations: Callable[[bytes, Callable[[], bytes]], list[Any]]) -> None:
        self.world = World()
        self._operations = operations
        self._fresh = _ids(1)
        self._is_kept = False

    def use(self, value: torch.Tensor, read_only: bool = False, wants: int | None = None) -> Any:
        """What the operations gave, and the ids of all that they were given and made; with `wants` only that result,
        the one of this number, is not let go of with the request."""
        x = self._fresh()
        self.world.provide(x, value, read_only)
        operations = self._operations(x, self._fresh)
        used, stretch = Used(operations), Stretch.of(operations)
        assert stretch is not None
        if not self._is_kept:
            self._is_kept = True
            self.world.keep(0, stretch)
        dropped = [] if wants is None else [id for id in used.made if id != used.made[wants]]
        results, _ = self.world.again(0, used, None, dropped)
        return results, [x, *used.made]


def _twice(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
    y, z = fresh(), fresh()
    return [["aten.mul.Tensor", [x, 0.5], {}, [y]], ["aten.add.Tensor", [x, y], {}, [z]]]


def test_what_comes_again_is_told_in_short() -> None:
    scene = Scene(_twice)
    for _ in range(5):
        results, (x, _, z) = scene.use(torch.randn(3))
        assert [[shape for _, shape in each] for each in results] == [[(3,)], [(3,)]]
        assert torch.equal(scene.world.objects.get(z), 1.5 * scene.world.objects.get(x))
    assert scene.world.shortened == 4


def test_inputs_of_another_look_are_checked_anew_and_told_anew() -> None:
    scene = Scene(_twice)
    for shape in ([3], [3], [4], [3], [4], [4]):
        results, _ = scene.use(torch.randn(shape))
        assert results[1] == [["float32", tuple(shape)]]
    assert scene.world.shortened == 2


def test_a_result_as_large_as_the_data_say() -> None:
    def found(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
        y, z = fresh(), fresh()
        return [["aten.nonzero.default", [x], {}, [y]], ["aten.neg.default", [y], {}, [z]]]

    scene = Scene(found)
    for count in (2, 2, 3, 2, 0, 2):
        value = torch.zeros(4)
        value[:count] = 1
        results, (_, _, z) = scene.use(value)
        assert results == [[["int64", (count, 1)]], [["int64", (count, 1)]]]
        assert scene.world.objects.get(z).flatten().tolist() == [-at for at in range(count)]


def test_what_is_left_of_the_budget_is_looked_at_in_each_use() -> None:
    scene = Scene(_twice)
    for _ in range(3):
        scene.use(torch.randn(1000))
    ALLOWED.memory = ALLOWED.held + 10_000
    results, _ = scene.use(torch.randn(1000))  # and then 4,000 bytes more
    assert isinstance(results[0], list) and results[1]["code"] == "too_large"
    ALLOWED.limit(memory=None, seconds=1e-12)
    results, _ = scene.use(torch.randn(1000))
    assert [each["code"] for each in results] == ["too_large", "too_large"]


def test_what_is_left_is_looked_at_after_a_result_as_large_as_the_data_say() -> None:
    def operations(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
        return [["aten.nonzero.default", [x], {}, [fresh()]], *_chain(x, fresh)]

    scene = Scene(operations)
    for _ in range(3):
        scene.use(torch.ones(1000))
    ALLOWED.memory = ALLOWED.held + 4_000 + 8_000 + 6 * 4_000 + 3_000  # the input, what is not zero, the others
    results, _ = scene.use(torch.ones(1000))
    assert not any(isinstance(each, dict) for each in results)
    ALLOWED.memory = ALLOWED.held + 4_000 + 7 * 4_000 + 1_000  # enough but for what is not zero
    results, _ = scene.use(torch.ones(1000))
    assert [isinstance(each, dict) for each in results] == [False] * 6 + [True]
    assert ALLOWED.held <= ALLOWED.memory


def test_memory_that_writing_to_a_file_takes_is_counted_beside_what_nobody_wants_afterwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world, fresh, kept, brief = World(), _ids(1), list[int](), stretches.Use._brief
    monkeypatch.setattr(
        stretches.Use, "_brief", lambda use, *args: kept.append(len(found := brief(use, *args))) or found
    )
    for room in (None, None, 4_000 + 3 * 4_000 + 4_000 + 40_000, 4_000 + 3 * 4_000 + 4_000 + 39_999):
        x, file = fresh(), fresh()
        world.provide(x, torch.zeros(1_000))
        fd = os.memfd_create("stored")
        os.write(fd, bytes(40_000))
        world.runtime.handle(["provide", file, "float32", [10_000], 0, False, None], [fd])
        made = [fresh() for _ in range(3)]
        operations = [
            *(["aten.add.Tensor", [x, 1], {}, [id]] for id in made),
            ["aten.mul_.Tensor", [file, 2.0], {}, []],
        ]
        used, stretch = Used(operations), Stretch.of(operations)
        assert stretch is not None
        if not world.runtime._stretches:
            world.keep(0, stretch)
        ALLOWED.memory = math.inf if room is None else ALLOWED.held - 4_000 + room
        world.again(0, used, None, made)
        ALLOWED.memory = math.inf
        world.runtime.handle(["drop", [x, file]], [])
    assert kept == [3, 3, 0]


def test_an_id_that_names_another_object_is_a_fault_of_the_operation_that_makes_it() -> None:
    world, fresh = World(), _ids(1)
    taken = fresh()
    for round in range(4):
        x, z = fresh(), fresh()
        y = taken if round == 3 else fresh()
        world.provide(x, torch.zeros(2))
        if round == 3:
            world.provide(taken, torch.ones(3))
        operations = [["aten.add.Tensor", [x, 1], {}, [y]], ["aten.add.Tensor", [x, 2], {}, [z]]]
        used, stretch = Used(operations), Stretch.of(operations)
        if not round:
            assert stretch is not None
            world.keep(0, stretch)
        results, _ = world.again(0, used, None, [y])
    assert results[0]["code"] == "already_exists" and results[1] == [["float32", (2,)]]


def test_what_is_read_only_is_not_written_by_a_stretch_that_wrote_another() -> None:
    scene = Scene(lambda x, _: [["aten.add_.Tensor", [x, 1], {}, []], ["aten.mul_.Tensor", [x, 2], {}, []]])
    for _ in range(3):
        scene.use(torch.ones(2))
    results, (x,) = scene.use(torch.ones(2), read_only=True)
    assert [each["code"] for each in results] == ["read_only", "read_only"]
    assert scene.world.objects.get(x).tolist() == [1, 1]


def test_values_are_looked_at_in_each_use() -> None:
    scores, one = (number.to_bytes(16, "big") for number in (1 << 70, 1 << 71))

    def backward(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
        return [["aten.nll_loss_backward.default", [one, scores, x, None, 1, -100, one], {}, [fresh()]]]

    scene = Scene(backward)
    scene.world.provide(scores, torch.randn(2, 3))
    scene.world.provide(one, torch.ones(()))
    for labels, is_good in (([0, 2], True), ([1, 2], True), ([0, 3], False), ([-1, 2], False), ([0, 1], True)):
        results, _ = scene.use(torch.tensor(labels))
        assert isinstance(results[0], list) if is_good else results[0]["code"] == "bad_request", labels


def test_floats_on_which_checks_hang_are_looked_at_in_each_use() -> None:
    scale = 2.0

    def grown(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
        return [["aten._upsample_bilinear2d_aa.default", [x, [8, 8], False, scale, scale], {}, [fresh()]]]

    scene = Scene(grown)
    for scale, is_good in ((2.0, True), (2.0, True), (2.0, True), (0.3, False), (-1.0, False), (2.0, True)):
        results, _ = scene.use(torch.rand(1, 1, 4, 4))
        assert isinstance(results[0], list) if is_good else results[0]["code"] == "bad_request", scale


def test_one_tensor_that_is_given_twice_is_looked_at_as_one() -> None:
    """What changes the shape of one of the two changes the other's: of it statistics are read that are not there."""
    one, x, y, z = (number.to_bytes(16, "big") for number in range(1 << 70, (1 << 70) + 4))
    fresh = _ids(1000)

    def operations() -> list[Any]:
        norm = [x, one, one, one, one, False, 0.1, 1e-5]
        return [
            ["aten.t_.default", [y], {}, []],
            ["aten.native_batch_norm.default", norm, {}, [fresh() for _ in "abc"]],
        ]

    world, stretch = World(), Stretch.of(operations())
    assert stretch is not None
    world.provide(one, torch.ones(1))
    world.keep(0, stretch)
    for given, is_good in ([y, x, one], True), ([y, x, one], True), ([z, z, one], False):
        for id in given[:2]:
            world.provide(id, torch.rand(40, 1))
        used = Used(operations())
        assert len(used.given) == 3
        used.given = given
        (_, found), _ = world.again(0, used, None, [])
        assert isinstance(found, list) if is_good else found["code"] == "bad_request"


@pytest.mark.parametrize("is_written", [False, True])
def test_indices_that_the_stretch_made_are_looked_at_where_it_may_write_to_them(is_written: bool) -> None:
    def backward(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
        out, indices, view, gradient = (fresh() for _ in range(4))
        operations: list[Any] = [["aten.max_pool2d_with_indices.default", [x, [2, 2], [2, 2]], {}, [out, indices]]]
        operations.append(["aten.view.default", [indices, [1]], {}, [view]])
        if is_written:
            operations.append(["aten.mul_.Tensor", [view, view], {}, []])
        arguments = [out, x, [2, 2], [2, 2], [0, 0], [1, 1], False, indices]
        return [*operations, ["aten.max_pool2d_with_indices_backward.default", arguments, {}, [gradient]]]

    scene = Scene(backward)
    for at, is_good in ((0, True), (1, True), (3, False), (0, True), (3, False)):
        x = torch.zeros(1, 2, 2)
        x.view(4)[at] = 1.0
        results, _ = scene.use(x)
        assert isinstance(results[-1], list) if is_good or not is_written else results[-1]["code"] == "bad_request"


def test_how_far_it_is_is_told_and_never_that_it_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "PROGRESS", 0.0)
    monkeypatch.setattr(limits, "LOOK_AHEAD", 0.0)
    scene = Scene(_twice)
    for _ in range(3):
        scene.use(torch.ones(2))
    assert [message[2] for message in scene.world.said if message[0] == "progress"] == [1, 1, 1]


def test_a_plan_keeps_no_tensor_alive() -> None:
    scene = Scene(lambda x, fresh: [["aten.cat.default", [[x, x], 0], {}, [fresh()]], *_twice(x, fresh)])
    for _ in range(3):
        _, ids = scene.use(torch.randn(3))
        alive = [weakref.ref(scene.world.objects.get(id)) for id in ids]
        scene.world.runtime.handle(["drop", ids], [])
        gc.collect()
        assert not any(reference() is not None for reference in alive)
    assert scene.world.objects.held == 0


def _chain(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
    ids = [x, *(fresh() for _ in range(6))]
    return [["aten.add.Tensor", [one, 1], {}, [other]] for one, other in itertools.pairwise(ids)]


def test_what_nobody_wants_afterwards_is_gone_after_its_last_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "LOOK_AHEAD", -1.0)
    scene, counts = Scene(_chain), list[int]()

    def look(*_: Any) -> None:
        alive = [each for each in gc.get_objects() if type(each) is torch.Tensor and each.numel() == 12_347]
        counts.append(len({each.data_ptr() for each in alive}))

    monkeypatch.setattr(scene.world.runtime.ahead, "look", look)
    for _ in range(3):
        counts.clear()
        _, (x, *_, z) = scene.use(torch.zeros(12_347), wants=-1)
        value = set(scene.world.objects.get(z).tolist())
        assert value == {6.0}
        assert list(scene.world.objects.tensors) == [x, z]
        scene.world.runtime.handle(["drop", [x, z]], [])
        assert scene.world.objects.held == 0
    assert len(counts) == 5 and max(counts) == 3, "what it was given, also in this test, and one"


def test_what_nobody_wants_afterwards_is_there_for_what_goes_on_after_a_failure() -> None:
    def operations(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
        y, index, row, z = fresh(), fresh(), fresh(), fresh()
        return [
            ["aten.add.Tensor", [x, 1], {}, [y]],
            ["aten._to_copy.default", [x], {"dtype": {"dtype": "int64"}}, [index]],
            ["aten.index_select.default", [y, 0, index], {}, [row]],
            ["aten.mul.Tensor", [y, 2], {}, [z]],
        ]

    scene = Scene(operations)
    for value in (0, 1, 2, 1, 7, 0):
        results, ids = scene.use(torch.full((3,), float(value)), wants=-1)
        assert [isinstance(each, dict) for each in results] == [False, False, value > 2, False]
        assert scene.world.objects.get(ids[-1]).tolist() == [2.0 * (value + 1)] * 3
        assert [id for id in ids if id in scene.world.objects.tensors] == [ids[0], ids[-1]]


@pytest.mark.parametrize("wants", [None, -1], ids=["all are wanted", "one is wanted"])
def test_what_fails_to_be_written_through_a_view_is_no_use_in_any_use(wants: int | None) -> None:
    def operations(x: bytes, fresh: Callable[[], bytes]) -> list[Any]:
        index, row, inner, z = (fresh() for _ in range(4))
        return [
            ["aten._to_copy.default", [x], {"dtype": {"dtype": "int64"}}, [index]],
            ["aten.select.int", [index, 0, 0], {}, [row]],
            ["aten.slice.Tensor", [x, 0, 1, 3], {}, [inner]],
            ["aten.index_fill_.int_Scalar", [inner, 0, row, 5.0], {}, []],
            ["aten.neg.default", [x], {}, [z]],
        ]

    scene = Scene(operations)
    for value in (0.0, 1.0, 1.0, 7.0, 1.0, 7.0):
        results, ids = scene.use(torch.full((3,), value), wants=wants)
        x, z, objects = ids[0], ids[-1], scene.world.objects
        if value < 7:
            assert objects.get(z)[1 + int(value)] == -5
            continue
        assert [isinstance(each, dict) for each in results] == [False, False, False, True, True]
        for id in (x, z):
            with pytest.raises(OperationFailed, match="index"):
                objects.get(id)
    assert scene.world.shortened == 2, "not after what had failed"


def test_one_that_is_to_be_forgotten_is() -> None:
    world = World()
    for number in range(3):
        world.runtime.handle(["stretch", number, [], number - 1 if number else None], [])
    assert list(world.runtime._stretches) == [2]


@pytest.mark.parametrize(
    ("operation", "is_filled"), [(["aten.mm.default", ["x", "x"]], False), (["aten.cumsum.default", ["x", 0]], True)]
)
def test_only_what_leaves_nothing_out_runs_in_memory_as_it_is(
    monkeypatch: pytest.MonkeyPatch, operation: list[Any], is_filled: bool
) -> None:
    seen, known = [], stretches.Use._run_known

    def noted(use: stretches.Use, *given: Any) -> int:
        seen.append(deterministic.fill_uninitialized_memory)
        return known(use, *given)

    monkeypatch.setattr(stretches.Use, "_run_known", noted)
    world, x, number = World(), b"x" * 16, 0
    world.provide(x, torch.ones(2, 2))
    name, args = operation

    def operations() -> list[Any]:
        nonlocal number
        number += 1
        made = [number.to_bytes(16, "big"), (1000 + number).to_bytes(16, "big")]
        given = [x if each == "x" else each for each in args]
        return [[name, given, {}, made[:1]], ["aten.relu.default", made[:1], {}, made[1:]]]

    stretch = Stretch.of(operations())
    assert stretch is not None
    world.keep(1, stretch)
    for _ in range(3):
        world.again(1, Used(operations()), None, [])
    assert seen == [is_filled, is_filled]  # the first use is looked at one by one
    assert deterministic.fill_uninitialized_memory
