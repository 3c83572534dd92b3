"""Exploring interrupts: an exception raised wherever CPython may raise one from outside.

    for each place of the call, in objdb and in `transaction`:
        raise there ─► is it wholly in, or wholly out? ─► do others go on? ─► reopened, the same?

A signal, or another thread, raises an exception behind a call of C, at the beginning of a function,
or at a jump back: there CPython looks for them. `sys.settrace` stops at each opcode of the modules
that are looked at, and raises at one that follows such a place.
"""

from __future__ import annotations

import dis
import gc
import os
import random
import sys
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import transaction

import objdb
from objdb.check import check

_ROOTS = tuple(str(Path(str(module.__file__)).parent) for module in (objdb, transaction))
# Behind these CPython looks for signals.
_LOOKS = {
    dis.opmap[name] for name in ("CALL", "CALL_KW", "CALL_FUNCTION_EX", "RESUME", "JUMP_BACKWARD")
    if name in dis.opmap
}
_NOT_LOOKED_AT = str(Path(__file__).parent)
_PATIENCE_SECONDS = 20.0

Operation = Callable[[objdb.DB], object]


class Interrupter:
    """Counts the places, inside `with`, where an exception may come from outside to this thread, in
    objdb and `transaction`; raises *exception* at place number *at*. `count` is their number,
    `where` the one where it was raised."""

    def __init__(
        self, at: int | None = None, exception: type[BaseException] = KeyboardInterrupt
    ) -> None:
        self._at = at
        self._exception = exception
        self._behind: dict[FrameType, int] = {}  # where the last opcode of `_LOOKS` is; or -1
        self.count = 0
        self.where: str | None = None

    def __enter__(self) -> Interrupter:
        sys.settrace(self._trace)
        return self

    def __exit__(self, *exception: object) -> None:
        sys.settrace(None)
        self._behind.clear()

    def _trace(self, frame: FrameType, event: str, argument: Any) -> Any:
        if event == "call":
            if frame.f_back is not None:  # it has called Python, not C
                self._behind.pop(frame.f_back, None)
            name = frame.f_code.co_filename
            is_outside = not name.startswith(_ROOTS) or name.startswith(_NOT_LOOKED_AT)
            # What is raised in a finalizer ends there: Python tells it, and drops it.
            if is_outside or _is_in_finalizer(frame):
                return None
            frame.f_trace_opcodes, frame.f_trace_lines = True, False
        elif event == "opcode":
            code, at, behind = frame.f_code, frame.f_lasti, self._behind.get(frame, -1)
            # CPython raises in that opcode; here it is raised at the next one, which another
            # handler may be for: there nothing can be raised from outside.
            if behind >= 0 and _handler(code, behind) == _handler(code, at):
                self._meet(frame)
            self._behind[frame] = at if code.co_code[at] in _LOOKS else -1
        elif event == "return":
            self._behind.pop(frame, None)
        return self._trace

    def _meet(self, frame: FrameType) -> None:
        self.count += 1
        if self.count - 1 == self._at:
            sys.settrace(None)
            code = frame.f_code
            self.where = f"{code.co_filename}:{frame.f_lineno} {code.co_name}"
            raise self._exception("raised by the exploration")


def _is_in_finalizer(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_name == "__del__":
            return True
        frame = frame.f_back
    return False


@cache
def _handlers(code: CodeType) -> list[Any]:
    parse: Any = getattr(dis, "_parse_exception_table", None)  # since Python 3.11
    return [] if parse is None else list(parse(code))


def _handler(code: CodeType, at: int) -> int:
    """Return where what is raised at an offset of *code* is handled; -1 if nowhere in it."""
    return next((each.target for each in _handlers(code) if each.start <= at < each.end), -1)


class Fault(NamedTuple):
    """What was wrong after an interrupt at place number `at`, in the place `where`."""

    at: int
    where: str
    what: str


def value_of(db: objdb.DB) -> Any:
    """Return the value that another thread sees."""
    return _in_thread(lambda: _read(db))


def _read(db: objdb.DB) -> Any:
    with _working(db) as (_, connection):
        root = connection.root()
        return {name: getattr(root[name], "value", None) for name in sorted(root)}


def _write(db: objdb.DB, value: int) -> None:
    with _working(db) as (manager, connection):
        connection.root()["later"].value = value
        manager.commit()


class Cell(objdb.Persistent):
    """An object with a `value`."""

    def __init__(self, value: Any = 0) -> None:
        self.value = value


def _in_thread(function: Callable[[], Any]) -> Any:
    """Return the result of *function*, called in a thread of its own. Raises what it raises, and
    TimeoutError if it does not come back."""
    results: list[Any] = []
    failures: list[BaseException] = []

    def run() -> None:
        try:
            results.append(function())
        except BaseException as error:  # noqa: BLE001  it is raised in the other thread
            failures.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_PATIENCE_SECONDS)
    if failures:
        raise failures[0]
    if not results:
        raise TimeoutError("a thread does not go on")
    return results[0]


