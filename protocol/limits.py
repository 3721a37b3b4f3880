"""Every limit, by name, with its reason. Enforced before anything is allocated.

Sizes are bytes, times seconds, unless the name says otherwise. A limit that an error names in its `limit`
field is a name of this module.
"""

from __future__ import annotations

from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20

# --- frames -----------------------------------------------------------------------------------------------
MAX_HEADER: Final = 64 * KIB  # msgpack headers amplify 70x in memory; 64 KiB of them costs 4 MB and 8 ms
MAX_HELLO: Final = 8 * KIB  # an unauthenticated end may make us hold no more than this
MAX_CONTAINERS: Final = 5_000  # lists and maps in one header: stops a header made of empty lists
MAX_DEPTH: Final = 64  # nesting in one header; far above any message, far below the C stack
MAX_ARRAY: Final = 4_096  # items in one list of a header
MAX_MAP: Final = 256  # entries in one map of a header
CHUNK: Final = 512 * KIB  # payload bytes in one frame: as fast as 1 MiB, fairer, and a cut costs half as much
MAX_FRAME: Final = CHUNK + MAX_HEADER + 64  # what the WebSocket layer lets through
BLOCK: Final = CHUNK  # payload bytes behind one hash: what a broken transfer sends again, and a bad one wastes
MAX_FRAMES: Final = 1_024  # frames in one message: a megabyte of tiny ones would hold the loop for a second

# --- a session --------------------------------------------------------------------------------------------
INLINE_PAYLOAD: Final = 64 * KIB  # payloads up to this ride beside their header; larger ones travel as chunks
WINDOW: Final = 8 * MIB  # bytes of one stream that may be under way without a credit
MAX_REQUESTS: Final = 1_024  # requests of one session that may be unanswered at once
MAX_STREAMS: Final = 16  # incoming streams of one session at once
MAX_BATCH: Final = 256  # operations in one `run` request
EVENTS: Final = 4  # frames of one message that are acted on before it is the turn of other lines: 60 us each
MAX_UNSENT: Final = 16_384  # frames queued for an end that goes on asking and does not read: it is cut off
RECEIVE_BUFFER: Final = MAX_STREAMS * WINDOW  # bytes of all streams that arrived and were not read: no more is taken in
MAX_ID: Final = (1 << 63) - 1  # request and stream ids
AWAKE_ANSWER: Final = 800e-6  # seconds that an asker stays awake for an answer: what an operation takes, and more
AWAKE_NEXT: Final = 400e-6  # and a peer for a worker's answer, and for what who heard it asks next
AWAKE_WORKER: Final = 60e-6  # and a worker for its next request: it counts as its principal's time, so not for long
AWAKE_ROUND: Final = 400e-6  # and a party for what another one opens: what they differ by in a round of few elements
AWAKE_LOST: Final = 500e-6  # who gave its processor away and has it back only then was not alone
AWAKE_REST: Final = 0.002  # seconds without staying awake after that; twice as long each time that it comes again
AWAKE_MOST_REST: Final = 0.1  # of those: each try on a busy machine costs a turn of somebody else's, 3 ms

# --- tensors ----------------------------------------------------------------------------------------------
MAX_NDIM: Final = 16
MAX_DIM: Final = 1 << 40
MAX_TENSOR: Final = 1 << 40
MAX_MEMORY_TENSOR: Final = 8 << 30  # a temporary lives in memory, so it is bounded by what machines have
MAX_RESULT: Final = 8 << 30  # what one operation may allocate for its results
MAX_INT: Final = 1 << 31  # integers in operation arguments (sizes, strides, indices): |n| <= this
MAX_WINDOW: Final = 65_536  # stride, padding, dilation or kernel of a convolution or pooling: kernels add up in 32 bits

MAX_FORECASTS: Final = 1_024  # costs of programs remembered by a process, one for each set of input shapes
MAX_OPERATION: Final = 86_400.0  # seconds of one fast core for one operation, at best: no peer does what takes a day
MAX_KERNELS: Final = 16_384  # kernels in one composite operation: their shapes alone take 20 us each

