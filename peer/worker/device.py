"""Where a worker's tensors and operations are: the CPU, or one CUDA device (`grid start --device cuda`).

On the CPU nothing is copied and nothing is looked up. On CUDA what the peer provides is copied there when it comes,
results are made there, and what leaves is copied back. Pointers know nothing of it: they say "cpu" wherever the data
are, so that programs need not change. They also choose operations as torch does on a CPU; one that torch has no CUDA
kernel for runs on the CPU, between two copies.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import torch

from compute.interpreter import call, checked, execute
from compute.nested import with_tensors
from compute.table import Entry

Execute = Callable[[Entry, Sequence[Any], Mapping[str, Any]], Any]

_FROM_NOTHING: Final = frozenset({"factory", "random"})


def unavailable(device: str) -> str | None:
    """Why this torch cannot compute on `device`, or None where it can. Does not wake the driver: a zygote may fork."""
    if device == "cpu":
        return None
    if not torch.backends.cuda.is_built():  # type: ignore[no-untyped-call]
        return f"the torch that is installed here, {torch.__version__}, is built without CUDA"
    if not torch.cuda.device_count():  # by NVML where PYTORCH_NVML_BASED_CUDA_CHECK is set
        return "no CUDA device is there: nvidia-smi lists those that the driver knows"
    return None


class Device:
    """A worker's device. `execute` runs one operation of the table on it.

    Args:
        device: where tensors are.
        has_kernel: whether an operation runs there, by its name in torch ("aten::add.Tensor").
    """

    def __init__(self, device: torch.device, has_kernel: Callable[[str], bool]) -> None:
        self.device = device
        self._has_kernel = has_kernel
        self._here: dict[str, bool] = {}

    @classmethod
    def of(cls, name: str) -> Device | None:
        """The device called `name`; None for the CPU, where tensors are to begin with."""
        if name == "cpu":
            return None
        return cls(torch.device(name, 0), _has_cuda_kernel)

    def bring(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor there: a copy, unless it is."""
        return tensor.to(self.device)

    def execute(self, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """Checks and runs one operation, as compute.interpreter.execute does, on this device."""
        args = with_tensors(args, self._moved)
        kwargs = {key: with_tensors(value, self._moved) for key, value in kwargs.items()}
        if not self._runs_here(entry):
            return self._on_cpu(entry, args, kwargs)
        bound, named, results = checked(entry, args, kwargs)
        if entry.category in _FROM_NOTHING and "device" in entry._by_name:
            named = {**named, "device": self.device}
        return call(entry, bound, named, results)

    def _moved(self, tensor: torch.Tensor) -> torch.Tensor:
        # A number that came as a tensor of no dimensions works beside tensors of any device, and stays one.
        return tensor.to(self.device) if tensor.dim() else tensor

    def _runs_here(self, entry: Entry) -> bool:
        found = self._here.get(entry.name)
        if found is None:
            name = entry.overload.name()
            found = self._here[entry.name] = self._has_kernel(name)
        return found

    def _on_cpu(self, entry: Entry, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        """For what has no kernel there. What it writes in place is written back."""
        copies: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

        def copied(tensor: torch.Tensor) -> torch.Tensor:
            return copies.setdefault(id(tensor), (tensor, tensor.cpu()))[1]

        there, named = with_tensors(args, copied), {key: with_tensors(value, copied) for key, value in kwargs.items()}
        value = execute(entry, there, named)
        written = {
            id(each) for at in entry.written(there, named) for each in _tensors(entry.argument(at, there, named))
        }
        originals = {}
        for original, copy in copies.values():
            if id(copy) in written:
                original.copy_(copy)
                originals[id(copy)] = original
        return with_tensors(value, lambda tensor: originals.get(id(tensor), tensor.to(self.device)))


def _has_cuda_kernel(name: str) -> bool:
    return bool(torch._C._dispatch_has_computed_kernel_for_dispatch_key(name, "CUDA"))


def _tensors(value: Any) -> list[torch.Tensor]:
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, torch.Tensor)]
