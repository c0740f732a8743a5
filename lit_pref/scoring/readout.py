"""The hidden states of tokens with an output head, and the tiles of logits that they give."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lit_pref.scoring.products import HeadPrecision, Products, Summands, sliced, transposed


@dataclass
class Readout:
    """Hidden states of N tokens and the head: `logits = cap(scale · (hidden Wᵀ + bias))`, `cap(x) = c·tanh(x / c)`.

    If `weight` is None, `hidden` contains the model's own logits (N, V), the fallback for other kinds of heads.
    """

    hidden: Tensor  # (N, H), any floating dtype
    weight: Tensor | None  # (V, H)
    bias: Tensor | None = None  # (V,)
    scale: float = 1.0
    softcap: float | None = None
    precision: HeadPrecision = HeadPrecision.AUTO
    kernels: Any = None  # `lit_pref.scoring.kernels`, if tiles of fp32 logits may be read by them
    tile: tuple[int, int] | None = None  # rows and columns of tiles, none of which is kept; None: `tile_shape`'s

    @property
    def vocabulary(self) -> int:
        """V, the size of the vocabulary."""
        return self.hidden.shape[1] if self.weight is None else self.weight.shape[0]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of logits and sums: fp64 for an fp64 model, else fp32, never lower."""
        wide = torch.float64 in (self.hidden.dtype, self.hidden.dtype if self.weight is None else self.weight.dtype)
        return torch.float64 if wide else torch.float32

    def first(self, ids: int) -> "Readout":
        """Return the readout of the first ids alone, as views."""
        if self.weight is None:
            return replace(self, hidden=self.hidden[:, :ids])
        return replace(self, weight=self.weight[:ids], bias=None if self.bias is None else self.bias[:ids])

    def with_copied_head(self) -> "Readout":
        """Return the readout with a copy of the head, which stays when the model's weights are freed."""
        weight, bias = (None if t is None else t.clone() for t in (self.weight, self.bias))
        return replace(self, weight=weight, bias=bias)

    def operands(self) -> "Operands":
        """Return the operands of the multiplications, of which the hidden states are rounded here."""
        products = Products(self.precision.chosen_for(self.hidden), self.dtype, self.hidden.device)
        return Operands(self, products, (self.hidden,) if self.weight is None else products.summands(self.hidden))

    def logits(self) -> Tensor:
        """Return all logits (N, V)."""
        operands = self.operands()
        with operands.products.exact():
            return operands.over(slice(None)).tile(slice(None))


@dataclass
class Operands:
    """A readout with its hidden states as an operand of multiplications."""

    readout: Readout
    products: Products
    hidden: Summands

    @property
    def kernels(self) -> Any:
        """The module of kernels, if they can read these tiles."""
        readable = self.readout.weight is not None and self.products.dtype == torch.float32
        return self.readout.kernels if readable and len(self.readout.hidden) else None

    def over(self, columns: slice) -> "Columns":
        """Return some columns of the logits; their weight and bias are rounded here, once for all rows."""
        readout = self.readout
        bias = None if readout.bias is None else readout.bias[columns].to(self.products.dtype)
        weight = None if readout.weight is None else self.products.summands(readout.weight[columns])
        hidden = (self.hidden[0][:, columns],) if weight is None else self.hidden
        return Columns(readout, self.products, hidden, weight, bias)


@dataclass
class Columns:
    """Some columns of the logits of all tokens, which `tile` computes for some rows."""

    readout: Readout
    products: Products
    hidden: Summands
    weight: Summands | None
    bias: Tensor | None

    @property
    def vocabulary(self) -> int:
        """The number of columns."""
        return self.hidden[0].shape[1] if self.weight is None else self.weight[0].shape[0]

    def product(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """Return `hidden Wᵀ` of some rows, upcast; written to `out` if given."""
        hidden = sliced(self.hidden, rows)
        if self.weight is not None:
            return self.products.product(hidden, transposed(self.weight), out)
        logits = torch.empty_like(hidden[0], dtype=self.products.dtype) if out is None else out
        return logits.copy_(hidden[0])

    def tile(self, rows: slice, out: Tensor | None = None) -> Tensor:
        """Return the logits of some rows; written to `out` if given."""
        logits = self.product(rows, out)
        if self.bias is not None:
            logits += self.bias
        if self.readout.scale != 1.0:
            logits *= self.readout.scale
        softcap = self.readout.softcap
        return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)
