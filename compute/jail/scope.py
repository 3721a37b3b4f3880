"""What a jail's code finds: a restricted torch, arithmetic, and the builtins that only compute.

Namespaces, not modules: what is not listed is not there, and the error says so. What can be reached from a function by
Python's own ways is no secret and no way out: around all of it is the kernel (docs/decisions/0013-jails.md).
"""

from __future__ import annotations

import builtins
import cmath
import functools
import inspect
import itertools
import math
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import torch

from compute.dtypes import DTYPE_OF
from compute.operations import OPERATIONS

_BUILTINS: Final = (
    "abs all any ascii bin bool bytearray bytes callable chr classmethod complex dict divmod enumerate filter float "
    "frozenset "
    "hash hex id int isinstance issubclass iter len list map max min next object oct ord pow property range repr "
    "reversed round set slice sorted staticmethod str sum super tuple zip True False None NotImplemented Ellipsis "
    "__build_class__ hasattr"
).split()
_ERRORS: Final = [
    name
    for name, value in vars(builtins).items()
    if isinstance(value, type) and issubclass(value, Exception) and not issubclass(value, OSError)
]

# Of torch what computes and is no operation of the table by its name.
_TORCH: Final = (
    "Size Tensor dtype device Generator finfo iinfo pi e inf nan newaxis strided contiguous_format preserve_format "
    "channels_last get_default_dtype set_default_dtype no_grad enable_grad inference_mode set_grad_enabled "
    "is_grad_enabled manual_seed seed initial_seed tensor as_tensor asarray scalar_tensor is_tensor is_nonzero equal "
    "allclose numel is_floating_point is_complex result_type can_cast promote_types empty empty_like full full_like "
    "zeros zeros_like ones ones_like arange linspace logspace eye rand rand_like randn randn_like randint randint_like "
    "randperm normal multinomial bernoulli poisson nonzero masked_select unique unique_consecutive argwhere where "
    "concat concatenate hstack vstack dstack column_stack row_stack stack cat vmap cdist histogram "
    "tril_indices triu_indices vander fill_diagonal_ clamp_min clamp_max true_divide negative positive"
).split()
_PARTS: Final[dict[str, tuple[types.ModuleType, ...]]] = {
    "torch.nn.functional": (torch.nn.functional,),
    "torch.nn.init": (torch.nn.init,),
    "torch.linalg": (torch.linalg,),
    "torch.fft": (torch.fft,),
    "torch.special": (torch.special,),
    "torch.optim.lr_scheduler": (torch.optim.lr_scheduler,),
}
_LEFT_OUT: Final = frozenset("from_file from_numpy frombuffer from_dlpack load save compile sys os".split())


class Namespace:
    """A few names, to be read."""

    __slots__ = ("_members", "_name")

    def __init__(self, name: str, members: Mapping[str, Any]) -> None:
        object.__setattr__(self, "_name", name)
        object.__setattr__(self, "_members", types.MappingProxyType(dict(members)))

    def __getattr__(self, name: str) -> Any:
        try:
            return self._members[name]
        except KeyError:
            raise AttributeError(f"{self._name}.{name} is not there in a jail") from None

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"{self._name} is not changed by a jail")

    def __dir__(self) -> list[str]:
        return sorted(self._members)

    def __repr__(self) -> str:
        return f"<{self._name}, as jails have it>"


def members(space: Namespace) -> Mapping[str, Any]:
    """What is in it, by name."""
    return space._members  # type: ignore[no-any-return]


def _public(module: types.ModuleType) -> dict[str, Any]:
    """Functions and classes of a module of torch's, without what it has imported for itself."""
    named = getattr(module, "__all__", None) or vars(module)
    found = {name: getattr(module, name) for name in named if not name.startswith("_") and name not in _LEFT_OUT}
    return {name: value for name, value in found.items() if _is_of_torch(value)}


def _is_of_torch(value: Any) -> bool:
    if isinstance(value, types.ModuleType) or not callable(value) or value is torch.Tensor:
        return False
    home = str(getattr(value, "__module__", None) or "torch")
    return home.startswith("torch") and not home.startswith(("torch._jit", "torch.jit", "torch.overrides"))


