"""Hostile scripts, each with its verdict: what a worker that runs it comes to. test_escapes.py runs them.

A verdict is the signal that ended the process, or the error that the script met; several are divided by "|" where
systems differ. "ran ..." is what the script left in `got`. CANARY is a path that must not come to be.
"""

from __future__ import annotations

from typing import Final

_C: Final = "a=ctypes.create_string_buffer(256); "

FILES: Final = {
    "read a file": ("open('/etc/passwd').read()", "EPERM"),
    "read secrets": ("open('/etc/shadow').read()", "EPERM"),
    "read the peer's key": ("open(KEY).read()", "EPERM"),
    "write where all may": ("open(CANARY, 'w').write('x')", "EPERM"),
    "write to shared memory": ("open('/dev/shm/canary', 'w').write('x')", "EPERM"),
    "list the root": ("os.listdir('/')", "EPERM"),
    "see a file": ("got = os.path.exists('/etc/passwd')", "ran False"),
    "see itself": ("os.readlink('/proc/self/exe')", "EPERM"),
    "read another's environment": ("open('/proc/1/environ').read()", "EPERM"),
    "read another's memory": ("open(f'/proc/{PEER}/mem', 'rb').read(1)", "EPERM"),
    "write its own memory": ("open('/proc/self/mem', 'r+b')", "EPERM"),
    "read all memory": ("os.open('/dev/mem', os.O_RDWR)", "EPERM"),
    "make a folder": ("os.mkdir(CANARY)", "EPERM"),
    "make a link": ("os.symlink('/etc/passwd', CANARY)", "EPERM"),
    "make a device": ("os.mknod(CANARY, 0o20666, os.makedev(1, 1))", "EPERM"),
    "leave by ..": ("os.chdir('../../..')", "EPERM"),
    "open without Python": (
        "if libc.open(b'/etc/passwd', 0) < 0: raise OSError(ctypes.get_errno(), '')",
        "EPERM",
    ),
    "open beneath a descriptor": ("[os.open('etc/passwd', 0, dir_fd=fd) for fd in range(4)]", "EPERM"),
    "a file as a tensor": ("torch.from_file('/etc/passwd', size=16, dtype=torch.uint8)", "RuntimeError"),
    "a file as a storage": (
        "torch.zeros(4).untyped_storage().from_file('/etc/passwd', False, 16)",
        "RuntimeError",
    ),
    "a file made as a storage": ("torch.zeros(4).untyped_storage().from_file(CANARY, True, 16)", "RuntimeError"),
    "torch.save": ("torch.save(torch.ones(1), CANARY)", "EPERM|RuntimeError|ModuleNotFoundError"),
    "torch.load": ("torch.load('/etc/passwd')", "EPERM|RuntimeError|ModuleNotFoundError"),
    "torch.hub": ("torch.hub.load_state_dict_from_url('file:///etc/passwd')", "EPERM|RuntimeError"),
    "a tensor that is shared": ("torch.ones(4).share_memory_()", "EPERM|RuntimeError"),
    "shared memory by name": ("SharedMemory(create=True, size=16)", "EPERM"),
    "load a library": ("ctypes.CDLL('/usr/lib/x86_64-linux-gnu/libresolv.so.2')", "OSError"),
    "load operations": ("torch.ops.load_library('/usr/lib/libevil.so')", "EPERM|OSError|ImportError"),
    "change the peer's file": ("os.fchmod(3, 0o777)", "EPERM"),
    "lock": ("import fcntl; fcntl.flock(3, fcntl.LOCK_EX)", "EPERM"),
    "import code": ("import antigravity", "ModuleNotFoundError|EPERM"),
}

