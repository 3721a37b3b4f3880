"""Works out an input for a module from its first layers, by trying a forward pass on fake tensors, which costs no
memory and no arithmetic.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from protocol.errors import CannotCapture

_IMAGE_SIZES: Final = (28, 32, 8, 16, 64, 96, 128, 224, 227, 299)
_LENGTHS: Final = (28, 32, 8, 16, 64, 128, 256, 512, 1024, 784, 1000, 16000)
_VOLUMES: Final = (8, 16, 28, 32, 64)
_LAYERS: Final = 3  # layers looked at, from the first
_ROWS: Final = 2  # not 1: torch.export takes a size of 1 to be meant
_TOKENS: Final = 8

Shape = tuple[int, ...]


def find_example(module: nn.Module) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """Positional and named inputs on which the module's forward runs.

    Raises:
        CannotCapture: none was found; the message says how to give one, and what the likeliest one met.
    """
    first: str | None = None
    count = _required(module)
    for shape, dtype in _candidates(module):
        args = tuple(torch.zeros(shape, dtype=dtype) for _ in range(count))
        refusal = runs(module, args, {})
        if refusal is None:
            return args, {}
        first = first or f"{list(shape)} met: {refusal}"
    raise CannotCapture(
        f"no input could be worked out for {type(module).__name__}; give one: "
        f"alice.send(model, example=x){f' ({first})' if first else ''}"
    )


def runs(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """None where the module's forward takes these inputs; otherwise what it met."""
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    try:
        with _fake_tensors(module, mode), mode, torch.no_grad():
            module(*_faked(args, mode), **_faked(dict(kwargs), mode))
    except Exception as error:  # a module's forward raises what it likes
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0][:200] if lines else ''}"
    return None


@contextmanager
def _fake_tensors(module: nn.Module, mode: FakeTensorMode) -> Iterator[None]:
    """The module on fake parameters and buffers, for a while: what it does to a buffer in place must not be real."""
    tables: list[dict[str, Any]] = [t for part in module.modules() for t in (part._parameters, part._buffers)]
    saved = [dict(table) for table in tables]
    try:
        for table in tables:
            table.update(_faked(table, mode))
        yield
    finally:
        for table, tensors in zip(tables, saved, strict=True):
            table.clear()
            table.update(tensors)


def _faked(value: Any, mode: FakeTensorMode) -> Any:
    return torch.utils._pytree.tree_map_only(torch.Tensor, mode.from_tensor, value)


def _required(module: nn.Module) -> int:
    parameters = inspect.signature(module.forward).parameters.values()
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [p for p in parameters if p.kind in positional and p.default is inspect.Parameter.empty]
    return max(1, len(needed))


def _candidates(module: nn.Module) -> Iterator[tuple[Shape, torch.dtype]]:
    floating = next((p.dtype for p in module.parameters() if p.dtype.is_floating_point), torch.float32)
    seen: set[tuple[Shape, torch.dtype]] = set()
    for shape, is_token in _shapes(module):
        candidate = shape, torch.int64 if is_token else floating
        if candidate not in seen and all(shape):
            seen.add(candidate)
            yield candidate


def _shapes(module: nn.Module) -> Iterator[tuple[Shape, bool]]:
    layers = [layer for layer in module.modules() if isinstance(layer, tuple(_OF_LAYER))]
    for layer in layers[:_LAYERS]:
        of_layer = next(found for kind, found in _OF_LAYER.items() if isinstance(layer, kind))
        is_token = isinstance(layer, nn.Embedding)
        for shape in of_layer(layer):
            yield (_ROWS, *shape), is_token
    for parameter in list(module.parameters())[:2]:  # layers of the module's own making: x @ weight, weight @ x
        for size in parameter.shape:
            yield (_ROWS, size), False
    yield (_ROWS, 8), False
    yield (_ROWS, 1, 28, 28), False
    yield (_ROWS, 3, 224, 224), False


def _linear(layer: nn.Linear) -> Iterator[Shape]:
    yield (layer.in_features,)
    yield _TOKENS, layer.in_features
    for channels in (1, 3):
        side = math.isqrt(layer.in_features // channels)
        if side * side * channels == layer.in_features:
            yield channels, side, side


def _images(layer: Any) -> Iterator[Shape]:
    channels = getattr(layer, "in_channels", None) or layer.num_features
    for size in _IMAGE_SIZES:
        yield channels, size, size


def _sequences(layer: Any) -> Iterator[Shape]:
    channels = getattr(layer, "in_channels", None) or layer.num_features
    if isinstance(layer, nn.BatchNorm1d):
        yield (channels,)
    for length in _LENGTHS:
        yield channels, length


def _volumes(layer: Any) -> Iterator[Shape]:
    channels = getattr(layer, "in_channels", None) or layer.num_features
    for size in _VOLUMES:
        yield channels, size, size, size


def _tokens(layer: nn.Embedding) -> Iterator[Shape]:
    yield (_TOKENS,)
    yield ()


def _normalised(layer: nn.LayerNorm) -> Iterator[Shape]:
    yield tuple(layer.normalized_shape)
    yield _TOKENS, *layer.normalized_shape


_OF_LAYER: Final[Mapping[type[nn.Module], Callable[[Any], Iterator[Shape]]]] = {
    nn.Transformer: lambda layer: iter([(_TOKENS, layer.d_model)]),
    nn.RNNBase: lambda layer: iter([(_TOKENS, layer.input_size)]),
    nn.RNNCellBase: lambda layer: iter([(layer.input_size,)]),
    nn.MultiheadAttention: lambda layer: iter([(_TOKENS, layer.embed_dim)]),
    nn.Embedding: _tokens,
    nn.Linear: _linear,
    nn.Conv1d: _sequences,
    nn.ConvTranspose1d: _sequences,
    nn.Conv2d: _images,
    nn.ConvTranspose2d: _images,
    nn.Conv3d: _volumes,
    nn.ConvTranspose3d: _volumes,
    nn.BatchNorm1d: _sequences,
    nn.BatchNorm2d: _images,
    nn.BatchNorm3d: _volumes,
    nn.LayerNorm: _normalised,
}
