"""Hostile operations, sent raw to a real peer by somebody who proved a key: refused by name before anything is made."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgpack
import pytest

from peer.connection import Connection
from peer.folders import Folders
from peer.keys import Identity
from peer.neighbours import Neighbours
from protocol import limits
from protocol.codec import MAGIC, VERSION, FrameType
from protocol.errors import BadRequest, GridError, OperationNotAllowed, RequestError, TooLarge
from tests.waiting import until

from .conftest import attacking

MIB = 1 << 20
MALLORY, HONEST = Identity.generate(), Identity.generate()  # one worker each for all of these tests
X = "the tensor x"  # stands for its id in what follows
I = "the tensor i"  # noqa: E741


FILES_AND_CODE = """
    aten.from_file.default aten.from_file.out aten.save.default aten._print.default aten.warn.default
    aten.warn_stacklevel.default aten.Tensor.untyped_storage aten.storage.default aten.data_ptr.default
    aten.share_memory_.default aten.numpy.default aten.tofile.default aten.apply_.default aten.map_.default
    debugprims.load_tensor.default debugprims.delete_tensor.default torch.ops.load_library ops.load_library
    aten.load_library.default torch.classes torch.load torch.save torch.hub.load torch.package torch.jit.load
    torch.export.load torch.compile torch.utils.cpp_extension.load torch.utils.collect_env torch.multiprocessing.spawn
    torch.distributed.init_process_group _c10d_functional.all_reduce.default c10d.send.default c10d.broadcast_.default
    symm_mem.one_shot_all_reduce.default profiler._record_function_enter_new.default torch.library.define
    prim.Print.default prims.device_put.default prims.empty_strided.default prims._sink_tokens.default
    inductor._alloc_from_pool.default inductor._reinterpret_tensor.default rngprims.philox_rand.default
    quantized.conv2d.new mkldnn._linear_pointwise.default mkl._mkl_linear.default onednn.qlinear_pointwise.default
    fbgemm.gmm.default export.access_subclass_inner_tensor.default higher_order.cond aten.to.device aten.cpu.default
    aten.cuda.default aten.pin_memory.default aten._pin_memory.default aten.is_pinned.default aten.to_mkldnn.default
    aten.to_sparse.default aten.sparse_coo_tensor.size aten.quantize_per_tensor.default aten._to_sparse.default
    aten._nested_tensor_from_tensor_list.default aten._sparse_coo_tensor_unsafe.default aten.record_stream.default
    aten._cuda_getCurrentRawStream.default aten._use_cudnn_ctc_loss.default aten._debug_has_internal_overlap.default
""".split()
HEAP = """
    aten._stack.default aten._stack.out aten._cat.default aten.mkldnn_rnn_layer.default
    aten.mkldnn_rnn_layer_backward.default aten.quantized_lstm.input aten.quantized_gru.input
    aten.fbgemm_linear_int8_weight.default aten.fbgemm_pack_gemm_matrix_fp16.default aten._sobol_engine_draw.default
    aten._sobol_engine_ff_.default aten._nested_view_from_buffer.default aten._convert_indices_from_csr_to_coo.default
    aten._convert_indices_from_coo_to_csr.default aten._weight_norm.default aten._weight_norm_interface.default
    aten._weight_norm_interface_backward.default aten._thnn_fused_lstm_cell.default aten._index_put_impl_.default
    aten._embedding_bag_sparse_backward.default aten.segment_reduce.default aten._segment_reduce_backward.default
    aten._cdist_backward.out aten.add.out aten.mm.out aten.cat.out aten._ctc_loss.out aten.embedding_bag.out
""".split()
UNINITIALISED_OR_SHARED = """
    aten.empty.memory_format aten.empty.names aten.empty.out aten.empty_like.default aten.empty_strided.default
    aten.empty_permuted.default aten.new_empty.default aten.new_empty_strided.default aten.empty_quantized.default
    aten._empty_affine_quantized.default aten.resize_.default aten.resize_as_.default aten.resize.default
    aten.set_.default aten.set_.source_Storage aten.set_.source_Tensor aten.set_.source_Storage_storage_offset
    aten.set_data.default aten.set.source_Tensor aten._reshape_alias.default aten._resize_output_.default
    aten.as_strided_.default aten._unsafe_view.out aten.data.default aten._version.default aten._base.default
    aten._efficientzerotensor.default aten.item.default aten._local_scalar_dense.default aten.is_nonzero.default
    aten.equal.default aten.requires_grad_.default aten.retain_grad.default aten._backward.default
    aten.unsafe_storage.default aten._fw_primal.default aten.lift.default aten._lazy_clone.default
