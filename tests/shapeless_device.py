"""A device that computes nothing and so has no number to read: torch's `meta`, with a count of blocking copies to it.

Whatever would make the host wait for a GPU raises on it: a number, a truth value, a size that depends on numbers.
"""

import traceback
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

META = torch.device("meta")
MOVES = (Tensor.to, Tensor.cuda, Tensor.type_as)


class BlockingCopies(TorchFunctionMode):
    """Counts copies from the host to `meta` that would wait, by the line of code that makes them."""

    def __init__(self) -> None:
        super().__init__()
        self.found: Counter[str] = Counter()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if isinstance(result, Tensor) and result.device == META and self._blocks(func, args, kwargs):
            frames = traceback.extract_stack()[:-1]
            (line,) = [f for f in frames if "torch" not in Path(f.filename).parts][-1:]
            self.found[f"{Path(line.filename).name}: {line.line}"] += 1
        return result

    @staticmethod
    def _blocks(func: Any, args: Any, kwargs: dict[str, Any]) -> bool:
        if func in (torch.tensor, torch.as_tensor, Tensor.new_tensor):
            return True  # made of numbers of the host
        source = args[1] if func in (Tensor.copy_, Tensor.__setitem__) else args[0] if func in MOVES else None
        return isinstance(source, Tensor) and source.device != META and not kwargs.get("non_blocking")


def without_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let code ask about autocast on `meta`, which torch does not know."""
    known, context = torch.is_autocast_enabled, torch.autocast
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda kind: kind != "meta" and known(kind))
    monkeypatch.setattr(torch, "autocast", lambda kind, **o: nullcontext() if kind == "meta" else context(kind, **o))