NETWORK: Final = {
    "internet": ("socket.socket(socket.AF_INET)", "EPERM"),
    "datagrams": ("socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)", "EPERM"),
    "unix": ("socket.socket(socket.AF_UNIX)", "EPERM"),
    "netlink": ("socket.socket(socket.AF_NETLINK, socket.SOCK_RAW)", "EPERM"),
    "packets": ("socket.socket(socket.AF_PACKET, socket.SOCK_RAW)", "EPERM"),
    "the kernel's ciphers": ("socket.socket(38, socket.SOCK_SEQPACKET)", "EPERM"),
    "the machine's host": ("socket.socket(40, socket.SOCK_STREAM)", "EPERM"),
    "the peer's port": ("socket.create_connection(('127.0.0.1', PORT))", "EPERM"),
    "a name": ("socket.getaddrinfo('example.org', 80)", "gaierror|EPERM"),
    "its channel as another": (
        "libc.connect(3, b'\\1\\0\\0abstract', 11) and (_ for _ in ()).throw(OSError(ctypes.get_errno(), ''))",
        "EPERM",
    ),
    "its channel to another address": ("socket.socket(fileno=os.dup(3)).sendto(b'x', b'\\0abstract')", "EISCONN"),
    "a pair of sockets": ("socket.socketpair()", "EPERM"),
    "a pipe": ("os.pipe()", "EPERM"),
    "a server": ("socket.socket(fileno=os.dup(3)).listen()", "EPERM"),
    "a watch of files": ("call(254, 0)", "SIGSYS"),
}

PROCESSES: Final = {
    "a program": ("subprocess.run(['/bin/sh', '-c', f'touch {CANARY}'])", "EPERM"),
    "a shell": ("got = os.system(f'touch {CANARY}') == 0", "ran False"),
    "a shell that is read": ("os.popen('id').read()", "EPERM"),
    "to become one": ("os.execv('/bin/sh', ['sh', '-c', f'touch {CANARY}'])", "EPERM"),
    "posix_spawn": ("os.posix_spawn('/bin/sh', ['sh'], {})", "EPERM|ENOSYS"),
    "a child": ("os.fork()", "EPERM"),
    "many children": (
        """if True:
        for _ in range(10_000):
            try: os.fork()
            except PermissionError: pass
        os.fork()""",
        "EPERM",
    ),
    "a thread": ("threading.Thread(target=print).start()", "RuntimeError"),
    "a thread of its own kind": ("call(56, 0x3D0F00, 0, 0, 0, 0)", "EPERM"),
    "a child that is a process": ("call(56, signal.SIGCHLD, 0, 0, 0, 0)", "EPERM"),
    "a child in new namespaces": ("call(56, 0x10000000 | signal.SIGCHLD, 0, 0, 0, 0)", "EPERM"),
    "a child out of sight": (_C + "call(435, a, 88)", "ENOSYS"),
    "vfork": ("call(58)", "EPERM"),
    "kill the zygote": ("os.kill(os.getppid(), 9)", "SIGSYS"),
    "kill everybody": ("os.kill(-1, 9)", "SIGSYS"),
    "kill the group": ("os.killpg(0, 9)", "SIGSYS"),
    "kill another's worker": ("os.kill(NEIGHBOUR, 9)", "SIGSYS"),
    "kill the peer": ("os.kill(PEER, 9)", "SIGSYS"),
    "kill a thread of another": ("call(234, NEIGHBOUR, NEIGHBOUR, 9)", "SIGSYS"),
    "kill by queue": ("call(129, NEIGHBOUR, 9, bytes(128))", "SIGSYS"),
    "kill by handle": ("signal.pidfd_send_signal(os.pidfd_open(NEIGHBOUR), 9)", "SIGSYS"),
    "signals by input": ("import fcntl; fcntl.fcntl(3, fcntl.F_SETOWN, NEIGHBOUR)", "EPERM"),
    "trace the zygote": ("call(101, 16, os.getppid(), 0, 0)", "SIGSYS"),
    "trace the peer": ("call(101, 0x4206, PEER, 0, 0)", "SIGSYS"),
    "be traced": ("call(101, 0, 0, 0, 0)", "SIGSYS"),
    "read the zygote": (_C + "call(310, os.getppid(), a, 1, a, 1, 0)", "SIGSYS"),
    "write to the zygote": (_C + "call(311, os.getppid(), a, 1, a, 1, 0)", "SIGSYS"),
    "another's descriptors": ("call(438, 3, 0, 0)", "SIGSYS"),
    "compare with another": ("call(312, os.getpid(), NEIGHBOUR, 0, 0, 0)", "SIGSYS"),
    "advise another": ("call(440, 3, 0, 0, 0, 0)", "SIGSYS"),
    "limits of another": ("resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))", "EPERM"),
    "limits of its own": ("resource.setrlimit(resource.RLIMIT_NOFILE, (100_000, 100_000))", "EPERM|ValueError"),
    "priority": ("os.setpriority(os.PRIO_PROCESS, 0, -20)", "EPERM"),
    "real time": ("os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(99))", "EPERM"),
}

