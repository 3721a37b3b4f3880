"""Worker processes: where operations run. The peer's own process imports no torch and runs none of them.

    peer (asyncio) ── control ── zygote (torch imported, runs nothing) ── forks ── workers
         └───────────── one channel to each worker: messages, and memory as file descriptors ─────┘

Files in import order. Those marked * import no torch: the peer's process uses them.

    memory *          sealed memory files, private mappings
    channel *         framing, descriptors, the blocking and the asyncio form
    operation *       the wire form of one eager operation
    sandbox *         what a worker gives up before it reads anything from its principal: the seam for the kernel's
    zygote_process *  the peer's end of the zygote
    answers *         what a worker's answers mean, checked
    remote *          the peer's end of one worker: requests, answers, loss
    faults            whatever went wrong, as one of our errors
    objects           tensors and failures by id
    execution         one operation, from its wire form to its results' ids
    runtime           the worker's loop
    zygote            `python -m peer.worker.zygote`: forks and reaps
"""
