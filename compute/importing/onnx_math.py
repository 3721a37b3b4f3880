"""Operators of ONNX on elements, comparisons, reductions, and products of matrices."""

from __future__ import annotations

import operator as arithmetic
from collections.abc import Callable, Mapping
from typing import Any, Final

import torch

from compute.importing.onnx_nodes import Handler, Ints, Node, as_ints, operator, rank
from compute.importing.onnx_schema import dtype_of
from compute.importing.worlds import Operand, Size
from protocol.errors import BadFile

_SAME: Final[Mapping[str, str]] = {
    "Relu": "relu", "Sigmoid": "sigmoid", "Tanh": "tanh", "Exp": "exp", "Log": "log", "Sqrt": "sqrt", "Neg": "neg",
    "Abs": "abs", "Floor": "floor", "Ceil": "ceil", "Round": "round", "Erf": "erf", "Sin": "sin", "Cos": "cos",
    "Tan": "tan", "Asin": "asin", "Acos": "acos", "Atan": "atan", "Sinh": "sinh", "Cosh": "cosh", "Asinh": "asinh",
    "Acosh": "acosh", "Atanh": "atanh", "Reciprocal": "reciprocal", "Sign": "sign", "Not": "logical_not",
    "IsNaN": "isnan", "Mish": "mish", "HardSwish": "hardswish", "Softplus": "softplus", "Det": "linalg_det",
    "BitwiseNot": "bitwise_not",
}  # fmt: skip
_BINARY: Final[Mapping[str, str]] = {
    "Add": "add.Tensor", "Sub": "sub.Tensor", "Mul": "mul.Tensor", "Equal": "eq.Tensor", "Greater": "gt.Tensor",
    "Less": "lt.Tensor", "GreaterOrEqual": "ge.Tensor", "LessOrEqual": "le.Tensor", "And": "logical_and.default",
    "Or": "logical_or.default", "Xor": "logical_xor.default", "BitwiseAnd": "bitwise_and.Tensor",
    "BitwiseOr": "bitwise_or.Tensor", "BitwiseXor": "bitwise_xor.Tensor",
}  # fmt: skip
_ON_SIZES: Final[Mapping[str, tuple[str, Callable[..., int]]]] = {
    "Add": ("int.add", arithmetic.add),
    "Sub": ("int.sub", arithmetic.sub),
    "Mul": ("int.mul", arithmetic.mul),
    "Div": ("int.floordiv", arithmetic.floordiv),
    "Mod": ("int.mod", arithmetic.mod),
    "Max": ("int.max", max),
    "Min": ("int.min", min),
}


def _unary(name: str) -> Handler:
    return lambda node: node.call(f"{name}.default", node.tensor(0))


for _onnx, _aten in _SAME.items():
    operator(_onnx)(_unary(_aten))


def on_sizes(node: Node) -> Ints | None:
    """Arithmetic of whole numbers of which some are sizes; None where it is none."""
    name, function = _ON_SIZES[node.op]
    left, right = as_ints(node.raw(0)), as_ints(node.raw(1))
    if left is None or right is None or not any(isinstance(item, Size) for item in (*left.items, *right.items)):
        return None
    count = max(len(left.items), len(right.items))
    if any(len(side.items) not in (1, count) for side in (left, right)):
        return None
    wide = [side.items * count if len(side.items) == 1 else side.items for side in (left, right)]
    if name in ("int.floordiv", "int.mod") and not all(isinstance(item, int) and item > 0 for item in wide[1]):
        return None
    items = [node.world.compute(name, function, *operands) for operands in zip(*wide, strict=True)]
    return Ints(items, left.is_scalar and right.is_scalar)


def _binary(name: str) -> Handler:
    def handler(node: Node) -> Any:
        found = on_sizes(node) if node.op in _ON_SIZES else None
        return node.call(name, node.tensor(0), node.tensor(1)) if found is None else found

    return handler


for _onnx, _aten in _BINARY.items():
    operator(_onnx)(_binary(_aten))


@operator("Equal")
def _equal(node: Node) -> Any:
    left, right = as_ints(node.raw(0)), as_ints(node.raw(1))
    if left is not None and right is not None and len(left.items) == len(right.items):
        found = [_is_equal(one, two) for one, two in zip(left.items, right.items, strict=True)]
        if None not in found:
            made = torch.tensor(found, dtype=torch.bool)
            return made.reshape(()) if left.is_scalar else made
    return node.call("eq.Tensor", node.tensor(0), node.tensor(1))


