"""Operations that are said to write all of what they give do, on torch's own samples; what leaves some out is found."""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils import _pytree as pytree
from torch.utils import deterministic
from torch.utils._python_dispatch import TorchDispatchMode

from compute.table import lookup
from compute.whole import is_whole
from peer.worker.execution import executor
from peer.worker.objects import Objects
from protocol.errors import GridError
from tests.full import FULL

SAMPLES, PARTS = (12, 8) if FULL else (2, 1)
NAMED = frozenset(  # what is elementwise is so by its kind; of these each is named
    "mm addmm bmm baddbmm mv dot nn.functional.conv2d nn.functional.conv_transpose2d nn.functional.max_pool2d "
    "nn.functional.avg_pool2d log_softmax softmax nn.functional.nll_loss nn.functional.layer_norm sum mean amax amin "
    "argmax argmin cat clone nn.functional.embedding index_select ones_like zeros_like full_like".split()
)
OPS = [op for op in op_db if not op.name.startswith("jiterator")]
DTYPES = (torch.float32, torch.int64, torch.complex64, torch.bool, torch.float64)[: 5 if FULL else 1]


@functools.cache
def is_said(function: Any) -> bool:
    try:
        entry = lookup(str(function))
    except GridError:
        return False
    return is_whole(entry) and not entry.writes and entry.category != "view"


class Compare(TorchDispatchMode):
    """Runs each operation with filled memory, and twice with what others left there: all must give the same."""

    def __init__(self, of: Callable[[Any], bool]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._of = of
        self.seen: Counter[str] = Counter()
        self.partial: set[str] = set()

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        filled = function(*args, **kwargs)
        if not self._of(function):
            return filled
        given = [each for each in pytree.tree_leaves(filled) if isinstance(each, torch.Tensor)]
        for left_there in (10, 87):
            for each in [torch.empty(one.nbytes, dtype=torch.uint8) for one in given for _ in range(4)]:
                each.fill_(left_there)
            deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            again = [each for each in pytree.tree_leaves(function(*args, **kwargs)) if isinstance(each, torch.Tensor)]
            deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
            self.seen[str(function)] += 1
            if not all(map(same, given, again)):
                self.partial.add(str(function))
        return filled


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    if one.is_complex():
        one, other = torch.view_as_real(one), torch.view_as_real(other)
    return torch.equal(one.isnan(), other.isnan()) and torch.equal(one.nan_to_num(), other.nan_to_num())


@pytest.fixture(autouse=True)
def filled() -> Iterator[None]:
    """As in a worker."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("part", range(PARTS))
def test_nothing_is_left_out_of_what_is_whole(part: int) -> None:
    compare = Compare(is_said)
    for op in OPS[part::PARTS] if FULL else [op for op in OPS if op.name in NAMED] + OPS[::20]:
        for dtype in DTYPES:
            if dtype not in op.supported_dtypes("cpu"):
                continue
            has_gradient = dtype is torch.float32 and op.supports_autograd
            for sample in list(op.sample_inputs("cpu", dtype, requires_grad=has_gradient))[:SAMPLES]:
                with contextlib.suppress(RuntimeError, NotImplementedError, IndexError), compare:
                    made = op(sample.input, *sample.args, **sample.kwargs)
                    losses = [each for each in pytree.tree_leaves(made) if getattr(each, "requires_grad", False)]
                    if has_gradient and losses:
                        sum(each.abs().sum() for each in losses).backward()  # type: ignore[union-attr]
    assert compare.partial == set()
    assert len(compare.seen) > 40


def test_what_leaves_something_out_is_found() -> None:
    compare = Compare(lambda function: True)
    with compare:
        torch.empty_like(torch.ones(100))
    assert compare.partial == {"aten.empty_like.default"}
    assert not is_said(torch.ops.aten.empty_like.default)


def test_in_place_an_operation_is_no_more_whole_than_its_kernel() -> None:
    """It may compute elsewhere first."""
    assert is_whole(lookup("aten.add_.Tensor")) and not is_whole(lookup("aten.cumsum_.default"))


def test_a_program_of_such_operations_runs_in_memory_as_it_is_and_no_other() -> None:
    was = deterministic.fill_uninitialized_memory
    objects = Objects()
    assert was
    with executor(objects).unfilled():  # type: ignore[attr-defined]
        assert not deterministic.fill_uninitialized_memory
    assert deterministic.fill_uninitialized_memory
