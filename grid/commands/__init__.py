"""What the commands do: call, and print. cli.py parses, and calls these. In import order:

options.py    options that several commands have, and what those of start and up say of workers
errors.py     an error as a line and an exit code
stopping.py   Ctrl-C
peers.py      start, up, down, peers, status
upkeep.py     verify, compact
files.py      put, get
objects.py    search, show, move, copy, tag, rm
computing.py  run
running.py    ps, kill
"""