class Exploration:
    """Interrupts *operation*, a function of a database over what `open_storage(folder)` opens in a
    folder in *parent*: again and again, at other places. The operation changes the value of `cell`
    in the root, or nothing. *persists*: whether a storage is found again. `faults` has what was
    wrong."""

    def __init__(
        self, open_storage: Callable[[Path], Any], parent: Path, operation: Operation,
        exception: type[BaseException] = KeyboardInterrupt, persists: bool = True,
    ) -> None:
        self._open_storage = open_storage
        self._parent = parent
        self._folder = self._new_folder()
        self._operation = operation
        self._exception = exception
        self._persists = persists
        self._later = 0
        self.faults: list[Fault] = []

    def run(self, most: int | None = None, seed: int = 0) -> int:
        """Interrupt at all places, or at *most* random ones; return how many."""
        with _without_warnings():
            return self._run(most, seed)

    def _run(self, most: int | None, seed: int) -> int:
        db = self._open()
        with Interrupter() as interrupter:
            self._operation(db)
        points: Iterable[int] = range(interrupter.count)
        if most is not None and most < interrupter.count:
            points = sorted(random.Random(seed).sample(range(interrupter.count), most))
        done = 0
        for at in points:
            done += 1
            db = self._try(db, at)
        db.close()
        return done

    def _new_folder(self) -> Path:
        return Path(tempfile.mkdtemp(dir=self._parent))

    def _open(self) -> objdb.DB:
        db = objdb.DB(self._open_storage(self._folder), pool_size=50)
        with db.transaction() as connection:
            for name in ("cell", "later"):
                connection.root().setdefault(name, Cell())
        return db

    def _try(self, db: objdb.DB, at: int) -> objdb.DB:
        """Interrupt once; return the database, or another one after a fault."""
        interrupter = Interrupter(at, self._exception)
        before = self._call(at, "", value_of, db)
        try:
            with interrupter:
                self._operation(db)
        except self._exception:
            pass
        except objdb.StorageFailedError:
            pass
        except Exception as error:  # noqa: BLE001  all others are faults
            if not self._tells(error):
                self._note(at, interrupter.where, f"the operation: {error!r}")
        where = interrupter.where or "not reached"
        number = len(self.faults)
        after = self._call(at, where, value_of, db)
        self._later += 1
        self._call(at, where, _in_thread, lambda: _write(db, self._later))
        last = self._call(at, where, value_of, db)
        if None not in (before, after, last):
            self._compare(at, where, before, after, last)
        if len(self.faults) == number and at % 50:
            return db
        try:
            _in_thread(db.close)
        except BaseException as error:  # noqa: BLE001  a fault
            self._note(at, where, f"closing: {error!r}")
            self._folder = self._new_folder()
            return self._open()
        return self._reopen(at, where, last)

    def _tells(self, error: BaseException | None) -> bool:
        """Whether *error* was raised because of the interrupt, and says so."""
        while error is not None and not isinstance(error, self._exception):
            error = error.__cause__
        return error is not None

    def _reopen(self, at: int, where: str, last: Any) -> objdb.DB:
        db = self._open()
        found = value_of(db)
        if self._persists and last is not None and found != last:
            self._note(at, where, f"{last} became {found} when it was reopened")
        problems = check(db.storage).problems
        if problems:
            self._note(at, where, f"check: {problems[0]}")
        return db

    def _compare(self, at: int, where: str, before: Any, after: Any, last: Any) -> None:
        if last["later"] != self._later:
            self._note(at, where, "a later commit is not seen")
        if after["cell"] != last["cell"]:
            self._note(at, where, f"cell was {after['cell']}, and became {last['cell']} by itself")

    def _call(self, at: int, where: str, function: Callable[..., Any], *arguments: Any) -> Any:
        try:
            return function(*arguments)
        except BaseException as error:  # noqa: BLE001  a fault
            self._note(at, where, f"{type(error).__name__}: {error}"[:200])
            return None

    def _note(self, at: int, where: str | None, what: str) -> None:
        self.faults.append(Fault(at, str(where).removeprefix(os.path.dirname(_ROOTS[0])), what))


