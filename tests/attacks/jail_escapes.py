"""Hostile jails, as a client sends them who does not lint: source, and the codes of the errors that it may come to.

What passes every rule of Python's comes to the kernel; how that ends is in escapes.py, whose scripts run in jails past
all those rules. CANARY stands for a path that must not come to be.
"""

from __future__ import annotations

from typing import Final

REFUSED: Final = ("bad_jail",)
RAISED: Final = ("jail_failed", "operation_not_allowed", "bad_request", "bad_tensor")
KILLED: Final = ("jail_failed",)
TOO_MUCH: Final = ("too_large",)

# Ways of Python's own, and of RestrictedPython's past: refused where they are read.
WALKS: Final = {
    "torch.os": ("def f(x): return torch.os.popen('touch CANARY').read()", RAISED),
    "torch.sys": ("def f(x): return torch.sys.modules['os'].system('touch CANARY')", RAISED),
    "torch.ctypes": ("def f(x): return torch.ctypes.CDLL(None).system(b'touch CANARY')", RAISED),
    "torch.builtins": ("def f(x): return torch.builtins.open('CANARY', 'w')", RAISED),
    "torch.importlib": ("def f(x): return torch.importlib.import_module('os')", RAISED),
    "a file as a tensor": ("def f(x): return torch.from_file('/etc/passwd', size=16, dtype=torch.uint8)", REFUSED),
    "a file as a storage": ("def f(x): return x.untyped_storage().from_file('CANARY', True, 16)", REFUSED),
    "torch.load": ("def f(x): return torch.load('/etc/passwd')", RAISED),
    "torch.save": ("def f(x): torch.save(x, 'CANARY')", RAISED),
    "torch.hub": ("def f(x): return torch.hub.load('a', 'b')", REFUSED),
    "torch.jit": ("def f(x): return torch.jit.script(f)", REFUSED),
    "torch.ops": ("def f(x): return torch.ops.load_library('/usr/lib/libevil.so')", RAISED),
    "torch.classes": ("def f(x): return torch.classes.load_library('/usr/lib/libevil.so')", RAISED),
    "torch.utils": ("def f(x):\n    from torch.utils import cpp_extension\n    return x", RAISED),
    "import os": ("def f(x):\n    import os\n    os.system('touch CANARY')", REFUSED),
    "import ctypes": ("def f(x):\n    from ctypes import CDLL", REFUSED),
    "import of a dot": ("def f(x):\n    from . import secrets", REFUSED),
    "__import__": ("def f(x): return __import__('os').system('touch CANARY')", REFUSED),
    "open": ("def f(x): return open('CANARY', 'w')", REFUSED),
    "eval": ("def f(x): return eval('1')", REFUSED),
    "exec": ("def f(x): exec('import os')", REFUSED),
    "globals": ("def f(x): return globals()", REFUSED),
    "getattr": ("def f(x): return getattr(x, '_' + '_class_' + '_')", REFUSED),
    "subclasses": ("def f(x): return ().__class__.__base__.__subclasses__()", REFUSED),
    "globals of a function": ("def f(x): return torch.stack.__globals__['os']", REFUSED),
    "builtins by name": ("def f(x): return __builtins__['open']('CANARY', 'w')", REFUSED),
    "gi_frame": ("def f(x):\n    g = (i for i in x)\n    return g.gi_frame.f_back.f_builtins", REFUSED),
    "tb_frame": ("def f(x):\n    try: 1 / 0\n    except Exception as e: return e.tb_frame", REFUSED),
    "cr_frame": ("def f(x):\n    return x.cr_frame", REFUSED),
    "format": ("def f(x): return '{0.__class__.__init__.__globals__}'.format(x)", REFUSED),
    "format_map": ("def f(x): return '{a.__class__}'.format_map({'a': x})", REFUSED),
    "string.Formatter": (
        "def f(x):\n    import string\n    return string.Formatter().get_field('a.__class__', [], {})",
        REFUSED,
    ),
    "a name with dunders": ("def f(x):\n    class A:\n        __metaclass__ = type\n    return x", REFUSED),
    "a metaclass": ("def f(x):\n    class A(metaclass=type): pass\n    return x", REFUSED),
    "try except*": ("def f(x):\n    try: pass\n    except* ValueError: pass", REFUSED),
    "match": ("def f(x):\n    match x:\n        case object(__class__=c): return c", REFUSED),
    "async": ("async def f(x): return x", REFUSED),
    "a decorator that is none": ("import os\n@os.system\ndef f(x): return x", REFUSED),
    "two definitions": ("def g(x): return x\ndef f(x): return x", REFUSED),
    "no definition": ("f = 1", REFUSED),
    "a default that runs": ("def f(x, y=().__class__): return y", REFUSED),
    "positional-only names": ("def f(__import__, /): return __import__", REFUSED),
    "numpy": ("def f(x): return x.numpy().tofile('CANARY')", REFUSED),
    "data_ptr": ("def f(x): return x.data_ptr()", REFUSED),
    "raw memory": ("def f(x): return x.set_(x)", REFUSED),
    "printing to a file": ("def f(x):\n    print('x', file=torch.os)\n    return x", RAISED),
    "a namespace changed": ("def f(x):\n    torch.add = torch.sub\n    return x", RAISED),
    "an operation outside the table": ("def f(x): return torch.nn.functional.ctc_loss(x, x, x, x)", RAISED),
    "another device": ("def f(x): return torch.ones(2, device='cuda')", RAISED),
    "a query made up inside": ("def f(x): return grid.load('#' + 'secret')", RAISED),
    "a query that was not announced": ("def f(x): return grid.load('#secret')", RAISED),
    "to exit": ("def f(x):\n    raise SystemExit(0)", (*REFUSED, *RAISED)),
    "deep source": ("def f(x): return " + "(" * 500 + "x" + ")" * 500, REFUSED),
    "long source": ("def f(x):\n" + "    x = x\n" * 10_000, REFUSED),
    "an evil __str__": (
        "def f(x):\n    class E(ValueError):\n        def __str__(self): return 'x' * 10**7\n    raise E()",
        RAISED,
    ),
    "an evil __repr__": (
        "def f(x):\n    class E(ValueError):\n        def __str__(self): raise self\n    raise E()",
        RAISED,
    ),
}

