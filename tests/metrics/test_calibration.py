import io
import math

import pytest
import torch
from torchmetrics.classification import BinaryCalibrationError

from lit_pref.metrics.calibration import (
    brier_score,
    calibrate,
    fit_temperature,
    log_loss,
    reliability_bins,
    reliability_diagram,
)


def logit(q):
    return torch.tensor(q, dtype=torch.float64).logit()


def random_pairs(size=200, seed=0, soft=False):
    generator = torch.Generator().manual_seed(seed)
    z = 2 * torch.randn(size, generator=generator, dtype=torch.float64) + 0.5
    label = torch.rand(size, generator=generator, dtype=torch.float64)
    return z, label if soft else (label < 0.7).double()


def by_sorting(z, label, bins):
    """The error by the textbook: sort, cut into equal lists, average. Right where bins divides 2n and q has no ties."""
    shown = [(q, p) for q, p in zip(z.sigmoid().tolist(), label.tolist(), strict=True)]
    shown = sorted(shown + [(1 - q, 1 - p) for q, p in shown])
    size = len(shown) // bins
    assert size * bins == len(shown)
    chunks = [shown[k * size : (k + 1) * size] for k in range(bins)]
    return sum(abs(sum(p for _, p in chunk) - sum(q for q, _ in chunk)) / size for chunk in chunks) / bins


@pytest.mark.parametrize("bins", [1, 5, 8, 20, 400])
@pytest.mark.parametrize("soft", [False, True])
def test_the_error_is_that_of_sorting_and_cutting_into_equal_lists(bins, soft):
    z, label = random_pairs(soft=soft)
    assert reliability_bins(z, label, bins).error == pytest.approx(by_sorting(z, label, bins), abs=1e-12)


@pytest.mark.parametrize(("pairs", "scale"), [(50, 1.0), (50, 3.0), (400, 2.0)])
def test_the_error_to_expect_of_a_calibrated_model_is_that_of_labels_drawn_from_it(pairs, scale):
    generator = torch.Generator().manual_seed(pairs)
    z = scale * torch.randn(pairs, generator=generator, dtype=torch.float64)
    z[:2] = 0.0
    drawn = [torch.bernoulli(z.sigmoid(), generator=generator) for _ in range(300)]
    mean = sum(reliability_bins(z, label).error for label in drawn) / 300
    # The error of a few labels is not normal: that is worth a tenth at five in a bin.
    assert reliability_bins(z).error_if_calibrated == pytest.approx(mean, rel=0.12)


def test_ties_have_no_error_and_none_to_expect():
    assert reliability_bins(torch.zeros(10)).error == reliability_bins(torch.zeros(10)).error_if_calibrated == 0


