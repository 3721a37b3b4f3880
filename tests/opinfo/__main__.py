"""`python -m tests.opinfo`: torch's OpInfo samples on pointers to a peer that runs on this machine."""

from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

import torch

import grid
from tests.opinfo import page
from tests.opinfo.report import Report
from tests.opinfo.running import DTYPES, Choice, Found, operations, run_operation


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.opinfo", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the samples")
    parser.add_argument("--ops", nargs="*", default=[], metavar="NAME", help="only these, as OpInfo names them")
    parser.add_argument("--dtype", nargs="*", default=[], metavar="DTYPE", help="only these, for example float32")
    parser.add_argument("--most", type=int, default=None, metavar="N", help="samples of each dtype and form; all")
    parser.add_argument("--share", default="1/1", metavar="I/N", help="of N parts of the operations, the I-th")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write what was found there")
    parser.add_argument("--page", type=Path, nargs="*", metavar="FILE", help="run nothing: write docs/operations.md")
    parser.add_argument("--quiet", action="store_true", help="print the figures only")
    asked = parser.parse_args()
    if asked.page is not None:
        page.write(Report.by_seed(Report.from_json(path.read_text()) for path in asked.page))
        return
    dtypes = [getattr(torch, name) for name in asked.dtype] or DTYPES
    started = time.monotonic()
    choice = Choice(asked.seed, dtypes, asked.most)
    report = Report(asked.seed, str(choice), [])
    asyncio.run(_run(choice, asked, report))
    print(f"{report.summary()} ({time.monotonic() - started:.0f} s)")


async def _run(choice: Choice, asked: argparse.Namespace, report: Report) -> None:
    at, parts = (int(word) for word in asked.share.split("/"))
    async with grid.local("alice") as g:
        for op in operations(asked.ops)[at - 1 :: parts]:
            report.found.append(await run_operation(op, g["alice"], choice))
            if asked.json is not None:  # after each: a run that is ended leaves what it found
                asked.json.write_text(report.to_json())
            if not asked.quiet:
                _show(report.found[-1])


def _show(found: Found) -> None:
    mark = "ok " if found.agrees else "-- " if found.has_pointers else "   "
    print(mark, found.name, dict(found.counts), flush=True)
    for reason, count in found.reasons.most_common(4):
        print("      ", count, reason[:260])
    sys.stdout.flush()


if __name__ == "__main__":
    main()
