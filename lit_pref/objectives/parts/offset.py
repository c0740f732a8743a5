"""The amount subtracted from the logit: how far the chosen response must be ahead."""

from abc import abstractmethod

import torch
from torch import Tensor

from lit_pref.batch import PairData
from lit_pref.errors import UsageError, UserError
from lit_pref.objectives.numbers import finite
from lit_pref.objectives.parts.part import Part
from lit_pref.objectives.requirements import Requirements
from lit_pref.scores import PairScores


class Offset(Part):
    """o_i of every pair, (B,), in units of the logit: x_i = beta_i (phi(h_w) - phi(h_l)) - o_i."""

    @abstractmethod
    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        """Return o_i, (B,), in the dtype of the scores."""


class NoOffset(Offset):
    """o = 0."""

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return torch.zeros_like(policy.chosen.scores)


class ConstantOffset(Offset):
    """o = gamma for every pair.

    **Source**: SimPO, arXiv 2405.14734 (where beta multiplies mean log-probs and gamma does not). HALOs writes the
    ratio gamma / beta instead.

    Args:
        gamma: finite, units of the logit.
    """

    def __init__(self, gamma: float = 0.5) -> None:
        super().__init__()
        self.gamma = finite(gamma, "ConstantOffset: gamma")

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return torch.full_like(policy.chosen.scores, self.gamma)


class MarginOffset(Offset):
    """o = alpha log m: a stronger preference requires a larger gap (ODPO).

    **Source**: ODPO, arXiv 2402.10571, with f = log.

    Args:
        alpha: finite, units of the logit per e-fold of the margin.

    Raises:
        UserError: on `forward`, if a margin is not positive, so that its logarithm does not exist.
    """

    def __init__(self, alpha: float = 1.0) -> None:
        super().__init__()
        self.alpha = finite(alpha, "MarginOffset: alpha")

    requirements = Requirements(columns=frozenset({"margin"}))

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        margin, here = (self.read("margin", policy, data) for data in (pairs, pairs.host))
        if not bool((here > 0).all()):
            worst = int(here.argmin())
            raise UserError(
                f"MarginOffset takes the logarithm of the margin, and {pairs.names[worst]} has the margin "
                f"{float(here[worst])}: drop ties and let the margin decide which response is chosen, or choose "
                "`target: MarginTarget`."
            )
        return self.alpha * margin.log()


class LengthOffset(Offset):
    """o = -alpha (n_w - n_l): a longer response needs a smaller gap, so that length alone is not rewarded (R-DPO).

    With the reward r - alpha n in place of r, the logit of the preference is beta (h_w - h_l) + alpha (n_w - n_l).

    **Source**: R-DPO, arXiv 2403.19159, derived from its regularised reward; some re-implementations have the sign of
    alpha flipped.

    Args:
        alpha: finite, units of the logit per token; positive makes responses shorter.
    """

    def __init__(self, alpha: float = 0.01) -> None:
        super().__init__()
        self.alpha = finite(alpha, "LengthOffset: alpha")

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        assert policy.rejected is not None
        return self.alpha * (policy.rejected.lengths - policy.chosen.lengths).to(policy.chosen.scores.dtype)


class ColumnOffset(Offset):
    """o = scale times a column of the data, such as a difference of other rewards.

    **Source**: MODPO, arXiv 2310.03708: the column is w_1: . (R_w - R_l), `scale` 1 / w_0 and `beta` beta / w_0.

    Args:
        column: name of the column, or `margin`.
        scale: finite factor, units of the logit per unit of the column.
    """

    def __init__(self, column: str, scale: float = 1.0) -> None:
        super().__init__()
        self.column = column
        self.scale = finite(scale, "ColumnOffset: scale")

    @property
    def requirements(self) -> Requirements:
        return Requirements(columns=frozenset({self.column}))

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        return self.scale * self.read(self.column, policy, pairs)


class ColumnsOffset(Offset):
    """o = scale [sum_k c_k (R_k of the chosen - R_k of the rejected) + length (n_w - n_l)], R_k from two columns each.

    Reads the columns `NAME_chosen` and `NAME_rejected` for every NAME; they swap with the texts. If a column is already
    a difference, use `ColumnOffset`. n_y is the response's length in tokens, which needs no column: with `length` alone
    it is `LengthOffset` with the other sign.

    **Source**: MODPO, arXiv 2310.03708: `columns` are w_1:, `scale` is 1 / w_0, and `beta` is the paper's beta / w_0.

    Args:
        columns: NAME of each reward and its finite weight c_k.
        scale: finite factor, units of the logit per unit of the weighted sum.
        length: finite weight of the length, per token; negative makes responses shorter.
    """

    def __init__(self, columns: dict[str, float], scale: float = 1.0, length: float = 0.0) -> None:
        super().__init__()
        self.length = finite(length, "ColumnsOffset: length")
        if not (columns or length):
            raise UsageError(
                "ColumnsOffset: columns names no reward; give {NAME: weight}, or choose `offset: NoOffset`."
            )
        self.columns = {name: finite(weight, f"ColumnsOffset: {name}") for name, weight in columns.items()}
        self.scale = finite(scale, "ColumnsOffset: scale")

    @property
    def requirements(self) -> Requirements:
        return Requirements(
            columns=frozenset(f"{name}_{side}" for name in self.columns for side in ("chosen", "rejected"))
        )

    def forward(self, policy: PairScores, pairs: PairData) -> Tensor:
        assert policy.rejected is not None
        # A difference of integers, because a length above 256 is not a number of bf16.
        total = self.length * (policy.chosen.lengths - policy.rejected.lengths).to(policy.chosen.scores.dtype)
        for name, weight in self.columns.items():
            chosen, rejected = (self.read(f"{name}_{side}", policy, pairs) for side in ("chosen", "rejected"))
            total = total + weight * (chosen - rejected)
        return self.scale * total
