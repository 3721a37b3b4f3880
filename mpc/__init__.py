"""Computation on secret shares: programs that run where no party sees what they compute on.

Files in import order. Nothing here knows of peers or sockets: protocols are generators that yield what is to be opened.

    ring           fixed point in the ring of integers modulo 2^64
    pieces         work on words, on long tensors piece by piece
    masks          AES-128 in counter mode
    rounds         Opening, Protocol: one round each; several protocols in the same rounds
    correlations   what the dealer deals, and how little of it travels
    party          one party of a run
    bits           bits of words, and products of many of them in one round
    comparison     truncation, signs, choice
    magnitude      the first digit of a secret that is not zero
    bilinear       what a product may be: of elements, matrices, convolutions
    arithmetic     products of secrets
    secret         Secret: a share, and how its words are to be read
    standing       factors that are opened once for many runs
    table          the secure form of each operation
    exact          functions of public words, the same bits everywhere
    waves          sine, cosine, exponential: one opening each
    inverse        1 / z for the digits of a secret: a coarse wave, and a step of Newton's
    operations     secure forms: linear, products, comparisons, largest, choices, functions, quotients
    staying        outputs that stay with the parties, in as many bits as they are kept
    fresh          outputs under new shares, before they leave the parties
    interpreter    runs a program on shares
    moments        division by roots of what is tiny
    rewrites       what lowering knows better than torch's decompositions
    kinds          dtypes as torch has them, truth values, several elements at one place
    plainer        operations said in plainer ones
    backward       gradients said in plainer ones
    varying        what all know in a loop, and differs from iteration to iteration
    unrolled       loops written out
    assembly       a program of what was written down
    sheet          what is written down while a program is lowered
    traces         what is known of tensors while a program is lowered
    loops          loops that stay loops
    in_place       writes in place
    calls          one operation after the other: computed beforehand, or said in secure forms
    lowering       a program in secure forms; what is public computed beforehand
    script         what a run takes, before it runs
    dealer         the dealer's side of a run, and the supply of each party
    trio           what one of three parties knows of a value
    halves         sines, cosines and powers of a mask, made by three parties
    replicated     three parties without a dealer: they make their correlations themselves
    field          arithmetic modulo 2^61 - 1
    authenticated  arithmetic with MACs, for parties that may be malicious
    macs           operations with MACs
    checked        programs of sums and products with MACs
    together       all parties in one process, in step
"""
