"""What can be said on the command line: the commands with their options and help, in the order in which help has them.

What they do is in the modules beside this folder, imported when a command runs. In import order:

peers.py      start, up, down, peers, status, verify, compact
objects.py    put, search, show, get, move, copy, tag, rm
computing.py  run, ps, kill, demo
"""

# Help lists commands in the order in which they are declared.
# isort: off
from grid.commands.declared import peers as peers
from grid.commands.declared import objects as objects
from grid.commands.declared import computing as computing
