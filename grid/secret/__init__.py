"""Secret tensors, eagerly: torch operations on shares, computed in as few runs as they can be.

Files in import order:

    values        what a tensor's elements are: public, to be shared, kept at the parties, pending
    programs      pending operations as a program for the parties
    checked       whether an operation has a secure form
    team          the secrets of one team: runs, one after the other
    memory        what shares memory: views, changes in place
    refusals      what a secret does not do
    recording     operations as steps; their shapes
    dispatch      ATen operations on secrets: which way each goes
    tensor        SecretTensor
    modules       modules whose tensors are secrets
    sessions      runs at peers, in one session; the teams of a grid
    given         secrets as arguments of plans, and as their results
    sharing       grid.share
"""
