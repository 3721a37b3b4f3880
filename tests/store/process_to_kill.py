"""Publishes and deletes for as long as it lives, and says on its standard output what was acknowledged.

python process_to_kill.py FOLDER PEER_ID [unsynced]

With `unsynced` no file and no folder is ever synced: what the tests of a power cut must find out.
"""

import asyncio
import hashlib
import os
import secrets
import sys

from peer.store.fs import Fs
from peer.store.store import Store

SIZES = (0, 300, 30_000, 70_000, 400_000)


class Unsynced(Fs):
    """A disk of which nothing is asked but to have the bytes some day."""

    def fsync(self, fd):
        pass


def record_of(uid, nbytes):
    return {
        "id": uid,
        "kind": "tensor",
        "name": None,
        "owner": "o" * 52,
        "tags": ["kept"],
        "description": "",
        "dtype": "uint8",
        "shape": [nbytes],
        "nbytes": nbytes,
        "private": False,
        "labels": [],
        "created": 0.0,
        "published": True,
    }


def say(word, uid):
    os.write(1, f"{word} {uid.hex()}\n".encode())  # a line this short is written whole or not at all


async def work(store, nbytes):
    ours = []
    while True:
        uid = secrets.token_bytes(16)
        await store.publish(record_of(uid, nbytes), hashlib.shake_128(uid).digest(nbytes))
        say("put", uid)
        ours.append(uid)
        if len(ours) > 4:
            old = ours.pop(0)
            say("deleting", old)
            await store.delete(old)
            say("deleted", old)


async def main():
    fs = Unsynced() if "unsynced" in sys.argv[3:] else Fs()
    store = await Store.open(sys.argv[1], sys.argv[2], fs=fs)
    await asyncio.gather(*(work(store, nbytes) for nbytes in SIZES))


if __name__ == "__main__":
    asyncio.run(main())
