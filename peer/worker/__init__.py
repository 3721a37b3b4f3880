"""Worker processes: where operations run. The peer's own process imports no torch and runs none of them.

    peer (asyncio) ── control ── zygote (torch imported, runs nothing) ── forks ── workers
         └───────────── one channel to each worker: messages, and memory as file descriptors ─────┘

Files in import order. Those marked * import no torch: the peer's process uses them.

    memory *          sealed memory files, private mappings
    guards *          hashes of the blocks of stored files, and which blocks were checked
    giving *          how a tensor is given to a process by its channel
    reach *           which memory a strided view can touch
    framing *         messages and descriptors as bytes on the channel
    channel *         its blocking and its asyncio form
    operation *       the wire form of one eager operation
    syscalls *        numbers of system calls
    kernel *          the kernel's calls that Python has no names for
    gpu *             what a worker on a CUDA device is left with that others are not
    namespaces *      no other processes, no network, no files, nobody
    landlock *        no file opened, nobody signalled
    seccomp *         the filter of system calls
    confinement *     all these walls, in order; which are refused here, and whether the others are enough
    sandbox *         what a worker gives up before it reads anything from its principal
    zygote_process *  the peer's end of the zygote
    reader *          the other end of `reading`: strangers' files, read by a process that can do nothing else
    answers *         what a worker's answers mean, checked
    holdings *        what the peer knows a worker to have
    stopping *        how what is under way learns that it is to end
    pending *         a request that is under way, and how it ends
    watch *           whether a worker was at one thing for too long
    turns *           who computes only when others do not want to
    budgets *         what principals may take, and have taken
    ending *          how a worker came to its end
    outgoing *        values that left a worker and are on their way: counted, and bounded
    taught *          a stretch of operations that it was told, and what its answers about that mean
    line *            what one worker was asked, what came back, and its end
    remote *          what a worker can be asked
    dedicated *       the peer's end of a process that is there for one thing
    job *             the peer's end of one jail: what it is given, its end, what it left
    seat *            the peer's end of a process of a secure session: what it is given, its runs, its end
    faults            whatever went wrong, as one of our errors
    mapped            files of the peer's as memory of tensors
    objects           tensors and failures by id
    picking           operations that take single rows
    randomness        random numbers: seeded, or drawn by a seed of their own
    device            where tensors and operations are: the CPU, or one CUDA device
    repeated          operations that ran before: what was found out about them
    execution         one operation, from its wire form to its results' ids
    steps             one operation of a stretch that comes again: checked once
    stretches         such stretches, and the uses of them
    ahead             what it was sent and has not come to: values among it that need not wait
    programs          whole programs
    export            values on their way out, into memory files
    runtime           what a worker holds, and does with each message
    process           its loop, and what is done once for all workers
    jail              the process of one jail
    secure/           the process of one peer in a secure session
    reading           `python -m peer.worker.reading`: forks one reader for each stranger's file
    zygote            `python -m peer.worker.zygote`: forks and reaps
"""