def _is_equal(one: Any, two: Any) -> bool | None:
    """None where that depends on the inputs' sizes."""
    if isinstance(one, int) and isinstance(two, int):
        return one == two
    if one is two:
        return True
    known = one if isinstance(one, int) else two
    return False if isinstance(known, int) and known < 0 else None


@operator("Div")
def _div(node: Node) -> Any:
    found = on_sizes(node)
    if found is not None:
        return found
    left, right = node.tensor(0), node.tensor(1)
    if left.dtype.is_floating_point:
        return node.call("div.Tensor", left, right)
    return node.call("div.Tensor_mode", left, right, rounding_mode="trunc")


@operator("Mod")
def _mod(node: Node) -> Any:
    found = None if node.attr("fmod", 0) else on_sizes(node)
    if found is not None:
        return found
    return node.call("fmod.Tensor" if node.attr("fmod", 0) else "remainder.Tensor", node.tensor(0), node.tensor(1))


@operator("Pow")
def _pow(node: Node) -> Any:
    base, power = node.tensor(0), node.tensor(1)
    return _cast(node, node.call("pow.Tensor_Tensor", base, power), base.dtype)


@operator("BitShift")
def _shift(node: Node) -> Any:
    way = node.is_one_of("direction", "LEFT", "RIGHT").lower()
    return node.call(f"bitwise_{way}_shift.Tensor", node.tensor(0), node.tensor(1))


@operator("Max", "Min", "Sum", "Mean")
def _several(node: Node) -> Any:
    if node.op in _ON_SIZES and len(node.inputs) == 2 and (found := on_sizes(node)) is not None:
        return found
    name = {"Max": "maximum.default", "Min": "minimum.default"}.get(node.op, "add.Tensor")
    total = node.tensor(0)
    for at in range(1, len(node.inputs)):
        total = node.call(name, total, node.tensor(at))
    return node.call("div.Scalar", total, len(node.inputs)) if node.op == "Mean" else total


@operator("Where")
def _where(node: Node) -> Any:
    condition, left, right = node.raw(0), as_ints(node.raw(1)), as_ints(node.raw(2))
    has_size = any(isinstance(item, Size) for side in (left, right) if side is not None for item in side.items)
    if isinstance(condition, torch.Tensor) and left is not None and right is not None and has_size:
        count = max(condition.numel(), len(left.items), len(right.items))
        wide = [side * count if len(side) == 1 else side for side in (left.items, right.items)]
        picks = condition.reshape(-1).tolist()
        picks = picks * count if len(picks) == 1 else picks
        return Ints([one if pick else two for pick, one, two in zip(picks, *wide, strict=True)], left.is_scalar)
    return node.call("where.self", node.tensor(0), node.tensor(1), node.tensor(2))


# --- one operand and numbers ------------------------------------------------------------------------------


@operator("Identity", "Dropout")
def _identity(node: Node) -> Any:
    value = node.raw(0)
    if node.op == "Dropout":
        node.attr("ratio")
        if node.has(2) and bool(node.constant(2)):
            raise BadFile("Dropout in it is in training mode: export the model after model.eval()")
    if node.op == "Identity" or node.outputs < 2:
        return value
    return value, node.call("ones_like.default", node.tensor(0), dtype=torch.bool)


@operator("Gelu")
def _gelu(node: Node) -> Any:
    return node.call("gelu.default", node.tensor(0), approximate=node.is_one_of("approximate", "none", "tanh"))


@operator("Swish")
def _swish(node: Node) -> Any:
    x, alpha = node.tensor(0), node.attr("alpha", 1.0)
    return node.call("mul.Tensor", x, node.call("sigmoid.default", node.call("mul.Scalar", x, alpha)))


@operator("Elu")
def _elu(node: Node) -> Any:
    return node.call("elu.default", node.tensor(0), node.attr("alpha", 1.0))


@operator("Celu")
def _celu(node: Node) -> Any:
    return node.call("celu.default", node.tensor(0), node.attr("alpha", 1.0))


@operator("Selu")
def _selu(node: Node) -> Any:
    alpha, gamma = node.attr("alpha", 1.6732631921768188), node.attr("gamma", 1.0507010221481323)
    return node.call("elu.default", node.tensor(0), alpha, gamma)


@operator("LeakyRelu")
def _leaky(node: Node) -> Any:
    return node.call("leaky_relu.default", node.tensor(0), node.attr("alpha", 0.01))