""".split()
LOOK_ALIKES = [
    *("", ".", "..", "aten", "aten.", "aten..", "aten.add", "aten.add.", "aten..Tensor", ".add.Tensor", "add.Tensor"),
    *("aten.__class__", "aten.add.__class__", "aten.add.Tensor.__class__", "aten.add.Tensor.__call__"),
    *("aten.__dict__.default", "aten.__getattr__.default", "aten.add.Tensor.op", "aten.add.Tensor._schema"),
    *("__class__", "__import__('os').system", "os.system", "torch.os.system", "torch.os.popen", "builtins.eval"),
    *("aten.Add.Tensor", "ATEN.add.Tensor", "aten.add.tensor", "aten.add.Tensor ", " aten.add.Tensor"),
    *("aten.add.Tensor\0", "aten.add\n.Tensor", "aten/add/Tensor", "aten::add.Tensor", "torch.ops.aten.add.Tensor"),
    *("аten.add.Tensor", "aten.аdd.Tensor", "aten․add․Tensor", "aten.add.Ｔensor", "aten.a\u0308dd.Tensor"),
    *("aten.add.Tensor\u200b", "\u202eaten.add.Tensor", "aten.ﬁll_.Scalar", "aten.add.Scalar_mode", "aten.add.default"),
    *("aten.mm.Tensor", "aten.cumsum.dimname", "aten.sum.dim_DimnameList", "aten.sort.dimname", "aten.to.prim_Device"),
    *("x" * 5_000, "aten." * 1_000, "aten.add.Tensor" + "\\" * 500, "int.add", "float.sqrt", "int.__class__"),
]  # fmt: skip


async def run(connection: Connection, operations: Sequence[list[Any]]) -> list[Any]:
    """What became of each: None, or its fault as an error."""
    answer = await connection.request("run", {"operations": list(operations)}, timeout=100)
    faults = answer.result["results"] or [None] * len(operations)  # nothing is said where all is well
    return [fault and GridError.from_fault(fault) for fault in faults]


async def two_tensors(connection: Connection) -> dict[str, bytes]:
    x, i = os.urandom(16), os.urandom(16)
    await connection.request("put", {"id": x, "kind": "tensor", "dtype": "float32", "shape": [2, 2]}, bytes(16))
    await connection.request("put", {"id": i, "kind": "tensor", "dtype": "int64", "shape": [2]}, bytes(16))
    return {X: x, I: i}


def with_ids(value: Any, ids: dict[str, bytes]) -> Any:
    if isinstance(value, list):
        return [with_ids(item, ids) for item in value]
    return ids.get(value, value) if isinstance(value, str) else value


async def works(connection: Connection) -> None:
    """The very session that attacked, and its worker, go on."""
    ids, out = await two_tensors(connection), os.urandom(16)
    assert await run(connection, [["aten.exp.default", [ids[X]], {}, [out]]]) == [None]
    (reply,) = [await connection.request("fetch", {"id": out})]
    assert bytes(reply.payload) == b"\0\0\x80\x3f" * 4


def descendants(pid: int) -> Iterator[int]:
    """Every process below this one: zygote and workers."""
    for child in Path(f"/proc/{pid}/task").glob("*/children"):
        for each in child.read_text().split():
            yield int(each)
            yield from descendants(int(each))


def own_memory(folders: Folders) -> dict[int, int]:
    """Bytes that the victim's workers have had at most, by process."""
    (victim,) = Neighbours(folders.peers).list()
    found = {}
    for pid in descendants(victim.pid):
        words = Path(f"/proc/{pid}/status").read_text().split()
        if "VmHWM:" in words:
            found[pid] = int(words[words.index("VmHWM:") + 1]) * 1024
    return found


