"""An nn.Module of any architecture as a program.

Captured with torch.export in evaluation form, with every dimension of the inputs left open that the module itself
leaves open: one program serves any batch size. Composite operations (linear, flatten, conv2d) stay whole, so it
serves other ranks too where they do.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import fx, nn
from torch.export import Dim, export
from torch.export.graph_signature import InputKind, OutputKind
from torch.utils import _pytree as pytree

from compute.bodies import LoopMet, refusing
from compute.dtypes import NAME_OF
from compute.examples import find_example, runs
from compute.keeping import kept
from compute.looped_model import looped_spec
from compute.lowering import lowered
from compute.model_spec import ModelSpec, Slot, named_tensors
from compute.open_sizes import with_open_sizes
from compute.program import Input
from compute.program_module import ProgramModule
from compute.sharing import written_inputs
from compute.signature import Signature
from compute.tracing import ProgramBuilder, is_small, quiet, shape_of, unique, without_checks
from compute.values import header_of
from protocol.errors import BadTensor, CannotCapture
from protocol.tensors import TensorHeader

__all__ = ["ModelSpec", "ProgramModule", "Slot", "capture_model"]


def capture_model(module: nn.Module, example: Any = None) -> ModelSpec:
    """The module as a program in evaluation form. The module itself is left as it was.

    Args:
        module: any module whose forward is torch operations on its inputs and branches on shapes at most.
        example: an input (a tensor), or a tuple of positional or a dict of named ones. Only dtypes and shapes count.
            Without one it is worked out from the first layers, and the program then takes inputs of any rank.

    Raises:
        CannotCapture: no input could be worked out, or the module does what programs cannot; the message says what.
    """
    if not isinstance(module, nn.Module):
        raise CannotCapture(f"a torch.nn.Module was wanted, not {type(module).__name__}")
    if any(isinstance(part, torch.jit.ScriptModule) for part in module.modules()):
        raise CannotCapture("a TorchScript module cannot be captured; give the module that it was made from")
    if any(nn.parameter.is_lazy(tensor) for _, tensor in named_tensors(module)):
        raise CannotCapture("a lazy module has no parameters yet; run it on an example first")
    with _evaluating(module), _plain_results(module), quiet(), torch.no_grad():
        if example is None:
            args, kwargs = find_example(module)
        else:
            args, kwargs = _two_rows(module, *_arguments(example))
        try:
            return with_open_sizes(
                module,
                args,
                kwargs,
                lambda *given: _spec(module, lowered(_exported(module, *given))),
                any_rank=example is None,
            )
        except LoopMet:
            return looped_spec(module, args, kwargs)
        except _Refused as refused:
            # What only a function may do: packed sequences, torch.func.grad.
            try:
                return looped_spec(module, args, kwargs)
            except CannotCapture as error:
                raise CannotCapture(f"{refused}; nor does it go as a plan: {error.message}") from None


class _Refused(Exception):
    """By torch.export; it says why. No error of ours yet: perhaps the module goes as a plan."""


def _arguments(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(example, Mapping):
        return (), dict(example)
    return (tuple(example), {}) if isinstance(example, list | tuple) else ((example,), {})


def _two_rows(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """The example as zeros; with two rows where it has one: torch.export takes a size of 1 to be meant."""
    plain = pytree.tree_map_only(torch.Tensor, lambda t: torch.zeros(tuple(t.shape), dtype=t.dtype), (args, kwargs))
    doubled = pytree.tree_map_only(
        torch.Tensor, lambda t: torch.cat([t, t]) if t.dim() > 1 and t.shape[0] == 1 else t, plain
    )
    return doubled if runs(module, *doubled) is None else plain


def _exported(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """torch.export with as many dimensions open as it grants: all, the first of each input, none."""
    bound = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    refusal: Exception | None = None
    for open_dims in (lambda t: [Dim.AUTO] * t.dim(), lambda t: [Dim.AUTO] + [None] * (t.dim() - 1), None):
        shapes = None
        if open_dims is not None:
            shapes = pytree.tree_map(
                lambda t, dims=open_dims: dims(t) if isinstance(t, torch.Tensor) and t.dim() else None, dict(bound)
            )
        token = refusing.set(True)
        try:
            return export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
        except Exception as error:  # torch raises whatever the module's code met
            refusal = refusal or error
        finally:
            refusing.reset(token)
    lines = [line for line in str(refusal).strip().splitlines() if line.strip()]
    raise _Refused(
        f"torch.export refuses the module: {type(refusal).__name__}: {(lines or ['no message'])[0][:500]}"
    ) from None


def _spec(module: nn.Module, exported: Any) -> ModelSpec:
    graph: fx.Graph = exported.graph_module.graph
    without_checks(graph)
    slots, constants = _slots(module, exported)
    by_target = {slot.name: slot.same_as or slot.name for slot in slots if slot.kind != "constant"}
    builder = ProgramBuilder()
    given = dict(
        zip(
            (node for node in graph.nodes if node.op == "placeholder"),
            exported.graph_signature.input_specs,
            strict=True,
        )
    )
    names = _add_inputs(builder, given, slots, by_target, exported.constants)
    leaves: Sequence[Any] = ()
    for node in graph.nodes:
        if node.op == "call_function":
            builder.add_call(node)
        elif node.op == "output":
            leaves = node.args[0]
        elif node.op != "placeholder":
            raise LoopMet  # torch.cond and the like: their bodies are graphs of their own
    specs = exported.graph_signature.output_specs
    kept = [leaf for leaf, spec in zip(leaves, specs, strict=True) if spec.kind is OutputKind.USER_OUTPUT]
    outputs = _plain(pytree.tree_unflatten(kept, exported.call_spec.out_spec))
    program = builder.program(outputs)
    written = written_inputs(program)
    if written:
        name = program.inputs[written[0]].name
        raise CannotCapture(f"the module changes {name} when it runs; programs leave their inputs as they are")
    users = [(node, spec) for node, spec in given.items() if spec.kind is InputKind.USER_INPUT]
    values = [{"input": names[node]} if node in names else getattr(spec.arg, "value", None) for node, spec in users]
    signature = _signature(module, *pytree.tree_unflatten(values, exported.call_spec.in_spec))
    examples = {name: _header(node) for node, name in names.items()}
    return ModelSpec(program, tuple(slots), tuple(names.values()), signature, examples, constants)


def _header(node: fx.Node) -> TensorHeader:
    """Of an input, as it was in the example."""
    value = node.meta["val"]
    shape = tuple(size if isinstance(size, int) else size.node.hint for size in value.shape)
    return TensorHeader(NAME_OF[value.dtype], shape)


def _signature(module: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Signature:
    """What forward takes, where `args` and `kwargs` have {"input": name} for each of the program's inputs."""
    declared = inspect.signature(module.forward)
    bound = declared.bind(*args, **kwargs)
    bound.apply_defaults()
    return Signature.of_call(declared, bound.arguments)