KERNEL: Final = {
    "io_uring": (_C + "call(425, 8, a)", "SIGSYS"),
    "bpf": (_C + "call(321, 0, a, 128)", "SIGSYS"),
    "userfaultfd": ("call(323, 0)", "SIGSYS"),
    "perf_event_open": (_C + "call(298, a, 0, -1, -1, 0)", "SIGSYS"),
    "keyctl": ("call(250, 0, -3, 1)", "SIGSYS"),
    "add_key": ("call(248, b'user', b'k', b'v', 1, -3)", "SIGSYS"),
    "personality": ("call(135, 0x0040000)", "SIGSYS"),
    "unshare": ("call(272, 0x10000000)", "SIGSYS"),
    "setns": ("call(308, 3, 0)", "SIGSYS"),
    "mount": ("call(165, b'none', b'/', b'tmpfs', 0, 0)", "SIGSYS"),
    "mount, the new way": ("call(430, b'proc', 0)", "SIGSYS"),
    "open_tree": ("call(428, -100, b'/', 1)", "SIGSYS"),
    "umount": ("call(166, b'/', 2)", "SIGSYS"),
    "pivot_root": ("call(155, b'.', b'.')", "SIGSYS"),
    "chroot": ("os.chroot('/')", "SIGSYS"),
    "open by handle": (_C + "call(304, 3, a, 0)", "SIGSYS"),
    "a module": ("call(175, bytes(64), 64, b'')", "SIGSYS"),
    "another kernel": ("call(246, 0, 0, 0, 0)", "SIGSYS"),
    "reboot": ("call(169, 0xfee1dead, 672274793, 0x01234567, 0)", "SIGSYS"),
    "the clock": ("time.clock_settime(time.CLOCK_REALTIME, 0)", "SIGSYS"),
    "host name": ("socket.sethostname('owned')", "SIGSYS"),
    "message queues": ("call(68, 1, 0o1666)", "SIGSYS"),
    "shared segments": ("call(29, 1, 4096, 0o1666)", "EPERM"),
    "hidden memory": ("call(447, 0)", "SIGSYS"),
    "another filter": (_C + "call(317, 1, 0, a)", "SIGSYS"),
    "landlock again": (_C + "call(444, a, 8, 0)", "SIGSYS"),
    "ports": ("call(172, 3)", "SIGSYS"),
    "ioctl": ("import fcntl; fcntl.ioctl(0, 0x5412, b'x')", "EPERM"),
    "prctl": ("call(157, 4, 1, 0, 0, 0)", "EPERM"),
    "another user": ("os.setuid(0)", "EPERM"),
    "other groups": ("os.setgroups([0])", "EPERM"),
    "capabilities": (_C + "call(126, struct.pack('Ii', 0x20080522, 0), b'\\xff' * 24)", "EPERM"),
    "a call of x32": ("call(0x40000000, 0, 0, 0)", "SIGSYS"),
    "a call that there is not": ("call(9_999)", "SIGSYS"),
    "splice": ("call(275, 3, 0, 3, 0, 1, 0)", "SIGSYS"),
    "vmsplice": ("call(278, 3, 0, 0, 0)", "SIGSYS"),
    "a program in memory": (
        """if True:
        fd = os.memfd_create('x')
        os.write(fd, b'#!/bin/sh\\ntouch ' + CANARY.encode())
        call(322, fd, b'', 0, 0, 0x1000)""",
        "EPERM",
    ),
}

