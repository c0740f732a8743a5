"""Calibration of sigma(z) as the probability that the chosen response is better, over both orders of every pair.

A pair is stored with the better response as chosen, so its label is always 1, and calibration against these labels
alone would only reward large z. Every pair therefore counts twice with weight 1/2: in the order chosen, rejected it
presents q = sigma(z) with the label p, and in the other order 1 - q with the label 1 - p. p is 1, or the target or the
true probability if one is given. All numbers are then independent of the order in which a pair was stored.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from lit_pref.metrics.intervals import wilson
from lit_pref.metrics.meaning import Meaning
from lit_pref.metrics.records import Records

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 20
"""Default number of bins: 20 over both orders are 10 bins of confidence max(q, 1 - q)."""
FEWEST = 2
"""Presentations in a bin from which on `ece_if_calibrated` is known: 20 pairs in 20 bins."""


CALIBRATION: dict[str, Meaning] = {
    "ece": Meaning(f"mean over {BINS} bins of equal count of |mean label - mean q|", "1"),
    "ece_if_calibrated": Meaning(
        "the ece to expect of a calibrated model on so many pairs: mean over bins of sqrt(2 v / (pi E)), with v the "
        "mean of q (1 - q) and E the presentations in a bin; against the label only, and from 20 pairs on",
        "1",
    ),
    "brier": Meaning("mean of (q - p)²", "1"),
    "log_loss": Meaning("mean of -p log q - (1 - p) log(1 - q)", "nats"),
    "temperature": Meaning("the T that minimises the log-loss of sigmoid(z / T); above 1 is overconfident", "1"),
}
"""Numbers that `calibrate` returns, with q = sigmoid(z) and the label p, over both orders of every pair."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Bins of equal count over the presented q, in increasing order of q."""

    presented: Tensor  # (bins,) mean q
    observed: Tensor  # (bins,) mean label
    entries: float  # presentations per bin, 2 pairs / bins
    variance: Tensor  # (bins,) mean q (1 - q), of a label that is 0 or 1; 0 for ties, whose two orders cancel

    @property
    def error(self) -> float:
        """The expected calibration error: mean over bins of |observed - presented|."""
        return (self.observed - self.presented).abs().mean().item()

    @property
    def error_if_calibrated(self) -> float:
        """The error to expect of a perfectly calibrated model on so many pairs, with labels that are 0 or 1.

        The mean label of a bin with E entries then deviates from the mean q with the variance v / E, and so by
        sqrt(2 v / (pi E)) on average, if it is normal. NaN where a bin has fewer than `FEWEST` entries, which is far
        from normal, unless all are ties.
        """
        if self.entries < FEWEST and bool(self.variance.any()):
            return math.nan
        return (2 / math.pi * self.variance / self.entries).sqrt().mean().item()


def reliability_bins(z: Tensor, label: Tensor | None = None, bins: int = BINS) -> ReliabilityBins:
    """Sort the 2n presentations of n pairs by q and divide them into bins of exactly equal count.

    ECE = 1/bins * sum_b |mean label of b - mean q of b|. Presentations with equal q form a block; a block that
    straddles a cut is divided between both bins in proportion and keeps its mean label. So bins are equal for any n,
    and nothing depends on the order of the data. With a true probability as label it is the mean of |mean q - mean p|
    over bins, without the noise of sampled labels. With an even number of bins it equals the ECE over bins / 2 bins of
    the confidence max(q, 1 - q) against whether the sign of z is right.

    **Source** Equal-mass bins: Nguyen and O'Connor, EMNLP 2015, arXiv 1508.05154; both orders of a pair: our own,
    because the label of a stored pair is always 1.

    Args:
        z: (n,) chosen reward - rejected reward, finite.
        label: (n,) in [0, 1], the probability that chosen is better; None: 1 for every pair.
        bins: number of bins, at least 1.

    Raises:
        ValueError: a value that is not finite, a label outside [0, 1], no pairs.

    >>> reliability_bins(torch.tensor([0.0, 0.0]), bins=2).error  # predicts 1/2, and over both orders half are right
    0.0
    """
    z, label = _checked(z, label)
    values, block = torch.cat([z, -z]).unique(return_inverse=True)
    labels = torch.zeros_like(values).index_add(0, block, torch.cat([label, 1 - label]))
    count = torch.zeros_like(values).index_add(0, block, torch.ones_like(block, dtype=torch.float64))
    start = torch.zeros(1, dtype=torch.float64)
    below = torch.cat([start, count.cumsum(0)])
    cuts = torch.linspace(0, len(block), bins + 1, dtype=torch.float64)
    cut_block = torch.searchsorted(below, cuts).clamp(1, len(values)) - 1
    share = (cuts - below[cut_block]) / count[cut_block]

    def mean_of(sums: Tensor) -> Tensor:
        up_to = torch.cat([start, sums.cumsum(0)])[cut_block] + share * sums[cut_block]
        return up_to.diff() * bins / len(block)

    q = values.sigmoid()
    spread = mean_of(count * q * (1 - q) * (values != 0)).clamp(min=0)
    return ReliabilityBins(mean_of(count * q), mean_of(labels), len(block) / bins, spread)


