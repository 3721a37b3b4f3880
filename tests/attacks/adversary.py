"""Arguments that nobody would give in good faith, for any operation of the table, from its schema and an honest call.

Everything is drawn from one seed: the same seed gives the same arguments again, in fresh memory.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, Final

import torch

from compute.arguments import _PATTERNS, _WORDS
from compute.dtypes import DTYPE_OF, MEMORY_FORMAT_OF
from compute.table import Entry, Parameter
from tests.attacks.calls import Call, Shown
from tests.attacks.guard_pages import Arena

DTYPES: Final = list(DTYPE_OF.values())
USUAL: Final = [torch.float32, torch.float64, torch.int64, torch.int32, torch.bool, torch.complex64, torch.bfloat16]
INTEGERS: Final = [
    *(0, 1, 2, 3, 4, 5, 7, -1, -2, -3, 16, 64, 1_000, 65_535, 65_536, 1 << 20, 1 << 30),
    *((1 << 31) - 1, 1 << 31, -(1 << 31), -(1 << 31) - 1, 1 << 32, 1 << 62, (1 << 63) - 1, -(1 << 63)),
]
FLOATS: Final = [0.0, -0.0, 1.0, -1.0, 0.5, 2.0, float("nan"), float("inf"), -float("inf"), 1e308, -1e308, 1e-320, 1e30]
TEXTS: Final = ["", "ij,jk->ik", "ii->i", "i,i->", "...ij,...jk", "sum", "__class__", "x" * 300, "\x00"]
_SIZES: Final = [0, 1, 2, 3, 4, 5, 8, 17, 40]
_MOST: Final = 100_000  # elements of a tensor with memory of its own


class Adversary:
    """Makes the arguments of one call. Tensors lie in `arena`."""

    def __init__(self, arena: Arena, entry: Entry, seed: str, honest: Sequence[Call]) -> None:
        self._arena = arena
        self._chance = random.Random(seed)
        self._entry = entry
        self._honest = honest
        self._random = torch.Generator().manual_seed(self._chance.getrandbits(60))
        self._dtype = self._chance.choice(USUAL if self._chance.random() < 0.8 else DTYPES)
        self._shape = [self._chance.choice(_SIZES) for _ in range(self._chance.choice([0, 1, 2, 2, 3, 3, 4, 4, 5]))]
        self._sizes: list[int] = [*self._shape]

    def call(self) -> Call:
        """Positional and keyword arguments."""
        if self._honest and self._chance.random() < 0.75:
            return self._bent(*self._chance.choice(self._honest))
        return self._made_up()

    # --- an honest call with something wrong in it --------------------------------------------------------

    def _bent(self, args: list[Any], kwargs: dict[str, Any]) -> Call:
        named = dict(zip((p.name for p in self._entry.parameters), args, strict=False)) | kwargs
        self._sizes += [size for value in named.values() for size in _sizes_of(value)]
        kinds = {parameter.name: parameter for parameter in self._entry.parameters}
        for parameter in self._entry.parameters:  # what was left to its default
            if parameter.name not in named and self._chance.random() < 0.1:
                named[parameter.name] = self._any(parameter.kind, parameter)
        bent = {name: (value, False) for name, value in named.items() if name in kinds}
        for name in self._chance.choices(list(bent), k=self._chance.choice([0, 1, 1, 1, 2, 2, 3])) if bent else ():
            bent[name] = self._other(bent[name][0], kinds[name])
        made = {name: value if is_made else self._as_it_was(value) for name, (value, is_made) in bent.items()}
        positional = []
        for parameter in self._entry.parameters:
            if parameter.is_keyword_only or parameter.name not in made:
                break
            positional.append(made.pop(parameter.name))
        return positional, made

    def _other(self, value: Any, parameter: Parameter) -> tuple[Any, bool]:
        """Something else in the place of an honest value, and whether its tensors are made."""
        chance = self._chance
        if chance.random() < 0.1:
            return self._any(parameter.kind, parameter), True
        if isinstance(value, Shown):
            return self._other_tensor(value), True
        if isinstance(value, list) and value:
            return self._other_list(value, parameter), True
        if type(value) is int and chance.random() < 0.5:
            return min(max(value + chance.choice([-2, -1, 1, 2, 1 << 31]), -(1 << 63)), (1 << 64) - 1), True
        return self._any(parameter.kind, parameter), True

    def _other_list(self, value: list[Any], parameter: Parameter) -> list[Any]:
        value, at = list(value), self._chance.randrange(len(value))
        match self._chance.randrange(5):
            case 0:
                del value[at]
            case 1:
                value.insert(at, value[at])
            case 2 if not any(isinstance(item, Shown) for item in value):
                value *= self._chance.choice([2, 50])
            case _:
                inner = Parameter(**{**_fields(parameter), "kind": _inner(parameter.kind)})
                value[at], is_made = self._other(value[at], inner)
                assert is_made
                return [self._as_it_was(item) if other != at else item for other, item in enumerate(value)]
        return [self._as_it_was(item) for item in value]

    def _other_tensor(self, shown: Shown) -> Any:
        chance, shape, dtype, values = self._chance, list(shown.shape), shown.dtype, shown.values
        match chance.randrange(8):
            case 0 | 1 if shape:
                at = chance.randrange(len(shape))
                shape[at] = max(0, chance.choice([0, 1, 2, shape[at] - 1, shape[at] + 1, 2 * shape[at], 40]))
            case 2:
                shape.insert(chance.randint(0, len(shape)), chance.choice([0, 1, 2, 3]))
            case 3 if shape:
                del shape[chance.randrange(len(shape))]
            case 4:
                return self._tensor(shape, chance.choice(DTYPES), values)
            case 5 | 6:
                return self._tensor(shape, dtype, None)
            case _:
                return self._laid_out(shape, dtype)
        return self._tensor(shape, dtype, values if values and len(values) == math.prod(shape) else None)

    def _as_it_was(self, value: Any) -> Any:
        if isinstance(value, Shown):
            return self._tensor(list(value.shape), value.dtype, value.values, is_honest=True)
        return [self._as_it_was(item) for item in value] if isinstance(value, list) else value

    # --- from the schema alone ----------------------------------------------------------------------------

    def _made_up(self) -> Call:
        args, kwargs = [], {}
        is_open = True
        for parameter in self._entry.parameters:
            if not parameter.is_required and self._chance.random() < 0.5:
                is_open = False
                continue
            if parameter.is_keyword_only or not is_open:
                kwargs[parameter.name] = self._any(parameter.kind, parameter)
            else:
                args.append(self._any(parameter.kind, parameter))
        return args, kwargs

    def _any(self, kind: str, parameter: Parameter) -> Any:
        chance = self._chance
        if chance.random() < 0.01:
            return chance.choice([None, True, -1, 1 << 62, 0.5, "x", [], [[]], {}, torch.float32])
        if kind.startswith("Optional["):
            return None if chance.random() < 0.3 else self._any(kind[9:-1], parameter)
        if kind.startswith("List["):
            count = chance.choice([0, 1, 2, 2, 3, 4, 17 if "Tensor" not in kind else 5])
            return [self._any(kind[5:-1], parameter) for _ in range(count)]
        if kind == "Tensor":
            return self._any_tensor(parameter.name)
        if kind == "str":
            return chance.choice(
                [*sorted(_WORDS.get(parameter.name, ())), *(TEXTS if parameter.name in _PATTERNS else "x")]
            )
        return self._any_number(kind)

    def _any_number(self, kind: str) -> Any:
        chance = self._chance
        near = [size + step for size in self._sizes[:8] if abs(size) < 1 << 62 for step in (-1, 0, 1)] or [0]
        simple: dict[str, list[Any]] = {
            "int": [chance.choice(INTEGERS), chance.choice(near), chance.choice([0, 1, 2, -1])],
            "float": FLOATS,
            "number": [
                chance.choice(INTEGERS),
                chance.choice(FLOATS),
                True,
                complex(1, -1),
                complex("nan"),
                (1 << 64) - 1,
            ],
            "bool": [True, False],
            "ScalarType": DTYPES,
            "MemoryFormat": list(MEMORY_FORMAT_OF.values()),
        }
        return chance.choice(simple.get(kind, [None]))

    def _any_tensor(self, name: str) -> Any:
        chance = self._chance
        is_index = "ind" in name or name in (
            "target",
            "repeats",
            "pivots",
            "sorter",
            "offsets",
            "lengths",
            "batch_sizes",
        )
        dtype = (
            chance.choice([torch.int64, torch.int64, torch.int32])
            if is_index and chance.random() < 0.9
            else self._dtype
        )
        dtype = chance.choice(DTYPES) if chance.random() < 0.1 else dtype
        shape = list(self._shape)
        if shape and chance.random() < 0.4:
            shape[chance.randrange(len(shape))] = chance.choice(_SIZES)
        if chance.random() < 0.15:
            shape = shape[: chance.randint(0, len(shape))]
        return self._laid_out(shape, dtype) if chance.random() < 0.2 else self._tensor(shape, dtype, None)

    # --- tensors ------------------------------------------------------------------------------------------

    def _tensor(
        self, shape: list[int], dtype: torch.dtype, values: Sequence[int] | None, is_honest: bool = False
    ) -> torch.Tensor:
        """A dense one; with these integers, or with some that are hostile now and then."""
        while math.prod(shape) > _MOST:
            shape[shape.index(max(shape))] = 3
        flat = self._content(math.prod(shape), dtype, values, is_honest)
        return self._arena.place(flat, at_end=self._chance.random() < 0.7).view(shape)

    def _laid_out(self, shape: list[int], dtype: torch.dtype) -> torch.Tensor:
        """One whose elements do not lie one after the other: transposed, with gaps, in parts shared, or repeated."""
        chance = self._chance
        match chance.randrange(5):
            case 0:
                order = chance.sample(range(len(shape)), len(shape))
                inverse = sorted(range(len(order)), key=lambda at: order[at])
                return self._tensor([shape[at] for at in order], dtype, None).permute(inverse)
            case 1 if shape:
                wide = self._tensor([*shape[:-1], 2 * shape[-1] + 1], dtype, None)
                return wide[..., 1::2]
            case 2 if math.prod(shape):  # neighbours share elements
                strides = [chance.choice([0, 1, 1, 2]) for _ in shape]
                length = 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))
                return self._tensor([length], dtype, None).as_strided(shape, strides)
            case 3:  # no memory to speak of, and a million elements, or 2**40
                rest = max(1, 3 * math.prod(shape[2:]))
                long = 1 << 40 if chance.random() < 0.02 else (1 << chance.choice([12, 22])) // rest
                return self._tensor([1] * max(2, len(shape)), dtype, None).expand(
                    [long, chance.choice([1, 3]), *shape[2:]]
                )
            case _:
                return self._tensor([1] * len(shape), dtype, None).expand(shape)

    def _content(self, count: int, dtype: torch.dtype, values: Sequence[int] | None, is_honest: bool) -> torch.Tensor:
        chance = self._chance
        if values is not None and len(values) == count:
            made = torch.tensor(values).to(dtype)
        elif dtype is torch.bool:
            return torch.rand(count, generator=self._random) < 0.5
        elif dtype.is_floating_point or dtype.is_complex:
            wide = torch.complex64 if dtype.is_complex else torch.float32
            made = torch.randn(count, generator=self._random, dtype=wide).to(dtype)
        else:
            made = torch.randint(0, 4, (count,), generator=self._random).to(dtype)
        if count and not is_honest and chance.random() < 0.4:
            pool = FLOATS if dtype.is_floating_point or dtype.is_complex else _fitting(dtype, self._sizes)
            wrong = torch.tensor(chance.choice(pool), dtype=_widest(dtype)).to(dtype)
            if chance.random() < 0.3:
                made[:] = wrong
            else:
                made[chance.randrange(count)] = wrong
        return made


def _fitting(dtype: torch.dtype, sizes: Sequence[int]) -> list[int]:
    if dtype is torch.bool:
        return [0, 1]
    info = torch.iinfo(dtype)
    return [
        value for value in (*INTEGERS, info.min, info.max, *sizes) if info.min <= value <= min(info.max, (1 << 63) - 1)
    ]


def _widest(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype.is_floating_point or dtype.is_complex else torch.int64


def _sizes_of(value: Any) -> list[int]:
    if isinstance(value, Shown):
        return list(value.shape)
    if type(value) is int:
        return [value]
    return [size for item in value for size in _sizes_of(item)] if isinstance(value, list) else []


def _fields(parameter: Parameter) -> dict[str, Any]:
    return {name: getattr(parameter, name) for name in Parameter.__slots__}


def _inner(kind: str) -> str:
    kind = kind[9:-1] if kind.startswith("Optional[") else kind
    return kind[5:-1] if kind.startswith("List[") else kind
