"""Claims and their measurements: one script a question, each `python -m benchmarks.NAME [--json] [--quick]`.

    harness.py      figures, their table and JSON, interleaved repeats
    pointer_ops.py  what operations on pointers cost, against a websockets echo, torch RPC, Ray and local torch
    training.py     the training step that pointer_ops.py measures
    programs.py     what programs cost: by hash, a node, a loop, a training step, a capture
    steps.py        the training step that programs.py measures
    networks.py     and the network that it captures
    transfer.py     send, fetch and direct move of a large tensor, against a blocking TCP copy
    store.py        durable puts, reads and starts, against bare sqlite3
    jails.py        what a jail costs
    secure.py       networks, training and functions on secret shares, against plain torch
    macs.py         the price of MACs, which secure.py shows
    accuracy.py     labels of all MNIST test images on shares, which secure.py shows
    mnist.py        MNIST from its files, and networks that learn it
    memory.py       what processes have of it
    references.py   the programs that transfer.py compares with
    calls.py        those that pointer_ops.py compares with, and the echo
    worker.py       a worker as a peer has it, asked from the benchmark's own process

Every figure stands beside a reference measured in the same run, and their ratio: absolute times on shared machines
are noise. Repeats are interleaved, so that a busy moment hits both sides; medians are shown.
"""
