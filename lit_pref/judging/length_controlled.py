"""AlpacaEval's length-controlled win rate: what the win rate would be if both models' answers were equally long."""

import csv
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from lit_pref.errors import UserError
from lit_pref.judging.calibration import sigmoid
from lit_pref.judging.comparison import Array, Interval, PromptBootstrap, mean_of
from lit_pref.judging.win_rate import Annotations

PENALTIES = np.logspace(-4, 4, 10)
"""The values of C that are tried, as in scikit-learn's `LogisticRegressionCV`."""
FOLDS = 5
GAMED_WEIGHT = 0.1
"""The weight of an annotation of a gamed baseline: 0.2 over two of them."""


@dataclass(frozen=True)
class Difficulty:
    """AlpacaEval's file `df_gamed.csv`: the difficulty of each instruction, and annotations of two gamed baselines."""

    of_item: dict[int, float]
    length: Array  # (g,) standardised length difference of the gamed annotations
    difficulty: Array  # (g,)
    preference: Array  # (g,) in [0, 1]


def read_difficulty(path: Path | str) -> Difficulty:
    """Read the file `df_gamed.csv` of the dataset tatsu-lab/alpaca_eval on the hub.

    Raises:
        UserError: the file cannot be read, or lacks a column or a number.
    """
    columns = ("index", "instruction_difficulty", "std_delta_len", "preference")
    numbers = []
    try:
        with open(path, newline="", encoding="utf-8") as file:
            for line, row in enumerate(csv.DictReader(file), start=2):
                try:
                    numbers.append([float(row[name]) for name in columns])
                except (KeyError, TypeError, ValueError) as error:
                    raise UserError(
                        f"{path}, line {line}: a number is missing in one of the columns {', '.join(columns)}; the "
                        "file is df_gamed.csv of the dataset tatsu-lab/alpaca_eval on the hub."
                    ) from error
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The difficulty file {path} cannot be read ({error}); check the path.") from error
    if not numbers:
        raise UserError(f"{path} has no rows; the file is df_gamed.csv of tatsu-lab/alpaca_eval on the hub.")
    item, difficulty, length, preference = np.array(numbers).T
    of_item = dict(zip(item.astype(int).tolist()[::-1], difficulty.tolist()[::-1], strict=True))  # the first one counts
    return Difficulty(of_item, length, difficulty, preference)


@dataclass(frozen=True)
class LengthControlled:
    """A length-controlled win rate, in [0, 1], and the fit behind it.

    `coefficients` are those of tanh(length), of the difficulty (published form only) and of the model; `penalty` is C.
    """

    rate: Interval
    coefficients: tuple[float, ...]
    penalty: float


def length_controlled_win_rate(annotations: Annotations, difficulty: Difficulty | None = None) -> LengthControlled:
    """Return the length-controlled win rate of a model against the baseline.

    With the standardised length difference d_i = (baseline - model) / standard deviation over instructions, and the
    difficulty u_i, the preferences p_i for the model are fitted by sigma(x_i · w):

        minimal form (no difficulty):  x_i = (tanh d_i, 1)
        published form:                x_i = (tanh d_i, u_i, 1), and (tanh d_i, u_i, 0) for two gamed baselines, which
                                       count GAMED_WEIGHT per annotation: they hold length and difficulty in place

        w = argmin |w|_1 + C sum_i s_i (-p_i log sigma(x_i · w) - (1 - p_i) log sigma(-x_i · w))

    C is the one of `PENALTIES` with the smallest log-loss in 5-fold cross-validation over instructions. The rate is the
    mean over instructions of sigma(x_i · w) at d_i = 0. The interval is over instructions, by the first-order effect of
    an instruction's weight on w and with C held fixed; a fit at every resample agrees with it (tests).

    **Source** Dubois et al., COLM 2024, arXiv 2404.04475; github.com/tatsu-lab/alpaca_eval,
    src/alpaca_eval/metrics/glm_winrate.py (`length_controlled_minimal`, `length_controlled_v1`), whose liblinear stops
    before the minimum: rates agree to 0.1 points (docs/evaluating.md).

    Args:
        annotations: of one model; entries without a preference are predicted and not fitted.
        difficulty: for the published form.

    Raises:
        UserError: an instruction has no difficulty.
        ValueError: no entry has a preference.
    """
    if np.isnan(annotations.preference).all():
        raise ValueError("no annotation has a preference, so there is no win rate")
    features, fit = _features(annotations, difficulty)
    penalty = fit.best_penalty()
    w = fit.minimum(penalty)
    at_equal_length = features * ([0.0] + [1.0] * (features.shape[1] - 1))
    predicted = sigmoid(at_equal_length @ w)
    # First-order effect of one more copy of an instruction on the rate, through w; zero coefficients stay zero.
    active = w != 0
    slope = ((predicted * (1 - predicted))[:, None] * at_equal_length).mean(axis=0)[active]
    through_w = np.zeros(len(features))
    if active.any():
        direction = np.linalg.lstsq(fit.curvature(w)[np.ix_(active, active)], slope, rcond=None)[0]
        residual = np.nan_to_num(annotations.preference - sigmoid(features @ w), nan=0.0)
        through_w = residual * (features[:, active] @ direction)
    mean = mean_of(predicted)
    rate = PromptBootstrap(annotations.prompts).interval(lambda drawn: mean(drawn) + (drawn - 1) @ through_w)
    return LengthControlled(rate, tuple(w.tolist()), float(penalty))