# --- objects and tags -------------------------------------------------------------------------------------
MAX_TAG: Final = 64  # characters, without the '#'
MAX_TAGS: Final = 32  # on one object
MAX_DESCRIPTION: Final = 4_096  # characters
MAX_OBJECT: Final = 1 << 50  # bytes of one object; sums of thousands still fit a 64-bit integer
MAX_NAME: Final = 64  # characters in a peer's name
MAX_OBJECT_NAME: Final = 256  # characters; module paths of parameters are longer than a peer's name
MAX_QUERY: Final = 2_048  # characters
MAX_QUERY_TERMS: Final = 64
MAX_QUERY_DEPTH: Final = 32  # parentheses and NOTs inside one another: parsing and SQL recurse over them
MAX_HITS: Final = 1_000  # results one peer gives to one search
MAX_MERGED_HITS: Final = 100_000  # results of one search over all peers: about 100 MB of records

# --- programs ---------------------------------------------------------------------------------------------
MAX_NODES: Final = 10_000
MAX_PROGRAM: Final = 8 * MIB  # canonical bytes of one program
MAX_PROGRAM_CONTAINERS: Final = 250_000  # lists and maps in one program: 60 MB of Python objects at worst
MAX_PROGRAM_TEXT: Final = 4 * MAX_PROGRAM  # characters; text is three times as long as the bytes, or less
MAX_BODIES: Final = 1_024  # sub-programs in one program
MAX_BODY_DEPTH: Final = 16  # bodies that run in one another: running them recurses
MAX_ITERATIONS: Final = 1_000_000  # of one loop; `limit` of a while that names none
MAX_STEPS: Final = 100_000_000_000  # operations in one run, loops counted out: at a microsecond each more than a day
MAX_CONSTANT: Final = 4 * KIB  # bytes of one tensor written into a message or a program; larger ones are inputs
MAX_ESTIMATES: Final = 16_384  # result shapes remembered by a process, one for each call with other shapes
MAX_STRETCHES: Final = 128  # stretches of operations that a peer keeps for one connection: 8,000 operations or so
STRETCH_MEMORY: Final = 16 * MIB  # of a peer's, for those of one principal: three connections full of training steps
STRETCH_CONTAINERS: Final = 3  # lists and maps of one operation, on average: empty ones take 60 times what they say
MAX_STRETCH: Final = 16 * KIB  # bytes of one; twice what 64 operations of a training step take
MAX_FOLLOWED: Final = 50_000  # operations looked at to say what a program will cost: a second or two
MAX_CAPTURES: Final = (
    128  # captures that a process remembers: more plans, and shapes of their arguments, than are in use
)
MAX_LOOKS: Final = 64  # sets of input shapes for which a process remembers how one body of a program runs
LOOK: Final = 0.1  # seconds between two looks of a running program at the clock, and at who watches it
MAX_PLANS: Final = 4_096  # calls that a process remembers how to make; all are forgotten when there are more

