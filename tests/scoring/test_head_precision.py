"""The head's precision: what rounding changes, by how much, and what is never rounded."""

import copy
import functools
import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch

from lit_pref.data.batching.collation import collate
from lit_pref.models.spec import ModelSpec
from lit_pref.modules.building import build_scorer
from lit_pref.modules.sharding import FSDP2
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.references.pretrained import Pretrained
from lit_pref.references.reference import InitialPolicy
from lit_pref.references.store_scorer import LazyScorer, lazy_scorer, numerics
from lit_pref.run.first_lines import _head
from lit_pref.scores import Entropy, Kl, LogSumSquares, ReferenceKl, SumSquares, Tilt, TiltSlope, TopOne
from lit_pref.scoring import head, products, tile_passes
from lit_pref.scoring.head import Readout, token_values
from lit_pref.scoring.products import HeadPrecision, Products
from lit_pref.scoring.scorer import Scorer

AUTO, BF16, SPLIT, FP32 = HeadPrecision
TEXT = TruncatedText("", "", "", True, True)
ROUNDED = pytest.mark.parametrize("precision", [BF16, SPLIT])
FORMS = pytest.mark.parametrize("form", [(1.0, None), (0.7, 1.5)])


def tensors(n=40, v=700, h=16, seed=0, size=1.0):
    g = torch.Generator().manual_seed(seed)
    hidden, weight, bias = (torch.randn(*s, generator=g) for s in ((n, h), (v, h), (v,)))
    targets = torch.randint(v, (n,), generator=g)
    return [hidden, weight * size / math.sqrt(h), bias], targets, torch.randn(n, generator=g)


def as_multiplied(matrix, precision):
    """The sum of an operand's parts, in fp64."""
    parts = Products(precision, torch.float32, matrix.device).summands(matrix)
    return sum(part.double() for part in parts)


def formula(hidden, weight, bias, form):
    scale, softcap = form
    logits = (hidden @ weight.T + bias) * scale
    return torch.log_softmax(logits if softcap is None else softcap * torch.tanh(logits / softcap), -1)


@ROUNDED
@FORMS
@pytest.mark.parametrize(("few", "wanted"), [(True, "hwb"), (False, "hwb"), (False, "h")])
def test_values_and_gradients_are_those_of_the_rounded_operands(precision, form, few, wanted, monkeypatch):
    monkeypatch.setattr(head, "few_tiles", lambda *_: few)
    monkeypatch.setattr(tile_passes, "tile_shape", lambda *_: (16, 192))
    inputs, targets, upstream = tensors()
    exact = [as_multiplied(t, precision) for t in inputs[:2]] + [inputs[2].double()]
    results = []
    for given in (inputs, exact):
        leaves = [t.requires_grad_(name in wanted) for t, name in zip(given, "hwb", strict=True)]
        if given is inputs:
            logps, _ = token_values(Readout(*leaves, *form, precision), targets)
        else:
            logps = formula(*leaves, form).gather(1, targets[:, None]).squeeze(1)
        (logps * upstream.to(logps.dtype)).sum().backward()
        results.append((logps.detach().double(), [t.grad.double() for t in leaves if t.grad is not None]))
    (found, ours), (expected, theirs) = results
    # Products of bf16 values are exact in fp32; `split` leaves out the product of two rests.
    torch.testing.assert_close(found, expected, rtol=0, atol={BF16: 5e-6, SPLIT: 1e-4}[precision])
    assert len(ours) == len(wanted)
    for a, b in zip(ours, theirs, strict=True):
        assert (a - b).norm() <= {BF16: 3e-3, SPLIT: 2e-5}[precision] * b.norm()


STATED = {BF16: (3e-2, 8e-3, 4e-3), SPLIT: (1e-4, 2e-5, 2e-5), FP32: (1e-5, 3e-6, 1e-6)}