@pytest.mark.parametrize("bins", [2, 10, 20])
def test_bins_over_both_orders_are_half_as_many_bins_of_confidence(bins):
    z, label = random_pairs()
    z[:3] = 0.0
    confidence = z.abs().sigmoid()
    right = torch.where(z == 0, 0.5, torch.where(z > 0, label, 1 - label))
    order = confidence.argsort()
    folded = zip(confidence[order].chunk(bins // 2), right[order].chunk(bins // 2), strict=True)
    expected = sum(abs(q.mean() - y.mean()).item() for q, y in folded) / (bins // 2)
    assert reliability_bins(z, label, bins).error == pytest.approx(expected, abs=1e-12)


def test_the_error_agrees_with_torchmetrics_where_equal_width_is_equal_mass():
    # The presentations (j + 1/2) / 400 fill twenty bins of width 1/20 with 20 each.
    q = (torch.arange(200, 400, dtype=torch.float64) + 0.5) / 400
    label = (torch.rand(200, generator=torch.Generator().manual_seed(0)) < 0.6).double()
    theirs = BinaryCalibrationError(n_bins=20, norm="l1")
    theirs.update(torch.cat([q, 1 - q]), torch.cat([label, 1 - label]).int())
    assert reliability_bins(q.logit(), label, bins=20).error == pytest.approx(theirs.compute().item(), abs=1e-6)


def test_what_straddles_a_cut_is_divided_in_proportion():
    # Presented .1 .3 .4 .6 .7 .9, labels 0 1 0 1 0 1; four bins of 1.5: (.1 + .3/2, 0 + 1/2), (.3/2 + .4, 1/2 + 0), ...
    found = reliability_bins(logit([0.6, 0.7, 0.9]), torch.tensor([1.0, 0.0, 1.0]), bins=4)
    assert found.presented.tolist() == pytest.approx([0.25 / 1.5, 0.55 / 1.5, 0.95 / 1.5, 1.25 / 1.5])
    assert found.observed.tolist() == pytest.approx([1 / 3, 1 / 3, 2 / 3, 2 / 3])
    assert found.entries == 1.5
    assert found.error == pytest.approx(0.1)  # (1/6 + 1/30 + 1/30 + 1/6) / 4


@pytest.mark.parametrize("label", [[1.0, 0.0], [0.0, 1.0]])
def test_tied_scores_share_their_mean_label_in_whatever_order_they_come(label):
    # Presented .2 .2 .8 .8, half right each: every bin says .2 or .8 and sees .5. Cutting a sorted list would give 0.5.
    assert reliability_bins(logit([0.8, 0.8]), torch.tensor(label), bins=4).error == pytest.approx(0.3)


@pytest.mark.parametrize("soft", [False, True])
def test_no_number_depends_on_which_response_was_stored_first(soft):
    z, label = random_pairs(soft=soft)
    z[:20] = z[20:40]  # ties too
    swap = torch.arange(200) % 3 == 0
    turned, turned_label = torch.where(swap, -z, z), torch.where(swap, 1 - label, label)
    shuffle = torch.randperm(200, generator=torch.Generator().manual_seed(1))
    for number in (lambda *a: reliability_bins(*a).error, brier_score, log_loss, lambda *a: fit_temperature(*a).value):
        assert number(turned[shuffle], turned_label[shuffle]) == pytest.approx(number(z, label), rel=1e-12)


def test_three_of_four_right_at_three_quarters_is_calibrated():
    z, label = logit([0.75] * 4), torch.tensor([1.0, 1.0, 1.0, 0.0])
    assert reliability_bins(z, label).error == pytest.approx(0.0, abs=1e-12)
    assert brier_score(z, label) == pytest.approx(0.75 * 0.25)
    assert log_loss(z, label) == pytest.approx(-0.75 * math.log(0.75) - 0.25 * math.log(0.25))
    assert fit_temperature(z, label).value == pytest.approx(1.0, rel=1e-12)


def test_oriented_labels_alone_do_not_make_large_scores_look_calibrated():
    # Sure of everything and right half of the time: q is 0 or 1, half of the labels are 1 in both.
    z = torch.tensor([50.0, -50.0]).repeat(10)
    assert reliability_bins(z).error == pytest.approx(0.5)
    assert brier_score(z) == pytest.approx(0.5)
    assert log_loss(z) == pytest.approx(25.0)  # half of the pairs cost 50 nats


@pytest.mark.parametrize("temperature", [0.4, 1.0, 2.5])
def test_against_known_true_probabilities_the_temperature_is_exact(temperature):
    z, _ = random_pairs()
    truth = (z / temperature).sigmoid()
    assert fit_temperature(z, truth).value == pytest.approx(temperature, rel=1e-9)
    calibrated = z / temperature
    assert reliability_bins(calibrated, truth).error == pytest.approx(0.0, abs=1e-12)
    assert brier_score(calibrated, truth) == pytest.approx(0.0, abs=1e-15)
    entropy = -(truth * truth.log() + (1 - truth) * (1 - truth).log()).mean().item()
    assert log_loss(calibrated, truth) == pytest.approx(entropy)


def test_labels_drawn_from_the_model_are_calibrated_up_to_their_noise():
    generator = torch.Generator().manual_seed(2)
    truth = torch.randn(40_000, generator=generator, dtype=torch.float64)
    label = (torch.rand(40_000, generator=generator) < truth.sigmoid()).double()
    too_sure = 3 * truth
    # A bin of 4000 presentations has a standard error of at most 1/2 / sqrt(4000) = 0.008.
    assert reliability_bins(truth, label, bins=20).error < 0.008
    assert reliability_bins(too_sure, label, bins=20).error > 0.1
    # The information on s = 1/T is n E[z^2 q (1-q)], here about 40000 * 0.15: a standard error of 0.013.
    assert fit_temperature(truth, label).value == pytest.approx(1.0, abs=0.04)
    assert fit_temperature(too_sure, label).value == pytest.approx(3.0, abs=0.12)


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("soft", [False, True])
def test_no_temperature_of_a_fine_grid_has_a_smaller_log_loss(seed, soft):
    z, label = random_pairs(seed=seed, soft=soft)
    label = torch.where(z > 0, 0.3 + 0.7 * label, 0.7 * label)  # better than chance
    found = fit_temperature(z, label)
    grid = torch.logspace(-2, 3, 5001, dtype=torch.float64)
    losses = torch.tensor([log_loss(z / t, label) for t in grid.tolist()], dtype=torch.float64)
    best = grid[losses.argmin()].item()
    assert found.boundary == ""
    assert best / 1.01 < found.value < best * 1.01
    assert log_loss(z / found.value, label) <= losses.min().item()


@pytest.mark.parametrize("scale", [1e-310, 1e-20, 1e20, 1e300])
def test_the_temperature_scales_with_the_scores(scale):
    z, label = random_pairs()
    assert fit_temperature(z * scale, label).value / scale == pytest.approx(fit_temperature(z, label).value, rel=1e-9)


def test_one_tiny_wrong_score_among_large_right_ones_has_a_temperature():
    found = fit_temperature(torch.tensor([1.0, 1.0, -1e-12], dtype=torch.float64))
    # With s = 1/T: 2 sigma(-s) = 1e-12 sigma(1e-12 s), so that 2 e^-s = 1e-12 / 2.
    assert found.value == pytest.approx(1 / math.log(4e12), rel=1e-9)


@pytest.mark.parametrize(
    "z, label, value, boundary",
    [
        ([0.1, 2.0, 0.0], [1, 1, 1], 0.0, "separable"),
        ([0.1, -2.0], [1, 0], 0.0, "separable"),
        ([1.0, -1.0], [1, 1], math.inf, "no better than chance"),
        ([-1.0, -2.0], [1, 1], math.inf, "no better than chance"),
        ([1.0, 2.0], [0.5, 0.5], math.inf, "no better than chance"),
        ([0.0, 0.0], [1, 1], math.nan, "all tied"),
    ],
)
def test_where_no_temperature_is_best_the_answer_says_why(z, label, value, boundary):
    found = fit_temperature(torch.tensor(z), torch.tensor(label, dtype=torch.float32))
    assert found.value == pytest.approx(value, nan_ok=True)
    assert found.boundary == boundary


def test_log_loss_of_large_scores_neither_overflows_nor_vanishes():
    assert log_loss(torch.tensor([1000.0, -1000.0])) == 500.0


@pytest.mark.parametrize(
    "z, label, message",
    [
        ([1.0, math.nan], [1.0, 1.0], "1 of 2 values of z are not finite"),
        ([1.0, 2.0], [1.0, 1.5], "in \\[0, 1\\]"),
        ([1.0, 2.0], [1.0, math.nan], "in \\[0, 1\\]"),
        ([1.0, 2.0], [1.0], "expected \\(n,\\)"),
        ([], [], "at least 1"),
    ],
)
def test_what_is_no_score_or_probability_is_refused(z, label, message):
    for number in (reliability_bins, brier_score, log_loss, fit_temperature):
        with pytest.raises(ValueError, match=message):
            number(torch.tensor(z), torch.tensor(label))


def test_records_are_calibrated_against_the_label_and_every_probability_they_hold():
    z = logit([0.75] * 4).tolist()
    z[3] = -z[3]
    records = {"id": list("abcd"), "z": z, "p_true": [0.75, 0.75, None, 0.25], "target": [1.0, 1.0, 1.0, 1.0]}
    records, z = {name: 5 * column for name, column in records.items()}, 5 * z  # 20 pairs
    metrics = calibrate(records, against=["p_true", "target", "probability"])
    assert {name.rsplit("/", 1)[0] for name in metrics} == {
        "val/calibration",
        "val/calibration@p_true",
        "val/calibration@target",
    }
    assert metrics["val/calibration/ece"] == pytest.approx(0.0, abs=1e-12)
    floor = reliability_bins(torch.tensor(z, dtype=torch.float64)).error_if_calibrated
    assert metrics["val/calibration/ece_if_calibrated"] == floor > 0
    assert not any("if_calibrated" in name for name in metrics if "@" in name), "probabilities have no noise of labels"
    assert metrics["val/calibration/brier"] == pytest.approx(0.1875)
    assert metrics["val/calibration/temperature"] == pytest.approx(1.0)
    assert metrics["val/calibration@p_true/brier"] == pytest.approx(0.0, abs=1e-15)  # the 15 pairs that have one
    assert metrics["val/calibration@target/log_loss"] == pytest.approx(metrics["val/calibration/log_loss"])


def test_a_score_that_is_not_finite_makes_every_calibration_nan():
    metrics = calibrate({"id": ["a", "b"], "z": [1.0, math.inf]})
    assert len(metrics) == 5 and all(math.isnan(number) for number in metrics.values())


@pytest.mark.parametrize("records", [{"id": []}, {"id": ["a"], "loss": [1.0]}])
def test_records_without_scores_have_no_calibration(records):
    assert calibrate(records) == {}


def lines_of(figure):
    return {line.get_label(): line for line in figure.axes[0].lines}


def test_the_diagram_draws_the_bins_and_their_intervals():
    z, label = random_pairs()
    figure = reliability_diagram(z, label, bins=4, title="step 10")
    found = reliability_bins(z, label, bins=4)
    drawn = lines_of(figure)["4 bins of equal count"].get_xydata()
    assert drawn.tolist() == torch.stack([found.presented, found.observed], dim=1).tolist()
    (intervals,) = figure.axes[0].collections
    # Wilson's interval solves (share - p)^2 = 1.96^2 p (1 - p) / n at both ends; a bin holds n = 2 * 200 / 4 pairs.
    for share, ((_, low), (_, high)) in zip(found.observed.tolist(), intervals.get_segments(), strict=True):
        assert low < share < high
        for p in (low, high):
            assert (share - p) ** 2 == pytest.approx(1.959964**2 * p * (1 - p) / 100)
    assert f"ECE {found.error:.3f}" in figure.axes[0].texts[0].get_text()
    picture = io.BytesIO()
    figure.savefig(picture, format="png")
    assert picture.getvalue().startswith(b"\x89PNG")


def test_the_diagram_of_soft_labels_has_no_intervals_and_names_a_missing_temperature():
    z, label = random_pairs(soft=True)
    assert not reliability_diagram(z, label).axes[0].collections
    assert "temperature 0 (separable)" in reliability_diagram(z.abs()).axes[0].texts[0].get_text()


@pytest.mark.parametrize("pairs", [3, 10, 19])
def test_fewer_than_20_pairs_have_no_calibration_error_to_expect(pairs):
    z, _ = random_pairs()
    assert math.isnan(reliability_bins(z[:pairs]).error_if_calibrated)
    assert "val/calibration/ece_if_calibrated" not in calibrate({"id": list(range(pairs)), "z": z[:pairs].tolist()})
    assert reliability_bins(z[:20]).error_if_calibrated <= 0.5
