"""Functions of torch's C++ that make a tensor of their own and write pointers into it, said in operations.

torch takes them apart above the place where pointers see operations, so that all that came there would be the writing.
They are given a form for pointers beside torch's own, in its registry of kernels; other tensors go to torch's as ever.
https://docs.pytorch.org/docs/stable/library.html#torch.library.Library.impl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final

import torch
from torch.utils import _pytree as pytree

from compute import packed


def _vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    powers = torch.linalg.vander(x, N=x.shape[0] if N is None else N)
    return powers if increasing else powers.flip(-1)


_FORMS: Final[Mapping[str, Callable[..., Any]]] = {
    "pad_sequence": packed.pad_sequence,
    "_pad_packed_sequence": packed.pad_packed,
    "_pack_padded_sequence_backward": packed.pack_backward,
    "vander": _vander,
}
_COMPOSITE: Final = torch._C.DispatchKey.CompositeImplicitAutograd
_IN_PYTHON: Final = torch._C.DispatchKey.PythonDispatcher
_registered: list[torch.library.Library] = []  # they hold as long as this does


def register(kind: type[torch.Tensor]) -> None:
    """Have these functions take tensors of this kind."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, form in _FORMS.items():
        library.impl(name, _choosing(kind, getattr(torch.ops.aten, name).default, form), "AutogradCPU")  # type: ignore[no-untyped-call]
    _registered.append(library)


def _choosing(kind: type[torch.Tensor], function: Any, form: Callable[..., Any]) -> Callable[..., Any]:
    def choose(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(value, kind) for value in pytree.arg_tree_leaves(*args, **kwargs)):
            return form(*args, **kwargs)
        if torch._C._dispatch_tls_is_dispatch_key_included(_IN_PYTHON):  # it asks for what is said in Python first
            return function.decompose(*args, **kwargs)
        return function._op_dk(_COMPOSITE, *args, **kwargs)

    return choose
