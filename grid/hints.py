"""What else to write where torch's own code looks at a value that is at a peer: by which code that is.

Python code of the library is found among the frames of the call; of its C++ there are none, so that the operation says
what it may be.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from types import FrameType
from typing import Final

# By the module of the library, and the operation that its C++ asked for: what needs no look.
_BY_MODULE: Final = {
    "torch.distributions": "make the distribution without checks of values (validate_args=False)",
    "torch.nn.init": "initialise before the tensor goes there (trunc_normal_ draws until all numbers fit)",
    "torch.nn.utils.clip_grad": "clip without error_if_nonfinite",
}
ITEM: Final = "say what torch looks for there (F.one_hot: num_classes; x[i, j] with a number i: i.view(1))"
EQUAL: Final = "(x == y).all() stays there; where torch's own code compares (torch.istft does), do without its check"


def for_library() -> str:
    """For the code of the library that called us, through whatever of ours: an end of "use ..."; empty where there is
    nothing to say."""
    for frame in _of_library():
        module = str(frame.f_globals.get("__name__"))
        for known, hint in _BY_MODULE.items():
            if module == known or module.startswith(f"{known}."):
                return hint
    return ""


def asker() -> str:
    """The function of the library that looks at a value; empty where whoever uses it does."""
    frame = next(_of_library(), None)
    return "" if frame is None else f"{frame.f_globals.get('__name__')}.{frame.f_code.co_name}"


def _of_library() -> Iterator[FrameType]:
    """The frames of torch's code that led here, the innermost first, up to those of whoever uses it."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        package = str(frame.f_globals.get("__name__")).partition(".")[0]
        if package == "torch":
            yield frame
        elif package not in ("grid", "compute"):
            return
        frame = frame.f_back
