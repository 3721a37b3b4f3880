"""The `grid` command: runs it, and says how it ended. `grid --help`; the manual is docs/cli.md.

What can be said is in grid/commands/declared/, what it does beside that. What is slow to import (torch, and so much of
the package grid) is imported by the commands that need it: help, completion, `start`, `up` and `down` answer at once,
and only what computes or prints values needs torch.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from grid.commands import declared as declared
from grid.commands.entry import app, chosen


def main(arguments: Sequence[str] | None = None) -> int:
    """The `grid` command. Returns the exit code; errors are a line on standard error, never a traceback."""
    from grid.commands.errors import EXIT_CODES, complain, exit_code

    try:
        app(args=None if arguments is None else list(arguments), prog_name="grid")
    except SystemExit as end:
        return _quiet_after(end.code if isinstance(end.code, int) else 0 if end.code is None else 1)
    except KeyboardInterrupt:
        return _quiet_after(EXIT_CODES[KeyboardInterrupt])
    except Exception as error:
        if chosen.debug:
            raise
        complain(error)
        return exit_code(error)
    return 0


def _quiet_after(code: int) -> int:
    """After a Ctrl-C the next one, while Python takes itself down, is silent too."""
    from grid.commands.errors import EXIT_CODES
    from grid.commands.stopping import end_at_once

    if code == EXIT_CODES[KeyboardInterrupt]:
        signal.signal(signal.SIGINT, end_at_once)
    return code


if __name__ == "__main__":
    sys.exit(main())