@pytest.mark.parametrize(
    "names",
    [FILES_AND_CODE, HEAP, UNINITIALISED_OR_SHARED, LOOK_ALIKES],
    ids=["files and code", "heap", "uninitialised or shared", "look-alikes"],
)
async def test_what_is_not_in_the_table_is_refused_by_its_name(victim: Folders, names: list[str]) -> None:
    async with attacking(victim, MALLORY) as mallory:
        ids = await two_tensors(mallory)
        outs = [os.urandom(16) for _ in names]
        operations = [[name, [ids[X]], {}, [out]] for name, out in zip(names, outs, strict=True)]
        results = [fault for at in range(0, len(names), 60) for fault in await run(mallory, operations[at : at + 60])]
        wrong = {name: fault for name, fault in zip(names, results, strict=True) if not _is_refused(fault)}
        assert not wrong
        with pytest.raises(OperationNotAllowed):
            await mallory.request("fetch", {"id": outs[0]})
        await works(mallory)


def _is_refused(fault: GridError | None) -> bool:
    return isinstance(fault, OperationNotAllowed) and len(fault.message) < 500


ARGUMENTS: dict[str, list[Any]] = {
    "dtype as an integer": ["aten.softmax.int", [X, 0, -5], {}],
    "dtype as a large integer": ["aten.to.dtype", [X, 1000], {}],
    "dtype as text": ["aten.zeros.default", [[2]], {"dtype": "float32"}],
    "dtype that is none": ["aten.zeros.default", [[2]], {"dtype": {"dtype": "os"}}],
    "dtype of no dense tensor": ["aten.zeros.default", [[2]], {"dtype": {"dtype": "qint8"}}],
    "dtype twice": ["aten.zeros.default", [[2]], {"dtype": {"dtype": "int8", "memory_format": "preserve_format"}}],
    "device": ["aten.zeros.default", [[2]], {"device": "cuda:0"}],
    "meta device": ["aten.zeros.default", [[2]], {"device": "meta"}],
    "layout": ["aten.zeros.default", [[2]], {"layout": "sparse_coo"}],
    "layout as an integer": ["aten.zeros.default", [[2]], {"layout": 1}],
    "pinned": ["aten.zeros.default", [[2]], {"pin_memory": True, "device": 0}],
    "generator": ["aten.bernoulli.default", [X], {"generator": "cuda:0"}],
    "storage": ["aten.add.Tensor", [{"storage": 1}, X], {}],
    "out": ["aten.add.Tensor", [X, X], {"out": X}],
    "name twice": ["aten.add.Tensor", [X, X], {"other": X}],
    "name that is none": ["aten.add.Tensor", [X, X], {"__class__": X}],
    "too few": ["aten.add.Tensor", [X], {}],
    "too many": ["aten.add.Tensor", [X] * 300, {}],
    "bool as int": ["aten.sum.dim_IntList", [X, [True]], {}],
    "float as int": ["aten.sum.dim_IntList", [X, [1.0]], {}],
    "int as bool": ["aten.sum.dim_IntList", [X, [0], 1], {}],
    "text as int": ["aten.sum.dim_IntList", [X, ["0"]], {}],
    "text as tensor": ["aten.neg.default", ["__class__"], {}],
    "list as tensor": ["aten.neg.default", [[X]], {}],
    "map as tensor": ["aten.neg.default", [{}], {}],
    "none as tensor": ["aten.neg.default", [None], {}],
    "tensor as list": ["aten.cat.default", [X], {}],
    "numbers as tensors": ["aten.cat.default", [[1, 2]], {}],
    "integer beyond 63 bits as a bound": ["aten.slice.Tensor", [X, 0, 0, (1 << 64) - 1], {}],
    "lowest integer": ["aten.select.int", [X, 0, -(1 << 63)], {}],
    "word of another operation": ["aten.scatter.reduce", [X, 0, I, X], {"reduce": "__class__"}],
    "code as an equation": ["aten.einsum.default", ["ij->ji; import os", [X]], {}],
    "long text": ["aten.einsum.default", ["i" * 10_000, [X]], {}],
    "number in a map": ["aten.add.Tensor", [X, {"complex": [1]}], {}],
    "reference of a program": ["aten.neg.default", [{"node": 0}], {}],
    "a tensor in a tensor": ["aten.neg.default", [{"tensor": {"tensor": {}}}], {}],
}