@pytest.mark.parametrize("precision", [BF16, SPLIT, FP32])
def test_the_error_against_fp64_is_at_most_what_the_docstring_says(precision):
    # Logits of the standard deviation 3, and every second target a likely one.
    inputs, targets, upstream = tensors(n=64, v=4096, h=896, size=3.0)
    hidden, weight = inputs[0], inputs[1]
    targets[::2] = (hidden[::2] @ weight.T).argmax(1)
    results = []
    for dtype, chosen in ((torch.float64, FP32), (torch.float32, precision)):
        leaves = [t.to(dtype, copy=True).requires_grad_() for t in (hidden, weight)]
        logps, _ = token_values(Readout(*leaves, precision=chosen), targets)
        (logps * upstream.to(dtype)).sum().backward()
        results.append([logps.detach().double(), *(t.grad.double() for t in leaves)])
    differences = [a - b for a, b in zip(*results, strict=True)]
    largest, typical, relative = STATED[precision]
    assert differences[0].abs().max() <= largest
    assert differences[0].square().mean().sqrt() <= typical
    assert all(d.norm() <= relative * t.norm() for d, t in zip(differences[1:], results[0][1:], strict=True))


@pytest.mark.parametrize("weight_dtype", [torch.bfloat16, torch.float32])
@ROUNDED
def test_operands_that_are_bf16_already_lose_nothing(precision, weight_dtype):
    (hidden, weight, bias), targets, _ = tensors()
    hidden, weight = hidden.bfloat16(), weight.bfloat16().to(weight_dtype)
    readouts = [Readout(hidden, weight, bias, precision=chosen) for chosen in (precision, FP32)]
    rounded, exact = (token_values(readout, targets, [Entropy()]) for readout in readouts)
    assert torch.equal(rounded[0], exact[0]) and torch.equal(rounded[1][0], exact[1][0])


def test_a_token_that_is_certain_has_a_gradient_near_zero_although_the_head_is_frozen():
    # log p_y = log(1 - 2e-9): weights rounded in one term and not in the other would leave 2^-9 of a weight.
    weight = torch.eye(3)[:, :2] * torch.tensor([1.23456789, 0.987654321])
    hidden = torch.tensor([[23.4567, -23.4567]], requires_grad=True)
    token_values(Readout(hidden, weight, precision=BF16), torch.tensor([0]))[0].backward()
    assert hidden.grad.abs().max() < 1e-6


def test_auto_is_bf16_only_on_cuda_and_only_where_the_model_computes_in_bf16():
    chosen = {(d, b): AUTO.chosen(d, b) for d in ("cpu", "cuda", "mps") for b in (True, False)}
    assert [key for key, value in chosen.items() if value is BF16] == [("cuda", True)]
    assert set(chosen.values()) == {BF16, FP32}
    assert [precision.chosen("cpu", False) for precision in (BF16, SPLIT, FP32)] == [BF16, SPLIT, FP32]


def test_auto_rounds_nothing_on_a_cpu_under_autocast_either():
    (hidden, weight, bias), targets, _ = tensors()
    expected, _ = token_values(Readout(hidden, weight, bias), targets)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = token_values(Readout(hidden, weight, bias), targets)
        rounded, _ = token_values(Readout(hidden, weight, bias, precision=BF16), targets)
    assert torch.equal(found, expected)
    assert 1e-4 < (rounded - expected).abs().max() < 3e-2


