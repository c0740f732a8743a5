"""Data that move to a device without a wait: dataclasses of tensors, and small tensors made on the host."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any, Self

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor

ALIGNMENT = 64
"""Bytes to which tensors in one buffer are aligned; enough for every vectorised load."""


class DeviceData:
    """Base class of dataclasses that move to a device with all their tensors.

    On a GPU the tensors lie in one buffer: they are written into page-locked memory and travel in a single copy, for
    which the host does not wait. A loader can prepare that memory ahead (`pin_memory`).
    """

    _buffer: Tensor | None = None  # contains all tensors, if they were packed
    _host: Any = None  # the data from which this copy was made, if it is on a device

    @property
    def host(self) -> Self:
        """The same data in the memory of the host, where reading a number is no wait; itself if it is there."""
        return self if self._host is None else self._host

    def to(self, device: torch.device | str) -> Self:
        """Return the same data with every tensor on `device`; the host does not wait for a copy to a GPU."""
        there = torch.device(device).type
        if there == "cpu":
            return self._each(lambda tensor: tensor.to(device))
        if any(tensor.device.type != "cpu" for tensor in self._tensors()):
            return self._each(lambda tensor: tensor.to(device), keep_host=True)
        source = self.packed() if self._buffer is None else self
        assert source._buffer is not None
        moved = source._buffer.to(device, non_blocking=True)

        def place(tensor: Tensor) -> Tensor:
            start = tensor.storage_offset() * tensor.element_size()
            return moved[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape)

        return source._each(place, keep_host=True)

    def pin_memory(self) -> Self:
        """Return a copy that `to` can copy to a GPU at once; a DataLoader calls this for batches of `pin_memory`."""
        return self.packed()

    def packed(self) -> Self:
        """Return a copy whose tensors lie in one buffer, in page-locked memory where there is a GPU."""
        size = sum(_aligned(tensor.nbytes) for tensor in self._tensors())
        buffer = torch.empty(size, dtype=torch.uint8, pin_memory=torch.cuda.is_available())
        end = 0

        def place(tensor: Tensor) -> Tensor:
            nonlocal end
            start, end = end, end + _aligned(tensor.nbytes)
            return buffer[start : start + tensor.nbytes].view(tensor.dtype).view(tensor.shape).copy_(tensor.detach())

        packed = self._each(place)
        packed._buffer = buffer
        return packed

    def _tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        self._each(lambda tensor: found.append(tensor) or tensor)  # type: ignore[func-returns-value]
        return found

    def _each(self, function: Callable[[Tensor], Tensor], keep_host: bool = False) -> Self:
        """Return a copy with `function` applied to every tensor; with `keep_host` it remembers where it came from."""

        def changed(value: Any) -> Any:
            if isinstance(value, Tensor):
                return function(value)
            if isinstance(value, DeviceData):
                return value._each(function, keep_host)
            if isinstance(value, dict):
                return {name: changed(entry) for name, entry in value.items()}
            if isinstance(value, tuple):
                return tuple(changed(entry) for entry in value)
            return value

        copy = replace(self, **{f.name: changed(getattr(self, f.name)) for f in fields(self)})  # type: ignore[type-var, arg-type]
        copy._host = self.host if keep_host else None
        return copy


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT


def without_waiting(tensor: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the host on `device`; a copy to a GPU is made from page-locked memory, and not waited for."""
    copied = device.type == "cuda" and tensor.device.type == "cpu" and torch.cuda.is_available()
    if copied and not isinstance(tensor, FakeTensor):  # a tensor without data has no memory to lock
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)
