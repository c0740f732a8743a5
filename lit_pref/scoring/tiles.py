"""Tiles of logits: their shape, their position, and the memory that they share."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def tile_shape(device: torch.device, n: int, vocabulary: int) -> tuple[int, int]:
    """Return the rows and columns of tiles of (n, vocabulary) logits; with few rows, tiles are wider.

    On a CPU a tile has about 4 MiB in fp32, most of which stays in the caches between operations, and the number of
    columns is an odd multiple of 64, because other widths misalign rows or map neighbouring rows to the same cache
    lines; both were measured.

    On a GPU a tile has about 256 MiB in fp32, and the number of columns is a multiple of 256: two to ten tiles for
    most batches, each of hundreds of blocks of a multiplication, and longer for the GPU than the launches of its
    operations are for the CPU. This was chosen by reasoning, not measured. The width is bounded because that many rows
    of the weight may be rounded or upcast at once.
    """
    if device.type != "cpu":
        rows = _evenly(n, 8192)
        return rows, math.ceil(_evenly(vocabulary, min(2**26 // rows, 32768)) / 256) * 256
    rows = _evenly(n, 512)
    columns = _evenly(vocabulary, min(2**20 // rows, 8192))
    return rows, math.ceil((columns - 64) / 128) * 128 + 64


def _evenly(length: int, most: int) -> int:
    """Return the size of parts if `length` is divided into as few nearly equal parts of at most `most` as possible."""
    return math.ceil(max(length, 1) / math.ceil(max(length, 1) / most))


def few_tiles(device: torch.device, n: int, vocabulary: int) -> bool:
    """Return whether (n, vocabulary) logits are few enough to be kept for the backward pass instead of recomputed.

    The bound is 32 MiB in fp32 on a CPU (it saves one multiplication of four), 256 MiB on a GPU; the latter is not
    measured.
    """
    return n * vocabulary <= (2**23 if device.type == "cpu" else 2**26)


def slices(length: int, step: int) -> Iterator[slice]:
    """Divide `range(length)` into slices of `step`, of which the last may be shorter."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


@dataclass
class TilePosition:
    """The rows that a tile covers, and the columns of their targets in it."""

    rows: slice
    columns: int  # K
    inside: Tensor  # (C,) bool, whether the target is in the tile
    index: Tensor  # (C, 1) the target's column within the tile, or some other column if it is outside

    @classmethod
    def of(cls, targets: Tensor, rows: slice, columns: slice) -> "TilePosition":
        """Return the position of one tile, given the targets (N,) of all rows."""
        # Targets are clamped and masked, not selected, because a selection would wait for the GPU in every tile.
        size = columns.stop - columns.start
        index = targets[rows] - columns.start
        return cls(rows, size, (index >= 0) & (index < size), index.clamp(0, size - 1)[:, None])

    @property
    def shape(self) -> tuple[int, int]:
        """(C, K)"""
        return len(self.inside), self.columns

    def narrow(self, columns: int) -> "TilePosition":
        """Return the position of the tile's first columns."""
        if columns == self.columns:
            return self
        inside = self.inside & (self.index[:, 0] < columns)
        return TilePosition(self.rows, columns, inside, self.index.clamp(max=columns - 1))


class Workspace:
    """Memory for tiles, allocated at first use and reused by every later tile, because new memory costs page faults."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.memory: dict[str, Tensor] = {}

    def __call__(self, name: str, shape: tuple[int, int]) -> Tensor:
        """Return an uninitialised (C, K) tensor; no later tile may be larger than the first one of the same name."""
        if name not in self.memory:
            self.memory[name] = torch.empty(math.prod(shape), device=self.device, dtype=self.dtype)
        return self.memory[name][: math.prod(shape)].view(shape)