@ROUNDED
def test_statistics_are_those_of_the_rounded_operands_of_both_models(precision):
    (hidden, weight, bias), targets, _ = tensors()
    (other, other_weight, other_bias), _, _ = tensors(h=11, seed=1)
    needs = [Kl(), ReferenceKl(), TiltSlope(), Tilt(0.3), Entropy(), SumSquares(), LogSumSquares(), TopOne()]
    # The reference's own precision does not count: a comparison has the policy's.
    against = Readout(other, other_weight, other_bias, precision=FP32)
    _, found = token_values(Readout(hidden, weight, bias, precision=precision), targets, needs, against)
    policy, reference = (
        Readout(as_multiplied(h, precision), as_multiplied(w, precision), b.double())
        for h, w, b in ((hidden, weight, bias), (other, other_weight, other_bias))
    )
    _, expected = token_values(policy, targets, needs, reference)
    for need, ours, theirs in zip(needs, found, expected, strict=True):
        torch.testing.assert_close(
            ours.double(), theirs, rtol=1e-4, atol=2e-4, msg=lambda text, need=need: f"{need} {text}"
        )


WAYS = {
    "none": lambda matmul: None,
    "high": lambda matmul: torch.set_float32_matmul_precision("high"),
    "medium": lambda matmul: torch.set_float32_matmul_precision("medium"),
    "allow_tf32": lambda matmul: setattr(matmul, "allow_tf32", True),
    "fp32_precision": lambda matmul: setattr(matmul, "fp32_precision", "tf32"),
}


def tf32_state():
    """Every setting of TF32, or that torch refuses to read it because the two interfaces were mixed."""
    found = []
    for read in (
        torch.get_float32_matmul_precision,
        lambda: torch.backends.cuda.matmul.allow_tf32,
        lambda: torch.backends.cuda.matmul.fp32_precision == "tf32",
        lambda: torch.backends.mkldnn.matmul.fp32_precision,
    ):
        try:
            found.append(read())
        except RuntimeError:
            found.append("mixed")
    return found


@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")
@pytest.mark.parametrize("way", WAYS)
def test_upcast_bf16_values_are_multiplied_as_tf32_and_fp32_never_is_whatever_the_user_allows(way, monkeypatch):
    monkeypatch.setattr(products, "multiplies_bf16", lambda device: False)  # as with an older torch
    matmul, cuda = torch.backends.cuda.matmul, torch.device("cuda", 0)
    try:
        WAYS[way](matmul)
        before = tf32_state()
        for precision, expected in ((BF16, True), (SPLIT, True), (FP32, False)):
            with Products(precision, torch.float32, cuda).exact():
                assert (matmul.fp32_precision == "tf32") is expected
            assert tf32_state() == before
    finally:
        matmul.fp32_precision = "ieee"
        torch.set_float32_matmul_precision("highest")


def test_a_policy_does_not_differ_from_itself_in_any_precision():
    (hidden, weight, bias), targets, _ = tensors()
    for precision in (BF16, SPLIT, FP32):
        readout = Readout(hidden, weight, bias, precision=precision)
        _, values = token_values(readout, targets, [Kl(), Tilt(0.01)], Readout(hidden, weight, bias))
        assert all((value.abs() < 1e-6).all() for value in values)


def stored_and_run(precision="32-true", device="cpu", pretrained=False, in_transit=None, **settings):
    spec = ModelSpec(path="somewhere", **settings)
    reference = SimpleNamespace(spec=spec, reference=Pretrained("somewhere") if pretrained else InitialPolicy())
    run = SimpleNamespace(
        precision=precision, device=torch.device(device), layout="padded", dtype_in_transit=in_transit
    )
    return reference, run


def key(*given, **settings):
    return numerics(*stored_and_run(*given, **settings))


def test_scores_are_stored_under_the_precision_of_the_head_where_it_rounds():
    assert key() == "fp32" and key("64-true", pretrained=True, dtype="float64") == "fp64"
    assert key("bf16-mixed") == "bf16-mixed/cpu/padded/default"
    assert key(head_precision="bf16") == "fp32-head-bf16/cpu/padded/default"
    assert key("64-true", head_precision="split") == "fp64-head-split-from-float32"
    assert key(device="cuda") == "fp32"
    assert key("bf16-mixed", "cuda") == "bf16-mixed-head-bf16/cuda/padded/default"
    assert key("bf16-true", "cuda") == "bfloat16-head-bf16-from-float32/cuda/padded/default"
    assert key("bf16-true", "cuda", pretrained=True) == "fp32"
    assert key("bf16-mixed", "cuda", head_precision="fp32") == "bf16-mixed/cuda/padded/default"
    assert key("16-mixed", "cuda") == "16-mixed/cuda/padded/default"


