"""What a model's `forward` takes, as data: its arguments by name, and where in them its input tensors are.

Torch-free. A value is written as a template: {"input": name} for an input tensor; {"tuple": [...]}, a list or {"map":
{name: ...}} of templates; none, a truth, a number or text for what was so when the model was captured, and is part of
its program; {"fixed": text} for anything else that was.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from compute.wire import MAX_TEXT, MAX_VALUE_DEPTH, shown
from protocol import limits
from protocol.errors import BadProgram, BadRequest

_PLAIN: Final = (bool, int, float, str)


@dataclass(frozen=True, slots=True)
class Argument:
    """One argument of `forward`: its name, the template of its value, and whether it is given by name only."""

    name: str
    value: Any
    is_named: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MAX_TEXT or not self.name.isprintable():
            raise BadProgram(f"{shown(self.name)} is no name of an argument of a model")
        if type(self.is_named) is not bool:
            raise BadProgram(f"{self.name}: an argument is given by name only, or not")
        _check(self.value, 0)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the tensors in it, in order."""
        return tuple(_inputs(self.value))


@dataclass(frozen=True, slots=True)
class Signature:
    """All arguments of `forward`, in its order.

    Raises:
        BadProgram: two of one name, or something that is no template.
    """

    arguments: tuple[Argument, ...]

    def __post_init__(self) -> None:
        if len({argument.name for argument in self.arguments}) < len(self.arguments):
            raise BadProgram("two arguments of a model have one name")

    @classmethod
    def of_tensors(cls, names: tuple[str, ...]) -> Signature:
        """One tensor for each argument."""
        return cls(tuple(Argument(name, {"input": name}) for name in names))

    @classmethod
    def of_call(cls, declared: inspect.Signature, values: Mapping[str, Any]) -> Signature:
        """What a call gave: `values` by parameter, with {"input": name} in place of tensors. Each of *args and **kwargs
        becomes an argument of its own."""
        found: list[Argument] = []
        for name, value in values.items():
            kind = declared.parameters[name].kind
            if kind is inspect.Parameter.VAR_POSITIONAL:
                found += [Argument(f"{name}_{number}", template(item)) for number, item in enumerate(value)]
            elif kind is inspect.Parameter.VAR_KEYWORD:
                found += [Argument(key, template(item), is_named=True) for key, item in value.items()]
            else:
                found.append(Argument(name, template(value), kind is inspect.Parameter.KEYWORD_ONLY))
        return cls(tuple(found))

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the tensors in all arguments, in order."""
        return tuple(name for argument in self.arguments for name in argument.inputs)

    def __str__(self) -> str:
        return ", ".join(
            argument.name if argument.inputs else f"{argument.name}={_shown(argument.value)}"
            for argument in self.arguments
        )

    def bind(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """The tensors in the arguments of a call, by the names of the inputs.

        Raises:
            BadRequest: they are not what the model takes; the message says what that is.
        """
        by_position = [argument for argument in self.arguments if not argument.is_named]
        if len(args) > len(by_position) or not kwargs.keys() <= {argument.name for argument in self.arguments}:
            raise BadRequest(f"the model takes {str(self) or 'nothing'}")
        given = {argument.name: value for argument, value in zip(by_position, args, strict=False)}
        if given.keys() & kwargs.keys():
            raise BadRequest(f"the model takes {self}, each once")
        given.update(kwargs)
        missing = [argument.name for argument in self.arguments if argument.inputs and argument.name not in given]
        if missing:
            raise BadRequest(f"the model needs {', '.join(missing)} too")
        found: dict[str, Any] = {}
        for argument in self.arguments:
            if argument.name in given:
                _match(argument.value, given[argument.name], argument.name, found)
        return found

    def to_wire(self) -> list[Any]:
        return [[argument.name, argument.value, argument.is_named] for argument in self.arguments]

    @classmethod
    def from_wire(cls, value: object) -> Signature:
        if not isinstance(value, list) or len(value) > limits.MAX_ARRAY:
            raise BadProgram("the arguments of a model are a list")
        if not all(isinstance(item, list) and len(item) == 3 for item in value):
            raise BadProgram("an argument of a model is a list of name, value, and whether it is given by name only")
        return cls(tuple(Argument(*item) for item in value))


def template(value: Any) -> Any:
    """The template of a value in which every input tensor is {"input": name} already."""
    if isinstance(value, Mapping):
        if set(value) == {"input"}:
            return dict(value)
        if all(isinstance(key, str) for key in value):
            return {"map": {key: template(item) for key, item in value.items()}}
    elif isinstance(value, tuple):
        return {"tuple": [template(item) for item in value]}
    elif isinstance(value, list):
        return [template(item) for item in value]
    elif value is None or (type(value) in _PLAIN and len(str(value)) <= MAX_TEXT):
        return value
    return {"fixed": shown(value)}


def _check(value: object, depth: int) -> None:
    if depth > MAX_VALUE_DEPTH:
        raise BadProgram(f"an argument of a model nests more than {MAX_VALUE_DEPTH} deep")
    if value is None or type(value) in _PLAIN:
        return
    inner: Any = value
    if isinstance(value, Mapping) and len(value) == 1:
        kind, inner = next(iter(value.items()))
        if kind in ("input", "fixed") and isinstance(inner, str):
            return
        if kind == "map" and isinstance(inner, Mapping) and all(isinstance(key, str) for key in inner):
            inner = list(inner.values())
        elif kind != "tuple":
            inner = None
    if not isinstance(inner, list):
        raise BadProgram(f"{shown(value)} is no value of an argument of a model")
    for item in inner:
        _check(item, depth + 1)


def _inputs(value: Any) -> Iterator[str]:
    if isinstance(value, Mapping) and "input" in value:
        yield value["input"]
    for item in _items(value):
        yield from _inputs(item)


def _items(value: Any) -> list[Any]:
    if isinstance(value, Mapping):
        if "map" in value:
            return list(value["map"].values())
        return list(value.get("tuple", ()))
    return list(value) if isinstance(value, list) else []


def _match(value: Any, given: Any, where: str, found: dict[str, Any]) -> None:
    if isinstance(value, Mapping) and "input" in value:
        if given is None:
            raise BadRequest(f"the model needs {where} too")
        found[value["input"]] = given
    elif isinstance(value, Mapping) and "map" in value:
        if not isinstance(given, Mapping) or given.keys() != value["map"].keys():
            raise BadRequest(f"{where} is a dict of {', '.join(value['map'])}")
        for key, item in value["map"].items():
            _match(item, given[key], f"{where}[{key!r}]", found)
    elif isinstance(value, list) or (isinstance(value, Mapping) and "tuple" in value):
        items = _items(value)
        if not isinstance(given, list | tuple) or len(given) != len(items):
            raise BadRequest(f"{where} is a {'list' if isinstance(value, list) else 'tuple'} of {len(items)}")
        for number, item in enumerate(items):
            _match(item, given[number], f"{where}[{number}]", found)
    elif isinstance(value, Mapping) or type(given) is not type(value) or given != value:
        raise BadRequest(
            f"the model was captured with {where}={_shown(value)}, which is part of its program: leave it out, or send "
            f"the module again with an example that has another"
        )


def _shown(value: Any) -> str:
    return str(value["fixed"]) if isinstance(value, Mapping) and "fixed" in value else shown(value)
