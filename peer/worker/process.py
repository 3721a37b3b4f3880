"""A worker's process: what the zygote does once for all of them, and what one does until its peer is done with it."""

from __future__ import annotations

import os
import socket
import time
import warnings
from typing import Final

import torch

from compute.cost import ALLOWED
from peer.awake import Lookout, giving_way
from peer.worker.channel import BlockingChannel
from peer.worker.device import Device
from peer.worker.faults import as_defect
from peer.worker.runtime import Runtime
from peer.worker.sandbox import Settings
from protocol import limits

_SHARED: Final = 1 << 16  # elements: torch gives an operation on so many to all of its threads


def warm() -> None:
    """What every worker needs, done once in the zygote: torch's settings, and the first run of its machinery."""
    warnings.simplefilter("ignore")  # torch's advice is for who wrote the program, and that one is far away
    torch.set_num_threads(1)  # more would make the zygote impossible to fork
    bytes(31 << 20)  # glibc's thresholds rise with it: else large results are asked of the system again and again
    torch.set_grad_enabled(False)  # gradients are made by the asker, out of operations
    # No operation shows what was in memory before: what it leaves out is filled. Warnings only, because some honest
    # operations have no deterministic form, and for them the filling is all that is wanted.
    torch._C._set_deterministic_algorithms(True, warn_only=True)  # torch's own name for it imports its compiler
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    runtime = Runtime(lambda message, descriptors: None)
    one, two = bytes(16), bytes(15) + b"\1"
    runtime.handle(["provide", one, "float32", [2, 2], 0, False, bytes(16)], [])
    runtime.handle(["run", 0, [["aten.mm.default", [one, one], {}, [two]]], two, []], [])
    runtime.handle(["export", 0, two], [])
    # Products of these look the processor up in the file system, which a worker has not.
    torch.ones(2, 2, dtype=torch.int64).mm(torch.ones(2, 2, dtype=torch.int64))


def serve(sock: socket.socket, settings: Settings) -> None:
    """Runs until the peer closes the channel."""
    torch.set_num_threads(settings.threads)
    torch.manual_seed(int.from_bytes(os.urandom(7), "little"))  # or all workers would draw the same numbers
    speed = float(settings.threads) if settings.device == "cpu" else limits.CPU_DEVICE
    ALLOWED.limit(settings.memory, settings.seconds, speed)
    channel = BlockingChannel(sock, send_limit=limits.WORKER_REPLY, receive_limit=limits.WORKER_MESSAGE)
    if settings.threads > 1:
        torch.zeros(_SHARED).add_(1)  # makes its threads now, and not in the first operation
    runtime = Runtime(channel.queue, channel.flush, Device.of(settings.device), channel.glance)
    ahead, lookout = runtime.ahead, Lookout(limits.AWAKE_WORKER, give_way=giving_way())
    waiting = ahead.messages
    try:
        channel.send(["up"])
        while (messages := lookout.wait(channel.receive_now, channel.receive)) is not None:
            begun = time.perf_counter()
            waiting += messages
            while waiting:
                runtime.handle(*waiting.popleft())
                if time.perf_counter() - begun > limits.ANSWERS_WAIT:
                    channel.flush()  # else what is done would wait for what is not
                    begun = time.perf_counter()
            if ahead.broken is not None:
                raise ahead.broken
            channel.flush()
            runtime.let_go()
            channel.flush()
    except (BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        channel.flush()
        channel.send(["defect", as_defect(error).message])
        raise
