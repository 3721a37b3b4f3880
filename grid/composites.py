"""Functions of torch's C++ that make a tensor of their own and have pointers written into it, said in operations.

torch takes them apart above the place where pointers see operations, so that all that came there would be the writing.
They are given a form for pointers beside torch's own, in its registry of kernels; other tensors go to torch's as ever.
https://docs.pytorch.org/docs/stable/library.html#torch.library.Library.impl
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final

import torch

from compute import packed
from compute.nested import tensors_in
from grid import outs


def _vander(x: Any, N: int | None = None, increasing: bool = False) -> Any:
    powers = torch.linalg.vander(x, N=x.shape[0] if N is None else N)
    return powers if increasing else powers.flip(-1)


_FORMS: Final[Mapping[str, Callable[..., Any]]] = {
    "pad_sequence": packed.pad_sequence,
    "_pad_packed_sequence": packed.pad_packed,
    "_pack_padded_sequence_backward": packed.pack_backward,
    "vander": _vander,
}
_INTO: Final = """
    inverse.out linalg_inv.out linalg_cholesky.out linalg_lu_factor.out linalg_ldl_factor.out linalg_matrix_power.out
    matrix_power.out linalg_det.out linalg_slogdet.out slogdet.out linalg_svdvals.out linalg_eigvalsh.out
    linalg_solve.out linalg_solve_ex.out linalg_matrix_rank.out linalg_matrix_rank.atol_rtol_float_out
    linalg_matrix_rank.atol_rtol_tensor_out linalg_matrix_rank.out_tol_tensor matmul.out linalg_matmul.out msort.out
    argsort.stable_out log_sigmoid.out multilabel_margin_loss.out nll_loss.out nll_loss2d.out
""".split()
"""With `out=`, torch makes tensors of its own beside those that are asked for and reads their memory, writes to what it
is given in another shape, or does not write to it."""
_COMPOSITE: Final = torch._C.DispatchKey.CompositeImplicitAutograd
_IN_PYTHON: Final = torch._C.DispatchKey.PythonDispatcher
_registered: list[torch.library.Library] = []  # they hold as long as this does


def register(kind: type[torch.Tensor]) -> None:
    """Have these functions take tensors of this kind."""
    library = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
    for name, form in _FORMS.items():
        library.impl(name, _choosing(kind, getattr(torch.ops.aten, name).default, form), "AutogradCPU")  # type: ignore[no-untyped-call]
    for name in _INTO:
        operation, overload = name.split(".")
        function = getattr(getattr(torch.ops.aten, operation), overload)
        library.impl(name, _choosing(kind, function, partial(_into, kind, function)), "AutogradCPU")  # type: ignore[no-untyped-call]
    _registered.append(library)


def _into(kind: type[Any], function: Any, *args: Any, **kwargs: Any) -> Any:
    if torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors_in([*args, *kwargs.values()])):
        raise RuntimeError(
            f"{function._opname}(): functions with out=... arguments don't support automatic differentiation, but one "
            "of the arguments requires grad."
        )
    return outs.into(kind, function, args, kwargs)


def _choosing(kind: type[torch.Tensor], function: Any, form: Callable[..., Any]) -> Callable[..., Any]:
    def choose(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(tensor, kind) for tensor in tensors_in([*args, *kwargs.values()])):
            return form(*args, **kwargs)
        if torch._C._dispatch_tls_is_dispatch_key_included(_IN_PYTHON):  # it asks for what is said in Python first
            return function.decompose(*args, **kwargs)
        return function._op_dk(_COMPOSITE, *args, **kwargs)

    return choose
