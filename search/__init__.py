"""Finding objects: tags, the query language, the index, and one query over many peers.

The standard library and protocol/ alone; no socket, no clock, no open database. Files in import order:

    tags      the tag grammar: parse_tag, parse_tags, show_tag
    text      free text: how names and descriptions are folded for comparison
    fields    the fields of a query and their values: one table
    terms     a query as a tree of frozen terms, which prints as the text it is read from
    query     the grammar: parse_query
    records   what is said of an object, checked field by field: check_record
    match     what a query means, in plain Python: the reference
    schema    the tables, as numbered migrations
    stored    an object as the columns of its rows
    many_rows many rows in few statements
    tag_rows  the rows that say which object has which tags
    compile   a query as SQL: compile_query
    index     the objects of one peer in its SQLite file: Index
    plan      one query to many peers, as a sans-IO machine: Fanout

docs/queries.md is the user's manual of the language.
"""

from search.index import Contents, Found, Index, IndexStatistics, compile_query
from search.match import matches, peer_is, resolve_peer
from search.plan import Fanout, FanoutStatistics, PeerRef
from search.query import parse_query
from search.records import Record, check_record
from search.schema import MIGRATIONS, Database, Migration, migrate
from search.tags import parse_tag, parse_tags, show_tag
from search.terms import EVERYTHING, NOTHING, Query, all_of, any_of, negate

__all__ = [
    "EVERYTHING",
    "MIGRATIONS",
    "NOTHING",
    "Contents",
    "Database",
    "Fanout",
    "FanoutStatistics",
    "Found",
    "Index",
    "IndexStatistics",
    "Migration",
    "PeerRef",
    "Query",
    "Record",
    "all_of",
    "any_of",
    "check_record",
    "compile_query",
    "matches",
    "migrate",
    "negate",
    "parse_query",
    "parse_tag",
    "parse_tags",
    "peer_is",
    "resolve_peer",
    "show_tag",
]