# --- waiting ----------------------------------------------------------------------------------------------
HANDSHAKE_TIMEOUT: Final = 5.0  # a silent connection is closed after this
DIAL_TIMEOUT: Final = 5.0
SEARCH_TIMEOUT: Final = 3.0  # a peer that has not answered by then is listed as unreachable
STALL_TIMEOUT: Final = 30.0  # a transfer without a single byte of progress for this long has failed
LEASE_GRACE: Final = 60.0  # temporaries outlive their session this long, so that it can come back
TICKET_LIFETIME: Final = 60.0  # between the offer of an object and the target's taking it
RECONNECT_TIMEOUT: Final = 10.0  # a peer that cannot be reached again for so long is lost, and what waited for it
RECONNECT_FIRST: Final = 0.02  # before the first new try; each further wait is twice the one before
RECONNECT_MOST: Final = 1.0  # between two tries
CONFIRM_MOST: Final = 5.0  # between two tries to tell a peer that was away that what it gave has arrived
RECONNECT_ENDED: Final = 2.0  # the same, of a peer of this machine whose process is known to have ended
MAX_WAITING: Final = 16_384  # requests that wait for a connection to one peer
RESUME_TIMEOUT: Final = 60.0  # what a transfer that broke has brought is kept so long for its return
BLOCK_TRIES: Final = 3  # for a block that comes out wrong: then it is not the line, and its source is named
MAX_PARTIALS: Final = 64  # transfers of one principal, in each direction, that are kept for their return
PARTIAL_BYTES: Final = MAX_MEMORY_TENSOR  # and what they may take of a peer's memory
LEDGER_BYTES: Final = 16 * MIB  # answers kept for one client until it has them; beyond it the oldest go
PING_INTERVAL: Final = 20.0
PING_TIMEOUT: Final = 20.0

# --- a peer -----------------------------------------------------------------------------------------------
MAX_UNPROVED: Final = 32  # connections that have not proved a key yet; for one more the longest silent one goes
LOG_LINES: Final = 20  # that one place in a peer's code logs in so many seconds: strangers can cause most of them
LOG_SECONDS: Final = 60.0
MAX_SESSIONS: Final = 1_024
OBJECTS_AT_HAND: Final = 1_024  # published objects that a peer remembers having read, at most 64 KiB each
KNOWN_PROGRAMS: Final = 4_096  # programs of which a peer remembers what matters for private data
MAX_TEMPORARIES: Final = 1_000_000  # of one principal
MAX_PEERS: Final = 1_000
MAX_URLS: Final = 8  # addresses of one peer
MAX_URL: Final = 256  # characters
MAX_TICKETS: Final = 4_096  # offers that nobody collected may not pile up
MAX_TRAFFIC: Final = 256  # ends of which it is remembered what they carried; all of them fit one answer
NEAR_BUFFER: Final = 768 * KIB  # sent and not read yet, where the system lets us say; Linux keeps twice that
WRITE_BUFFER: Final = 4 * MIB  # unsent bytes of one connection; above it the connection is dropped (ping flood)
PEER_START: Final = 30.0  # a peer process that is not ready by then is ended; an idle machine needs half a second
PEER_STOP: Final = 10.0  # between SIGTERM and SIGKILL

# --- the store --------------------------------------------------------------------------------------------
STORE_INLINE: Final = 64 * KIB  # contents below this live in their row: 0.14 ms against 0.59 ms for a small file
STORE_WRITE_BEHIND: Final = 8 * MIB  # bytes of one incoming object that may wait for the disk
STORE_WRITEBACK: Final = 8 * MIB  # the kernel is told to start writing after this many, so that fsync waits less
STORE_COMMIT_BATCH: Final = 256  # changes that share one commit: beyond it the wait grows and the rate does not
STORE_RESERVE: Final = 256 * KIB  # kept aside on the disk, so that a full one can still delete
STORE_THREADS: Final = 4  # blob files written at once, and as many read or checked
MOVE_KEPT: Final = 30 * 86_400.0  # a source says so long again that it gave an object up: a target may be away
MOVES_KEPT: Final = 4_096  # of one principal, that are open, that are done, and that were refused: 1 MB; the oldest go
COPY_KEPT: Final = 86_400.0  # a copy that is under way survives a restart of its source for so long
MAX_TOKEN: Final = 64  # bytes of a ticket
MAX_STORED_TENSORS: Final = 16_384  # named tensors in one object; the header of so many is about 2 MB
MAX_TENSOR_NAME: Final = 512  # characters in the name of a tensor in a model
MAX_METADATA: Final = 64 * KIB  # of one object, keys and values

