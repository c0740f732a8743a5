"""The tile pass against the formula written over the whole vocabulary."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from lit_pref.scores import Entropy, Kl, LogSumSquares, ReferenceKl, SumSquares, Tilt, TiltSlope, TopOne
from lit_pref.scoring import head, tile_passes
from lit_pref.scoring.head import Readout, token_values
from lit_pref.scoring.tiles import tile_shape

# More rows and columns than one CPU tile has, and a multiple of neither.
N, V, H = 520, 4513, 6
MANY = 17_011  # with N rows, more logits than the forward keeps
ROWS, COLUMNS = tile_shape(torch.device("cpu"), N, V)


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


FORMS = pytest.mark.parametrize(
    ("bias", "scale", "softcap"),
    [(False, 1.0, None), (True, 1.0, None), (True, 0.3, None), (False, 1.0, 2.0), (True, 0.7, 1.5)],
)
PRECISIONS = pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])


@FORMS
@PRECISIONS
@pytest.mark.parametrize(
    ("few", "wanted"),
    [(True, "hidden weight bias"), (False, "hidden weight bias"), (True, "hidden"), (False, "weight"), (True, "bias")],
)
def test_log_probs_and_gradients_are_those_of_the_full_log_softmax(
    bias, scale, softcap, dtype, close, few, wanted, monkeypatch
):
    monkeypatch.setattr(head, "few_tiles", lambda *_: few)
    given, targets = tensors(dtype, bias=bias)
    for t, name in zip(given, ("hidden", "weight", "bias"), strict=True):
        if t is not None:
            t.requires_grad_(name in wanted)
    if not any(t is not None and t.requires_grad for t in given):
        return  # a head without bias has no gradient of one
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in given]
    upstream = torch.randn(N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    logps, _ = token_values(Readout(*given, scale, softcap), targets)
    (logps * upstream.to(dtype)).sum().backward()
    expected = naive_logps(naive_logits(*exact, scale, softcap), targets)
    (expected * upstream).sum().backward()

    assert logps.dtype == dtype
    torch.testing.assert_close(logps.double(), expected, rtol=0, atol=close)
    for ours, theirs in zip(given, exact, strict=True):
        if ours is not None and theirs.requires_grad:
            assert (ours.grad.double() - theirs.grad).norm() <= close * theirs.grad.norm()


def test_the_backward_is_the_finite_difference_of_the_forward():
    given, targets = tensors(n=3, v=5, h=2)
    assert torch.autograd.gradcheck(lambda *t: token_values(Readout(*t, 0.6, 1.2), targets)[0], given)


def test_a_readout_of_logits_is_scored_as_it_stands():
    logits = torch.randn(N, V, generator=torch.Generator().manual_seed(0), dtype=torch.float64, requires_grad=True)
    targets = torch.arange(N) * 8
    logps, _ = token_values(Readout(logits, None), targets)
    logps.square().sum().backward()
    exact = logits.detach().clone().requires_grad_()
    naive_logps(exact, targets).square().sum().backward()
    torch.testing.assert_close(logps, naive_logps(exact, targets), rtol=0, atol=1e-12)
    torch.testing.assert_close(logits.grad, exact.grad, rtol=0, atol=1e-12)


class Operations(TorchDispatchMode):
    """Names of the operations run within, and the elements of the largest tensor made."""

    def __init__(self):
        super().__init__()
        self.names = []
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.names.append(func.overloadpacket.__name__)
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.numel())
        return result


def multiplications(operations):
    return sum(name in ("mm", "addmm", "addmm_") for name in operations.names)


def test_each_case_multiplies_matrices_no_more_often_than_it_must():
    def counts(v, hidden_wants, weight_wants, recorded=True):
        (hidden, weight, _), targets = tensors(torch.float32, v=v, bias=False)
        hidden.requires_grad_(hidden_wants)
        weight.requires_grad_(weight_wants)
        rows, columns = tile_shape(torch.device("cpu"), N, v)
        tiles = math.ceil(N / rows) * math.ceil(v / columns)
        with torch.set_grad_enabled(recorded), Operations() as forward:
            logps, _ = token_values(Readout(hidden, weight), targets)
        with Operations() as backward:
            if recorded:
                logps.sum().backward()
        return multiplications(forward) / tiles, multiplications(backward) / tiles

    assert counts(V, True, True, recorded=False) == (1, 0)  # a reference: nothing but logits
    assert counts(V, True, False) == (2, 0)  # a frozen head: logits and unit gradient; the backward has none
    assert counts(V, True, True) == (1, 2)  # few logits are kept
    assert counts(MANY, True, True) == (1, 3)  # many are made again


def test_a_frozen_head_in_bf16_keeps_its_gradient_in_fp32_until_it_is_multiplied():
    (hidden, weight, _), targets = tensors(torch.float32, n=40, v=300)
    hidden, weight = hidden.detach().bfloat16().requires_grad_(), weight.detach().bfloat16()
    token_values(Readout(hidden, weight), targets)[0].mul(1 / 3).sum().backward()
    exact = hidden.detach().double().requires_grad_()
    naive_logps(exact @ weight.double().T, targets).mul(1 / 3).sum().backward()
    assert hidden.grad.dtype == torch.bfloat16
    torch.testing.assert_close(hidden.grad.double(), exact.grad, rtol=2**-8, atol=1e-6)


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize("frozen", [False, True])
def test_a_second_backward_and_a_second_pass_give_the_same_bits(few, frozen, monkeypatch):
    monkeypatch.setattr(head, "few_tiles", lambda *_: few)
    (hidden, weight, bias), targets = tensors(torch.float32)
    wanted = [hidden] if frozen else [hidden, weight, bias]
    for t in (weight, bias):
        t.requires_grad_(not frozen)
    runs = []
    for _ in range(2):
        logps, _ = token_values(Readout(hidden, weight, bias, 0.9, 4.0), targets)
        runs += [torch.autograd.grad(logps.sum(), wanted, retain_graph=True) for _ in range(2)]
    for other in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], other, strict=True))


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


@pytest.mark.parametrize(("dtype", "close"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
def test_values_and_comparisons_are_those_of_the_full_distributions(dtype, close):
    (hidden, weight, bias), targets = tensors(dtype)
    (other, other_weight, _), _ = tensors(dtype, h=H + 3, seed=5)
    needs = [Tilt(0.01), Entropy(), Kl(), TopOne(), Tilt(-0.3), SumSquares(), TiltSlope(), LogSumSquares()]
    targets[::3] = naive_logits(hidden, weight, bias, 0.5, 3.0)[::3].argmax(1)
    _, values = token_values(
        Readout(hidden, weight, bias, 0.5, 3.0), targets, needs, Readout(other, other_weight, None, 0.4)
    )
    f = naive_logits(hidden.double(), weight.double(), bias.double(), 0.5, 3.0)
    g = naive_logits(other.double(), other_weight.double(), None, 0.4, None)
    log_p, log_q = torch.log_softmax(f, -1), torch.log_softmax(g, -1)
    expected = [
        naive_logps(1.01 * f - 0.01 * g, targets) - naive_logps(f, targets),
        -(log_p.exp() * log_p).sum(-1),
        (log_p.exp() * (log_p - log_q)).sum(-1),
        (f.argmax(-1) == targets).double(),
        naive_logps(0.7 * f + 0.3 * g, targets) - naive_logps(f, targets),
        log_p.exp().square().sum(-1),
        naive_logps(f, targets) - naive_logps(g, targets) - (log_p.exp() * (log_p - log_q)).sum(-1),
        log_p.exp().square().sum(-1).log(),
    ]
    assert 0 < expected[3].sum() < N
    for ours, theirs in zip(values, expected, strict=True):
        assert not ours.requires_grad
        torch.testing.assert_close(ours.double(), theirs, rtol=close, atol=close)


@FORMS
@PRECISIONS
@pytest.mark.parametrize(("few", "wanted"), [(True, "hidden weight bias"), (False, "hidden weight"), (False, "hidden")])
def test_the_kl_from_the_reference_has_a_gradient_beside_that_of_the_log_probs(
    bias, scale, softcap, dtype, close, few, wanted, monkeypatch
):
    monkeypatch.setattr(head, "few_tiles", lambda *_: few)
    given, targets = tensors(dtype, bias=bias)
    (other, other_weight, _), _ = tensors(dtype, h=H + 3, seed=5)
    for t, name in zip(given, ("hidden", "weight", "bias"), strict=True):
        if t is not None:
            t.requires_grad_(name in wanted)
    exact = [None if t is None else t.detach().double().requires_grad_(t.requires_grad) for t in given]
    upstream = torch.randn(2, N, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    against = Readout(other.detach(), other_weight.detach(), None, 0.4)
    logps, (slope, kl) = token_values(Readout(*given, scale, softcap), targets, [TiltSlope(), ReferenceKl()], against)
    (torch.stack([logps, kl]) * upstream.to(dtype)).sum().backward()
    f, g = naive_logits(*exact, scale, softcap), naive_logits(other.double(), other_weight.double(), None, 0.4, None)
    log_p, log_q = torch.log_softmax(f, -1), torch.log_softmax(g, -1)
    expected = (log_q.exp() * (log_q - log_p)).sum(-1)
    (torch.stack([naive_logps(f, targets), expected]) * upstream).sum().backward()

    assert not slope.requires_grad
    torch.testing.assert_close(kl.double(), expected, rtol=close, atol=10 * close)
    for ours, theirs in zip(given, exact, strict=True):
        if ours is not None and theirs.requires_grad:
            assert (ours.grad.double() - theirs.grad).norm() <= 10 * close * theirs.grad.norm()


@pytest.mark.parametrize("logits", [False, True])
def test_the_kl_from_a_reference_with_fewer_ids_pulls_on_the_shared_ones_alone(logits, monkeypatch):
    monkeypatch.setattr(tile_passes, "tile_shape", lambda *_: (7, 4))
    (hidden, weight, _), targets = tensors(n=23, v=37)
    (other, other_weight, _), _ = tensors(n=23, v=37, seed=5)
    against, shared = Readout(other.detach(), other_weight.detach()[:30]), 30
    f = (hidden @ weight.T).detach().requires_grad_()
    policy = Readout(f, None) if logits else Readout(hidden, weight)
    _, (kl,) = token_values(policy, targets % shared, [ReferenceKl()], against)
    exact = f.detach().clone().requires_grad_() if logits else None
    narrow = exact[:, :shared] if exact is not None else (hidden @ weight.T)[:, :shared]
    log_p, log_q = torch.log_softmax(narrow, -1), torch.log_softmax(other @ other_weight[:30].T, -1).detach()
    expected = (log_q.exp() * (log_q - log_p)).sum(-1)
    torch.testing.assert_close(kl, expected, rtol=1e-12, atol=1e-12)
    leaves, exact_leaves = ([f], [exact]) if logits else ([hidden, weight], [hidden, weight])
    ours, theirs = torch.autograd.grad(kl.sum(), leaves), torch.autograd.grad(expected.sum(), exact_leaves)
    for own, right in zip(ours, theirs, strict=True):
        torch.testing.assert_close(own, right, rtol=1e-11, atol=1e-12)


def test_at_the_reference_the_kl_and_its_gradient_vanish():
    (hidden, weight, bias), targets = tensors()
    against = Readout(hidden.detach(), weight.detach(), bias.detach())
    _, (kl,) = token_values(Readout(hidden, weight, bias), targets, [ReferenceKl()], against)
    kl.sum().backward()
    assert kl.abs().max() < 1e-12 and hidden.grad.abs().max() < 1e-12


@pytest.mark.parametrize("columns", [4, 1000])
@pytest.mark.parametrize("lacking", [1, 5, 17])
@pytest.mark.parametrize("logits", [False, True])
def test_a_reference_with_fewer_ids_is_compared_on_the_shared_ones(logits, lacking, columns, monkeypatch):
    monkeypatch.setattr(tile_passes, "tile_shape", lambda *_: (7, columns))
    (hidden, weight, _), targets = tensors(n=23, v=37)
    (other, other_weight, _), _ = tensors(n=23, v=37, seed=5)
    shared = 37 - lacking
    targets = targets % shared
    weight = torch.cat([weight[:shared], 3 * weight[shared:]]).detach()  # padding may have the largest logits
    needs = [Tilt(0.01), Kl(), TiltSlope(), Tilt(-0.3), Entropy(), SumSquares(), TopOne()]
    against = Readout(other, other_weight[:shared])
    policy, narrow = Readout(hidden, weight), Readout(hidden, weight[:shared])
    if logits:
        policy, narrow = Readout(hidden @ weight.T, None), Readout(hidden @ weight[:shared].T, None)
    logps, values = token_values(policy, targets, needs, against)
    whole_logps, whole = token_values(policy, targets, needs[4:])
    _, expected = token_values(narrow, targets, needs[:4], against)
    torch.testing.assert_close(logps, whole_logps, rtol=0, atol=1e-12)
    for ours, theirs in zip(values, [*expected, *whole], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_tilted_sums_are_the_published_example_of_epsilon_dpo():
    # Three tokens of vocabulary, two of each response; logits through an identity head.
    f = torch.tensor([[2, 0, -1], [0.5, 1, 0], [1, 0.5, 0], [0, 0.3, 0.9]], dtype=torch.float64)
    g = torch.tensor([[1.5, 0.2, -1], [0.6, 0.6, 0.1], [0.8, 0.8, 0], [0.1, 0.2, 0.6]], dtype=torch.float64)
    targets, eye = torch.tensor([0, 1, 1, 2]), torch.eye(3, dtype=torch.float64)
    needs = [Tilt(0.01), Tilt(-0.01), Kl(), TiltSlope()]
    logps, (up, down, kl, slope) = token_values(Readout(f, eye), targets, needs, Readout(g, eye))
    reference, _ = token_values(Readout(g, eye), targets)

    def difference(values):
        return (values[:2].sum() - values[2:].sum()).item()

    # z⁻, z, z⁺ and D of the example; the slope of z in ε is D - (KL_w - KL_l).
    assert difference(up + logps) == pytest.approx(1.005912261315618, abs=1e-12)
    assert difference(logps) == pytest.approx(1.0007391910964951, abs=1e-12)
    assert difference(down + logps) == pytest.approx(0.9955615362825515, abs=1e-12)
    assert difference(logps) - difference(reference) == pytest.approx(0.5436705692221528, abs=1e-12)
    assert difference(logps - reference) - difference(kl) == pytest.approx(0.5175359376767125, abs=1e-12)
    assert difference(slope) == pytest.approx(0.5175359376767125, abs=1e-12)


@pytest.mark.parametrize("shift", [0.0, 30.0])
@pytest.mark.parametrize("needs", [[Tilt(0.01), Tilt(-0.01)], [TiltSlope()]])
def test_near_the_reference_single_precision_gives_the_signs_of_double_precision(needs, shift):
    """30 pairs of 40 tokens a response at a distance of 1e-4 from the reference; logits may differ by a constant."""
    tokens, vocabulary = 30 * 2 * 40, 3 * COLUMNS // 2
    generator = torch.Generator().manual_seed(0)
    f = 3 * torch.randn(tokens, vocabulary, generator=generator)
    g = f + 1e-4 * torch.randn(tokens, vocabulary, generator=generator)
    targets = torch.distributions.Categorical(logits=f).sample()

    def signs(dtype):
        against = Readout(g.to(dtype) + shift, None)
        _, values = token_values(Readout(f.to(dtype), None), targets, needs, against)
        sums = [value.double().view(30, 2, 40).sum(2) for value in values]
        return torch.stack([(sides[:, 0] - sides[:, 1]).sign() for sides in sums])

    # The shift itself costs single precision most of the digits of `g - f`: there a few pairs may be undecided.
    agreed = (signs(torch.float32) == signs(torch.float64)).sum(1)
    assert bool((agreed == 30).all()) if shift == 0 else bool((agreed >= 28).all())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tilt_far_from_the_reference_is_that_of_the_full_distributions(dtype):
    """Logits tens of nats apart, the policy's largest ones in the last tile and a constant between the two."""
    generator = torch.Generator().manual_seed(1)
    f, g = (5 * torch.randn(20, 2 * COLUMNS, generator=generator, dtype=torch.float64) for _ in range(2))
    f[:, -3:] += 20
    f, g = f.to(dtype), (g + 70).to(dtype)
    targets = torch.randint(2 * COLUMNS, (20,), generator=generator)
    needs = [Tilt(0.5), Tilt(-0.5), Tilt(0.9), Tilt(-0.9)]
    _, values = token_values(Readout(f, None), targets, needs, Readout(g, None))
    f, g = f.double(), g.double()
    for need, value in zip(needs, values, strict=True):
        expected = naive_logps((1 + need.epsilon) * f - need.epsilon * g, targets) - naive_logps(f, targets)
        torch.testing.assert_close(value.double(), expected, rtol=1e-4, atol=1e-4)


