import math

import pytest
import torch

from lit_pref.errors import UsageError
from lit_pref.models.sampling import Sampling, TokenChoice, add_gumbel, restricted, step_keys


def keys(number: int) -> list[int]:
    return step_keys(range(number), 0)


def test_noise_is_standard_gumbel_and_uncorrelated_over_tokens_rows_and_steps():
    noise = torch.zeros(2000, 300)
    add_gumbel(noise, keys(2000))
    assert noise.mean().item() == pytest.approx(0.57722, abs=0.01)
    assert noise.var().item() == pytest.approx(math.pi**2 / 6, abs=0.02)
    later = torch.zeros(2000, 300)
    add_gumbel(later, step_keys(range(2000), 1))
    for a, b in ((noise[:, :-1], noise[:, 1:]), (noise[:-1], noise[1:]), (noise, later)):
        correlation = torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1]
        assert abs(correlation.item()) < 5 / math.sqrt(a.numel())


def test_a_row_has_the_same_noise_alone_and_in_any_batch():
    together = torch.zeros(64, 5000)  # several chunks of a CPU
    add_gumbel(together, keys(64))
    for k in (0, 13, 63):
        alone = torch.zeros(1, 5000)
        add_gumbel(alone, [keys(64)[k]])
        assert torch.equal(alone[0], together[k])


@pytest.mark.parametrize(
    "sampling",
    [Sampling(1.0), Sampling(0.7), Sampling(2.0, top_k=4), Sampling(1.0, top_p=0.8), Sampling(1.3, 0.7, 5)],
)
def test_tokens_follow_the_distribution(sampling: Sampling):
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -2.0, -3.0])
    expected = torch.softmax(logits / sampling.temperature, 0)
    if sampling.top_k:
        expected[sampling.top_k :] = 0
        expected /= expected.sum()
    if sampling.top_p < 1:
        kept = int((expected.cumsum(0) < sampling.top_p).sum()) + 1
        expected[kept:] = 0
        expected /= expected.sum()
    rows, steps = 2000, 10
    choice = TokenChoice(sampling, range(rows))
    drawn = torch.stack([choice(None, logits.repeat(rows, 1)).argmax(-1) for _ in range(steps)])
    counts = torch.bincount(drawn.flatten(), minlength=8)
    possible = expected > 0
    assert counts[~possible].sum() == 0
    mean = rows * steps * expected[possible]
    chi_square = ((counts[possible] - mean) ** 2 / mean).sum()
    freedom = int(possible.sum()) - 1
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)
    # Log-probs are those of the model at temperature 1, whatever was drawn from.
    plain = torch.log_softmax(logits, 0)
    assert torch.allclose(torch.stack(choice.logprobs), plain[drawn], atol=1e-6)


def test_top_p_sorts_all_tokens_where_the_likely_ones_are_not_enough():
    logits = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)) * 0.01
    kept = restricted(logits.clone(), Sampling(1.0, top_p=0.9)).isfinite()
    probability = torch.softmax(logits, -1)
    assert ((probability * kept).sum(-1) >= 0.9 - 1e-5).all()
    smallest = torch.where(kept, probability, 1.0).min(-1).values
    assert ((probability * kept).sum(-1) - smallest < 0.9 + 1e-5).all()
    assert (torch.where(kept, 0.0, probability).max(-1).values <= smallest).all()


def test_greedy_and_a_single_candidate_take_the_most_likely_token():
    logits = torch.tensor([[0.0, 3.0, 1.0]])
    for sampling in (Sampling(), Sampling(1.0, top_k=1), Sampling(1.0, top_p=1e-9), Sampling(1e-40)):
        choice = TokenChoice(sampling, [5])
        assert [int(choice(None, logits.clone()).argmax()) for _ in range(50)] == [1] * 50


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ((-1.0,), "temperature is -1"),
        ((math.nan,), "temperature is nan"),
        ((math.inf,), "temperature is inf"),
        ((1.0, 0.0), "top_p is 0"),
        ((1.0, 1.5), "top_p is 1.5"),
        ((1.0, 1.0, -1), "top_k is -1"),
    ],
)
def test_values_out_of_range_are_refused(values, said):
    with pytest.raises(UsageError, match=said):
        Sampling(*values)