# --- workers ----------------------------------------------------------------------------------------------
MAX_WORKERS: Final = 64  # processes of one peer; each has 7 MiB of its own before it holds anything
WORKER_MESSAGE: Final = 16 * MIB  # peer to worker: a whole program and its ids is the largest
WORKER_REPLY: Final = MIB  # worker to peer: 256 results are 20 KiB; the worker is not trusted, so not much more
WORKER_CONTAINERS: Final = INLINE_PAYLOAD + 4 * KIB  # lists and maps in one: five times what the most results take
WORKER_FAULT: Final = 16 * KIB  # of those, one fault: it is kept as long as the result that it is instead of
WORKER_FDS: Final = 4  # descriptors beside one message
WORKER_BACKLOG: Final = 64  # descriptors received whose message has not come yet
WORKER_QUEUE: Final = 4 * MIB  # unsent bytes for one worker, above which `ready()` waits
WORKER_STRETCHES: Final = 256  # stretches of operations that a worker keeps: those of two connections
WORKER_PROGRAMS: Final = 64  # parsed programs that a worker keeps
WORKER_IDLE: Final = 60.0  # a worker that holds nothing and is asked nothing is ended after this
WORKER_RESIDENT: Final = 32 * MIB  # bytes of stored files that a worker has read and not let go of
WORKER_EXIT: Final = 2.0  # between a worker's closed channel and the word on how it ended
ZYGOTE_DESCRIPTORS: Final = 1_024  # open files of the process from which workers are forked
WORKER_DESCRIPTORS: Final = 256  # open files of a worker: what is under way to it, and one on its way out
WORKER_OVERHEAD: Final = 64 * MIB  # beside its memory, for each thread: a stack, an allocator's arena
WORKER_THREADS: Final = 8  # that are ending while others begin: a team of threads that shrinks and grows
OPERATION_SECONDS: Final = 600.0  # of the clock for one operation or program; --worker-seconds
ANSWERS_WAIT: Final = 0.005  # answers of a worker that is asked more leave together, but wait no longer than this
LOOK_AHEAD: Final = 150e-6  # a worker at a long request looks for wishes that it can answer already; a look takes 2 us
PROGRESS: Final = 1.0  # a worker that is at one request for longer says how far it is, between operations
PROGRAM_PROGRESS: Final = 0.25  # and so often within a program: for people who watch a loop
STOP_WAIT: Final = 1.0  # for a program that is to end, between two of its operations; then its worker is killed
MAX_REPORT: Final = 2 * WORKER_REPLY  # of what each node of a program took, and its small results
SMALL_RESULT: Final = 4 * KIB  # a program's result up to this size rides along with the answer: a loss, a few labels
SMALL_RESULTS: Final = 16 * KIB  # all of them: what nobody wants costs less than the request that it saves
FEW_RESULTS: Final = 8  # of a program that has more only what is as large as one number does: the loss of a step
ONE_NUMBER: Final = 16  # bytes, of the largest dtype
SETTLED_STEPS: Final = 8  # small results go ahead of a program's end where so many operations are left at least,
SETTLED_REST: Final = 0.01  # and these take no more seconds at best: who asked is not to take a long run for over
BEATS: Final = 20  # looks at a worker's clock in the time that one operation may take: it is late by two at most
BEAT: Final = 1.0  # and at most so long between two of them
MEMORY_SHARE: Final = 2  # one part in so many of the machine's memory for one principal's workers; --worker-memory
MEMORY_STEP: Final = 16 * MIB  # change in what a worker holds that it tells
MEMORY_SLACK: Final = 4  # and one part in so many more may be there in the middle of an operation
WORKER_OWN: Final = 256 * MIB  # of a worker's memory that is torch and Python, shared with the zygote for the most part
WORKER_MAPS: Final = 1024 * MIB  # that it maps beside its own: Python, torch, and room for what the peer gives it
MIN_MEMORY: Final = 64 * MIB  # of one principal: a worker has to have something to work in
CPU_BURST: Final = 60.0  # seconds that a principal may compute before its share counts; --worker-burst
CPU_DEVICE: Final = 1_000.0  # fast cores that a CUDA device is like, in estimates
DESCRIPTORS: Final = 4  # one part in so many of those that a peer may have, at most, is for each of: its sessions, the
# memory files of values, and stored files that are sent; what is left is for workers, the store and what is passed on
SENT_FILES: Final = 4_096  # stored files that are open to be sent, at most
SENT_FILES_SHARE: Final = 4  # one part in so many of them for one principal; it waits for more
OUTGOING: Final = 16_384  # values on their way out of workers, each with a mapping: a quarter of those that Linux gives
OUTGOING_EACH: Final = 4_096  # of them, of one principal: more than four connections may ask for at once
KNOWN_PRINCIPALS: Final = 256  # of which a peer remembers what their workers took
WORKER_NICE: Final = 5  # workers give way to their peer, which everybody waits for
TURN: Final = 0.1  # seconds between two looks at whose turn it is, where several principals have workers
TURN_STRETCH: Final = 0.002  # seconds for which a worker always has something to do, that make a long stretch
TURN_SHARE: Final = 0.25  # of the clock: who was in long stretches for more of it, has no pauses to speak of
TURN_LEAST: Final = 0.1  # of the clock: and took that much of the processors at least, or it was itself kept waiting
TURN_REST: Final = 1.0  # seconds without that until it no longer stands back
TURN_OTHERS: Final = 5.0  # seconds after it last computed for which a principal is one that others stand back for
TURN_NICE: Final = 19  # of who stands back: a weight of 15 beside the 1,024 of everybody else
TURN_SLICE: Final = 0.02  # seconds that it runs at a time, if nobody interrupts: who has shorter turns may
MAX_FAULT_TEXT: Final = 2_000  # characters of a foreign error's text that travel
MAX_DEGREE: Final = 4_096  # of a polynomial: its terms are computed one after the other, for each element
MAX_PARTS: Final = MAX_ARRAY  # tensors that one operation may give (a split into single rows)
BUFFER_POOL: Final = 2048 * MIB  # released buffers kept warm, at most: fresh memory costs two thirds of a transfer
BUFFER_COUNT: Final = 128  # of them: each has a descriptor
BUFFER_FILES: Final = 4_096  # memory files of values that are kept open; beyond it the oldest values do without
BUFFER_COPY: Final = 256 * KIB  # a value up to this that gives its descriptor up is copied: mappings are few, too
BUFFER_SHARE: Final = 8  # and at most one part in so many of the memory that the peer may have
BUFFER_IDLE: Final = 30.0  # and given back to the system after this

