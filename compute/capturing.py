"""One capture: a function and its arguments, run once on fake tensors, and the program that comes of it."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch._dispatch.python import enable_python_dispatcher
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from compute import bodies, constants, effects, interpreter, steady
from compute.assembling import Assembler
from compute.frames import Ref, Source, storage_of
from compute.given import Given, named_tensors
from compute.gradients import Gradients
from compute.hooks import LOOPS
from compute.inlining import inlined
from compute.left import Left, hangs_on
from compute.linearized import linearized
from compute.program import Program
from compute.recorder import Recorder, WantsGradients
from compute.refusals import Watch, at_function, explained, refusal
from compute.sizes import OpenSizes
from compute.stepping import stepping
from compute.tracing import quiet
from protocol.errors import BadProgram, BadRequest, CannotCapture, GridError, RequestError

LOADED: Final = "load:"  # prefix of the names of inputs that `load` made


@dataclass(frozen=True, slots=True)
class Captured:
    """A captured function.

    Attributes:
        program: its inputs are named by path: "images", "batch.0", "model.fc.weight", "load:#digits #test". It gives
            what the function returns; where the function changes modules or optimisers that it was given, a map of
            "result" and "state": new values by path.
        constants: tensors from outside the function that are too large to be written into the program, and pointers.
            They are its last inputs, in this order.
        given: what each input was in the examples, by name.
        state: the paths of what the function changes in its arguments, sorted.
        returned: what the function returns, with a Returned where it returns a module or an optimiser, and a Named
            where it returns a named tuple.
        notes: what could not be left open, in words.
        left: the plain values that the function leaves in its arguments: rates, epochs, attributes of modules.
    """

    program: Program
    constants: Mapping[str, torch.Tensor]
    given: Mapping[str, torch.Tensor] = field(default_factory=dict)
    state: tuple[str, ...] = ()
    returned: Any = None
    notes: tuple[str, ...] = ()
    left: tuple[Left, ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The paths of all inputs, in order."""
        return tuple(given.name for given in self.program.inputs)

    def result(self, outputs: Any, remade: Callable[[Returned, Mapping[str, Any]], Any] | None = None) -> Any:
        """What the function returns, of what the program gave. `remade` makes a module or optimiser of new tensors by
        name; without it they are dicts of their tensors."""
        plain = outputs["result"] if self.state else outputs
        return _rebuilt(self.returned, plain, remade or (lambda _, tensors: dict(tensors)))

    def changes(self, outputs: Any) -> dict[str, Any]:
        """The new value of everything that the function changed in its arguments, by path."""
        return dict(outputs["state"]) if self.state else {}


@dataclass(frozen=True, slots=True)
class Returned:
    """Something that a function returned that is no tensor and no plain structure: in the program it is a map of its
    tensors. `path`: the argument that it was; None for one that the function made."""

    value: Any
    path: str | None = None


@dataclass(frozen=True, slots=True)
class Named:
    """A named tuple that a function returned: its class, and what is to be made of its items."""

    kind: Any
    items: tuple[Any, ...]


def load(query: str) -> Any:
    """Inside a function that is being captured: the input that stands for the object that the query finds."""
    found = _loads.get()
    if found is None:
        raise BadRequest("load works inside a plan, while it is captured; elsewhere search for the object")
    if query not in found:
        raise CannotCapture(f"the plan loads {query!r}, which has not been resolved", load=query)
    return found[query]


_loads: ContextVar[Mapping[str, Any] | None] = ContextVar("loads", default=None)
_one_at_a_time = threading.RLock()  # some of torch's settings are changed meanwhile


# --- one run ----------------------------------------------------------------------------------------------


