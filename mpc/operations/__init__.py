"""The secure forms of operations, by kind: importing this package fills the table.

linear        sums, and what moves elements about: each party by itself
products      of secrets with secrets, and with what all know
comparisons   order, equality, and what is cut off by them
logic         truth values put together; whole numbers
places        what stands at secret places
ordering      sorting, and what is told by rank
contest       the largest of few: all pairs at once
largest       largest, smallest, their places, pools
choices       by secret truth values
functions     of one secret: exponential, waves, what saturates
quotients     reciprocals, roots, logarithms, powers
normal        rows of mean 0 and variance 1
softmax       softmax, its logarithm, losses of labels
pools         pools and their gradients
distances     products of many elements; distances of rows
solving       inverses of small matrices
gradients     of products and of choices
"""

from mpc.operations import (
    choices,
    comparisons,
    contest,
    distances,
    functions,
    gradients,
    largest,
    linear,
    logic,
    normal,
    ordering,
    places,
    pools,
    products,
    quotients,
    softmax,
    solving,
)
from mpc.table import SECURE

__all__ = [
    "SECURE",
    "choices",
    "comparisons",
    "contest",
    "distances",
    "functions",
    "gradients",
    "largest",
    "linear",
    "logic",
    "normal",
    "ordering",
    "places",
    "pools",
    "products",
    "quotients",
    "softmax",
    "solving",
]
