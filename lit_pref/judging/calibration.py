"""Calibration of a judge over prompts: accuracy, Brier score, log-loss, calibration error, fitted temperature.

A judge presents q = sigma(z), z = score of chosen - score of rejected, as the probability that chosen is better. The
label p of a pair is 1, the share of votes for chosen, or a known probability.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike

from lit_pref.judging.comparison import Array, Interval, PromptBootstrap, mean_of
from lit_pref.metrics.calibration import fit_temperature, reliability_bins
from lit_pref.objectives.parts.estimation import by_likelihood

BINS = 10
"""Default number of bins of the confidence max(q, 1 - q)."""


@dataclass(frozen=True)
class CalibrationError:
    """The expected calibration error, and its mean for a perfectly calibrated judge on so many pairs."""

    value: float
    if_calibrated: float


@dataclass(frozen=True)
class Calibration:
    """How well q = sigma(z) agrees with the labels p; intervals are over prompts.

    `accuracy` is over the pairs whose label is not 1/2, with 1/2 for z = 0. `entropy` is the mean of -p log p -
    (1 - p) log(1 - p), the smallest possible log-loss, and `kl` = log-loss - entropy the mean of KL(p || q).
    `equal_mass` and `equal_width` are calibration errors over bins of equal count and of equal width. `temperature` is
    the T of the smallest log-loss of sigma(z / T), above 1 for an overconfident judge; `boundary` says why it is 0,
    infinite or NaN (`metrics.calibration.FittedTemperature`). The interval of `temperature` ends at infinity if scores
    that say nothing about the labels, 1/T = 0, are in it. `tied` pairs have the label 1/2, and so no right side.

    The calibration errors have no interval: resampling adds noise to the bins and so shifts the error upwards. Compare
    them with `if_calibrated` instead, and judges with each other by log-loss or Brier score.
    """

    pairs: int
    prompts: int
    accuracy: Interval
    brier: Interval
    log_loss: Interval
    entropy: float
    kl: Interval
    equal_mass: CalibrationError
    equal_width: CalibrationError
    temperature: Interval
    boundary: str = ""
    tied: int = 0


def calibration(
    z: ArrayLike, label: ArrayLike | None, prompts: Sequence[str], votes: float = 1, bins: int = BINS
) -> Calibration:
    """Return the calibration of a judge.

    **Source** Temperature: Guo et al., ICML 2017, arXiv 1706.04599, for one logit; its interval is that of
    `by_likelihood` (sandwich over prompts, Student's t) for 1/T, here on the scale of 1/T itself, so that it can
    contain 1/T = 0.

    Args:
        z: (n,) score of chosen - score of rejected, finite.
        label: (n,) in [0, 1]; None: 1 for every pair.
        prompts: (n,) the prompt of each pair.
        votes: the number of votes behind a label: 1 for a label that is 0 or 1, 3 for the share of three votes,
            infinity for a known probability. The error to expect of a calibrated judge falls with its root; it
            is an upper bound if votes may be ties.
        bins: number of bins of the confidence.

    Raises:
        ValueError: a z that is not finite, a label outside [0, 1], or no pairs.
    """
    z = np.asarray(z, dtype=np.float64)
    p = np.ones_like(z) if label is None else np.asarray(label, dtype=np.float64)
    z_torch, p_torch = torch.from_numpy(z), torch.from_numpy(p)
    mass = reliability_bins(z_torch, p_torch, 2 * bins)  # over both orders, which is `bins` bins of the confidence
    bootstrap = PromptBootstrap(prompts)
    loss = cross_entropy(z, p)
    columns = [agreement(z, p), (sigmoid(z) - p) ** 2, loss, loss - entropy(p)]
    accuracy, brier, log_loss, kl = bootstrap.intervals(mean_of(np.stack(columns, axis=1)))
    fitted = fit_temperature(z_torch, p_torch)
    temperature = Interval(fitted.value, math.nan, math.nan)
    if not fitted.boundary:
        inverse = by_likelihood(z_torch, p_torch, prompts)
        half = inverse.gamma * math.log(inverse.high / inverse.gamma)  # t times the standard error of 1/T
        low, high = inverse.gamma - half, inverse.gamma + half
        temperature = Interval(1 / inverse.gamma, 1 / high, 1 / low if low > 0 else math.inf)
    return Calibration(
        len(z),
        bootstrap.prompts,
        accuracy,
        brier,
        log_loss,
        float(entropy(p).mean()),
        kl,
        CalibrationError(mass.error, mass.error_if_calibrated / math.sqrt(votes)),
        equal_width_error(z, p, votes, bins),
        temperature,
        fitted.boundary,
        int((p == 0.5).sum()),
    )


def equal_width_error(z: Array, label: Array, votes: float = 1, bins: int = BINS) -> CalibrationError:
    """Return the calibration error over bins of equal width of the confidence c = max(q, 1 - q) in [1/2, 1].

    ECE = sum_b n_b / n |mean agreement of b - mean c of b|, where a pair's agreement is p if q > 1/2 and 1 - p if
    q < 1/2. A pair with q = 1/2 agrees with 1/2, as over both of its orders. For a calibrated judge it is
    sum_b n_b / n sqrt(2 v_b / (pi n_b votes)) on average, v_b = mean c (1 - c) of b without ties, if n_b is large.

    **Source** Guo et al., ICML 2017, arXiv 1706.04599, equation 3, with bins over [1/2, 1].

    >>> equal_width_error(np.array([0.0, 0.0]), np.array([1.0, 1.0]))
    CalibrationError(value=0.0, if_calibrated=0.0)
    """
    confidence = sigmoid(np.abs(z))
    agrees = np.where(z > 0, label, np.where(z < 0, 1 - label, 0.5))
    inside = np.clip(np.ceil((confidence - 0.5) * 2 * bins) - 1, 0, bins - 1).astype(int)
    count = np.bincount(inside, minlength=bins)
    deviation = np.abs(np.bincount(inside, agrees - confidence, bins)).sum() / len(z)
    variance = np.bincount(inside, confidence * (1 - confidence) * (z != 0), bins) / np.maximum(count, 1)
    expected = (count * np.sqrt(2 * variance / (math.pi * np.maximum(count, 1) * votes))).sum() / len(z)
    return CalibrationError(float(deviation), float(expected))


def agreement(z: Array, label: Array) -> Array:
    """Return, for each pair, 1 if z prefers the side that the label prefers, 1/2 if z = 0, else 0; NaN at p = 1/2.

    >>> agreement(np.array([2.0, -1.0, 0.0, 3.0]), np.array([1.0, 1.0, 0.7, 0.5]))
    array([1. , 0. , 0.5, nan])
    """
    return np.where(label == 0.5, np.nan, (1 + np.sign(z) * np.sign(label - 0.5)) / 2)


def cross_entropy(z: Array, label: Array) -> Array:
    """Return -p log q - (1 - p) log(1 - q) of each pair, in nats."""
    return label * np.logaddexp(0, -z) + (1 - label) * np.logaddexp(0, z)


def entropy(label: Array) -> Array:
    """Return -p log p - (1 - p) log(1 - p) of each pair, in nats; 0 at p = 0 and p = 1."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return -np.nan_to_num(label * np.log(label)) - np.nan_to_num((1 - label) * np.log1p(-label))


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + exp(-x)), without overflow."""
    return np.exp(-np.logaddexp(0, -x))