@pytest.mark.parametrize("attack", ARGUMENTS)
async def test_an_argument_of_another_kind_is_a_bad_request(victim: Folders, attack: str) -> None:
    async with attacking(victim, MALLORY) as mallory:
        name, args, kwargs = ARGUMENTS[attack]
        ids, out = await two_tensors(mallory), os.urandom(16)
        kwargs = {key: with_ids(value, ids) for key, value in kwargs.items()}
        (fault,) = await run(mallory, [[name, with_ids(args, ids), kwargs, [out]]])
        assert type(fault) is BadRequest and fault.operation == name and len(fault.message) < 500
        await works(mallory)


TEN12 = 10**12
UNBOUNDED: dict[str, list[list[Any]]] = {
    "zeros": [["aten.zeros.default", [[TEN12]], {}]],
    "zeros, within the limit of each": [["aten.zeros.default", [[1 << 30, 1 << 10]], {}]],
    "ones": [["aten.ones.default", [[TEN12]], {}]],
    "full": [["aten.full.default", [[1 << 31, 1 << 31], 1], {}]],
    "arange": [["aten.arange.default", [TEN12], {}]],
    "arange by tiny steps": [["aten.arange.start_step", [0, 1, 1e-12], {}]],
    "eye": [["aten.eye.default", [10**6], {}]],
    "linspace": [["aten.linspace.default", [0, 1, TEN12], {}]],
    "randperm": [["aten.randperm.default", [1 << 31], {}]],
    "tril_indices": [["aten.tril_indices.default", [1 << 20, 1 << 20], {}]],
    "repeat": [["aten.repeat.default", [X, [1 << 20, 1 << 20]], {}]],
    "tile": [["aten.tile.default", [X, [TEN12]], {}]],
    "expand and clone": [["aten.expand.default", [X, [TEN12, 2, 2]], {}], ["aten.clone.default", ["before"], {}]],
    "expand, then clone": [["aten.expand.default", [X, [1 << 30, 2, 2]], {}], ["aten.clone.default", ["before"], {}]],
    "one_hot": [["aten.one_hot.default", [I, TEN12], {}]],
    "one_hot by its value": [["aten.full.default", [[1], TEN12], {"dtype": {"dtype": "int64"}}],
                             ["aten.one_hot.default", ["before"], {}]],
    "bincount": [["aten.full.default", [[1], TEN12], {"dtype": {"dtype": "int64"}}],
                 ["aten.bincount.default", ["before"], {}]],
    "bincount of nothing": [["aten.bincount.default", [I, None, TEN12], {}]],
    "histc": [["aten.histc.default", [X, TEN12], {}]],
    "pad": [["aten.constant_pad_nd.default", [X, [0, TEN12]], {}]],
    "pad both": [["aten.constant_pad_nd.default", [X, [1 << 30, 1 << 30, 1 << 30, 1 << 30]], {}]],
    "repeat_interleave": [["aten.repeat_interleave.self_int", [X, TEN12], {}]],
    "repeat_interleave by values": [["aten.full.default", [[2], TEN12], {"dtype": {"dtype": "int64"}}],
                                    ["aten.repeat_interleave.Tensor", ["before"], {}]],
    "einsum": [["aten.zeros.default", [[1 << 20]], {}], ["aten.einsum.default", ["i,j->ij", ["before", "before"]], {}]],
    "outer": [["aten.zeros.default", [[1 << 20]], {}], ["aten.outer.default", ["before", "before"], {}]],
    "kron": [["aten.zeros.default", [[1 << 20]], {}], ["aten.kron.default", ["before", "before"], {}]],
    "cartesian_prod": [["aten.zeros.default", [[1 << 20]], {}],
                       ["aten.cartesian_prod.default", [["before", "before"]], {}]],
    "vander": [["aten.vander.default", [I, TEN12], {}]],
    "unfold": [["aten.expand.default", [X, [1 << 28, 2, 2]], {}],
               ["aten.unfold.default", ["before", 0, 1 << 27, 1], {}], ["aten.clone.default", ["before"], {}]],
    "meshgrid": [["aten.zeros.default", [[1 << 14]], {}], ["aten.cartesian_prod.default", [["before"] * 4], {}]],
    "interpolate": [["aten.zeros.default", [[1, 1, 2, 2]], {}],
                    ["aten.upsample_nearest2d.default", ["before", [1 << 20, 1 << 20]], {}]],
    "split into single rows": [["aten.expand.default", [X, [1 << 28, 2, 2]], {}],
                               ["aten.split.Tensor", ["before", 1], {}]],
    "diag_embed": [["aten.zeros.default", [[1 << 20]], {}], ["aten.diag_embed.default", ["before"], {}]],
    "product of a view": [["aten.expand.default", [X, [1 << 30, 2, 2]], {}],
                          ["aten.matmul.default", ["before", X], {}]],
}  # fmt: skip


