"""The process of one peer in a secure session: shares what it has, deals, or computes on shares; run after run.

    peer to process                                      process to peer
    ["provide", id, ...] + fd    as to a jail            ["done", told] + fd of what came out, or its bytes
    ["line", id, is_dialler] + fd    a line to another   ["failed", fault, id of who is to blame or nil]
    ["part", what]               one run: see Part       ["lost", fault, id of whose line ended]
    ["drop", [id]]               kept shares to let go

Indices are of those who take part in a run: parties first, then the dealer, holders of inputs, and who receives the
result. Messages between them, whose `number` is 0 where nothing is said of it:

    SEED          dealer to party: its seed, bytes of corrections that the last party will get (u64), and the digest of
                  the script that it deals; number counts deals. Party to party where nobody deals: a seed that the two
                  have in common
    CORRECTIONS   dealer to the last party: a piece of them; number counts the pieces
    CREDIT        the last party to the dealer: so many bytes of them were used (u64); number counts
    READY         the last party to the others: what was dealt ahead is here
    MASK          holder to party: the seed of its shares of all that the holder has. Where shares have MACs, to the
                  dealer: the seed of the masks of these
    SHARE         holder to a party that draws none: its share of input `number`. Where shares have MACs, to all
                  parties: the input, masked
    ROUND         party to party: its shares of what is opened in round `number`
    BUSY          anybody: waiting for somebody else, or at work
    RESULT        party to who receives: what came out (0), its shares of it (1)

What is not due, or has another size than is due, ends the session: the error names who sent it.

    part        one run, as a process is told of it; the kinds of messages
    wire        a line to another: a WebSocket whose handshake is over
    due         what may come in a run: from whom, which kind, number and size
    mail        what comes and goes, of one run at a time
    kept        what stays from run to run: shares, masks, programs, what was dealt ahead
    sharing     shares of inputs, given and taken
    protocols   what all parties run, and its script
    dealing     the dealer, and what a party takes from it
    rounds      a party's rounds
    results     what comes out, and where it goes
    checked     runs in which shares have MACs
    process     the process's whole life
"""
