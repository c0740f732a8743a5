"""Counts the memory of tensors that are alive, also of tensors that have shapes and no data."""

import weakref
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.nn.attention import SDPBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten

WIDEST_HEAD = 256
"""The largest head size of attention kernels: a tensor of 4 dimensions whose last one is larger is a mask or a bias."""


class LiveTensors(TorchDispatchMode):
    """Context in which the bytes of all live tensors are counted by part, and the parts of the largest total are kept.

    A storage is counted from the operation that returns it until its last tensor is gone, under the part that is
    current when it appears. Memory inside a kernel is not counted.

    Two kinds of tensors have parts of their own, because their size does not depend on the batch: a copy of a whole
    weight in another dtype, as autocast makes and keeps it, is of `casts`, and the gradient of the output head's
    weight of `gradients`. A weight is a tensor that was counted under `weights` or `references`.

    Args:
        granularity: the allocator's unit: sizes are rounded up to a multiple of this many bytes.

    >>> with LiveTensors(granularity=64) as tensors, tensors.of("sums"):
    ...     total = (torch.ones(100) + torch.ones(100)).sum()
    >>> tensors.peak["sums"], tensors.live["sums"]
    (1344, 64)
    """

    def __init__(self, granularity: int) -> None:
        super().__init__()
        self.granularity, self.part = granularity, ""
        self.live, self.peak = Counter[str](), Counter[str]()
        self.allocated = 0
        """The bytes of all tensors so far, also of those that are gone."""
        self._entries: dict[int, list[Any]] = {}  # of each live storage: its size, its part and a weak reference
        self._highest = 0

    @contextmanager
    def of(self, part: str) -> Iterator[None]:
        """Context in which new tensors belong to a part."""
        before, self.part = self.part, part
        try:
            yield
        finally:
            self.part = before

    def forget_peak(self) -> None:
        """Look for the largest total from now on."""
        self._highest = 0

    def count(self, tensors: Any, part: str) -> None:
        """Count tensors, in any nested structure, that are not counted yet."""
        for tensor in tree_leaves(tensors):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), part)

    def move(self, tensor: Tensor, part: str) -> None:
        """Count a live tensor under another part from now on."""
        entry = self._entries[id(tensor.untyped_storage())]
        self.live[entry[1]] -= entry[0]
        self.live[part] += entry[0]
        entry[1] = part

    def _count(self, storage: Any, part: str) -> None:
        key = id(storage)
        if key in self._entries:
            return
        size = -(-storage.nbytes() // self.granularity) * self.granularity

        def uncount(_: Any) -> None:
            size, part, _ = self._entries.pop(key)
            self.live[part] -= size

        self._entries[key] = [size, part, weakref.ref(storage, uncount)]
        self.live[part] += size
        self.allocated += size
        if (total := self.live.total()) > self._highest:
            self._highest, self.peak = total, self.live.copy()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._fused_sdp_choice.default:
            return _kernel(*args, **kwargs)
        if func is aten._local_scalar_dense.default and args[0].is_floating_point():
            return 1.0  # a tensor without data has no number: the step count of an optimizer, for example
        result = func(*args, **kwargs)
        self.count(result, self._part_of(func, args, result))
        return result

    def _part_of(self, func: Any, args: Any, result: Any) -> str:
        of_weight = self._is_whole_weight(args[0]) if args else False
        if of_weight and func is aten._to_copy.default:
            return "casts"
        node = torch._C._current_autograd_node()
        if node is not None and node.name().startswith("_TilePass"):
            return "gradients" if of_weight and func is aten.zeros_like.default else "head"
        is_mask = isinstance(result, Tensor) and result.ndim == 4 and result.shape[-1] > WIDEST_HEAD
        return "attention" if is_mask or "attention" in func.__name__ else self.part

    def _is_whole_weight(self, tensor: Any) -> bool:
        if not isinstance(tensor, Tensor):
            return False
        storage = tensor.untyped_storage()
        entry = self._entries.get(id(storage))
        return entry is not None and entry[1] in ("weights", "references") and storage.nbytes() == tensor.nbytes


def _kernel(query: Tensor, key: Tensor, value: Tensor, mask: Any = None, *args: Any, **kwargs: Any) -> int:
    """Return the attention kernel that torch chooses for real tensors: for those without data it would be another."""
    device = query.device
    if device.type == "cuda" and not torch.cuda.is_available():
        flash = mask is None and query.dtype in (torch.float16, torch.bfloat16)
        return (SDPBackend.FLASH_ATTENTION if flash else SDPBackend.EFFICIENT_ATTENTION).value
    with unset_fake_temporarily():
        small = [torch.zeros(1, t.shape[1], 2, t.shape[3], dtype=t.dtype, device=device) for t in (query, key, value)]
        mask = None if mask is None else torch.zeros(1, 1, 2, 2, dtype=mask.dtype, device=device)
        choose: Any = torch._fused_sdp_choice
        return choose(*small, mask, *args, **kwargs)