def _slots(module: nn.Module, exported: Any) -> tuple[list[Slot], dict[str, torch.Tensor]]:
    kept = set(module.state_dict(keep_vars=True))
    first: dict[int, str] = {}
    slots: list[Slot] = []
    parameters = {name for name, _ in module.named_parameters(remove_duplicate=False)}
    try:
        for name, tensor in named_tensors(module):
            same = first.setdefault(id(tensor), name)
            kind = "parameter" if name in parameters else "buffer"
            twin = None if same == name else same
            slots.append(Slot(name, header_of(tensor), kind, tensor.requires_grad, name in kept, twin))
        constants: dict[str, torch.Tensor] = {}
        for spec in exported.graph_signature.input_specs:
            if spec.kind is InputKind.CONSTANT_TENSOR and not is_small(exported.constants[spec.target]):
                taken = [slot.name for slot in slots]
                name = unique("constant", taken)
                constants[name] = exported.constants[spec.target].detach()
                slots.append(Slot(name, header_of(constants[name]), "constant", False, False))
    except BadTensor as error:
        raise CannotCapture(f"the module holds a tensor that cannot travel: {error.message}") from None
    return slots, constants


def _add_inputs(
    builder: ProgramBuilder,
    given: Mapping[fx.Node, Any],
    slots: Sequence[Slot],
    by_target: Mapping[str, str],
    constants: Mapping[str, torch.Tensor],
) -> dict[fx.Node, str]:
    """Adds slots first, then what the user gives; returns the names of the latter."""
    node_of = {by_target[spec.target]: node for node, spec in given.items() if spec.target in by_target}
    large = iter([slot.name for slot in slots if slot.kind == "constant"])
    users: list[fx.Node] = []
    for node, spec in given.items():
        if spec.kind is InputKind.CONSTANT_TENSOR:
            if is_small(constants[spec.target]):
                builder.add_constant(node, constants[spec.target])
            else:
                node_of[next(large)] = node
        elif spec.kind is InputKind.USER_INPUT:
            users.append(node)
        elif spec.kind not in (InputKind.PARAMETER, InputKind.BUFFER):
            raise CannotCapture(f"the module takes {spec.target}, which is no tensor")
    for slot in slots:
        if slot.same_as is None:
            builder.add_input(node_of.get(slot.name), Input(slot.name, slot.header.dtype, slot.header.shape))
    for node, spec in given.items():
        if spec.target in by_target:
            builder.add_alias(node, by_target[spec.target])
    names: dict[fx.Node, str] = {}
    for node in users:
        value = node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue  # a plain value of the example: a constant in the program
        name = unique(node.name, [known.name for known in builder.inputs])
        builder.add_input(node, Input(name, NAME_OF[value.dtype], shape_of(value)))
        names[node] = name
    return names


def _plain(value: Any) -> Any:
    """Results as tuples, lists and dicts: a library's own result class is a mapping, or no class of ours."""
    if isinstance(value, Mapping):
        if len({str(key) for key in value}) < len(value):
            raise CannotCapture(f"two keys of a dict that the module gives are written alike: {list(value)[:10]}")
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, tuple):
        return tuple(_plain(item) for item in value)
    return [_plain(item) for item in value] if isinstance(value, list) else value


@contextmanager
def _plain_results(module: nn.Module) -> Iterator[None]:
    """A result that is a dataclass is a dict of its fields, for a while: no peer has its class."""
    hook = module.register_forward_hook(lambda _module, _given, result: _fields(result))
    try:
        yield
    finally:
        hook.remove()


def _fields(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type | Mapping):
        return {field.name: _fields(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if type(value) is dict:
        return {key: _fields(item) for key, item in value.items()}
    return type(value)(map(_fields, value)) if type(value) in (list, tuple) else value


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """The module in evaluation mode; afterwards all of it is as it was, also what its forward left behind."""
    with kept([module]):
        module.eval()
        yield
