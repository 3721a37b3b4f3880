"""The page on what a plan may do runs as it stands, and prints what it says."""

from __future__ import annotations

import contextlib
import io
import re
from pathlib import Path
from typing import Any

PAGE = Path(__file__).parents[2] / "docs" / "capture.md"


def test_the_page_runs() -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    printed, compared = "", 0
    for kind, block in re.findall(r"^```(\w+)\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL):
        if kind == "python":
            assert printed == "", f"this is not said to be printed: {printed}"
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                exec(compile(block, PAGE.name, "exec"), scope)
            printed = out.getvalue()
        else:
            assert printed == block
            printed, compared = "", compared + 1
    assert printed == "" and compared == 3
