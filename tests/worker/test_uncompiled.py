"""What a zygote imports of torch: not its compiler, but where jails run; and the operations run all the same."""

from __future__ import annotations

import subprocess
import sys

_WARM = """
import sys
from peer.worker import zygote
from peer.worker.sandbox import Settings
assert zygote.warm(Settings(has_jails={has_jails})) is None
print("torch._dynamo.eval_frame" in sys.modules, "torch._inductor" in sys.modules)
known = set(sys.modules)
import torch
from compute.interpreter import execute
from compute.table import lookup
x = torch.ones(4, 4)
for name in ("mm", "linalg_inv_ex", "special_zeta", "_log_softmax", "linalg_svd"):
    entry = lookup(f"aten.{{name}}.default")
    given = {{"special_zeta": [x, x], "mm": [x, x], "_log_softmax": [x, 0, False]}}.get(name, [torch.eye(4)])
    execute(entry, given, {{}})
print(sorted(name for name in set(sys.modules) - known if name.startswith("torch")))
"""


def warmed(*, has_jails: bool) -> list[str]:
    ran = subprocess.run(
        [sys.executable, "-c", _WARM.format(has_jails=has_jails)], capture_output=True, text=True, timeout=100
    )
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_it_has_no_compiler_and_needs_nothing_more() -> None:
    assert warmed(has_jails=False) == ["False False", "[]"]


def test_what_jails_run_may_need_it() -> None:
    assert warmed(has_jails=True)[0] == "True True"


def test_what_is_not_there_says_so() -> None:
    code = "from compute import uncompiled; uncompiled.keep_out(); import torch; torch._dynamo.optimize()"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=100)
    assert "AttributeError: nothing is compiled here, and there is no torch._dynamo.optimize" in ran.stderr
