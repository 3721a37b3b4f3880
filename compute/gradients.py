"""Gradients of what a function is given: a run takes none along and leaves none. Where a function would go by the one
or the other, it is refused.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensor

from compute.frames import Call, Ref, values_in
from compute.given import Given
from compute.recorder import Recorder
from protocol.errors import CannotCapture


class Gradients:
    """Those of one capture: `given` before it, and left by it in `tensors`, which stand for what was given."""

    def __init__(self, given: Given, recorder: Recorder, tensors: Mapping[str, torch.Tensor]) -> None:
        self._recorder = recorder
        self._tensors = {path: tensors[path] for path in given.state}
        self._sources: dict[int, str] = {}
        self._left: set[str] = set()
        self._passes: list[Call] = []
        for path, gradient in given.gradients.items():
            stands_for = recorder.empty(gradient.shape, gradient.dtype)
            self._sources[id(recorder.root.add_input(f"{path}.grad", stands_for))] = path
            tensors[path].grad = stands_for

    def look(self) -> None:
        """The function has run."""
        for path, tensor in self._tensors.items():
            gradient = tensor.grad if tensor.is_leaf else None
            if isinstance(gradient, FakeTensor):
                self._left.add(path)

    @contextmanager
    def watched(self) -> Iterator[None]:
        """In it the function runs: which of its calls are backward passes."""
        backward = torch.autograd.backward

        def noted(*args: Any, **kwargs: Any) -> None:
            frame = self._recorder.frame
            before = len(frame.calls)
            backward(*args, **kwargs)
            if frame is self._recorder.root:
                self._passes += frame.calls[before:]

        with mock.patch.object(torch.autograd, "backward", noted):
            yield

    def take_out(self) -> None:
        """Those that were given, of a frame in which nothing stands in vain any more.

        Raises:
            CannotCapture: something goes by them; or nothing by what the function left, which is for somebody else.
        """
        root = self._recorder.root
        kept = {id(call) for call in root.calls}
        if self._left and self._passes and not any(id(call) in kept for call in self._passes):
            raise CannotCapture(
                f"the function leaves gradients ({min(self._left)!r}), and they do not come back from a run: step the "
                "optimiser in the function, or return them (p.grad, torch.func.grad)"
            )
        for value in values_in([[call.args, call.kwargs] for call in root.calls] + [root.outputs]):
            path = self._sources.get(id(value.of)) if isinstance(value, Ref) else None
            if path is not None:
                raise CannotCapture(
                    f"{path!r} has a gradient from before, which the function adds to or goes by, and gradients do not "
                    "go along: call zero_grad() first, here or in the function"
                )
        root.inputs = [source for source in root.inputs if id(source) not in self._sources]