MEMORY: Final = {
    "shared memory": ("mmap.mmap(-1, 4096, flags=0x21)", "EPERM"),
    "machine code that opens": (
        "r = machine_code(bytes.fromhex('b8020000000f05c3'))(b'/etc/passwd', 0, 0); raise OSError(-r, '')",
        "EPERM",
    ),
    "machine code that connects": (
        "r = machine_code(bytes.fromhex('b8290000000f05c3'))(2, 1, 0); raise OSError(-r, '')",
        "EPERM",
    ),
    "machine code that is another": (
        "r = machine_code(bytes.fromhex('b83b0000000f05c3'))(b'/bin/sh', 0, 0); raise OSError(-r, '')",
        "EPERM",
    ),
    "machine code of 32 bits": ("machine_code(bytes.fromhex('b814000000cd80c3'))(0, 0, 0)", "SIGSYS|SIGSEGV"),
    "bytes without end": ("x = []\nwhile True: x.append(bytes(1 << 24))", "MemoryError"),
    "a tensor without end": ("torch.ones(10**11)", "RuntimeError"),
    "tensors without end": ("x = []\nwhile True: x.append(torch.ones(1 << 22))", "RuntimeError"),
    "small things without end": ("x = []\nwhile True: x.append([x] * 99)", "MemoryError|exit 70"),
    "a heap without end": ("mmap.mmap(-1, 1 << 40, flags=0x22)", "ENOMEM"),
    "a stack without end": (
        "sys.setrecursionlimit(10**9)\ndef f(_=0): return sorted([1, 2], key=f)\nf()",
        "SIGSEGV|MemoryError",
    ),
    "files without end": ("x = []\nwhile True: x.append(os.memfd_create('x'))", "EMFILE"),
    "a file without end": ("os.ftruncate(os.memfd_create('x'), 1 << 50)", "SIGXFSZ|EFBIG"),
    "pages that are locked": ("call(149, id(sys), 1)", "EPERM"),
    "pages that are huge": ("mmap.mmap(-1, 1 << 21, flags=0x40022)", "EPERM"),
    "the lowest page": ("ctypes.string_at(0)", "SIGSEGV"),
    "to abort": ("os.abort()", "SIGABRT"),
}

LEFT: Final = {
    "descriptors": (
        """if True:
        got = []
        for fd in range(1024):
            try: got.append((fd, os.fstat(fd).st_mode >> 12))
            except OSError: pass""",
        "ran [(0, 2), (1, 2), (2, 2), (3, 12)]",  # /dev/null, and a socket
    ),
    "the environment": ("got = 'GRID_SECRET' in str(os.environ)", "ran False"),
    "who it is": ("got = (os.getuid() == 65534, os.getppid() in (0, 1) or PIDS)", "ran (True, True)"),
    "what it computes": ("got = (torch.ones(3, 3) @ torch.ones(3, 3)).sum().item()", "ran 27.0"),
}

