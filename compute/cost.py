"""What an operation will cost, known from shapes before it runs, and what the operations of this process may take.

Costs are lower bounds: an operation is refused for what it would take at best, and one that takes longer in truth is
ended by the clock (peer/worker/watch.py). So an honest operation is never refused for a pessimistic guess.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import torch

from protocol import limits
from protocol.errors import TooLarge
from protocol.sizes import shown

# Per second on one core, and more than today's reach: multiply-adds of float32 in matrix products, elements of any
# kind that are read or written, comparisons while sorting.
MULTIPLIES: Final = 1e11
ELEMENTS: Final = 1e10
COMPARES: Final = 1e9


class Cost(NamedTuple):
    """`work`: multiply-adds, elements or comparisons, whichever it is made of; `seconds` of one fast core."""

    work: int
    seconds: float

    def plus(self, other: Cost) -> Cost:
        return Cost(self.work + other.work, self.seconds + other.seconds)


NOTHING: Final = Cost(0, 0.0)

Call = Mapping[str, Any]
Rule = Callable[[Call, int], int | Cost]
"""Gives multiply-adds, or a Cost where a kernel is not made of those."""


def cost(name: str, call: Call, results: int) -> Cost:
    """The cost of one kernel.

    Args:
        name: of the operation, without namespace and overload: "mm".
        call: all its arguments by name; of tensors only the shapes matter.
        results: the number of elements that it gives.
    """
    rule = _RULES.get(name)
    if rule is not None:
        try:
            return by_rule(rule, call, results)
        except (KeyError, IndexError, AttributeError, TypeError):
            pass  # arguments that the kernel itself will refuse, or that another release of torch names otherwise
    return _elements(elements_of(call.values()) + results)


def by_rule(rule: Rule, call: Call, results: int) -> Cost:
    found = rule(call, results)
    return found if isinstance(found, Cost) else Cost(found, found / MULTIPLIES)


def elements_of(values: Any) -> int:
    """Elements of all tensors among these and in lists of them, each as often as it is named."""
    count = 0
    for value in values:
        if isinstance(value, torch.Tensor):
            count += value.numel()
        elif isinstance(value, list | tuple):
            count += elements_of(value)
    return count


def _elements(count: int) -> Cost:
    return Cost(count, count / ELEMENTS)


# --- products of matrices ---------------------------------------------------------------------------------


def _product(left: str, right: str) -> Rule:
    def rule(call: Call, _: int) -> int:
        other = call[right]
        return int(call[left].numel()) * (int(other.shape[-1]) if other.dim() > 1 else 1)

    return rule


def _trilinear(call: Call, _: int) -> int:
    tensors = [call["i1"], call["i2"], call["i3"]]
    dims = max(tensor.dim() + len(call[f"expand{at}"]) for at, tensor in enumerate(tensors, 1))
    sizes = [1] * dims
    for at, tensor in enumerate(tensors, 1):
        added = {dim % dims for dim in call[f"expand{at}"]}
        rest = iter(tensor.shape)
        for dim in range(dims):
            if dim not in added:
                sizes[dim] = max(sizes[dim], next(rest, 1))
    return math.prod(sizes)


def _distances(call: Call, results: int) -> int:
    return results * int(call["x1"].shape[-1]) if call["x1"].dim() else results


def _convolution(call: Call, results: int) -> int:
    given, weight = call["input"], call["weight"]
    inner = int(math.prod(weight.shape[1:]))
    return (int(given.numel()) if call.get("transposed") else results) * inner


def _convolution_backward(call: Call, _: int) -> int:
    given, weight, gradient = call["input"], call["weight"], call["grad_output"]
    inner = int(math.prod(weight.shape[1:]))
    once = (int(given.numel()) if call["transposed"] else int(gradient.numel())) * inner
    wanted = call.get("output_mask") or [True, True]
    return once * sum(map(bool, wanted[:2]))


def _attention(times: int) -> Rule:
    def rule(call: Call, _: int) -> int:
        return times * int(call["query"].numel()) * int(call["key"].shape[-2])

    return rule


def _factorisation(argument: str) -> Rule:
    """m * n * min(m, n) for each matrix: all of these take a few times as much."""

    def rule(call: Call, results: int) -> int:
        given = call[argument]
        smaller = min(given.shape[-2:]) if given.dim() > 1 else 1
        return max(int(given.numel()), results) * int(smaller)

    return rule


def _layers(call: Call, _: int) -> int:
    """A recurrent layer: each weight once for each step and each member of the batch."""
    given = call["input"]
    steps = given.numel() // max(1, given.shape[-1])
    return int(steps) * sum(int(weight.numel()) for weight in call["params"] if weight.dim() == 2)


# --- windows, sorting, looking up -------------------------------------------------------------------------


def _pool(spatial: int) -> Rule:
    def rule(call: Call, results: int) -> Cost:
        sizes = call["kernel_size"]
        sizes = [sizes] if isinstance(sizes, int) else list(sizes)
        sizes = sizes * spatial if len(sizes) == 1 else sizes
        given = call["self"]
        window = math.prod(min(abs(size), have) for size, have in zip(sizes, given.shape[-spatial:], strict=False))
        return _elements(int(given.numel()) + results * max(1, window))

    return rule


def _sort(call: Call, results: int) -> Cost:
    given = call.get("self", call.get("values"))
    assert isinstance(given, torch.Tensor)
    count = int(given.numel())
    dim = call.get("dim")
    row = given.shape[dim] if isinstance(dim, int) and -given.dim() <= dim < given.dim() else count
    compares = count * max(1, row).bit_length()
    return Cost(compares, compares / COMPARES + results / ELEMENTS)


def _search(sorted_: str, looked_up: str) -> Rule:
    def rule(call: Call, results: int) -> Cost:
        table, wanted = call.get(sorted_), call[looked_up]
        count = int(wanted.numel()) if isinstance(wanted, torch.Tensor) else 1
        row = table.shape[-1] if isinstance(table, torch.Tensor) and table.dim() else 1
        compares = max(count, results) * max(1, row).bit_length()
        return Cost(compares, compares / COMPARES)

    return rule


def _terms(call: Call, results: int) -> Cost:
    return _elements(max(results, int(call["self"].numel())) * max(1, int(call["p"])))


def _free(_: Call, __: int) -> Cost:
    return NOTHING


_RULES: Final[Mapping[str, Rule]] = {
    "mm": _product("self", "mat2"),
    "bmm": _product("self", "mat2"),
    "addmm": _product("mat1", "mat2"),
    "addmm_": _product("mat1", "mat2"),
    "baddbmm": _product("batch1", "batch2"),
    "baddbmm_": _product("batch1", "batch2"),
    "addbmm": _product("batch1", "batch2"),
    "_trilinear": _trilinear,
    "_cdist_forward": _distances,
    "_euclidean_dist": _distances,
    "convolution": _convolution,
    "convolution_backward": _convolution_backward,
    "_scaled_dot_product_flash_attention_for_cpu": _attention(2),
    "_scaled_dot_product_flash_attention_for_cpu_backward": _attention(5),
    **dict.fromkeys(
        ("linalg_inv_ex", "_linalg_det", "_linalg_slogdet", "_linalg_solve_ex", "_linalg_eigh", "_linalg_svd"),
        _factorisation("A"),
    ),
    **dict.fromkeys(("linalg_qr", "linalg_lu_factor_ex", "linalg_lu", "linalg_svd"), _factorisation("A")),
    "linalg_cholesky_ex": _factorisation("self"),
    "linalg_matrix_exp": _factorisation("self"),
    "linalg_pinv": _factorisation("self"),
    "cholesky_inverse": _factorisation("self"),
    "linalg_solve_triangular": _product("self", "B"),
    "linalg_lu_solve": _product("LU", "B"),
    "cholesky_solve": _product("input2", "self"),
    **dict.fromkeys(("lstm", "gru", "rnn_tanh", "rnn_relu"), _layers),
    **{f"avg_pool{n}d": _pool(n) for n in (1, 2, 3)},
    **{f"max_pool{n}d_with_indices": _pool(n) for n in (1, 2, 3)},
    **dict.fromkeys(("sort", "argsort", "msort", "topk", "mode", "_unique2", "unique_dim"), _sort),
    "searchsorted": _search("sorted_sequence", "self"),
    "bucketize": _search("boundaries", "self"),
    "isin": _search("test_elements", "elements"),
    **dict.fromkeys(("mvlgamma", "mvlgamma_"), _terms),
    **dict.fromkeys(("empty", "empty_like", "new_empty", "empty_strided", "new_empty_strided"), _free),
}
"""For kernels whose work is not about what they read and write: by their name without namespace and overload."""


# --- what may be taken ------------------------------------------------------------------------------------


class Allowance:
    """What the operations of one process may take; without bounds until it says so.

    Attributes:
        memory: bytes that may be held at once.
        held: bytes that are held now: whoever keeps results keeps it true.
        seconds: of one fast core, for one operation or program.
    """

    __slots__ = ("held", "memory", "seconds", "speed")

    def __init__(self) -> None:
        self.held = 0
        self.memory: float = math.inf
        self.seconds: float = math.inf
        self.speed = 1.0

    def limit(self, memory: int | None, seconds: float | None, speed: float = 1.0) -> None:
        """From now on, with nothing held. `seconds` are those of the clock; `speed`: how many fast cores it is like."""
        self.held = 0
        self.memory = math.inf if memory is None else memory
        self.seconds = math.inf if seconds is None else seconds * speed
        self.speed = speed

    def check_memory(self, operation: str, nbytes: int) -> None:
        """TooLarge where so many more bytes do not fit."""
        if nbytes + self.held > self.memory:
            over = int(nbytes + self.held - self.memory)
            raise TooLarge(
                f"{operation} needs {shown(nbytes)}, {shown(self.held)} are held, and a principal may have "
                f"{shown(self.memory)} here: {shown(over)} too much. Let go of results (del, or delete()), work on "
                "smaller pieces, or have the peer's owner raise --worker-memory",
                operation=operation,
                limit="worker_memory",
                size=min(nbytes + self.held, limits.MAX_ID),
                allowed=int(self.memory),
                held=self.held,
            )

    def check_copy(self, nbytes: int) -> None:
        """TooLarge where what is held leaves no room for a copy of so many bytes, which is on its way out: that may
        take what stands free for the middle of an operation, too."""
        if nbytes + self.held > self.memory + self.memory / limits.MEMORY_SLACK:
            raise TooLarge(
                f"a value of {shown(nbytes)} is copied on its way out, beside the {shown(self.held)} that are held, "
                f"and a principal may have {shown(self.memory)} here: take it in pieces (x[:1000].get()), let go of "
                "results (del, or delete()), publish it and get that, or have the peer's owner raise --worker-memory",
                limit="worker_memory",
                size=min(nbytes + self.held, limits.MAX_ID),
                allowed=int(self.memory),
                held=self.held,
            )

    def check_seconds(self, operation: str, cost: Cost) -> None:
        """TooLarge where so much work would be ended by the clock."""
        if cost.seconds > self.seconds:
            allowed = self.seconds / self.speed
            raise too_long(operation, cost, cost.seconds / self.speed, allowed, "worker_seconds", "--worker-seconds")


def check_possible(operation: str, cost: Cost) -> None:
    """TooLarge for what no peer would ever finish."""
    if cost.seconds > limits.MAX_OPERATION:
        raise too_long(operation, cost, cost.seconds, limits.MAX_OPERATION, "MAX_OPERATION", "")


def too_long(operation: str, cost: Cost, seconds: float, allowed: float, limit: str, flag: str) -> TooLarge:
    raised = f", or have the peer's owner raise {flag}" if flag else ""
    return TooLarge(
        f"{operation} is {cost.work} steps, {seconds:.3g} s or more; at most {allowed:g} s for one operation or "
        f"program. Work on smaller pieces{raised}",
        operation=operation,
        limit=limit,
        size=min(math.ceil(seconds), limits.MAX_ID),
        allowed=math.ceil(allowed),
        work=min(cost.work, limits.MAX_ID),
    )


ALLOWED: Final = Allowance()
"""Of this process: a worker's operations are those of one principal, and a client's have no bounds of their own."""


def named(schema: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a kernel by name, those left out with their defaults."""
    call = {
        argument.name: argument.default_value if argument.has_default_value() else None for argument in schema.arguments
    }
    call.update(zip(call, args, strict=False))
    call.update(kwargs)
    return call


def base_name(schema: Any) -> str:
    """Of a kernel: without namespace and overload."""
    name: str = schema.name
    return name.rpartition("::")[2]