def brier_score(z: Tensor, label: Tensor | None = None) -> float:
    """Return the mean of (q - p)^2, which is the same in both orders of a pair.

    For p between 0 and 1 it does not include p (1 - p), the noise of a sampled label.
    """
    z, label = _checked(z, label)
    return (z.sigmoid() - label).square().mean().item()


def log_loss(z: Tensor, label: Tensor | None = None) -> float:
    """Return the mean of -p log q - (1 - p) log(1 - q) in nats, which is the same in both orders of a pair."""
    z, label = _checked(z, label)
    return (label * F.softplus(-z) + (1 - label) * F.softplus(z)).mean().item()


@dataclass(frozen=True)
class FittedTemperature:
    """The temperature that calibrates best; above 1 the model is overconfident, below 1 underconfident.

    `boundary` is empty, or says why there is no optimum inside (0, infinity): `separable` (value 0: every sign is
    right, so a lower temperature is always better), `no better than chance` (infinity), `all tied` (NaN: every z is 0).
    """

    value: float
    boundary: str = ""


def fit_temperature(z: Tensor, label: Tensor | None = None) -> FittedTemperature:
    """Return the T > 0 that minimises the log-loss of sigma(z / T).

    The log-loss is convex in s = 1/T, with the derivative sum_i z_i ((1 - p_i) sigma(s z_i) - p_i sigma(-s z_i)),
    whose root is bracketed by doubling and found by bisection to the last bits.

    **Source** Temperature scaling: Guo et al., ICML 2017, arXiv 1706.04599, section 4.2, for one logit.

    Args:
        z: (n,) finite.
        label: (n,) in [0, 1]; None: 1 for every pair.

    >>> fitted = fit_temperature(torch.tensor([2.0, 2.0, 2.0, -2.0]))
    >>> round(fitted.value * math.log(3), 9)  # right in 3 of 4: sigma(2 / T) = 3/4
    2.0
    """
    z, label = _checked(z, label)
    label, z = label[z != 0], z[z != 0]  # ties do not contribute to the derivative
    if not len(z):
        return FittedTemperature(math.nan, "all tied")
    scale = z.abs().max().item()
    z = z / scale  # scaled, so that the bracket neither overflows nor vanishes, however small or large z is

    def derivative(s: float) -> float:
        return (z * ((1 - label) * (s * z).sigmoid() - label * (-s * z).sigmoid())).sum().item()

    if derivative(0.0) >= 0:
        return FittedTemperature(math.inf, "no better than chance")
    if derivative(math.inf) <= 0:
        return FittedTemperature(0.0, "separable")
    high = 1 / z.abs().mean().item()
    while derivative(high) <= 0:
        high *= 2
    while derivative(high / 2) > 0:
        high /= 2
    low = high / 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (low, middle) if derivative(middle) > 0 else (middle, high)
    return FittedTemperature(scale / middle)