async def test_what_has_no_bounds_is_too_large_before_it_is_allocated(victim: Folders) -> None:
    async with attacking(victim, MALLORY) as mallory:
        ids = await two_tensors(mallory)
        await works(mallory)
        at_first = own_memory(victim)
        await all_unbounded(mallory, ids)
        then = own_memory(victim)
        await all_unbounded(mallory, ids)
        await works(mallory)
        after = own_memory(victim)
        assert set(at_first) <= set(then) <= set(after), "a worker died"
        # Code that runs for the first time takes memory, and one honest tensor has 4 MiB; the smallest bomb has 2 GiB.
        for before, later in ((at_first, then), (then, after)):
            assert max(later[pid] - nbytes for pid, nbytes in before.items()) <= 64 * MIB


async def all_unbounded(mallory: Connection, ids: dict[str, bytes]) -> None:
    for attack, operations in UNBOUNDED.items():
        out, made, found = b"", [], None
        for name, args, kwargs in operations:
            given = with_ids(args, {**ids, "before": out})
            out = os.urandom(16)
            (fault,) = await run(mallory, [[name, given, kwargs, [out]]])
            found = found or fault
            made.append(out)
        assert type(found) is TooLarge, (attack, found)
        await mallory.request("release", {"ids": made})


KILLING: dict[str, list[Any]] = {
    "the lowest integer by -1": ["aten.div.Scalar_mode", ["lowest", -1], {"rounding_mode": "trunc"}],
    "the same, -1 written as 2**64 - 1": [
        "aten.div.Scalar_mode",
        ["lowest", (1 << 64) - 1],
        {"rounding_mode": "trunc"},
    ],
    "a power without end": ["aten.linalg_matrix_power.default", [X, -(1 << 31)], {}],
    "a window of 2**62": ["aten.max_pool1d.default", [X, [1 << 62]], {}],
    "a stride of nothing": ["aten.median.dim", ["repeated", 0], {}],
    "random from the highest": ["aten.random_.from", ["copied", (1 << 63) - 1, None], {}],
    "pivots of nowhere": ["aten.linalg_lu_solve.default", [X, I, X], {}],
}


@pytest.mark.parametrize("attack", KILLING)
async def test_what_would_kill_or_hold_a_worker_does_not(victim: Folders, attack: str) -> None:
    async with attacking(victim, MALLORY) as mallory, attacking(victim, HONEST) as honest:
        ids = await two_tensors(mallory)
        ids |= {name: os.urandom(16) for name in ("lowest", "repeated", "copied")}
        ready: list[list[Any]] = [
            ["aten.full.default", [[1], -(1 << 63)], {"dtype": {"dtype": "int64"}}, [ids["lowest"]]],
            ["aten.expand.default", [ids[X], [1 << 10, 2, 2]], {}, [ids["repeated"]]],
            ["aten.clone.default", [ids[X]], {}, [ids["copied"]]],
        ]
        assert await run(mallory, ready) == [None] * 3
        name, args, kwargs = KILLING[attack]
        (fault,) = await run(mallory, [[name, with_ids(args, ids), kwargs, [os.urandom(16)]]])
        assert fault is None or isinstance(fault, RequestError)
        await works(mallory)
        await works(honest)