# Another hand's: the same goals by the doors beside those above.
DOORS: Final = {
    "openat2": (_C + "call(437, -100, b'/etc/passwd', a, 24)", "EPERM"),
    "a handle of a file": (_C + "call(303, -100, b'/', a, a, 0)", "SIGSYS"),
    "a program by descriptor": ("os.execve(0, ['sh'], {})", "EPERM"),
    "fsmount": ("call(432, 0, 0, 0)", "SIGSYS"),
    "move_mount": ("call(429, 0, b'', -100, b'/', 4)", "SIGSYS"),
    "mount_setattr": (_C + "call(442, -100, b'/', 0, a, 32)", "SIGSYS"),
    "fanotify": ("call(300, 0, 0)", "SIGSYS"),
    "statx": (_C + "call(332, -100, b'/etc/passwd', 0, 0xFFF, a)", "EPERM"),
    "stat through a descriptor": (_C + "call(262, 0, b'../etc/passwd', a, 0)", "ENOTDIR"),
    "names in a descriptor": (_C + "call(217, 0, a, 256)", "EPERM"),
    "a place without rights": ("os.open('/', os.O_PATH)", "EPERM"),
    "its descriptor anew": ("os.open('/proc/self/fd/3', os.O_RDWR)", "EPERM"),
    "sendfile": ("call(40, 3, 0, 0, 4096)", "SIGSYS"),
    "copy_file_range": ("call(326, 0, 0, 3, 0, 10, 0)", "SIGSYS"),
    "many messages at once": (_C + "call(307, 3, a, 1, 0)", "SIGSYS"),
    "a byte out of band": ("call(44, 3, b'x', 1, 1, 0, 0)", "EPERM"),
    "to read a byte out of band": (_C + "call(45, 3, a, 1, 0x41, 0, 0)", "EPERM"),
    "to peek": (_C + "call(45, 3, a, 1, 0x42, 0, 0)", "EPERM"),
    "pages of the channel": ("call(44, 3, b'', 0, 0x4000000, 0, 0)", "EPERM"),
    "a handle of the peer": (_C + "call(55, 3, 1, 77, a, struct.pack('i', 4))", "EPERM"),
    "who the peer is": (_C + "call(55, 3, 1, 17, a, struct.pack('i', 12))", "EPERM"),
    "credentials of another": ("call(54, 3, 1, 16, b'\\1\\0\\0\\0', 4)", "EPERM"),
    "a filter of the channel": ("call(54, 3, 1, 50, bytes(4), 4)", "EPERM"),
    "a name for the channel": ("call(49, 3, b'\\1\\0', 2)", "EPERM"),
    "input for a terminal": ("call(16, 0, 0x5412, b'x')", "EPERM"),
    "a signal of its choice": ("import fcntl; fcntl.fcntl(3, 10, 9)", "EPERM"),
    "a command with high bits": ("call(72, 3, 1 << 32 | 8, 1)", "EPERM"),
    "a call with high bits": ("call(1 << 32 | 2, b'/etc/passwd', 0)", "EPERM"),
    "to outlive the zygote": ("call(157, 1, 0, 0, 0, 0)", "EPERM"),
    "a child that shares memory": ("call(56, 0x4111, 0, 0, 0, 0)", "EPERM"),
    "a thread with a signal": ("call(56, 0x3D0F09, 0, 0, 0, 0)", "EPERM"),
    "a filter that asks": (_C + "call(317, 1, 8, a)", "SIGSYS"),
    "segments": (_C + "call(154, 0, a, 16)", "SIGSYS"),
    "to lend priority": (_C + "call(202, a, 6, 0, 0, 0, 0)", "EPERM"),
    "to hand priority on": (_C + "call(202, a, 12, 1, 1, a, 0)", "EPERM"),
    "many futexes": (_C + "call(449, a, 1, 0, 0, 0)", "SIGSYS"),
    "shared for certain": ("call(9, 0, 4096, 3, 0x23, -1, 0)", "EPERM"),
    "memory of a file, shared": ("f = os.memfd_create('x'); os.ftruncate(f, 4096); mmap.mmap(f, 4096)", "EPERM"),
    "a file of huge pages": ("call(319, b'x', 4)", "EPERM"),
    "pages of another": ("call(279, 1, 0, 0, 0, 0, 0)", "SIGSYS"),
    "whose machine it is": ("got = os.uname().nodename", "ran 'worker'"),
    "the kernel's log": (_C + "call(103, 3, a, 256)", "SIGSYS"),
}