def test_the_weights_that_sharding_casts_are_named_beside_the_precision_of_the_head():
    sharded = functools.partial(key, device="cuda", in_transit="bfloat16")
    assert sharded("bf16-mixed") == "bf16-mixed+bfloat16-weights-head-bf16/cuda/padded/default"
    assert sharded("bf16-mixed", head_precision="fp32") == "bf16-mixed+bfloat16-weights/cuda/padded/default"
    assert sharded() == "fp32+bfloat16-weights-head-bf16/cuda/padded/default"
    assert sharded("bf16-true", pretrained=True) == sharded()
    # Weights of another dtype are gathered in theirs, and the numbers are those of one device.
    for settings in ({"precision": "bf16-true"}, {"precision": "bf16-mixed", "dtype": "bfloat16"}):
        assert sharded(**settings) == key(device="cuda", **settings)


def test_a_stored_model_with_weights_of_its_own_is_called_under_autocast_and_not_under_a_rounding_precision():
    for precision, expected in (("bf16-mixed", "the run's"), ("bf16-true", nullcontext), ("32-true", nullcontext)):
        reference, run = stored_and_run(precision, pretrained=True, in_transit="bfloat16")
        run.forward_context, run.shard = "the run's", None
        assert lazy_scorer(reference, frozenset(), run)._context == expected


def test_the_setting_reaches_every_scorer(policy_folder):
    spec = ModelSpec(path=str(policy_folder), head_precision="bf16", head_kernels=False)
    policy = build_scorer(spec, [], "padded")
    reference = Pretrained(str(policy_folder), head_precision="split", head_kernels=False)
    reference.attach(spec, policy, spec.load_tokenizer())
    stored = LazyScorer(spec, lambda scorer: scorer, nullcontext, frozenset(), "padded")
    batch = collate([PreferencePair("1", [5, 6], [7, 8, 9], [10], None, None, {}, None, TEXT)], 0, layout="padded")
    from_store = stored.score(batch, torch.device("cpu"))
    assert [(s.head_precision, s.head_kernels) for s in (policy, reference.scorer)] == [(BF16, False), (SPLIT, False)]
    with torch.no_grad():
        rounded, exact = (s(batch).chosen.scores for s in (policy, Scorer(policy.model)))
    assert torch.equal(rounded.double(), torch.from_numpy(from_store.scores[:1]))
    assert 0 < (rounded - exact).abs().item() < 0.1
    assert copy.deepcopy(policy).head_precision is BF16  # as `InitialPolicy` copies it


def test_the_first_lines_say_what_was_chosen_where_it_is_not_plain_fp32():
    class Sharded(FSDP2):
        root_device = torch.device("cuda")

    def line(device="cpu", precision="32-true", strategy=None, **settings):
        strategy = strategy or SimpleNamespace(root_device=torch.device(device))
        trainer = SimpleNamespace(precision=precision, strategy=strategy)
        return _head(SimpleNamespace(spec=ModelSpec(path="somewhere", **settings)), trainer)

    assert line() is None and line(head="scalar") is None
    assert line(head_precision="split").startswith("products in split (model.policy.head_precision), sums and")
    assert line("meta", "bf16-mixed").startswith("products in fp32 (chosen by auto), sums and log-softmax in fp32;")
    assert line("meta", head_kernels=False).endswith("read by torch (model.policy.head_kernels is false)")
    for parameters, products_in in ((None, "fp32"), ("bfloat16", "bf16")):
        found = line(strategy=Sharded(parameters=parameters), head_kernels=False)
        assert found.startswith(f"products in {products_in} (chosen by auto)")
