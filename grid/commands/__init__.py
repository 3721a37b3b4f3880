"""The commands of `grid`: what can be said, and what they do, which is to call and to print. In import order:

options.py    options that several commands have, and what those of start and up say of workers
entry.py      the options before a command, and how a command comes to its grid
declared/     what can be said: commands with their options and help
errors.py     an error as a line and an exit code
stopping.py   Ctrl-C
peers.py      start, up, down, peers, status
upkeep.py     verify, compact
files.py      put, get
objects.py    search, show, move, copy, tag, rm
computing.py  run
running.py    ps, kill
"""
