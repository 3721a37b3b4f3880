"""Worker processes: where operations run. The peer's own process imports no torch and runs none of them.

    peer (asyncio) ── control ── zygote (torch imported, runs nothing) ── forks ── workers
         └───────────── one channel to each worker: messages, and memory as file descriptors ─────┘

Files in import order. Those marked * import no torch: the peer's process uses them.

    memory *          sealed memory files, private mappings
    guards *          hashes of the blocks of stored files, and which blocks were checked
    reach *           which memory a strided view can touch
    channel *         framing, descriptors, the blocking and the asyncio form
    operation *       the wire form of one eager operation
    sandbox *         what a worker gives up before it reads anything from its principal: the seam for the kernel's
    zygote_process *  the peer's end of the zygote
    answers *         what a worker's answers mean, checked
    holdings *        what the peer knows a worker to have
    pending *         a request that is under way, and how it ends
    ending *          how a worker came to its end
    remote *          the peer's end of one worker: requests, answers, loss
    faults            whatever went wrong, as one of our errors
    mapped            files of the peer's as memory of tensors
    objects           tensors and failures by id
    picking           operations that take single rows
    execution         one operation, from its wire form to its results' ids
    export            values on their way out, into memory files
    runtime           the worker's loop
    zygote            `python -m peer.worker.zygote`: forks and reaps
"""