class Capture:
    """A function, its arguments and the sizes that are to be open: captured the quick way, or with gradients."""

    def __init__(
        self,
        function: Callable[..., Any],
        given: Given,
        sizes: OpenSizes | None,
        dims: Mapping[str, Sequence[int]] | None = None,
        rows: Mapping[int, int] | None = None,
    ) -> None:
        self._function, self._given, self._sizes = function, given, sizes
        self._dims, self._rows = dims or {}, rows or {}
        self._sources: dict[str, Source] = {}
        self._left: tuple[Left, ...] = ()
        self._gradients: Gradients | None = None
        self._stash: dict[tuple[str, str, str], Any] = {}  # what modules keep of the run before
        self._stashed: dict[tuple[str, str, str], Any] = {}

    def captured(self) -> Captured:
        with _one_at_a_time, quiet():
            try:
                return self._steady(has_gradients=False)
            except WantsGradients:
                self._begin_again()
                return self._steady(has_gradients=True)

    def _begin_again(self) -> None:
        if self._sizes is not None:
            self._sizes.begin_again()

    def _steady(self, *, has_gradients: bool) -> Captured:
        """Where modules keep tensors by plain attributes, which do not come out: that the next call does not go by them
        (an attention that is kept to be looked at is made anew) shows where it is run once more with them there."""
        self._stash = {}
        found = self._run(has_gradients=has_gradients)
        if not self._stashed:
            return found
        (_, _, name), self._stash = next(iter(self._stashed)), self._stashed
        self._begin_again()
        try:
            again = self._run(has_gradients=has_gradients).program.id
        except CannotCapture:
            again = ""
        if again != found.program.id:
            raise CannotCapture(
                f"the module keeps a tensor in {name!r} for its next call, and only parameters and buffers come back: "
                f"make it a buffer (self.register_buffer({name!r}, ...)), or take it as an argument and return it"
            )
        return found

    def _run(self, *, has_gradients: bool, find_line: bool = False) -> Captured:
        fake = self._sizes.fake if self._sizes is not None else FakeTensorMode(allow_non_fake_inputs=True)
        recorder = Recorder(fake, has_gradients, self._sizes)
        tensors = self._inputs(recorder, has_gradients)
        try:
            with effects.watched(find_line):
                outputs, returned, state = self._traced(recorder, tensors, has_gradients)
        except effects.Drawn:
            self._run(has_gradients=has_gradients, find_line=True)
            raise AssertionError("it said where") from None
        effects.check_kept(self._function)
        return self._assembled(recorder, outputs, returned, state)

    def _inputs(self, recorder: Recorder, has_gradients: bool) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        self._sources = {}
        for path, example in self._given.tensors.items():
            # Examples of other strides are captured as contiguous ones: that is how they arrive at a peer.
            shape = tuple(example.shape)
            if self._sizes is None or path in self._given.state:
                tensor = recorder.empty(shape, example.dtype)
            else:
                dims = self._dims.get(path, ())
                if 0 in dims:
                    shape = (self._rows.get(shape[0], shape[0]), *shape[1:])
                tensor = self._sizes.tensor(path, shape, example.dtype, [dim in dims for dim in range(len(shape))])
            self._sources[path] = recorder.root.add_input(path, tensor, may_write=path in self._given.state)
            if isinstance(example, torch.nn.Parameter):
                tensor._is_param = True  # what isinstance asks for
            if has_gradients and path in self._given.trained:
                tensor.requires_grad_()
            found[path] = tensor
        return found

    def _traced(
        self, recorder: Recorder, tensors: Mapping[str, torch.Tensor], has_gradients: bool
    ) -> tuple[Any, Any, dict[str, Any]]:
        watch = Watch(
            recorder.stand_in, LOOPS, recorder.want_gradients, lambda tensor: constants.known(recorder.frame, tensor)
        )
        try:
            with self._prepared(recorder, has_gradients), self._given.swapped(tensors), watch, recorder:
                before = self._given.before
                before.stash(self._stash)
                self._gradients = gradients = Gradients(self._given, recorder, tensors)
                with gradients.watched():
                    result = self._call(tensors)
                if watch.refused is not None:
                    raise watch.refused
                with recorder.paused(), at_function(self._function):
                    outputs, returned = self._flattened(recorder, result)
                    state = self._changed(recorder)
                    data = {id(source) for path, source in self._sources.items() if path not in self._given.state}
                    self._left = before.left()
                    self._stashed = before.stashed(lambda tensor: hangs_on(recorder.root, tensor, data))
                    gradients.look()
                return outputs, returned, state
        except (GridError, WantsGradients):
            raise
        except Exception as error:
            if not has_gradients and "does not require grad" in str(error):
                raise WantsGradients from None
            raise explained(error) from None

    @contextmanager
    def _prepared(self, recorder: Recorder, has_gradients: bool) -> Iterator[None]:
        def is_known(tensor: torch.Tensor) -> bool:
            return isinstance(tensor, FakeTensor)

        below = nullcontext() if has_gradients else _below_autograd()
        python = enable_python_dispatcher() if self._sizes is not None else nullcontext()
        token, inside = bodies.recording.set(recorder), interpreter.instead.set(inlined)
        try:
            steps = stepping(is_known, [found.scheduler for found in self._given.schedulers])
            with torch.set_grad_enabled(has_gradients), recorder.fake, python, below, steps, linearized():
                yield
        finally:
            bodies.recording.reset(token)
            interpreter.instead.reset(inside)

    def _call(self, tensors: Mapping[str, torch.Tensor]) -> Any:
        inputs = self._given.rebuilt(self._given.arguments, tensors)
        loaded = {query: self._given.rebuilt(found, tensors) for query, found in self._given.loads.items()}
        token = _loads.set(loaded)
        try:
            return self._function(**inputs) if isinstance(inputs, dict) else self._function(*inputs)
        finally:
            _loads.reset(token)

    # --- results ------------------------------------------------------------------------------------------

    def _flattened(self, recorder: Recorder, value: Any) -> tuple[Any, Any]:
        """What the function gave, as outputs of the program; and what to make of them again."""
        if isinstance(value, torch.Tensor):
            stands_for = (
                recorder.stand_in(value) if not isinstance(value, FakeTensor) and _is_elsewhere(value) else value
            )
            return recorder.find(stands_for), None
        if isinstance(value, torch.nn.Module):
            path = next((found.path for found in self._given.modules if found.module is value), None)
            return self._map(recorder, dict(named_tensors(value))), Returned(value, path)
        if isinstance(value, torch.optim.Optimizer):
            path = next((found.path for found in self._given.optimizers if found.optimizer is value), None)
            kept = {f"{n}.{key}": item for n, state in enumerate(value.state.values()) for key, item in state.items()}
            return self._map(recorder, kept), Returned(value, path)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            value = {item.name: getattr(value, item.name) for item in dataclasses.fields(value)}
        if isinstance(value, Mapping):
            if len({str(key) for key in value}) < len(value):
                raise refusal(f"two keys of a dict that the function returns are written alike: {list(value)[:10]}")
            parts = {key: self._flattened(recorder, item) for key, item in value.items()}
            return {"map": {str(key): out for key, (out, _) in parts.items()}}, {
                key: made for key, (_, made) in parts.items()
            }
        if isinstance(value, tuple | list):
            both = [self._flattened(recorder, item) for item in value]
            outs, made = [out for out, _ in both], [each for _, each in both]
            if hasattr(value, "_fields"):
                return {"tuple": outs}, Named(type(value), tuple(made))
            return ({"tuple": outs}, tuple(made)) if isinstance(value, tuple) else (outs, made)
        if isinstance(value, torch.SymInt | torch.SymFloat) and self._sizes is not None:
            return self._sizes.value(value, recorder.root), None
        if isinstance(value, torch.SymBool):
            return bool(value), None
        if not isinstance(value, bool | int | float | complex | str | None):
            raise refusal(
                f"the function returns {type(value).__name__}; results are tensors, numbers, texts and modules, "
                "in lists, tuples and dicts"
            )
        return {"complex": [value.real, value.imag]} if isinstance(value, complex) else value, None

    def _map(self, recorder: Recorder, tensors: Mapping[str, Any]) -> dict[str, Any]:
        return {"map": {name: recorder.find(item) for name, item in tensors.items() if isinstance(item, torch.Tensor)}}

    def _changed(self, recorder: Recorder) -> dict[str, Any]:
        """What modules and optimisers hold now that they did not before, by path."""
        found: dict[str, Any] = {}
        done: set[str] = set()
        for path, before, tensor in self._given.held():
            value = recorder.find(tensor)
            if before is None:
                found[path] = value
            elif before not in done:
                done.add(before)
                source = self._sources[before]
                if value != Ref(source) or storage_of(source.tensor) in recorder.root.written:
                    found[before] = value
        return found

    def _assembled(self, recorder: Recorder, outputs: Any, returned: Any, state: dict[str, Any]) -> Captured:
        root = recorder.root
        everything = {"map": {"result": outputs, "state": {"map": state}}} if state else outputs
        root.outputs = [everything]
        inputs = list(root.inputs)
        steady.prune(root)
        root.inputs = inputs
        assert self._gradients is not None
        self._gradients.take_out()
        (everything,) = root.outputs
        shapes = self._sizes.shapes() if self._sizes is not None else {}
        try:
            program = Assembler(shapes).program(root, everything)
        except (BadProgram, RequestError) as error:
            raise CannotCapture(f"the function makes no program: {error.message}") from None
        given = {**self._given.tensors, **recorder.outside}
        return Captured(program, dict(recorder.outside), given, tuple(sorted(state)), returned, left=self._left)


@contextmanager
def _below_autograd() -> Iterator[None]:
    guard = torch._C._AutoDispatchBelowAutograd()
    try:
        yield
    finally:
        del guard


def _is_elsewhere(value: torch.Tensor) -> bool:
    return type(value) not in (torch.Tensor, torch.nn.Parameter)


def _rebuilt(template: Any, value: Any, remade: Callable[[Returned, Mapping[str, Any]], Any]) -> Any:
    if isinstance(template, Returned):
        return remade(template, value)
    if isinstance(template, Named):
        return template.kind(*_rebuilt(template.items, value, remade))
    if isinstance(template, dict):
        return {key: _rebuilt(item, value[str(key)], remade) for key, item in template.items()}
    if isinstance(template, list | tuple):
        items = [_rebuilt(item, each, remade) for item, each in zip(template, value, strict=True)]
        return tuple(items) if isinstance(template, tuple) else items
    return value