def _features(annotations: Annotations, difficulty: Difficulty | None) -> tuple[Array, "_Fit"]:
    """Return the features of the annotations, (n, 2 or 3), and the fit of those that have a preference."""
    length = annotations.baseline_length - annotations.model_length
    spread = length.std(ddof=1) if len(length) > 1 else 0.0
    columns = [np.tanh(length / spread) if spread > 0 else np.zeros(len(length)), np.ones(len(length))]
    if difficulty is not None:
        if missing := [item for item in annotations.item if item not in difficulty.of_item]:
            raise UserError(f"The difficulty file has no instruction {missing[0]} ({len(missing)} are missing).")
        columns.insert(1, np.array([difficulty.of_item[item] for item in annotations.item]))
    features = np.stack(columns, axis=1)
    known = ~np.isnan(annotations.preference)
    fit = _Fit(features[known], annotations.preference[known], np.ones(int(known.sum())))
    if difficulty is not None:
        gamed = np.stack([np.tanh(difficulty.length), difficulty.difficulty, np.zeros(len(difficulty.length))], axis=1)
        fit = _Fit(
            np.concatenate([gamed, fit.features]),
            np.concatenate([difficulty.preference, fit.label]),
            np.concatenate([np.full(len(gamed), GAMED_WEIGHT), fit.weight]),
        )
    return features, fit


class _Fit:
    """Logistic regression with an L1 penalty and soft labels: features (n, k), labels in [0, 1], weights (n,)."""

    def __init__(self, features: Array, label: Array, weight: Array) -> None:
        self.features, self.label, self.weight = features, label, weight

    def best_penalty(self) -> float:
        """Return the C with the smallest log-loss on rows left out; rows are dealt to the folds one after the other."""
        fold = np.arange(len(self.label))[::-1] % FOLDS
        losses = np.zeros((FOLDS, len(PENALTIES)))
        for k in range(FOLDS):
            train, rest = self._part(fold != k), self._part(fold == k)
            for c, penalty in enumerate(PENALTIES):
                losses[k, c] = rest.loss(train.minimum(penalty)) / max(1, len(rest.label))
        return float(PENALTIES[losses.mean(axis=0).argmin()])

    def _part(self, rows: Array) -> "_Fit":
        return _Fit(self.features[rows], self.label[rows], self.weight[rows])

    def loss(self, w: Array) -> float:
        """Return the weighted sum of log-losses."""
        x = self.features @ w
        return float((self.weight * (self.label * np.logaddexp(0, -x) + (1 - self.label) * np.logaddexp(0, x))).sum())

    def gradient(self, w: Array) -> Array:
        return self.features.T @ (self.weight * (sigmoid(self.features @ w) - self.label))

    def curvature(self, w: Array) -> Array:
        p = sigmoid(self.features @ w)
        return self.features.T @ ((self.weight * p * (1 - p))[:, None] * self.features)

    def minimum(self, penalty: float) -> Array:
        """Return argmin |w|_1 + penalty loss(w), by Newton steps whose quadratic model keeps the L1 term.

        **Source** Lee, Sun and Saunders, "Proximal Newton-type methods", SIAM Journal on Optimization 24(3), 2014.
        """
        w = np.zeros(self.features.shape[1])
        value = penalty * self.loss(w)
        for _ in range(200):
            gradient, curvature = penalty * self.gradient(w), penalty * self.curvature(w)
            step = _quadratic_minimum(w, gradient, curvature + 1e-9 * np.eye(len(w))) - w
            if np.abs(step).max() <= 1e-9 * max(1.0, np.abs(w).max()):
                break
            expected = gradient @ step + np.abs(w + step).sum() - np.abs(w).sum()
            size, rounding = 1.0, 1e-13 * value
            while (new := self._objective(w + size * step, penalty)) > value + 1e-4 * size * expected + rounding:
                size /= 2
                if size < 1e-6:  # no step lowers the objective by more than its rounding
                    return w
            w, value = w + size * step, new
        return w

    def _objective(self, w: Array, penalty: float) -> float:
        return float(np.abs(w).sum()) + penalty * self.loss(w)


def _quadratic_minimum(w: Array, gradient: Array, curvature: Array) -> Array:
    """Return argmin_v gradient · (v - w) + (v - w) · curvature (v - w) / 2 + |v|_1, by coordinate descent."""
    v = w.copy()
    for _ in range(1000):
        before = v.copy()
        for k, own in enumerate(np.diag(curvature)):
            slope = gradient[k] + curvature[k] @ (v - w) - own * v[k]
            v[k] = -np.sign(slope) * max(0.0, abs(slope) - 1) / own
        if np.abs(v - before).max() <= 1e-12 * max(1.0, np.abs(v).max()):
            break
    return v
