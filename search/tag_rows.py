"""The rows that say which object has which tags, and how many objects a tag has."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence

from search.many_rows import insert_rows
from search.schema import Database


def add_tags(db: Database, number: int | None, tags: Sequence[str]) -> None:
    """Give object `number` these tags, of which it has none."""
    if not tags:
        return
    holes = ", ".join("?" * len(tags))
    # Most tags are known: two statements for all of them are half the cost of two for each.
    if db.execute(f"UPDATE tags SET n = n + 1 WHERE name IN ({holes})", tags).rowcount < len(tags):
        for tag in tags:
            db.execute("INSERT INTO tags (name, n) VALUES (?, 1) ON CONFLICT (name) DO NOTHING", (tag,))
    db.execute(
        f"INSERT INTO object_tags (tag_id, object_id) SELECT id, ? FROM tags WHERE name IN ({holes})",
        (number, *tags),
    )


def add_all_tags(db: Database, tagged: Sequence[tuple[str, int]]) -> None:
    """The same for many objects: (tag, number) each."""
    counts = Counter(tag for tag, _ in tagged)
    db.executemany(
        "INSERT INTO tags (name, n) VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET n = n + excluded.n",
        list(counts.items()),
    )
    ids = {tag: db.execute("SELECT id FROM tags WHERE name = ?", (tag,)).fetchone()[0] for tag in counts}
    insert_rows(db, "object_tags (tag_id, object_id)", [(ids[tag], number) for tag, number in tagged])


def drop_tags(db: Database, number: int, tags: Sequence[str]) -> None:
    """Take these tags, which it has, from object `number`."""
    for tag in tags:
        db.execute(
            "DELETE FROM object_tags WHERE tag_id = (SELECT id FROM tags WHERE name = ?) AND object_id = ?",
            (tag, number),
        )
        db.execute("UPDATE tags SET n = n - 1 WHERE name = ?", (tag,))
        db.execute("DELETE FROM tags WHERE name = ? AND n = 0", (tag,))


def tags_of(db: Database, number: int, tags: str) -> list[str]:
    """The tags of object `number`, whose column says `tags`."""
    try:
        values = json.loads(tags)
    except (ValueError, TypeError):
        values = None
    if isinstance(values, list) and all(isinstance(tag, str) and tag.isascii() for tag in values):
        return values
    # It rotted: an object that cannot be read can be deleted at least, by a long search.
    sql = "SELECT name FROM tags t JOIN object_tags o ON o.tag_id = t.id WHERE o.object_id = ?"
    return [row[0] for row in db.execute(sql, (number,)).fetchall()]
