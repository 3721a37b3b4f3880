"""What the tests of forms share: the same lines on pointers and on local tensors, and whether both came to the same."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

import grid

Lines = Callable[..., Any]


def values() -> dict[str, torch.Tensor]:
    """What a form is tried on, by the names of its parameters."""
    return {
        "x": torch.randn(3, 4),
        "y": torch.rand(3, 4) + 0.5,
        "w": torch.randn(4, 2),
        "v": torch.randn(4),
        "s": torch.tensor(2.5),
        "m": torch.randn(3, 4) > 0,
        "k": torch.tensor([[4, 2, 0, 7], [1, 0, 3, 9], [5, 8, 6, 2]]),
        "i": torch.tensor([0, 2]),
        "c": torch.randn(3, 4, dtype=torch.complex64),
        "t": torch.randn(2, 3, 4),
    }


async def differences(g: grid.Grid, forms: Mapping[str, Lines], at: str = "alice") -> list[str]:
    """The forms that give something else on pointers than on local tensors, and why."""
    wrong: list[str] = []
    for name, form in forms.items():
        taken = [parameter for parameter in form.__code__.co_varnames[: form.__code__.co_argcount]]
        here = {name: value for name, value in values().items() if name in taken}
        there = {name: await g[at].send(value) for name, value in here.items()}
        expected = form(*(here[name] for name in taken))
        try:
            made = await value_of(form(*(there[name] for name in taken)))
            after = {name: await there[name].fetch() for name in taken}
        except Exception as error:
            wrong.append(f"{name}: {type(error).__name__}: {error}")
            continue
        if not is_same(made, expected):
            wrong.append(f"{name}: gave {made} instead of {expected}")
        wrong += [f"{name}: left {each} = {after[each]}" for each in taken if not is_same(after[each], here[each])]
    return wrong


async def value_of(made: Any) -> Any:
    """Pointers in it replaced by their values, awaited things by what they give."""
    if isinstance(made, grid.Pointer):
        return await made.fetch()
    if isinstance(made, torch.Tensor | torch.Size) or not hasattr(made, "__await__"):
        if isinstance(made, list | tuple) and not isinstance(made, torch.Size):
            return [await value_of(each) for each in made]
        if not isinstance(made, torch.Tensor) or isinstance(made, torch.nn.Parameter) or type(made) is torch.Tensor:
            return made
    return await value_of(await made)


def is_same(made: Any, expected: Any) -> bool:
    if isinstance(expected, torch.Tensor):
        same_kind = isinstance(made, torch.Tensor) and (made.shape, made.dtype) == (expected.shape, expected.dtype)
        return same_kind and torch.allclose(made, expected, rtol=1e-4, atol=1e-5, equal_nan=True)
    if isinstance(expected, list | tuple) and not isinstance(expected, torch.Size):
        return len(made) == len(expected) and all(map(is_same, made, expected))
    return bool(made == expected)