def test_entropy_squares_and_top_one_of_distributions_known_by_heart():
    # Probabilities 1/2, 1/4, 1/8, 1/8 have 7/4 bits and squares of 22/64; uniform ones ln 4 and 1/4, all on top.
    probabilities = torch.tensor([[1 / 2, 1 / 4, 1 / 8, 1 / 8]] * 2 + [[1 / 4] * 4], dtype=torch.float64)
    needs = [Entropy(), SumSquares(), TopOne(), Entropy(), LogSumSquares()]  # one asked for twice is gathered once
    _, values = token_values(Readout(probabilities.log() + 300, None), torch.tensor([0, 1, 3]), needs)
    expected = [[1.75 * math.log(2)] * 2 + [math.log(4)], [22 / 64, 22 / 64, 1 / 4], [1, 0, 1]]
    expected += [expected[0], [math.log(22 / 64)] * 2 + [math.log(1 / 4)]]
    torch.testing.assert_close(torch.stack(values), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_values_stay_right_where_the_largest_logit_comes_last_and_dwarfs_the_others():
    (hidden, weight, _), targets = tensors()
    logits = (hidden @ weight.T).detach()
    logits[:, -1] += 900.0
    logits[:, :50] = -torch.inf  # entries that can never be drawn
    logps, (top,) = token_values(Readout(logits, None), targets.fill_(V - 1), [TopOne()])
    assert torch.equal(logps, torch.zeros(N, dtype=torch.float64)) and torch.equal(top, torch.ones_like(top))
    down, _ = token_values(Readout(logits, None), targets.fill_(V - 2))
    torch.testing.assert_close(down, logits[:, -2] - logits[:, -1], rtol=0, atol=1e-12)


@pytest.mark.parametrize(("dtype", "other_dtype"), [(torch.float64, torch.float32), (torch.float32, torch.bfloat16)])
def test_a_reference_of_another_dtype_is_compared_in_the_policys(dtype, other_dtype):
    (hidden, weight, _), targets = tensors(dtype, n=30, v=200)
    (other, other_weight, _), _ = tensors(other_dtype, n=30, v=200, seed=5)
    _, (tilted,) = token_values(Readout(hidden, weight), targets, [Tilt(0.5)], Readout(other, other_weight))
    f, g = hidden.double() @ weight.double().T, other.double() @ other_weight.double().T
    assert tilted.dtype == dtype
    expected = naive_logps(1.5 * f - 0.5 * g, targets) - naive_logps(f, targets)
    torch.testing.assert_close(tilted.double(), expected.detach(), rtol=0, atol=2e-5)


def test_bf16_logits_are_upcast_before_they_are_interpolated():
    # One step of ε (f - g) is below the grid of bf16 at these logits: 8 + 0.01·0.5 rounds back to 8 there.
    f, g = torch.tensor([[8.0, 0.0]]).bfloat16(), torch.tensor([[7.5, 0.0]]).bfloat16()
    eye = torch.eye(2).bfloat16()
    _, (tilted,) = token_values(Readout(f, eye), torch.tensor([1]), [Tilt(0.01)], Readout(g, eye))
    assert tilted.dtype == torch.float32
    change = -0.005 - math.log1p(math.exp(-8.005)) + math.log1p(math.exp(-8.0))
    assert tilted.item() == pytest.approx(change, abs=1e-8)


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


@pytest.mark.parametrize(
    "needs",
    [[], [Tilt(0.01), Tilt(-0.01), TiltSlope(), Kl()], [Entropy(), SumSquares(), TopOne()], [Kl(), ReferenceKl()]],
)
@pytest.mark.parametrize("frozen", [False, True])
def test_no_tensor_is_larger_than_a_tile(needs, frozen):
    (hidden, weight, bias), targets = tensors(torch.float32, h=4)
    weight.requires_grad_(not frozen)
    bias.requires_grad_(not frozen)
    (other, other_weight, _), _ = tensors(torch.float32, h=3, seed=5)
    # A weight and its gradient are V x H: here H is so small that they are smaller than a tile anyhow.
    with Operations() as operations:
        against = Readout(other.detach(), other_weight.detach())
        logps, _ = token_values(Readout(hidden, weight, bias, 0.5, 3.0), targets, needs, against)
        logps.sum().backward()
    assert 0 < operations.elements <= ROWS * COLUMNS <= 2**20 < N * V
    assert hidden.grad is not None and (weight.grad is None) == frozen


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
    with pytest.raises(ValueError, match="vocabulary of 6, the reference 4 over 7"):
        token_values(Readout(hidden, weight[:6]), targets.clamp(max=5), [Kl()], Readout(hidden, weight))
