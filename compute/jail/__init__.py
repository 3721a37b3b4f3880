"""Jails: source of a user's that runs where the data are, in a process of its own (docs/decisions/0013-jails.md).

What keeps it in is the kernel (peer/worker/sandbox.py). What is here makes it behave: what it may say, what it finds in
its scope, and how its results are described. Files in import order; those marked * import no torch.

    structure *   arguments and results as plain values, with numbers for tensors
    lint *        early, friendly errors: what a jail cannot say
    scope         what its code finds: a restricted torch, arithmetic, builtins
    gate          its operations, each through the table
    running       source and arguments to a result, or to an error that shows the user's own lines
    source        at the asker: from a function to what is shipped
"""
