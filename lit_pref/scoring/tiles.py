"""How logits are cut into tiles: their shape, their place, and the memory that they share."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


def tile_shape(device: torch.device, n: int, vocabulary: int) -> tuple[int, int]:
    """Rows and columns of the tiles of (n, vocabulary) logits: few rows take wider tiles, and none is a thin rest.

    On a CPU about 4 MiB in fp32, which the caches nearly hold from one step of the arithmetic to the next; measured.
    So is the odd multiple of 64 columns: other rows are misaligned, or fall on the cache lines of their neighbours.
    On a GPU about 128 MiB, to fill it; chosen by reasoning, not measured. A width has an end: weights are upcast by it.
    """
    most, area, widest = (512, 2**20, 8192) if device.type == "cpu" else (4096, 2**25, 32768)
    rows = _evenly(n, most)
    columns = _evenly(vocabulary, min(area // rows, widest))
    return rows, math.ceil((columns - 64) / 128) * 128 + 64


def _evenly(length: int, most: int) -> int:
    """The size of the fewest parts, about equal, of which none is larger than `most`."""
    return math.ceil(max(length, 1) / math.ceil(max(length, 1) / most))


def few_tiles(device: torch.device, n: int, vocabulary: int) -> bool:
    """Whether (n, vocabulary) logits are so few that they may be kept rather than made again.

    32 MiB in fp32 on a CPU (one multiplication of four is saved), 256 MiB on a GPU; the latter is not measured.
    """
    return n * vocabulary <= (2**23 if device.type == "cpu" else 2**26)


def slices(length: int, step: int) -> Iterator[slice]:
    """`range(length)` cut into slices of `step`, the last one shorter."""
    return (slice(start, min(start + step, length)) for start in range(0, length, step))


@dataclass
class Place:
    """Which rows a tile covers, and where in it these rows have their targets."""

    rows: slice
    columns: int  # K
    inside: Tensor  # (C,) bool, whether the target lies in the tile
    index: Tensor  # (C, 1) the target's column within the tile, some other one where it lies outside

    @classmethod
    def of(cls, targets: Tensor, rows: slice, columns: slice) -> "Place":
        """The place of one tile, from the targets (N,) of all rows."""
        # Clamped and masked rather than selected: a selection would wait for the GPU in every tile.
        size = columns.stop - columns.start
        index = targets[rows] - columns.start
        return cls(rows, size, (index >= 0) & (index < size), index.clamp(0, size - 1)[:, None])


class Workspace:
    """Memory for tiles, taken at first use and used again by every later tile: new memory costs its page faults."""

    def __init__(self, device: torch.device, dtype: torch.dtype) -> None:
        self.device, self.dtype = device, dtype
        self.memory: dict[str, Tensor] = {}

    def __call__(self, name: str, place: Place) -> Tensor:
        """An uninitialised (C, K) tensor; no later tile may be larger than the first one of its name."""
        shape = len(place.inside), place.columns
        if name not in self.memory:
            self.memory[name] = torch.empty(math.prod(shape), device=self.device, dtype=self.dtype)
        return self.memory[name][: math.prod(shape)].view(shape)