# What would take the peer's machine.
BOMBS: Final = {
    "an endless loop": ("def f(x):\n    while True: pass", TOO_MUCH),
    "an endless loop of operations": ("def f(x):\n    while True: x = x + 1", TOO_MUCH),
    "one that will not hear": (
        "def f(x):\n    while True:\n        try:\n            while True: pass\n        except Exception: pass",
        TOO_MUCH,
    ),
    "a number without end": ("def f(x): return 9**9**8", TOO_MUCH),
    "a recursion": ("def f(x): return f(x)", RAISED),
    "memory in Python": ("def f(x):\n    y = []\n    while True: y.append(bytearray(1 << 24))", TOO_MUCH),
    "memory in tensors": ("def f(x):\n    y = []\n    while True: y.append(torch.ones(1 << 22))", TOO_MUCH),
    "one huge tensor": ("def f(x): return torch.ones(10**12)", TOO_MUCH),
    "a huge text": ("def f(x): return 'x' * 10**12", TOO_MUCH),
    "prints without end": ("def f(x):\n    while True: print('x')", TOO_MUCH),
    "one huge print": ("def f(x): print('x' * 10**8)", ()),
    "a result beyond the limit": ("def f(x): return x.expand(1 << 30, 3).clone()", TOO_MUCH),
    "a view of a result beyond it": ("def f(x): return x.sum().expand(1 << 30)", TOO_MUCH),
    "too many results": ("def f(x): return [x] * 1000", TOO_MUCH),
    "a result without end": ("def f(x):\n    y = []\n    y.append(y)\n    return y", RAISED),
    "a structure too large": ("def f(x): return list(range(100_000))", TOO_MUCH),
    "a generator": ("def f(x): return (i for i in x)", RAISED),
    "its own class": ("def f(x):\n    class A: pass\n    return A()", RAISED),
}

ALL: Final = {**WALKS, **BOMBS}
