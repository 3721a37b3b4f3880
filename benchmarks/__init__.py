"""Claims and their measurements: one script a question, each `python -m benchmarks.NAME [--json] [--quick]`.

    harness.py      figures, their table and JSON, interleaved repeats
    pointer_ops.py  what an operation on a pointer costs, against a bare websockets echo
    transfer.py     send, fetch and direct move of a large tensor, against a blocking TCP copy
    store.py        durable puts, reads and starts, against bare sqlite3
    references.py   the programs that transfer.py compares with

Every figure stands beside a reference measured in the same run, and their ratio: absolute times on shared machines
are noise. Repeats are interleaved, so that a busy moment hits both sides; medians are shown.
"""