@operator("ThresholdedRelu")
def _thresholded(node: Node) -> Any:
    return node.call("threshold.default", node.tensor(0), node.attr("alpha", 1.0), 0.0)


@operator("HardSigmoid")
def _hard_sigmoid(node: Node) -> Any:
    x = node.call("mul.Scalar", node.tensor(0), node.attr("alpha", 0.2))
    return node.call("clamp.default", node.call("add.Scalar", x, node.attr("beta", 0.5)), 0.0, 1.0)


@operator("Softsign")
def _softsign(node: Node) -> Any:
    x = node.tensor(0)
    return node.call("div.Tensor", x, node.call("add.Scalar", node.call("abs.default", x), 1))


@operator("Shrink")
def _shrink(node: Node) -> Any:
    x, bias, edge = node.tensor(0), node.attr("bias", 0.0), node.attr("lambd", 0.5)
    zero = node.call("zeros_like.default", x)
    above = node.call("where.self", node.call("gt.Scalar", x, edge), node.call("sub.Scalar", x, bias), zero)
    return node.call("where.self", node.call("lt.Scalar", x, -edge), node.call("add.Scalar", x, bias), above)


@operator("PRelu")
def _prelu(node: Node) -> Any:
    x, slope = node.tensor(0), node.tensor(1)
    return node.call("where.self", node.call("lt.Scalar", x, 0), node.call("mul.Tensor", x, slope), x)


@operator("IsInf")
def _isinf(node: Node) -> Any:
    x = node.tensor(0)
    if node.attr("detect_negative", 1) and node.attr("detect_positive", 1):
        return node.call("isinf.default", x)
    return node.call("eq.Scalar", x, float("inf") if node.attr("detect_positive", 1) else float("-inf"))


@operator("Clip")
def _clip(node: Node) -> Any:
    x = node.tensor(0)
    if node.version < 11:
        return node.call("clamp.default", x, node.attr("min"), node.attr("max"))
    for at, name in ((1, "maximum.default"), (2, "minimum.default")):
        bound = node.optional(at)
        if bound is not None:
            x = node.call(name, x, bound)
    return x


@operator("Cast", "CastLike")
def _cast_to(node: Node) -> Any:
    dtype = dtype_of(node.attr("to")) if node.op == "Cast" else node.tensor(1).dtype
    found = as_ints(node.raw(0))
    if isinstance(node.raw(0), Ints) and found is not None and dtype in (torch.int64, torch.int32):
        return found
    return _cast(node, node.tensor(0), dtype)


def _cast(node: Node, value: Operand, dtype: torch.dtype) -> Any:
    return value if value.dtype is dtype else node.call("_to_copy.default", value, dtype=dtype)


# --- reductions -------------------------------------------------------------------------------------------


def axes_of(node: Node, at: int = 1) -> list[int] | None:
    """An attribute, or since later versions an operand; None: all."""
    given = node.numbers(at) if node.has(at) else node.attr("axes")
    return list(given) if given else None


def _reduced(name: str, x: Operand, axes: list[int], keeps: bool, node: Node) -> Any:
    return node.call(name, x, axes, keeps)


def _reduction(before: str | None, name: str, after: str | None) -> Handler:
    def handler(node: Node) -> Any:
        sizes = node.raw(0)
        if isinstance(sizes, Ints) and node.op == "ReduceProd":
            return _product(node, sizes)
        is_noop = bool(node.attr("noop_with_empty_axes", 0))
        x, axes, keeps = node.tensor(0), axes_of(node), bool(node.attr("keepdims", 1))
        if axes is None:
            axes = [] if is_noop else list(range(rank(x)))
        if before is not None:
            x = node.call(before, x)
        if axes:
            if name == "prod.dim_int":
                for axis in sorted((axis % rank(x) for axis in axes), reverse=True):
                    x = node.call(name, x, axis, keeps)
            else:
                kwargs = {"dtype": x.dtype} if name == "sum.dim_IntList" else {}
                x = node.call(name, x, axes, keeps, **kwargs)
        return x if after is None else node.call(after, x)

    return handler


def _product(node: Node, sizes: Ints) -> Ints:
    total = sizes.items[0] if sizes.items else 1
    for item in sizes.items[1:]:
        total = node.world.compute("int.mul", arithmetic.mul, total, item)
    return Ints([total], is_scalar=not node.attr("keepdims", 1))


