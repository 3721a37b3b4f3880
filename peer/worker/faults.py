"""Whatever went wrong in a worker, as one of our errors: no foreign exception and no traceback leaves it."""

from __future__ import annotations

from protocol import limits
from protocol.errors import GridError, InternalError, OperationFailed, TooLarge

# How torch and libc say that there was no memory; there is no exception of its own for it.
_NO_MEMORY = (
    "can't allocate memory",
    "not enough memory",
    "Cannot allocate memory",
    "Storage size calculation overflow",
)


def as_error(error: BaseException, operation: str | None) -> GridError:
    """What an operation raised: our own errors as they are, torch's as OperationFailed, no memory as TooLarge.

    A fresh error each time: it is kept for later users of the result, and the one that was raised holds on to
    frames, and those to tensors.
    """
    text = str(error.args[0]) if error.args else ""
    is_foreign = not isinstance(error, GridError)
    if isinstance(error, MemoryError) or (
        (is_foreign or isinstance(error, OperationFailed)) and any(words in text for words in _NO_MEMORY)
    ):
        return TooLarge(
            "the result does not fit into this peer's memory; drop what is no longer needed, or work on smaller pieces",
            operation=operation,
            limit="memory",
        )
    if isinstance(error, GridError):
        copy = error.again()
        copy.operation = copy.operation or operation
        return copy
    kind = type(error).__name__
    text = text.split("\nException raised from", 1)[0].strip() or kind
    return OperationFailed(text[: limits.MAX_FAULT_TEXT], operation=operation, type=kind)


def as_defect(error: BaseException) -> InternalError:
    """What should not have happened, whatever was asked."""
    return InternalError(f"a defect of the worker: {type(error).__name__}: {error}"[: limits.MAX_FAULT_TEXT])