class OpeningExploration:
    """Interrupts `open_database(folder)`, a commit in that database, and closing it.

    Whatever was interrupted, and closed if there was something to close, the database can be
    opened at once, with the commit or without; no file and no thread stays.
    """

    def __init__(
        self, open_database: Callable[[Path], objdb.DB], parent: Path,
        exception: type[BaseException] = KeyboardInterrupt, persists: bool = True,
    ) -> None:
        self._open_database = open_database
        self._parent = parent
        self._folder = Path(tempfile.mkdtemp(dir=parent))
        self._exception = exception
        self._persists = persists
        self.faults: list[Fault] = []

    def run(self, most: int | None = None, seed: int = 0) -> int:
        """Interrupt at all places, or at *most* random ones; return how many."""
        with _without_warnings():
            return self._run(most, seed)

    def _run(self, most: int | None, seed: int) -> int:
        self._open_and_commit()
        with Interrupter() as interrupter:
            self._open_and_commit()
        points: Iterable[int] = range(interrupter.count)
        if most is not None and most < interrupter.count:
            points = sorted(random.Random(seed).sample(range(interrupter.count), most))
        number, files, threads = self._read(), _open_files(), threading.active_count()
        done = 0
        for at in points:
            done += 1
            where, what = self._interrupt(at)
            try:
                found = self._read()
            except Exception as error:  # noqa: BLE001  a fault
                what.append(f"opening it again: {error!r}"[:300])
                self._folder = Path(tempfile.mkdtemp(dir=self._parent))
                self._open_and_commit()
                found = number = self._read()
            if self._persists and found not in (number, number + 1):
                what.append(f"{number} became {found}")
            number = found
            gc.collect()  # files that were dropped half open
            if _open_files() > files:
                what.append(f"files are left open: {_open_files()}, not {files}")
            if threading.active_count() > threads:
                what.append(f"threads go on: {threading.enumerate()}")
            files, threads = _open_files(), threading.active_count()
            self.faults += [Fault(at, where, each) for each in what]
        return done

    def _interrupt(self, at: int) -> tuple[str, list[str]]:
        """Return where it was interrupted, and what went wrong."""
        interrupter, what = Interrupter(at, self._exception), []
        try:
            with interrupter:
                self._open_and_commit()
        except self._exception:
            pass
        except Exception as error:  # noqa: BLE001  a fault
            what.append(f"{error!r}"[:300])
        where = str(interrupter.where or "not reached")
        return where.removeprefix(os.path.dirname(_ROOTS[0])), what

    def _open_and_commit(self) -> None:
        db = None
        try:
            db = self._open_database(self._folder)
            with db.transaction() as connection:
                root = connection.root()
                root["number"] = root.get("number", 0) + 1
        finally:
            if db is not None:
                try:
                    db.close()
                except BaseException:
                    db.close()  # it may have been interrupted before it began
                    raise

    def _read(self) -> int:
        with self._open_database(self._folder) as db, db.transaction() as opened:
            number: int = opened.root().get("number", 0)
            return number


@contextmanager
def _without_warnings() -> Iterator[None]:
    """Ignore Python's warning about a file that was dropped in the middle of being opened, and is
    closed by that."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        yield
        gc.collect()


def _open_files() -> int:
    """Return how many files this process has open, where the system tells."""
    return len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else 0


# -- operations


@contextmanager
def _working(db: objdb.DB, version: str = "") -> Iterator[tuple[Any, objdb.Connection]]:
    """Give a transaction manager, and a connection in its transactions; abort and close at the
    end, once more if that is interrupted."""
    manager = transaction.TransactionManager()
    connection = db.open(version, transaction_manager=manager)
    try:
        yield manager, connection
    finally:
        try:
            manager.abort()
            connection.close()
        except BaseException:
            manager.abort()
            connection.close()
            raise


def commit(db: objdb.DB) -> None:
    """Change an object, make another, and commit."""
    with _working(db) as (manager, connection):
        root = connection.root()
        root["cell"].value += 1
        root["cell"].other = Cell()
        manager.commit()


def abort(db: objdb.DB) -> None:
    """Change, make a savepoint, change, roll back, and abort."""
    with _working(db) as (manager, connection):
        cell = connection.root()["cell"]
        cell.value += 1
        savepoint = manager.savepoint()
        cell.other = Cell()
        savepoint.rollback()


def savepoint(db: objdb.DB) -> None:
    """Change, with savepoints on the way, go back to one, and commit what is left."""
    with _working(db) as (manager, connection):
        cell = connection.root()["cell"]
        cell.value += 1
        cell.other = Cell()
        manager.savepoint()
        first = manager.savepoint()
        cell.value += 100
        cell.more = Cell()
        manager.savepoint()
        first.rollback()
        manager.commit()


def poll(db: objdb.DB) -> None:
    """Change beside a connection whose view then moves on, and that commits, too."""
    with _working(db) as (manager, connection):
        _ = connection.root()["cell"].value
        _write(db, -1)
        connection.sync()
        connection.root()["cell"].value += 1
        manager.commit()
        connection.sync()


def undo(db: objdb.DB) -> None:
    """Change, and undo that."""
    commit(db)
    manager = transaction.TransactionManager()
    try:
        db.undo(db.undoLog()[0]["id"], manager.get())
        manager.commit()
    finally:
        manager.abort()


def version(db: objdb.DB) -> None:
    """Change in a version, and commit that."""
    with _working(db, "plan") as (manager, connection):
        connection.root()["cell"].value += 1
        manager.commit()
        db.commitVersion("plan", "", manager.get())
        manager.commit()


def pack(db: objdb.DB) -> None:
    """Change, and pack."""
    commit(db)
    db.pack()


OPERATIONS: dict[str, Operation] = {
    "commit": commit, "abort": abort, "savepoint": savepoint, "poll": poll, "undo": undo,
    "version": version, "pack": pack,
}
