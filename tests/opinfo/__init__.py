"""torch's own OpInfo samples on pointers: does every operation give at a peer what it gives here?

    inputs     samples of an operation, and their tensors at a peer, with the strides that they have here
    forms      the forms in which an operation is written: function, method, operator, in place
    compare    one sample in one form, at the peer and here
    running    all samples of an operation; what came of them
    report     what a run found, as text, as JSON, and read again
    page       docs/operations.md: the part that a run writes

`python -m tests.opinfo --help` runs it.
"""