def _torch() -> Namespace:
    parts: dict[str, Any] = {name: Namespace(name, _merged(modules)) for name, modules in _PARTS.items()}
    rnn = Namespace("torch.nn.utils.rnn", _public(torch.nn.utils.rnn))
    parts["torch.nn.utils"] = Namespace("torch.nn.utils", {**_public(torch.nn.utils), "rnn": rnn})
    nn = {name: value for name, value in _public(torch.nn).items() if inspect.isclass(value)}
    nn |= {name.rpartition(".")[2]: part for name, part in parts.items() if name.startswith("torch.nn.")}
    optimizers = {name: value for name, value in vars(torch.optim).items() if _is_class(value, torch.optim.Optimizer)}
    func = ("grad", "grad_and_value", "vmap", "vjp", "jvp", "jacrev", "jacfwd", "hessian", "functional_call")
    bases = {name.split(".")[1] for name in OPERATIONS}
    usable = [name for name in dir(torch) if name in bases and callable(getattr(torch, name)) and name[0] != "_"]
    members: dict[str, Any] = {
        **{name: getattr(torch, name) for name in torch.functional.__all__ if hasattr(torch, name)},
        **{name: getattr(torch, name) for name in (*usable, *_TORCH) if hasattr(torch, name)},
        **{name: value for name, value in vars(torch).items() if type(value) is torch.dtype and value in _DTYPES},
        "nn": Namespace("torch.nn", nn),
        "linalg": parts["torch.linalg"],
        "fft": parts["torch.fft"],
        "special": parts["torch.special"],
        "optim": Namespace("torch.optim", {**optimizers, "lr_scheduler": parts["torch.optim.lr_scheduler"]}),
        "func": Namespace("torch.func", {name: getattr(torch.func, name) for name in func}),
        "autograd": Namespace("torch.autograd", {"grad": torch.autograd.grad, "backward": torch.autograd.backward}),
        "random": Namespace("torch.random", {"manual_seed": torch.manual_seed}),
    }
    return Namespace("torch", {name: value for name, value in members.items() if name not in _LEFT_OUT})


_DTYPES: Final = frozenset(DTYPE_OF.values())


def _merged(modules: Iterable[types.ModuleType]) -> dict[str, Any]:
    return {name: value for module in modules for name, value in _public(module).items()}


def _is_class(value: object, base: type) -> bool:
    return isinstance(value, type) and issubclass(value, base)


def _all_of(name: str, module: types.ModuleType) -> Namespace:
    return Namespace(name, {key: value for key, value in vars(module).items() if not key.startswith("_")})


_OF_FUNCTOOLS: Final = ("reduce", "partial", "cache", "lru_cache", "wraps", "cmp_to_key")
_OF_TYPING: Final = "cast Any Callable Optional Union Sequence Iterable Iterator Mapping List Dict Tuple".split()


@functools.cache
def modules() -> Mapping[str, Namespace]:
    """What can be imported in a jail, by the name of the top one; `grid` is made for each job."""
    return {
        "torch": _torch(),
        "math": _all_of("math", math),
        "cmath": _all_of("cmath", cmath),
        "functools": Namespace("functools", {name: getattr(functools, name) for name in _OF_FUNCTOOLS}),
        "itertools": _all_of("itertools", itertools),
        "typing": Namespace("typing", {name: getattr(typing, name) for name in _OF_TYPING}),
    }


def find(path: str, top: Mapping[str, Namespace]) -> Any:
    """The namespace or member of that dotted path. ImportError says that it is not there."""
    first, *rest = path.split(".")
    found: Any = top.get(first)
    if found is None:
        raise ImportError(f"{path} is not there in a jail, but {', '.join(sorted(top))}")
    for name in rest:
        try:
            found = getattr(found, name)
        except AttributeError as error:
            raise ImportError(str(error)) from None
    return found


def builtins_for(show: Callable[..., None], top: Mapping[str, Namespace]) -> dict[str, Any]:
    """The builtins of one job: `show` is its print, `top` what it can import."""

    def imports(name: str, _: object = None, __: object = None, names: Any = (), level: int = 0) -> Any:
        if type(names) is list:  # the C API asks, for torch itself: a statement gives a tuple, or None
            return builtins.__import__(name, None, None, names, level)
        if level:
            raise ImportError("a jail has no package around it")
        return find(name, top) if names else find(name, top) and top[name.split(".")[0]]

    chosen = {name: getattr(builtins, name) for name in (*_BUILTINS, *_ERRORS) if hasattr(builtins, name)}
    return {**chosen, "print": show, "__import__": imports, "__name__": "jail"}
