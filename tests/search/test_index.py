import sqlite3

import pytest

from protocol import limits
from protocol.errors import AlreadyExists, BadRequest, BadTag, NotFound, QueryError, TooLarge
from search import EVERYTHING, MIGRATIONS, Contents, Index, matches, migrate, parse_query
from search.index import IndexStatistics

ALICE = "a" * 52


def tag_counts(db):
    return dict(db.execute("SELECT name, n FROM tags").fetchall())


def ids(found):
    return [record["id"] for record in found.records]


# --- schema -----------------------------------------------------------------------------------------------
def test_migrations_are_numbered_from_one_without_gaps():
    assert [migration.number for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_migrate_gives_the_last_number_and_does_nothing_twice(db):
    assert migrate(db, MIGRATIONS[-1].number) == MIGRATIONS[-1].number


def test_a_migration_rolls_back_as_a_whole():
    db = sqlite3.connect(":memory:", isolation_level=None)
    db.execute("BEGIN")
    migrate(db)
    db.execute("ROLLBACK")
    assert db.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)
    db.close()


# --- insert, get, delete ----------------------------------------------------------------------------------
def test_what_is_inserted_is_given_back_with_its_holder(db, index, make_record):
    record = make_record("a", "b/c", name="weights", description="É\n%", labels=[ALICE], private=True)
    index.insert(db, record)
    assert index.get(db, record["id"]) == record | {"peer": "alice", "peer_id": ALICE}


@pytest.mark.parametrize("changes", [{"shape": []}, {"shape": [0, 3]}, {"kind": "model", "dtype": None, "shape": None}])
def test_every_shape_survives(db, index, make_record, changes):
    record = make_record(**changes)
    index.insert(db, record)
    assert index.get(db, record["id"])["shape"] == record["shape"]


def test_everything_in_the_index_is_published(db, index, make_record):
    record = make_record(published=False)
    index.insert(db, record)
    assert index.get(db, record["id"])["published"] is True


def test_contents_are_kept_beside(db, index, make_record):
    blob, inline, bare = make_record(), make_record(), make_record()
    index.insert(db, blob, Contents(blob="ab" * 32, extra=b"\0x"))
    index.insert(db, inline, Contents(inline=b"\0" * 100))
    index.insert(db, bare)
    assert index.contents(db, blob["id"]) == Contents("ab" * 32, None, b"\0x")
    assert index.contents(db, inline["id"]) == Contents(None, b"\0" * 100, None)
    assert index.contents(db, bare["id"]) == Contents()
    assert index.contents(db, b"?" * 16) is None


def test_an_id_is_taken_once(db, index, make_record):
    record = make_record("a")
    index.insert(db, record)
    with pytest.raises(AlreadyExists):
        index.insert(db, make_record("b", id=record["id"]))
    assert tag_counts(db) == {"a": 1}
    assert index.statistics(db) == IndexStatistics(1, record["nbytes"], 1)


def test_a_malformed_record_is_refused_and_leaves_nothing(db, index, make_record):
    with pytest.raises(BadRequest, match="tags"):
        index.insert(db, make_record("a", "NOT A TAG"))
    assert index.statistics(db) == IndexStatistics(0, 0, 0)


def test_delete_gives_the_contents_and_leaves_nothing(db, index, make_record):
    record = make_record("a", "b")
    index.insert(db, record, Contents(blob="cd" * 32))
    assert index.delete(db, record["id"]) == Contents("cd" * 32)
    assert index.delete(db, record["id"]) is None
    assert index.get(db, record["id"]) is None
    for table in ("objects", "contents", "tags", "object_tags"):
        assert db.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,)
    assert index.statistics(db) == IndexStatistics(0, 0, 0)


def test_equal_contents_share_a_blob_until_the_last_is_deleted(db, index, make_record):
    one, other = make_record(), make_record()
    for record in (one, other):
        index.insert(db, record, Contents(blob="ab" * 32))
    assert list(index.blobs(db)) == ["ab" * 32]
    index.delete(db, one["id"])
    assert index.blob_in_use(db, "ab" * 32)
    index.delete(db, other["id"])
    assert not index.blob_in_use(db, "ab" * 32)
    assert list(index.blobs(db)) == []


# --- tags and description ---------------------------------------------------------------------------------
def test_counts_follow_each_change_of_tags(db, index, make_record):
    one, other = make_record("a", "b"), make_record("a")
    index.insert(db, one)
    index.insert(db, other)
    assert tag_counts(db) == {"a": 2, "b": 1}
    assert index.set_tags(db, one["id"], ["#c", "A"]) == ("c", "a")
    assert tag_counts(db) == {"a": 2, "c": 1}
    index.delete(db, other["id"])
    assert tag_counts(db) == {"a": 1, "c": 1}
    assert index.set_tags(db, one["id"], ()) == ()
    assert tag_counts(db) == {}
    assert index.get(db, one["id"])["tags"] == []


def test_retag_adds_and_removes_and_forgives_what_is_so_already(db, index, make_record):
    record = make_record("a", "b")
    index.insert(db, record)
    assert index.retag(db, record["id"], add="#c #a", remove=["b", "z"]) == ("a", "c")
    assert index.retag(db, record["id"]) == ("a", "c")
    assert ids(index.find(db, "#c -#b")) == [record["id"]]
    assert tag_counts(db) == {"a": 1, "c": 1}


