"""Operators of ONNX on shapes and places: whole numbers that are sizes stay sizes."""

from __future__ import annotations

import math
import operator as arithmetic
from typing import Any

import torch

from compute.importing.onnx_nodes import Ints, Node, as_ints, as_tensor, operator, rank
from compute.importing.onnx_schema import dtype_of
from compute.importing.worlds import Dim, DoesNotFit, Operand, Size
from protocol.errors import BadFile


@operator("Shape")
def _shape(node: Node) -> Any:
    shape = node.world.shape(node.tensor(0))
    return Ints(shape[node.attr("start", 0) : node.attr("end", len(shape))])


@operator("Size")
def _size(node: Node) -> Any:
    total: Dim = 1
    for item in node.world.shape(node.tensor(0)):
        total = node.world.compute("int.mul", arithmetic.mul, total, item)
    return Ints([total], is_scalar=True)


@operator("Reshape")
def _reshape(node: Node) -> Any:
    wanted: list[Dim] = list(node.ints(1)) if node.has(1) else list(node.attr("shape", ()))
    given, keeps_zero = node.raw(0), node.attr("allowzero", 0)
    if isinstance(given, Ints) and wanted in ([-1], [len(given.items)]):
        return Ints(given.items)
    if isinstance(given, Ints) and wanted == [] and len(given.items) == 1:
        return Ints(given.items, is_scalar=True)
    x = node.tensor(0)
    if not keeps_zero:
        wanted = [node.world.size(x, at) if item == 0 else item for at, item in enumerate(wanted)]
    return node.call("reshape.default", x, wanted)


@operator("Flatten")
def _flatten(node: Node) -> Any:
    x, axis = node.tensor(0), node.attr("axis", 1)
    axis = axis % rank(x) if axis != rank(x) else axis
    if 0 < axis < rank(x):
        front = x if axis == 1 else node.call("flatten.using_ints", x, 0, axis - 1)
        return node.call("flatten.using_ints", front, 1, -1)
    flat = node.call("flatten.using_ints", x, 0, -1)
    return node.call("unsqueeze.default", flat, 0 if axis == 0 else -1)


@operator("Squeeze")
def _squeeze(node: Node) -> Any:
    given, axes = node.raw(0), node.numbers(1) if node.has(1) else node.attr("axes")
    if isinstance(given, Ints) and len(given.items) == 1:
        return Ints(given.items, is_scalar=True)
    x = node.tensor(0)
    if axes is None:
        axes = [at for at, size in enumerate(node.world.shape(x)) if size == 1]
    return node.call("squeeze.dims", x, list(axes))


@operator("Unsqueeze")
def _unsqueeze(node: Node) -> Any:
    given, axes = node.raw(0), node.numbers(1) if node.has(1) else list(node.attr("axes", ()))
    if isinstance(given, Ints) and given.is_scalar and axes in ([0], [-1]):
        return Ints(given.items)
    x = node.tensor(0)
    total = rank(x) + len(axes)
    for axis in sorted(axis % total for axis in axes):
        x = node.call("unsqueeze.default", x, axis)
    return x


@operator("Transpose")
def _transpose(node: Node) -> Any:
    x = node.tensor(0)
    return node.call("permute.default", x, list(node.attr("perm") or reversed(range(rank(x)))))


@operator("Concat")
def _concat(node: Node) -> Any:
    axis = node.attr("axis", 0)
    if any(isinstance(value, Ints) for value in node.inputs):
        parts = [as_ints(value) for value in node.inputs]
        if all(part is not None and not part.is_scalar for part in parts):
            return Ints([item for part in parts if part is not None for item in part.items])
    return node.call("cat.default", [node.tensor(at) for at in range(len(node.inputs))], axis)


@operator("Split")
def _split(node: Node) -> Any:
    x, axis = node.tensor(0), node.attr("axis", 0)
    sizes = node.ints(1) if node.has(1) else node.attr("split")
    if sizes is None:
        size = node.world.size(x, axis)
        parts = node.attr("num_outputs") or node.outputs
        if not isinstance(size, int):
            raise DoesNotFit("Split in it cuts a size that is open into equal parts", range(1, 25))
        step = math.ceil(size / parts)
        sizes = [min(step, size - step * at) for at in range(parts)]
    return tuple(node.call("split_with_sizes.default", x, list(sizes), axis))