# --- jails ------------------------------------------------------------------------------------------------
JAIL_SOURCE: Final = 64 * KIB  # characters of one function: to be read by people, and parsed in milliseconds
JAIL_REQUEST: Final = 1024 * KIB  # bytes of source, plain arguments and constants together
JAIL_DEPTH: Final = 32  # lists, tuples and dicts inside one another, in arguments and results
JAIL_INPUTS: Final = 256  # tensors that go in: each is a descriptor on its way
JAIL_RESULTS: Final = 256  # tensors that come out: their headers share one answer
JAIL_STRUCTURE: Final = 24 * KIB  # bytes of what is around them, numbers and text included
JAIL_HEADER: Final = 128 * KIB  # what a jail's process says of its results: both of these, and an error
JAIL_OUTPUT: Final = 1024 * MIB  # bytes of all results of one jail; the kernel ends one that writes more
JAIL_PRINTED: Final = 64 * KIB  # bytes of what it prints that are kept; the rest is dropped and counted
JAIL_PRINTS: Final = 10_000  # calls of print; the next is an error
JAIL_TRACEBACK: Final = 8 * KIB  # characters of the lines that an error shows
JAIL_SECONDS: Final = 60.0  # of the clock for one jail; --jail-seconds
JAILS_AT_ONCE: Final = 4  # of one principal; the next waits its turn
JAILS_WAITING: Final = 64  # of one principal, that wait; the next is refused
JAILS: Final = 16  # of all principals
JAIL_DESCRIPTORS: Final = 8  # open files of one while it runs: /dev/null three times, its two outputs, a pipe's end
JAIL_SPARES: Final = 1  # processes that are ready for a jail: to make one takes as long as many jails run

