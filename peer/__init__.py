"""One peer: a process with an identity, a store, workers, and sessions with clients and other peers. No torch here.

Files in import order:

    folders.py      where things are kept on this machine
    machine.py      what the machine has to give, and what other processes take of it
    logs.py         what it says of itself, and how often
    awake.py        staying awake while what is waited for is due: decides when
    apart.py        who is on which core, where cores are few
    keys.py         Ed25519 keys
    near.py         the short way between two processes of one machine
    transport.py    WebSockets as the grid uses them
    liveness.py     whether the other end of a line is still there
    hashing.py      hashes of blocks, and the digest over them
    blocks.py       memory for blocks, used again by reference count
    direct.py       chunks straight from the socket into place
    payloads.py     bytes on their way out
    incoming.py     bytes on their way in
    calls.py        requests and answers as both ends see them; what a connection has carried
    leases.py       whose temporaries live, and until when: decides
    ledger.py       requests that take effect once, and what they came to: decides
    sending.py      all that leaves over a session: frames, and payloads in turn
    receiving.py    the payloads that come, each to its stream
    asking.py       our requests: sent, held, answered, given up
    serving.py      their requests: handled and answered
    closing.py      each step of an orderly end in its time
    connection.py   a session over a WebSocket: joins those parts, reads, and ends
    opening.py      dial or accept, and shake hands
    patience.py     how long a broken transfer is tried again: decides
    downloads.py    a value on its way here, over as many connections as it takes
    uploading.py    and on its way to a peer
    resuming.py     both of them: transfers that go on after the line broke
    membership.py   who is in the grid: decides
    neighbours.py   the peers of this machine, found without flags
    lasted.py       one request over a link that outlives its connections
    lasting.py      that link
    links.py        connections to peers, dialled when first needed
    joining.py      how a peer comes into a grid, and where those are whom it knows
    permissions.py  who may do what with an object: decides
    memory_file.py  one memory file: its descriptor, what is mapped of it (over worker/memory.py)
    buffers.py      shared memory for values (over worker/memory.py)
    store/          published objects: SQLite and safetensors files
    worker/         the processes that run operations
    jail_rules.py   whose jails run here, and what one may take: decides
    watching.py     what they take of this machine: looked at, booked, bounded
    pool_settings.py  how many there may be, and what each may use
    forks.py        forked by a zygote: from the wish for one to its death
    workers.py      starts, finds and ends them
    objects.py      all objects of a peer, found under one rule
    spans.py        values of temporaries on their way out, parts of stored files among them
    secrecy.py      what private data must not tell besides their values: decides
    operations.py   operations as they come: their form, what they name and change
    batches.py      operations on their way to workers, and what became of them
    taking.py       the value of a temporary, until somebody has it
    stretch.py      operations that come again: what is the same each time
    at_once.py      the lean path: operations for which nothing has to be waited
    seeds.py        what random numbers begin with, in each worker: decides
    execution.py    operations to workers, in order
    runs.py         what is running for whom: listed, ended: decides
    programs.py     whole programs to workers
    jails.py        source of a principal's, each run in a process of its own
    agreement.py    what all who take part in a secure run agree on: decides
    secure_lines.py lines between peers for secure sessions
    secure_joins.py lines between processes of secure sessions, until these have them
    secure_faults.py why a session is over, as those who take part tell each other
    secure_rules.py what owners said of the private objects that a run derives from, as peers tell each other
    secure_session.py one secure session: its process, the others, what is kept and under which rules, its end
    secure_inputs.py what is here of a run's inputs, and what their owners allow
    secure_asked.py a request for a secure run, taken apart; what a process is told of it
    secure.py       secure runs: this peer's part in them
    arrivals.py     what is coming in, checked before it is read
    intake.py       one value on its way in: into memory, or into the store
    uploads.py      values on their way in that survive the line over which they come
    publications.py temporaries that become published
    exports.py      values on their way out that may be asked for again from the middle
    transfers.py    put, fetch, publish, remove
    tickets.py      the leave to collect an object: decides
    failpoints.py   where a test can end this process
    taken.py        a temporary as it was when its move began
    moves.py        from peer to peer, at the holder: offer, collect, collected
    notes.py        what came by a move and is not confirmed
    elsewhere.py    who has contents of a name, such as those that their holder has damaged
    named.py        what programs name by its contents
    pulls.py        from peer to peer, at the target: pull
    upkeep.py       verify and compact, for the operator
    program_requests.py  the requests about programs, and what runs
    run_requests.py requests to run operations
    requests.py     what can be asked, one method each
    peer.py         wires the parts together
    process.py      a peer in this process, until it is told to stop
    processes.py    peers in other processes
"""