def calibrate(records: Records, against: Sequence[str] = (), bins: int = BINS, prefix: str = "val") -> dict[str, float]:
    """Return the calibration of sigma(z) over merged records.

    The names are `prefix/calibration/{ece,ece_if_calibrated,brier,log_loss,temperature}`, against the label that chosen
    is better, and `prefix/calibration@NAME/...`, against each column in `against` that the records have (without
    `ece_if_calibrated`, which is the noise of labels and needs 20 pairs).

    Pairs without a z or without the probability are left out; if any z is not finite, every number is NaN. Records
    without pairs give no numbers. For the temperatures 0, infinity and NaN see `FittedTemperature`.

    Args:
        records: merged records.
        against: columns with probabilities, e.g. `target`, `probability`.
        bins: number of bins of the ECE.
        prefix: the first part of the names.
    """
    metrics: dict[str, float] = {}
    columns = {"calibration": [1.0] * len(records["id"])}
    columns.update((f"calibration@{name}", records[name]) for name in against if name in records)
    for key, probabilities in columns.items():
        rows = [row for row in zip(records.get("z", []), probabilities, strict=False) if None not in row]
        if not rows:
            continue
        z, label = torch.tensor(rows, dtype=torch.float64).T
        numbers = dict.fromkeys(CALIBRATION, math.nan)
        if z.isfinite().all() and label.isfinite().all():
            reliability = reliability_bins(z, label, bins)
            numbers = {
                "ece": reliability.error,
                "ece_if_calibrated": reliability.error_if_calibrated,
                "brier": brier_score(z, label),
                "log_loss": log_loss(z, label),
                "temperature": fit_temperature(z, label).value,
            }
        few = 2 * len(z) < FEWEST * bins and not math.isnan(numbers["ece"])
        if key != "calibration" or few:
            del numbers["ece_if_calibrated"]  # holds for labels that are 0 or 1, and for more pairs
        metrics.update((f"{prefix}/{key}/{name}", number) for name, number in numbers.items())
    return metrics


def reliability_diagram(z: Tensor, label: Tensor | None = None, bins: int = BINS, title: str = "") -> "Figure":
    """Plot observed against presented probabilities per bin, above a histogram of the presented ones.

    The bars are 95 % Wilson intervals, drawn if every label is 0 or 1 (a bin contains each pair once).
    """
    from matplotlib.figure import Figure  # pyplot is avoided because it keeps global state

    reliability = reliability_bins(z, label, bins)
    presented, observed = reliability.presented.numpy(), reliability.observed.numpy()
    temperature = fit_temperature(z, label)
    figure = Figure(figsize=(5.2, 6.2), layout="constrained")
    top, bottom = figure.subplots(2, 1, sharex=True, height_ratios=[4, 1])
    top.plot([0, 1], [0, 1], color="0.6", linestyle="--", linewidth=1, label="calibrated")
    top.plot(
        presented, observed, color="C0", marker="o", markersize=4, linewidth=1.2, label=f"{bins} bins of equal count"
    )
    expected = ""
    if label is None or ((label == 0) | (label == 1)).all():
        floor = reliability.error_if_calibrated
        expected = "" if math.isnan(floor) else f" ({floor:.3f} if calibrated)"
        lower, upper = zip(*(wilson(share, reliability.entries) for share in observed.tolist()), strict=True)
        top.vlines(presented, lower, upper, color="C0", alpha=0.45, linewidth=2.5, label="95 % interval")
    top.set(xlim=(0, 1), ylim=(0, 1), ylabel="observed: share preferred", title=title)
    boundary = f" ({temperature.boundary})" if temperature.boundary else ""
    top.text(
        0.97,
        0.04,
        f"ECE {reliability.error:.3f}{expected}\nBrier {brier_score(z, label):.3f}\n"
        f"log-loss {log_loss(z, label):.3f} nats\n"
        f"temperature {temperature.value:.3g}{boundary}\n{z.numel()} pairs, both orders",
        ha="right",
        va="bottom",
        transform=top.transAxes,
    )
    top.legend(loc="upper left", frameon=False)
    q = torch.cat([z, -z]).detach().double().cpu().sigmoid().numpy()
    bottom.hist(q, bins=25, range=(0, 1), color="C0", alpha=0.7)
    bottom.set(xlabel="presented: q = sigma(z)", ylabel="count")
    for axes in (top, bottom):
        axes.spines[["top", "right"]].set_visible(False)
    return figure


def _checked(z: Tensor, label: Tensor | None) -> tuple[Tensor, Tensor]:
    """Return `z` and `label` as float64 on the CPU, after checking them."""
    label = torch.ones_like(z) if label is None else label
    if z.ndim != 1 or z.shape != label.shape or not len(z):
        raise ValueError(f"z {tuple(z.shape)} and label {tuple(label.shape)}: expected (n,) and (n,), n at least 1")
    z, label = z.detach().double().cpu(), label.detach().double().cpu()
    if not z.isfinite().all():
        raise ValueError(f"{int((~z.isfinite()).sum())} of {len(z)} values of z are not finite")
    if not ((label >= 0) & (label <= 1)).all():
        raise ValueError("a label must be a probability, in [0, 1]")
    return z, label