def test_tags_are_checked_before_anything_changes(db, index, make_record):
    record = make_record("a")
    index.insert(db, record)
    with pytest.raises(BadTag):
        index.set_tags(db, record["id"], ["b", "no good"])
    with pytest.raises(TooLarge):
        index.retag(db, record["id"], add=[f"t{number}" for number in range(limits.MAX_TAGS)])
    assert tag_counts(db) == {"a": 1}


def test_a_description_is_replaced_and_found(db, index, make_record):
    record = make_record(name="Net", description="old words")
    index.insert(db, record)
    index.describe(db, record["id"], "NEW words")
    assert index.get(db, record["id"])["description"] == "NEW words"
    assert ids(index.find(db, "new net")) == [record["id"]]
    assert ids(index.find(db, "old")) == []
    with pytest.raises(BadRequest):
        index.describe(db, record["id"], "a\0b")


def test_changes_of_an_absent_object_say_so(db, index):
    for change in (
        lambda: index.set_tags(db, bytes(16), ["a"]),
        lambda: index.retag(db, bytes(16), add=["a"]),
        lambda: index.describe(db, bytes(16), "x"),
    ):
        with pytest.raises(NotFound, match="0" * 32):
            change()
    assert tag_counts(db) == {}


# --- find -------------------------------------------------------------------------------------------------
def test_find_gives_the_last_inserted_first_and_says_if_there_is_more(db, index, make_record):
    records = [make_record("a") for _ in range(5)]
    for record in records:
        index.insert(db, record)
    newest_first = [record["id"] for record in reversed(records)]
    for query in ("#a", "#a kind:tensor", "#a | #b", "", "-#b", "#*"):
        assert ids(index.find(db, query)) == newest_first, query
        found = index.find(db, query, limit=3)
        assert ids(found) == newest_first[:3] and found.truncated
        assert not index.find(db, query, limit=5).truncated


def test_a_text_or_a_tree_can_be_searched(db, index, make_record):
    index.insert(db, make_record())
    assert index.find(db, "") == index.find(db, EVERYTHING)
    with pytest.raises(QueryError):
        index.find(db, "(")


def test_peer_terms_mean_the_peer_of_the_index(db, index, make_record):
    index.insert(db, make_record("a"))
    assert len(index.find(db, "peer:alice #a").records) == 1
    assert len(index.find(db, "-peer:alice #a").records) == 0
    assert len(index.find(db, "peer:bob | #a").records) == 1
    assert len(Index("bob", "b" * 52).find(db, "peer:alice").records) == 0


def test_more_tags_than_an_object_can_have_find_nothing(db, index, make_record):
    names = [f"t{number}" for number in range(limits.MAX_TAGS)]
    index.insert(db, make_record(*names))
    index.insert(db, make_record("one-more"))
    assert len(index.find(db, " ".join(f"#{name}" for name in names)).records) == 1
    assert index.find(db, " ".join(f"#{name}" for name in [*names, "one-more"])).records == []


def test_as_many_tags_as_a_query_can_have_are_no_error(db, index, make_record):
    names = [f"t{number}" for number in range(limits.MAX_QUERY_TERMS)]  # joined, they would be too many for SQLite
    for name in names:
        index.insert(db, make_record(name))
    assert index.find(db, " ".join(f"#{name}" for name in names)).records == []
    assert len(index.find(db, " | ".join(f"#{name}" for name in names)).records) == len(names)
    assert index.find(db, " ".join(f"-#{name}" for name in names)).records == []
    assert index.find(db, " ".join(f"{name}*" for name in ["#t"] * len(names))).records


@pytest.mark.parametrize(
    ("query", "is_match"),
    [
        ("created<2026-01-02", False),
        ("created<=2026-01-01", False),
        ("created:2026-01-01", False),
        ("created:2026-01-02", True),
        ("created>2026-01-01", True),
        ("created>=2026-01-02", True),
        ("created<=2026-01-02", True),
        ("created>2026-01-02", False),
    ],
)
def test_midnight_belongs_to_the_day_that_it_begins(db, index, make_record, query, is_match):
    record = make_record(created=1_767_312_000.0)  # 2026-01-02T00:00:00
    index.insert(db, record)
    assert matches(parse_query(query), record) is is_match
    assert bool(index.find(db, query).records) is is_match


def test_objects_are_found_by_the_beginning_of_their_id(db, index, make_record):
    for start in (b"\xab\xcd", b"\xab\xce", b"\xac\xcd"):
        index.insert(db, make_record(id=start + bytes(14)))
    assert [record["id"][:2].hex() for record in index.by_prefix(db, "ab")] == ["abcd", "abce"]
    assert [record["id"][:2].hex() for record in index.by_prefix(db, "ABC")] == ["abcd", "abce"]
    assert [record["id"][:2].hex() for record in index.by_prefix(db, "abcd" + "0" * 28)] == ["abcd"]
    assert len(index.by_prefix(db, "a", limit=2)) == 2
    assert index.by_prefix(db, "b") == []


@pytest.mark.parametrize("digits", ["", "xyz", "0" * 33, "' OR 1", "½"])
def test_what_is_no_beginning_of_an_id_is_refused(db, index, digits):
    with pytest.raises(BadRequest):
        index.by_prefix(db, digits)


def test_statistics_add_up(db, index, make_record):
    index.insert(db, make_record("a", nbytes=10))
    index.insert(db, make_record("a", "b", nbytes=32))
    assert index.statistics(db) == IndexStatistics(objects=2, bytes=42, tags=2)
