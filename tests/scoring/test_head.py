"""The tile pass against the formula written over the whole vocabulary."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_pref.scoring.head import Readout, tile_shape, token_values
from lit_pref.types import Kl, Tilt

# More rows and columns than one CPU tile has, and a multiple of neither.
ROWS, COLUMNS = tile_shape(torch.device("cpu"))
N, V, H = ROWS + 88, 2 * COLUMNS + 45, 6


def tensors(dtype=torch.float64, n=N, v=V, h=H, bias=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    hidden = torch.randn(n, h, generator=g, dtype=torch.float64)
    weight = torch.randn(v, h, generator=g, dtype=torch.float64)
    offset = torch.randn(v, generator=g, dtype=torch.float64) if bias else None
    targets = torch.randint(v, (n,), generator=g)
    return [None if t is None else t.to(dtype).requires_grad_() for t in (hidden, weight, offset)], targets


def naive_logits(hidden, weight, bias, scale, softcap):
    logits = hidden @ weight.T
    logits = (logits if bias is None else logits + bias) * scale
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def naive_logps(logits, targets):
    return torch.log_softmax(logits, -1).gather(1, targets[:, None]).squeeze(1)


@pytest.mark.parametrize(
    ("bias", "scale", "softcap"),
    [(False, 1.0, None), (True, 1.0, None), (True, 0.3, None), (False, 1.0, 2.0), (True, 0.7, 1.5)],
)
@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 1e-5)])
def test_log_probs_and_gradients_are_those_of_the_full_log_softmax(bias, scale, softcap, dtype, close):
    given, targets = tensors(dtype, bias=bias)
    exact = [None if t is None else t.detach().double().requires_grad_() for t in given]
    upstream = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    logps, _ = token_values(Readout(*given, scale, softcap), targets)
    (logps * upstream.to(dtype)).sum().backward()
    expected = naive_logps(naive_logits(*exact, scale, softcap), targets)
    (expected * upstream).sum().backward()

    assert logps.dtype == dtype
    torch.testing.assert_close(logps.double(), expected, rtol=0, atol=close)
    for ours, theirs in zip(given, exact, strict=True):
        if ours is not None:
            assert (ours.grad.double() - theirs.grad).norm() <= close * theirs.grad.norm()


def test_the_backward_is_the_finite_difference_of_the_forward():
    given, targets = tensors(n=3, v=5, h=2)
    assert torch.autograd.gradcheck(lambda *t: token_values(Readout(*t, 0.6, 1.2), targets)[0], given)


def test_a_readout_of_logits_is_scored_as_it_stands():
    (logits, _, _), targets = tensors(h=V)
    logps, _ = token_values(Readout(logits, None), targets)
    logps.square().sum().backward()
    exact = logits.detach().clone().requires_grad_()
    naive_logps(exact, targets).square().sum().backward()
    torch.testing.assert_close(logps, naive_logps(exact, targets), rtol=0, atol=1e-12)
    torch.testing.assert_close(logits.grad, exact.grad, rtol=0, atol=1e-12)


def test_a_frozen_head_gets_no_gradient_and_changes_none():
    (hidden, weight, bias), targets = tensors()
    token_values(Readout(hidden, weight, bias), targets)[0].sum().backward()
    frozen = hidden.detach().clone().requires_grad_()
    token_values(Readout(frozen, weight.detach(), bias.detach()), targets)[0].sum().backward()
    torch.testing.assert_close(frozen.grad, hidden.grad, rtol=0, atol=0)


def test_a_weight_used_as_embedding_and_head_gets_both_gradients():
    (_, weight, _), targets = tensors()
    ids = torch.arange(N) % V

    def gradient(logps):
        weight.grad = None
        logps(torch.tanh(weight[ids])).sum().backward()
        return weight.grad

    ours = gradient(lambda hidden: token_values(Readout(hidden, weight), targets)[0])
    theirs = gradient(lambda hidden: naive_logps(hidden @ weight.T, targets))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-10), (torch.float32, 2e-5)])
def test_comparisons_are_those_of_the_full_distributions(dtype, close):
    (hidden, weight, bias), targets = tensors(dtype)
    (other, other_weight, _), _ = tensors(dtype, h=H + 3, seed=5)
    needs = [Tilt(0.01), Kl(), Tilt(-0.3)]
    _, values = token_values(
        Readout(hidden, weight, bias, 0.5, 3.0), targets, needs, Readout(other, other_weight, None, 0.4)
    )
    f = naive_logits(hidden.double(), weight.double(), bias.double(), 0.5, 3.0)
    g = naive_logits(other.double(), other_weight.double(), None, 0.4, None)
    log_p, log_q = torch.log_softmax(f, -1), torch.log_softmax(g, -1)
    expected = [
        naive_logps(1.01 * f - 0.01 * g, targets),
        (log_p.exp() * (log_p - log_q)).sum(-1),
        naive_logps(0.7 * f + 0.3 * g, targets),
    ]
    for ours, theirs in zip(values, expected, strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours.double(), theirs, rtol=close, atol=close)


def test_tilted_sums_are_the_published_example_of_epsilon_dpo():
    # Three tokens of vocabulary, two of each response; logits through an identity head.
    f = torch.tensor([[2, 0, -1], [0.5, 1, 0], [1, 0.5, 0], [0, 0.3, 0.9]], dtype=torch.float64)
    g = torch.tensor([[1.5, 0.2, -1], [0.6, 0.6, 0.1], [0.8, 0.8, 0], [0.1, 0.2, 0.6]], dtype=torch.float64)
    targets, eye = torch.tensor([0, 1, 1, 2]), torch.eye(3, dtype=torch.float64)
    logps, (up, down, kl) = token_values(Readout(f, eye), targets, [Tilt(0.01), Tilt(-0.01), Kl()], Readout(g, eye))
    reference, _ = token_values(Readout(g, eye), targets)

    def difference(values):
        return (values[:2].sum() - values[2:].sum()).item()

    # z⁻, z, z⁺ and D of the example; the slope of z in ε is D - (KL_w - KL_l).
    assert difference(up) == pytest.approx(1.005912261315618, abs=1e-12)
    assert difference(logps) == pytest.approx(1.0007391910964951, abs=1e-12)
    assert difference(down) == pytest.approx(0.9955615362825515, abs=1e-12)
    assert difference(logps) - difference(reference) == pytest.approx(0.5436705692221528, abs=1e-12)
    assert difference(logps - reference) - difference(kl) == pytest.approx(0.5175359376767125, abs=1e-12)


def test_bf16_logits_are_upcast_before_they_are_interpolated():
    # One step of ε (f - g) is below the grid of bf16 at these logits: 8 + 0.01·0.5 rounds back to 8 there.
    f, g = torch.tensor([[8.0, 0.0]]).bfloat16(), torch.tensor([[7.5, 0.0]]).bfloat16()
    eye = torch.eye(2).bfloat16()
    _, (tilted,) = token_values(Readout(f, eye), torch.tensor([1]), [Tilt(0.01)], Readout(g, eye))
    assert tilted.dtype == torch.float32
    assert tilted.item() == pytest.approx(-8.005 - math.log1p(math.exp(-8.005)), abs=2e-6)


@pytest.mark.parametrize("weight_dtype", [torch.float32, torch.bfloat16])
def test_autocast_does_not_reach_the_head(weight_dtype):
    (hidden, weight, _), targets = tensors(torch.float32, n=40, v=300)
    hidden = hidden.detach().bfloat16().requires_grad_()
    weight = weight.detach().to(weight_dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        logps, _ = token_values(Readout(hidden, weight), targets)
        logps.sum().backward()
    exact_hidden, exact_weight = (t.detach().double().requires_grad_() for t in (hidden, weight))
    expected = naive_logps(exact_hidden @ exact_weight.T, targets)
    expected.sum().backward()
    assert logps.dtype == torch.float32
    torch.testing.assert_close(logps.double(), expected, rtol=0, atol=2e-5)
    assert (hidden.grad.dtype, weight.grad.dtype) == (torch.bfloat16, weight_dtype)
    # Rounded once to the dtype of its tensor: half a unit in the last of bf16's eight bits.
    torch.testing.assert_close(hidden.grad.double(), exact_hidden.grad, rtol=2**-8, atol=1e-5)
    tolerance = 2**-8 if weight_dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(weight.grad.double(), exact_weight.grad, rtol=tolerance, atol=1e-5)


class Largest(TorchDispatchMode):
    """Counts the elements of the largest tensor made within."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return result