# --- secure runs ------------------------------------------------------------------------------------------
SECURE_PARTIES: Final = 8  # of one run: each sends to each
SECURE_INPUTS: Final = 16_384  # secret tensors of one run: those of the largest model
SECURE_AGREEMENT: Final = 4 * MIB  # bytes of what all taking part agree on: so many inputs
SECURE_REQUEST: Final = 256 * MIB  # bytes of one: program, public values, and shares of what the asker has
SECURE_MESSAGE: Final = 2 << 30  # bytes of one round from one party to another: a quarter of a billion words
SECURE_UNASKED: Final = 16 * MIB  # bytes of one round that are read before this party has come to that round
SECURE_AHEAD: Final = 64 * MIB  # corrections that the dealer sends before they are used
SECURE_PIECE: Final = 256 * KIB  # bytes of corrections in one message: what is dealt is used while more of it comes
SECURE_KEPT: Final = 1 << 30  # bytes of shares that one session keeps at a party: a model of 128 million weights
SECURE_AHEAD_RUNS: Final = 100_000  # runs that are dealt for at once
SECURE_STOCK: Final = 1 << 30  # bytes that were dealt ahead and wait at a party of one session
SECURE_DRAWN: Final = 256 * MIB  # and of masks that follow from it, and are drawn before they are used
SECURE_PROGRAMS: Final = 64  # programs, with their scripts, that one session knows
SECURE_IDLE: Final = 300.0  # seconds that a session stands with nothing asked of it; its asker ends it before
SECURE_PATIENCE: Final = 60.0  # seconds that one waits for another: longer than any step of a program takes
SECURE_AT_ONCE: Final = 8  # sessions of one principal at one peer: each is a process, and does one run at a time
SECURE_SESSIONS: Final = 32  # of all principals
SECURE_RULES: Final = 4_096  # private objects that kept shares may derive from
SECURE_LAST_WORDS: Final = 2.0  # seconds to hear why somebody's line ended from who knows
SECURE_OWN_WORD: Final = 1.5  # seconds in which a peer learns that its own process has died, of which others tell
MAX_REVEAL: Final = 64  # principals that may learn what secure runs compute from one object
SECRET_PENDING: Final = 1_000  # operations on secrets that wait to be computed: a program's nodes when they are lowered
SECURE_EARLY: Final = 1_024  # ends of sessions that this peer was not told of yet
SECURE_WAITING: Final = 256  # lines of processes whose session this peer was not told of yet: a descriptor each
SECURE_WAITING_EACH: Final = SECURE_SESSIONS  # of one peer: it has no more sessions than that
SECURE_LINES: Final = 256  # lines between peers; above that those end of which no session has need

# --- files that a user reads into the grid -----------------------------------------------------------------
MAX_EXPANSION: Final = 100  # times its size that a compressed file may grow: 1 MB of deflate can become 1 GB
SMALL_EXPANSION: Final = 256 * MIB  # what any file may grow to: an honest file of zeros compresses 1000-fold
READER_SECONDS: Final = 300.0  # of the clock for one file that a confined process reads, its start included
READER_CPU: Final = 120  # seconds of processors for one: 8 GiB are looked through in ten
READER_MEMORY: Final = 2 << 30  # bytes of its own, beside the file and what it gives: it makes views, and few copies
MAX_LINE: Final = 2 * MIB  # characters in one line of a table: 100,000 columns; its cells take 50 times as much memory
MAX_FILE_HEADER: Final = 16 * MIB  # of a safetensors file: eight times what the most tensors of one object need
