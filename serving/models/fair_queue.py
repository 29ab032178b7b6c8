"""What several owners wait for, taken one of each in turn."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Hashable
from typing import Generic, TypeVar

Item = TypeVar("Item")


class FairQueue(Generic[Item]):
    """First come, first served within one owner; owners take turns, however much each of them has."""

    def __init__(self) -> None:
        self._items: OrderedDict[Hashable, deque[Item]] = OrderedDict()

    def __len__(self) -> int:
        """Return how many items wait."""
        return sum(len(items) for items in self._items.values())

    def __bool__(self) -> bool:
        """Return whether any item waits."""
        return bool(self._items)

    def push(self, owner: Hashable, item: Item) -> None:
        """Add an item behind the owner's others."""
        self._items.setdefault(owner, deque()).append(item)

    def pop(self) -> Item:
        """Take the next item of the owner whose turn it is, who then stands behind all others.

        Raises:
            KeyError: None waits.
        """
        owner, items = self._items.popitem(last=False)
        item = items.popleft()
        if items:
            self._items[owner] = items
        return item

    def try_remove(self, owner: Hashable, item: Item) -> bool:
        """Take out an item wherever it stands; False where it does not wait."""
        items = self._items.get(owner)
        if items is None or item not in items:
            return False
        items.remove(item)
        if not items:
            del self._items[owner]
        return True

    def clear(self) -> list[Item]:
        """Take out all items."""
        taken = [item for items in self._items.values() for item in items]
        self._items.clear()
        return taken