@pytest.mark.parametrize("needs", [[], [Tilt(0.01), Tilt(-0.01), Kl()]])
def test_no_tensor_is_larger_than_a_tile(needs):
    (hidden, weight, bias), targets = tensors(torch.float32, h=4)
    (other, other_weight, _), _ = tensors(torch.float32, h=3, seed=5)
    # A weight and its gradient are V x H: here H is so small that they are smaller than a tile anyhow.
    with Largest() as largest:
        against = Readout(other.detach(), other_weight.detach())
        logps, _ = token_values(Readout(hidden, weight, bias, 0.5, 3.0), targets, needs, against)
        logps.sum().backward()
    assert 0 < largest.elements <= ROWS * COLUMNS <= 2**20 < N * V
    assert weight.grad is not None


def test_no_token_at_all_is_an_empty_result_with_a_zero_gradient():
    (hidden, weight, bias), targets = tensors(n=0, v=7)
    logps, (kl,) = token_values(Readout(hidden, weight, bias), targets, [Kl()], Readout(hidden, weight, bias))
    assert logps.shape == kl.shape == (0,)
    logps.sum().backward()
    assert weight.grad.abs().sum() == 0


def test_what_does_not_belong_together_is_refused():
    (hidden, weight, _), targets = tensors(n=4, v=7)
    with pytest.raises(ValueError, match="3 targets, but hidden states of shape"):
        token_values(Readout(hidden, weight), targets[:3])
    with pytest.raises(ValueError, match="compares the policy with a reference, and none was given"):
        token_values(Readout(hidden, weight), targets, [Kl()])
    with pytest.raises(ValueError, match="vocabulary of 7, the reference 4 over 6"):
        token_values(Readout(hidden, weight), targets, [Kl()], Readout(hidden, weight[:6]))