# --- below what any client can say ------------------------------------------------------------------------


def frame(header: bytes, claimed: int | None = None) -> bytes:
    nbytes = len(header) if claimed is None else claimed
    prelude = MAGIC + bytes([VERSION, FrameType.REQUEST, 0, 0]) + nbytes.to_bytes(4, "little") + bytes(8)
    return prelude + header


def request_of(operation: bytes) -> bytes:
    """A `run` request around the packed bytes of one operation."""
    start = {"id": 1, "op": "run"}
    packed: bytes = msgpack.packb({**start, "args": {"operations": [None]}})
    assert packed.endswith(b"\xc0")
    return packed[:-1] + operation


def nested(depth: int) -> bytes:
    return b"\x94" + msgpack.packb("aten.cat.default") + b"\x91" + b"\x91" * depth + b"\xc0" + b"\x80\x90"


_OPERATION = msgpack.packb(["aten.neg.default", [1], {}, []])
RAW: dict[str, bytes] = {
    "a million lists in each other": frame(request_of(nested(1_000_000))),
    "lists as deep as a header is long": frame(request_of(nested(limits.MAX_HEADER - 100))),
    "lists beyond the limit of depth": frame(request_of(nested(limits.MAX_DEPTH + 1))),
    "as deep as msgpack goes": frame(request_of(nested(1_023))),
    "more lists than a header may have": frame(request_of(b"\xdc\x10\x00" + b"\xdc\x00\x02\x90\x90" * 4_096)),
    "an array of 2**32 - 1": frame(request_of(b"\xdd\xff\xff\xff\xff")),
    "a map of 2**32 - 1": frame(request_of(b"\xdf\xff\xff\xff\xff")),
    "bytes of 4 GiB": frame(request_of(b"\xc6\xff\xff\xff\xff")),
    "text of 4 GiB": frame(request_of(b"\xdb\xff\xff\xff\xff")),
    "an extension": frame(request_of(msgpack.packb(["aten.neg.default", [msgpack.ExtType(7, b"x" * 8)], {}, []]))),
    "a timestamp": frame(request_of(msgpack.packb(["aten.neg.default", [msgpack.Timestamp(1, 2)], {}, []]))),
    "an extension in an extension": frame(request_of(b"\xc7\x03\x01\xc7\x01\x01")),
    "a key twice": frame(request_of(b"\x94\xb0aten.neg.default\x90\x82\xa1a\x01\xa1a\x02\x90")),
    "a key that is a number": frame(request_of(b"\x94\xb0aten.neg.default\x90\x81\x01\x02\x90")),
    "a key that is a list": frame(request_of(b"\x94\xb0aten.neg.default\x90\x81\x90\x02\x90")),
    "text that is not UTF-8": frame(request_of(b"\x94\xa4\xff\xfe\xfd\xfc\x90\x80\x90")),
    "the byte that msgpack never uses": frame(request_of(b"\xc1")),
    "something after the end": frame(request_of(_OPERATION) + b"\xc0"),
    "the end missing": frame(request_of(_OPERATION)[:-1]),
    "a header of 4 GiB": frame(request_of(_OPERATION), claimed=(1 << 32) - 1),
    "a list for a header": frame(b"\x90"),
}


@pytest.mark.parametrize("attack", RAW)
async def test_bytes_that_no_client_sends_end_their_own_session_alone(victim: Folders, attack: str) -> None:
    async with attacking(victim, MALLORY) as mallory, attacking(victim, HONEST) as honest:
        await works(honest)
        before = own_memory(victim)
        await mallory._socket.send(RAW[attack])
        await until(lambda: mallory.is_closed)
        await works(honest)
        assert set(before) <= set(own_memory(victim)), "a worker died"


async def test_an_argument_as_deep_as_a_header_may_be_is_a_bad_request(victim: Folders) -> None:
    async with attacking(victim, MALLORY) as mallory:
        value: Any = None
        for _ in range(limits.MAX_DEPTH - 8):
            value = [value]
        (fault,) = await run(mallory, [["aten.cat.default", [value], {}, [os.urandom(16)]]])
        assert type(fault) is BadRequest
        await works(mallory)