@operator("Slice")
def _slice(node: Node) -> Any:
    if node.version >= 10:
        starts, ends = node.ints(1), node.ints(2)
        axes = node.numbers(3) if node.has(3) else list(range(len(starts)))
        steps = node.numbers(4) if node.has(4) else [1] * len(starts)
    else:
        starts, ends = list(node.attr("starts")), list(node.attr("ends"))
        axes, steps = list(node.attr("axes") or range(len(starts))), [1] * len(starts)
    given = node.raw(0)
    if isinstance(given, Ints):
        if any(isinstance(item, Size) for item in (*starts, *ends)) or axes != [0]:
            raise BadFile("Slice of sizes in it is not read")
        return Ints(given.items[slice(starts[0], _within(ends[0]), steps[0])])  # type: ignore[arg-type]
    x: Any = node.tensor(0)
    for start, end, axis, step in zip(starts, ends, axes, steps, strict=True):
        if step > 0:
            x = node.call("slice.Tensor", x, axis, start, end, step)
        else:
            x = _backwards(node, x, start, end, axis, step)
    return x


def _within(end: Any) -> int | None:
    return None if end < -(1 << 31) else int(end)


def _backwards(node: Node, x: Operand, start: Any, end: Any, axis: int, step: int) -> Any:
    size = node.world.size(x, axis)
    is_whole = start in (-1, (1 << 63) - 1) or (isinstance(start, int) and start >= (1 << 31) - 1)
    if is_whole and isinstance(end, int) and end < -(1 << 30):
        flipped = node.call("flip.default", x, [axis])
        return flipped if step == -1 else node.call("slice.Tensor", flipped, axis, 0, 1 << 62, -step)
    if not all(isinstance(item, int) for item in (size, start, end)):
        raise BadFile("Slice in it goes backwards through a size that is open")
    places = list(range(size))[slice(start, _within(end), step)]  # type: ignore[arg-type]
    return node.call("index_select.default", x, axis, torch.tensor(places, dtype=torch.int64))


@operator("Gather")
def _gather(node: Node) -> Any:
    given, axis = node.raw(0), node.attr("axis", 0)
    at = as_ints(node.raw(1))
    if isinstance(given, Ints) and at is not None and not any(isinstance(item, Size) for item in at.items):
        return Ints([given.items[item] for item in at.items], at.is_scalar)  # type: ignore[index]
    x, places = node.tensor(0), node.tensor(1)
    axis %= max(rank(x), 1)
    if isinstance(places, torch.Tensor) and places.dim() == 0:
        return node.call("select.int", x, axis, int(places))
    if axis == 0 and rank(x) == 2 and x.dtype.is_floating_point and not isinstance(places, torch.Tensor):
        return node.call("embedding.default", x, _counted(node, places, node.world.size(x, axis)))
    places = _counted(node, places, node.world.size(x, axis))
    flat = node.call("reshape.default", places, [-1])
    found = node.call("index_select.default", x, axis, flat)
    shape = node.world.shape(x)
    return node.call("reshape.default", found, [*shape[:axis], *node.world.shape(places), *shape[axis + 1 :]])


def _counted(node: Node, places: Operand, size: Dim) -> Any:
    """Places from the front, of int64: ONNX counts negative ones from the end."""
    if isinstance(places, torch.Tensor):
        if not bool((places < 0).any()):
            return places.long()
        if isinstance(size, int):
            return torch.where(places < 0, places + size, places).long()
    wide = places if places.dtype is torch.int64 else node.call("_to_copy.default", places, dtype=torch.int64)
    is_behind = node.call("lt.Scalar", wide, 0)
    return node.call("where.self", is_behind, node.call("add.Scalar", wide, size), wide)


@operator("GatherElements")
def _gather_elements(node: Node) -> Any:
    x, axis = node.tensor(0), node.attr("axis", 0)
    return node.call("gather.default", x, axis, _counted(node, node.tensor(1), node.world.size(x, axis)))


