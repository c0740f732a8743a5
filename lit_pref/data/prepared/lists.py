"""The lists that the records of a split form, for data whose every record is one response of a list."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


class Records(Protocol):
    """Records that may form lists."""

    @property
    def lists(self) -> "Lists | None": ...

    def __len__(self) -> int: ...


def number_of_units(records: Records) -> int:
    """Return how many lists the records form, or how many pairs they are if they form none."""
    return len(records) if records.lists is None else len(records.lists)


class Lists:
    """The records of each list; a list is a range of consecutive records.

    Args:
        numbers: for each source, the number of each record's list, (records,): the same for the records of a list.

    >>> lists = Lists([np.array([4, 4, 7]), np.array([7, 7])])
    >>> len(lists), lists.records([2, 0]).tolist(), lists.numbers([2, 0]).tolist()
    (3, [3, 4, 0, 1], [0, 0, 1, 1])
    """

    def __init__(self, numbers: Sequence[NDArray[np.int64]]) -> None:
        ends = np.cumsum([len(part) for part in numbers])
        starts = [
            np.flatnonzero(np.diff(part, prepend=-1)) + end - len(part) for part, end in zip(numbers, ends, strict=True)
        ]
        self.starts = np.concatenate(starts).astype(np.int64)
        self.sizes = np.diff(self.starts, append=ends[-1])

    def __len__(self) -> int:
        return len(self.starts)

    def records(self, lists: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the indices of the records of these lists, list after list."""
        ranges = [np.arange(self.starts[k], self.starts[k] + self.sizes[k]) for k in lists]
        return np.concatenate([np.zeros(0, np.int64), *ranges])

    def numbers(self, lists: Sequence[int] | NDArray[np.int64]) -> NDArray[np.int64]:
        """Return, for each of `records(lists)`, the place of its list in `lists`."""
        return np.repeat(np.arange(len(lists)), self.sizes[np.asarray(lists, np.int64)])