for _onnx, _steps in {
    "ReduceSum": (None, "sum.dim_IntList", None),
    "ReduceMean": (None, "mean.dim", None),
    "ReduceMax": (None, "amax.default", None),
    "ReduceMin": (None, "amin.default", None),
    "ReduceProd": (None, "prod.dim_int", None),
    "ReduceL1": ("abs.default", "sum.dim_IntList", None),
    "ReduceL2": ("square.default", "sum.dim_IntList", "sqrt.default"),
    "ReduceLogSum": (None, "sum.dim_IntList", "log.default"),
    "ReduceLogSumExp": (None, "logsumexp.default", None),
    "ReduceSumSquare": ("square.default", "sum.dim_IntList", None),
}.items():
    operator(_onnx)(_reduction(*_steps))


@operator("ArgMax", "ArgMin")
def _arg(node: Node) -> Any:
    x, axis, keeps = node.tensor(0), node.attr("axis", 0), bool(node.attr("keepdims", 1))
    name = f"{node.op.lower()}.default"
    if not node.attr("select_last_index", 0):
        return node.call(name, x, axis, keeps)
    last = node.call(name, node.call("flip.default", x, [axis]), axis, keeps)
    end = Ints([node.world.compute("int.sub", arithmetic.sub, node.world.size(x, axis), 1)], is_scalar=True)
    from compute.importing.onnx_nodes import as_tensor

    return node.call("sub.Tensor", as_tensor(node.world, end, node.op), last)


@operator("CumSum")
def _cumsum(node: Node) -> Any:
    x, (axis,) = node.tensor(0), node.numbers(1)
    is_reverse, is_exclusive = node.attr("reverse", 0), node.attr("exclusive", 0)
    flipped = node.call("flip.default", x, [axis]) if is_reverse else x
    total = node.call("cumsum.default", flipped, axis, dtype=x.dtype)
    if is_exclusive:
        total = node.call("sub.Tensor", total, flipped)
    return node.call("flip.default", total, [axis]) if is_reverse else total


# --- products ---------------------------------------------------------------------------------------------


@operator("MatMul")
def _matmul(node: Node) -> Any:
    return node.call("matmul.default", node.tensor(0), node.tensor(1))


@operator("Gemm")
def _gemm(node: Node) -> Any:
    a, b, bias = node.tensor(0), node.tensor(1), node.optional(2)
    alpha, beta = node.attr("alpha", 1.0), node.attr("beta", 1.0)
    if alpha == 1.0 and beta == 1.0 and not node.attr("transA", 0) and node.attr("transB", 0):
        if bias is None or rank(bias) == 1:
            return node.call("linear.default", a, b, bias)
    a = node.call("t.default", a) if node.attr("transA", 0) else a
    b = node.call("t.default", b) if node.attr("transB", 0) else b
    product = node.call("mm.default", a, b)
    product = node.call("mul.Scalar", product, alpha) if alpha != 1.0 else product
    if bias is None or beta == 0.0:
        return product
    return node.call("add.Tensor", product, node.call("mul.Scalar", bias, beta) if beta != 1.0 else bias)


@operator("Einsum")
def _einsum(node: Node) -> Any:
    equation = node.text("equation", "").replace(" ", "")
    return node.call("einsum.default", equation, [node.tensor(at) for at in range(len(node.inputs))])


@operator("Softmax", "LogSoftmax")
def _softmax(node: Node) -> Any:
    x = node.tensor(0)
    name = "softmax.int" if node.op == "Softmax" else "log_softmax.int"
    if node.version >= 13:
        return node.call(name, x, node.attr("axis", -1))
    axis = node.attr("axis", 1) % max(rank(x), 1)
    if axis == rank(x) - 1:
        return node.call(name, x, axis)
    flat = node.call("flatten.using_ints", x, axis, -1)  # all dimensions from this on are one
    return node.call("reshape.default", node.call(name, flat, axis), node.world.shape(x))


@operator("Hardmax")
def _hardmax(node: Node) -> Any:
    x, axis = node.tensor(0), node.attr("axis", -1 if node.version >= 13 else 1)
    if node.version < 13 and axis % rank(x) != rank(x) - 1:
        raise BadFile("Hardmax of several dimensions in it is not read")
    best = node.call("argmax.default", x, axis, True)
    return node.call("scatter.value", node.call("zeros_like.default", x), axis, best, 1.0)