@operator("GatherND")
def _gather_nd(node: Node) -> Any:
    x, places = node.tensor(0), node.tensor(1)
    if node.attr("batch_dims", 0):
        raise BadFile("GatherND with batch_dims in it is not read")
    depth = node.world.size(places, -1)
    if not isinstance(depth, int):
        raise BadFile("GatherND in it has places of an open depth")
    parts = [_counted(node, node.call("select.int", places, -1, at), node.world.size(x, at)) for at in range(depth)]
    return node.call("index.Tensor", x, parts)


@operator("ScatterElements", "Scatter")
def _scatter_elements(node: Node) -> Any:
    x, axis = node.tensor(0), node.attr("axis", 0)
    places = _counted(node, node.tensor(1), node.world.size(x, axis))
    how = node.is_one_of("reduction", "none", "add", "mul", "max", "min")
    if how == "none":
        return node.call("scatter.src", x, axis, places, node.tensor(2))
    reduce = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}[how]
    return node.call("scatter_reduce.two", x, axis, places, node.tensor(2), reduce)


@operator("ScatterND")
def _scatter_nd(node: Node) -> Any:
    x, places, values = node.tensor(0), node.tensor(1), node.tensor(2)
    how = node.is_one_of("reduction", "none", "add")
    depth = node.world.size(places, -1)
    if not isinstance(depth, int):
        raise BadFile("ScatterND in it has places of an open depth")
    parts = [_counted(node, node.call("select.int", places, -1, at), node.world.size(x, at)) for at in range(depth)]
    return node.call("index_put.default", x, parts, values, how == "add")


@operator("Expand")
def _expand(node: Node) -> Any:
    x, wanted = node.tensor(0), node.ints(1)
    shape = node.world.shape(x)
    front = len(wanted) - len(shape)
    if front < 0:
        wanted, front = [*shape[: len(shape) - len(wanted)], *wanted], 0
    full = [item if at < front or not _is_one(item) else shape[at - front] for at, item in enumerate(wanted)]
    return node.call("expand.default", x, full)


def _is_one(item: Dim) -> bool:
    return isinstance(item, int) and item == 1


@operator("Tile")
def _tile(node: Node) -> Any:
    return node.call("repeat.default", node.tensor(0), node.ints(1))


@operator("Pad")
def _pad(node: Node) -> Any:
    x = node.tensor(0)
    given = node.ints(1) if node.version >= 11 else list(node.attr("pads", ()))
    axes = node.numbers(3) if node.has(3) else list(range(rank(x)))
    mode = node.is_one_of("mode", "constant", "reflect", "edge", "wrap")
    if len(given) != 2 * len(axes):
        raise BadFile("Pad in it has paddings that are not two for each dimension")
    by_axis = {axis % rank(x): (given[at], given[at + len(axes)]) for at, axis in enumerate(axes)}
    wide: list[Any] = [item for axis in reversed(range(rank(x))) for item in by_axis.get(axis, (0, 0))]
    while len(wide) > 2 and wide[-2:] == [0, 0]:
        wide = wide[:-2]
    if mode == "constant":
        value = node.raw(2).item() if node.has(2) and isinstance(node.raw(2), torch.Tensor) else node.attr("value", 0)
        return node.call("constant_pad_nd.default", x, wide, value)
    torchs = {"reflect": "reflect", "edge": "replicate", "wrap": "circular"}[mode]
    return node.call("pad.default", x, wide, torchs)


@operator("DepthToSpace", "SpaceToDepth")
def _depth(node: Node) -> Any:
    x, block = node.tensor(0), node.attr("blocksize")
    batch, channels, *places = node.world.shape(x)
    if node.op == "SpaceToDepth":
        divided = [node.world.compute("int.floordiv", arithmetic.floordiv, place, block) for place in places]
        cut = node.call("reshape.default", x, [batch, channels, divided[0], block, divided[1], block])
        moved = node.call("permute.default", cut, [0, 3, 5, 1, 2, 4])
        return node.call("reshape.default", moved, [batch, channels * block * block, *divided])
    less = channels // (block * block)
    is_dcr = node.is_one_of("mode", "DCR", "CRD") == "DCR"
    split = [batch, block, block, less, *places] if is_dcr else [batch, less, block, block, *places]
    moved = node.call(
        "permute.default", node.call("reshape.default", x, split), [0, 3, 4, 1, 5, 2] if is_dcr else [0, 1, 4, 2, 5, 3]
    )
    grown = [node.world.compute("int.mul", arithmetic.mul, place, block) for place in places]
    return node.call("reshape.default", moved, [batch, less, *grown])