# A third one's: what tells of others who compute here, or speaks to them, by what they share.
OTHERS: Final = {
    "what another's operations take": ("time.clock_gettime(~NEIGHBOUR << 3 | 2)", "EPERM"),
    "what a zygote has taken": ("time.clock_gettime(~1 << 3 | 2)", "EPERM"),
    "whether another has a clock": ("time.clock_getres(~NEIGHBOUR << 3 | 2)", "EPERM"),
    "to sleep for as long as another computes": (
        "call(230, ~NEIGHBOUR << 3 | 2, 0, struct.pack('qq', 0, 1), 0)",
        "EPERM",
    ),
    "a clock of a descriptor": ("time.clock_gettime(~3 << 3 | 3)", "EPERM"),
    "clocks of its own": (
        "got = all(time.clock_gettime(clock) > 0 for clock in (0, 1, 2, 3, 4, 7)) and time.thread_time() > 0",
        "ran True",
    ),
    "who else is there": (_C + "call(204, NEIGHBOUR, 128, a)", "EPERM"),
    "its own processors": ("got = len(os.sched_getaffinity(0) & os.sched_getaffinity(os.getpid())) > 0", "ran True"),
    "a place in a file that others have open": ("os.lseek(0, 7, 0)", "EPERM"),
    "to move that place": ("os.read(0, 1)", "EPERM"),
    "pages that others have read": (_C + "call(27, ctypes.addressof(a) & -4096, 4096, a)", "EPERM"),
    "pages like those of others": ("mmap.mmap(-1, 4096, flags=0x22).madvise(12)", "EPERM"),
    "pages of others' written out": ("mmap.mmap(-1, 4096, flags=0x22).madvise(21)", "EPERM"),
    "advice that is its own affair": (
        "got = [mmap.mmap(-1, 4096, flags=0x22).madvise(at) for at in (3, 4)]",
        "ran [None, None]",
    ),
    "memory beyond the end of a file": (
        "f = os.memfd_create('x'); os.ftruncate(f, 4096); call(285, f, 1, 4096, 1 << 20)",
        "EPERM",
    ),
    "a hole in a file": ("f = os.memfd_create('x'); os.ftruncate(f, 8192); call(285, f, 3, 0, 4096)", "EPERM"),
    "the group of another": ("os.getpgid(NEIGHBOUR)", "EPERM"),
    "the session of another": ("os.getsid(NEIGHBOUR)", "EPERM"),
    "how another is scheduled": ("call(315, NEIGHBOUR, bytes(56), 56, 0)", "SIGSYS"),
    "to have another's turns shorter": ("call(314, NEIGHBOUR, bytes(56), 0)", "SIGSYS"),
    "the disk before another": ("call(251, 1, NEIGHBOUR, 0)", "SIGSYS"),
    "another's memory given back": ("call(448, 3, 0)", "SIGSYS"),
    "a list of another's locks": (_C + "call(274, NEIGHBOUR, a, a)", "EPERM"),
    "a file's cache": (_C + "call(451, 3, a, a, 0)", "SIGSYS"),
    "mounts by number": (_C + "call(457, a, a, 256, 0)", "SIGSYS"),
    "what other walls there are": (_C + "call(459, 100, a, a, 0)", "SIGSYS"),
    "memory sealed for good": ("call(462, 0, 4096, 0)", "SIGSYS"),
    "a queue of messages by name": ("call(240, b'/x', 66, 438, 0)", "SIGSYS"),
    "work for the kernel, later": (_C + "call(206, 1, a)", "SIGSYS"),
    "its own code anew": ("call(322, -100, b'/proc/self/exe', 0, 0, 0)", "EPERM"),
    "a message to somewhere else": (
        "call(44, 3, b'x', 1, 0x8000, 0, 0)",
        "EPERM",
    ),
}

ALL: Final = {**OTHERS, **DOORS, **FILES, **NETWORK, **PROCESSES, **KERNEL, **MEMORY, **LEFT}
