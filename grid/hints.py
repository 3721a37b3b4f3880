"""What else to write where torch's own code looks at a value that is at a peer: by which code that is.

Python code of the library is found among the frames of the call; of its C++ there are none, so that the operation says
what it may be.
"""

from __future__ import annotations

import sys
from types import FrameType
from typing import Final

# By the module of the library, and the operation that its C++ asked for: what needs no look.
_BY_MODULE: Final = {
    "torch.distributions": "make the distribution without checks of values (validate_args=False)",
    "torch.nn.init": "initialise before the tensor goes there (trunc_normal_ draws until all numbers fit)",
    "torch.nn.utils.clip_grad": "clip without error_if_nonfinite",
}
ITEM: Final = "say what torch looks for there (F.one_hot: num_classes)"
EQUAL: Final = "do without its check of values (torch.istft has one)"


def for_library() -> str:
    """For the code of the library that called us, through whatever of ours: an end of "use ..."; empty where there is
    nothing to say."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] not in ("grid", "torch"):
            return ""
        for known, hint in _BY_MODULE.items():
            if module == known or module.startswith(f"{known}."):
                return hint
        frame = frame.f_back
    return ""
