"""The common base of all layers: a storage over a storage.

    database ─► layer ─► layer ─► … ─► base, which keeps the data

A layer declares those of the base's interfaces that it can honour. A method that it does not
define is the base's, if one of those interfaces has it; so a layer's class defines all it changes.
What two layers have in common is a layer of its own, between them and the base: see `go_through`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from zope.interface import directlyProvides

from objdb.errors import UsageError
from objdb.interfaces import (
    IStorage,
    IStorageCurrentRecordIteration,
    IStorageHistory,
    IStorageIteration,
    IStoragePackable,
    IStoragePacked,
    IStoragePolling,
    IStoragePrefetch,
    IStorageReadChecks,
    IStorageRestoreable,
    IStorageSelfCheck,
    IStorageShared,
    IStorageSync,
    IStorageUndoable,
    IStorageVersions,
)
from objdb.storage.copying import CopyProgress

if TYPE_CHECKING:
    from typing_extensions import Self


class Layer:
    """Passes every call to *base*, a storage. `base` is that storage; closing a layer closes it.

    A subclass lists in `honours` the interfaces that it declares if the base does.
    `UsageError` if *base* is not a storage.
    """

    honours: tuple[Any, ...] = (
        IStorage, IStorageReadChecks, IStorageHistory, IStorageIteration,
        IStorageCurrentRecordIteration, IStorageRestoreable,
        IStorageUndoable, IStorageVersions, IStoragePacked, IStoragePackable, IStorageSelfCheck,
        IStoragePolling, IStorageShared, IStorageSync, IStoragePrefetch,
    )
    _passed: frozenset[str] = frozenset()
    _next: Any
    _made_with: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, base: Any, *arguments: Any, **options: Any) -> Self:
        """Remember the arguments, for `again`."""
        layer = super().__new__(cls)
        layer._made_with = arguments, options
        return layer

    def __init__(self, base: Any) -> None:
        if not IStorage.providedBy(base):
            raise UsageError(
                f"{base!r} is not a storage to put a {type(self).__name__} over. Give it one, "
                "such as FileStorage(path)"
            )
        self.base = base
        self.go_through(base)

    def go_through(self, layer: Any) -> None:
        """Pass calls to *layer*, over the base, instead of the base; declare what it declares."""
        self._next = layer
        declared = [interface for interface in self.honours if interface.providedBy(layer)]
        directlyProvides(self, *declared)
        self._passed = frozenset(name for interface in declared for name in interface)

    def __getattr__(self, name: str) -> Any:
        if name in self._passed:
            return getattr(self._next, name)
        raise AttributeError(
            f"{type(self).__name__} has no {name!r}: the storage under it does not declare an "
            "interface with it, or the layer does not support it"
        )

    def __len__(self) -> int:
        return len(self.base)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} over {self.base!r}>"

    def again(self) -> Self:
        """See `IStorageShared`: the same layer over another storage."""
        arguments, options = self._made_with
        base = self.base.again()
        try:
            return type(self)(base, *arguments, **options)
        except BaseException:
            base.close()
            raise

    def supportsVersions(self) -> bool:
        """See `IStorageVersions`."""
        return IStorageVersions.providedBy(self) and bool(self.base.supportsVersions())

    def copyTransactionsFrom(
        self, other: Any, progress: Callable[[CopyProgress], object] | None = None
    ) -> int:
        """See `IStorageRestoreable`."""
        count: int = self._next.copyTransactionsFrom(
            self._next if other is self else other, progress
        )
        return count
