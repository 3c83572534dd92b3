"""Makes the databases of `data/made_by_0_1_0.zip`, in the current directory; run with objdb 0.1.0.

    cd EMPTY; PYTHONPATH=OBJDB_0_1_0 python make_0_1_0.py; rm *.lock */*.lock; zip -r9 ../made.zip .
"""

import transaction
from BTrees.OOBTree import OOBTree
from persistent.mapping import PersistentMapping

import objdb

URIS = (
    "old.fs", "compressed+file:old-compressed.fs", "pickle:old.pickle", "sqlite:old.sqlite",
    "sqlite:plain.sqlite?history=false", "berkeley:old.bdb", "berkeley:plain.bdb?history=false",
)


def commit(note: str) -> None:
    """Commit, with a note."""
    transaction.get().note(note)
    transaction.commit()


def make(uri: str) -> None:
    """Make one of them."""
    db = objdb.DB(uri)
    root = db.open().root()
    entries = [(f"key {number:03}", PersistentMapping(n=number)) for number in range(60)]
    root["tree"] = OOBTree(entries)
    commit("sixty entries")
    root["tree"]["key 007"]["n"] = -7
    commit("a change")
    root["gone"] = PersistentMapping()
    commit("something to undo")
    if "plain" not in uri:
        db.undo(db.undoLog()[0]["id"])
        commit("undone")
        manager = transaction.TransactionManager()
        draft = db.open("draft", transaction_manager=manager).root()
        draft["tree"]["key 009"]["n"] = 900
        manager.commit()
    db.close()


if __name__ == "__main__":
    for each in URIS:
        make(each)