@operator("ConstantOfShape")
def _constant_of_shape(node: Node) -> Any:
    value, shape = node.attr("value"), node.ints(0)
    fill = torch.zeros(1) if value is None else value
    number, dtype = fill.reshape(-1)[0].item(), fill.dtype
    if not any(isinstance(item, Size) for item in shape) and dtype is torch.int64 and len(shape) == 1:
        if isinstance(shape[0], int) and shape[0] <= 64:
            return torch.full((shape[0],), number, dtype=dtype)
    return node.call("full.default", shape, number, dtype=dtype)


@operator("Range")
def _range(node: Node) -> Any:
    parts = [as_ints(node.raw(at)) for at in range(3)]
    if all(part is not None for part in parts):
        return node.call("arange.start_step", *(part.items[0] for part in parts), dtype=torch.int64)  # type: ignore[union-attr]
    start, limit, step = (node.constant(at) for at in range(3))
    return torch.arange(start.item(), limit.item(), step.item(), dtype=start.dtype)


@operator("OneHot")
def _one_hot(node: Node) -> Any:
    places, (depth,), values = node.tensor(0), node.ints(1), node.tensor(2)
    axis = node.attr("axis", -1) % (rank(places) + 1)
    line = node.call("arange.default", depth, dtype=torch.int64)
    shape: list[Dim] = [1] * (rank(places) + 1)
    shape[axis] = -1
    counted = node.call("remainder.Scalar", node.call("_to_copy.default", places, dtype=torch.int64), depth)
    is_there = node.call(
        "eq.Tensor", node.call("unsqueeze.default", counted, axis), node.call("reshape.default", line, shape)
    )
    off, on = node.call("select.int", values, 0, 0), node.call("select.int", values, 0, 1)
    return node.call("where.self", is_there, on, off)


@operator("Trilu")
def _trilu(node: Node) -> Any:
    diagonal = node.numbers(1)[0] if node.has(1) else 0
    return node.call("triu.default" if node.attr("upper", 1) else "tril.default", node.tensor(0), diagonal)


@operator("EyeLike")
def _eye(node: Node) -> Any:
    x = node.tensor(0)
    dtype = x.dtype if node.attr("dtype") is None else dtype_of(node.attr("dtype"))
    ones = node.call("ones_like.default", x, dtype=dtype)
    offset = node.attr("k", 0)
    return node.call("tril.default", node.call("triu.default", ones, offset), offset)


@operator("TopK")
def _topk(node: Node) -> Any:
    (count,) = node.ints(1) if node.has(1) else [node.attr("k")]
    is_largest, is_sorted = bool(node.attr("largest", 1)), bool(node.attr("sorted", 1))
    return tuple(node.call("topk.default", node.tensor(0), count, node.attr("axis", -1), is_largest, is_sorted))


# --- lists ------------------------------------------------------------------------------------------------


@operator("SequenceConstruct")
def _sequence(node: Node) -> Any:
    return (list(node.inputs),)


@operator("SplitToSequence")
def _split_to_sequence(node: Node) -> Any:
    x, axis, keeps = node.tensor(0), node.attr("axis", 0), node.attr("keepdims", 1)
    if node.has(1):
        sizes = as_ints(node.raw(1))
        if sizes is not None and not sizes.is_scalar:
            return (list(node.call("split_with_sizes.default", x, sizes.items, axis)),)
    size = node.world.size(x, axis)
    if not isinstance(size, int) or node.has(1):
        raise DoesNotFit("SplitToSequence in it cuts a size that is open", range(1, 25))
    parts = list(node.call("split_with_sizes.default", x, [1] * size, axis))
    return (parts if keeps else [node.call("squeeze.dim", part, axis) for part in parts],)


@operator("SequenceAt")
def _sequence_at(node: Node) -> Any:
    return node.raw(0)[node.numbers(1)[0]]


@operator("ConcatFromSequence")
def _concat_from_sequence(node: Node) -> Any:
    parts = [as_tensor(node.world, part, node.op) for part in node.raw(0)]
    return node.call("stack.default" if node.attr("new_axis", 0) else "cat.default", parts, node.attr("axis"))
