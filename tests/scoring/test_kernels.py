"""The passes that call Triton's kernels, the kernels in Triton's interpreter, and the choice between them and torch."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import kernel_double
import pytest
import torch

from lit_pref.data.batching.collation import collate
from lit_pref.models.spec import ModelSpec
from lit_pref.pairs import PreferencePair, TruncatedText
from lit_pref.scores import Entropy, TokenLogps
from lit_pref.scoring import head, tile_passes
from lit_pref.scoring import scorer as scorer_file
from lit_pref.scoring.head import Readout, token_values
from lit_pref.scoring.kernel_choice import describe_head, disagreement, kernel_obstacle, kernels_for
from lit_pref.scoring.products import HeadPrecision
from lit_pref.scoring.scorer import Scorer

CPU = torch.device("cpu")
TESTS = Path(__file__).parents[1]


def facts_of(script, interpreted):
    """What a script prints in a process of its own, because triton is interpreted, or not, from its import on."""
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed: it comes with CUDA builds of torch, or from PyPI (1 GB)")
    environment = {**os.environ, "TRITON_INTERPRET": "1" if interpreted else "0"}
    done = subprocess.run([sys.executable, TESTS / script], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def interpreted():
    return facts_of("interpreted_kernels.py", interpreted=True)


def test_kernels_compile_for_devices_that_are_not_there_and_round_to_the_nearest():
    compiled = facts_of("compiled_kernels.py", interpreted=False)
    assert len(compiled) == 12
    for name, (size, rounds) in compiled.items():
        assert size > 0
        assert rounds == (name.startswith("_logit_gradients") or name.endswith("True")), name  # others write no bf16


def test_kernels_give_the_values_and_gradients_of_the_formula_in_fp64(interpreted):
    assert len(interpreted["errors"]) == 51
    for name, (value, *gradients) in interpreted["errors"].items():
        # Logits of 30² times the size need as many more digits.
        assert value < (1e-3 if name.startswith("large") else 2e-6), name
        assert max(gradients) < 2e-6, name


def test_kernels_write_bf16_and_agree_with_torch_in_the_probe(interpreted):
    assert 0 < interpreted["of_rounding"] < 2**-7
    assert interpreted["probe"] is None


def results(kernels, form, few, wanted, monkeypatch, needs=(), n=37, precision=HeadPrecision.AUTO):
    monkeypatch.setattr(head, "few_tiles", lambda *_: few)
    monkeypatch.setattr(tile_passes, "tile_shape", lambda *_: (16, 64))
    bias, scale, softcap = form
    g = torch.Generator().manual_seed(0)
    inputs = [torch.randn(n, 5, generator=g), torch.randn(301, 5, generator=g), torch.randn(301, generator=g)]
    inputs = [*inputs[:2], inputs[2] if bias else None]
    leaves = [t.requires_grad_() for t, name in zip(inputs, "hwb", strict=True) if t is not None and name in wanted]
    targets, upstream = torch.randint(301, (n,), generator=g), torch.randn(n, generator=g)
    logps, values = token_values(Readout(*inputs, scale, softcap, precision, kernels), targets, needs)
    first = torch.autograd.grad((logps * upstream).sum(), leaves, retain_graph=True)
    again = torch.autograd.grad((logps * upstream).sum(), leaves)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    return [logps.detach(), *first, *values]


@pytest.mark.parametrize("form", [(False, 1.0, None), (True, 0.3, None), (True, 0.7, 1.5)])
@pytest.mark.parametrize(("few", "wanted"), [(True, "hwb"), (False, "hwb"), (False, "h"), (False, "w")])
@pytest.mark.parametrize("precision", [HeadPrecision.FP32, HeadPrecision.BF16, HeadPrecision.SPLIT])
def test_the_passes_by_kernels_do_what_those_by_torch_do(form, few, wanted, precision, monkeypatch):
    found, expected = (
        results(kernels, form, few, wanted, monkeypatch, precision=precision) for kernels in (kernel_double, None)
    )
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-5)
    bound = 1e-3 if precision is HeadPrecision.BF16 else 1e-5  # a tie in bf16 may be rounded either way
    for ours, theirs in zip(found[1:], expected[1:], strict=True):
        assert (ours - theirs).norm() <= bound * theirs.norm()


class Refusing:
    """Kernels that must not be called."""

    def __getattr__(self, name):
        raise AssertionError(f"the kernel {name} was called")


@pytest.mark.parametrize(
    ("dtype", "needs", "n"), [(torch.float32, [Entropy()], 4), (torch.float64, [], 4), (torch.float32, [], 0)]
)
def test_statistics_fp64_and_no_tokens_at_all_are_left_to_torch(dtype, needs, n):
    hidden, weight = torch.ones(n, 3, dtype=dtype, requires_grad=True), torch.ones(7, 3, dtype=dtype)
    logps, _ = token_values(Readout(hidden, weight, kernels=Refusing()), torch.zeros(n, dtype=torch.int64), needs)
    logps.sum().backward()
    assert logps.shape == (n,)


class OffByOne:
    """Kernels that take the neighbour of each target."""

    fold = staticmethod(lambda x, b, s, c, targets, *rest: kernel_double.fold(x, b, s, c, targets - 1, *rest))
    logit_gradients = staticmethod(kernel_double.logit_gradients)


class WrongGradient:
    """Kernels whose gradient lacks the tile's last column."""

    fold = staticmethod(kernel_double.fold)

    @staticmethod
    def logit_gradients(*given):
        tile = kernel_double.logit_gradients(*given)
        tile[:, -1] = 0
        return tile


class WithoutStart:
    """Kernels that take every tile for the first of its rows."""

    fold = staticmethod(lambda x, b, s, c, targets, start, *rest: kernel_double.fold(x, b, s, c, targets, 0, *rest))
    logit_gradients = staticmethod(kernel_double.logit_gradients)


class WithoutFade:
    """Kernels that let sums relative to an earlier top stay as they are."""

    fold = staticmethod(lambda *given: None if (fade := kernel_double.fold(*given)) is None else torch.ones_like(fade))
    logit_gradients = staticmethod(kernel_double.logit_gradients)


class WrongInPlace:
    """Kernels whose gradient is wrong where it overwrites a tile, one that was computed again."""

    fold = staticmethod(kernel_double.fold)

    @staticmethod
    def logit_gradients(x, *given):
        return kernel_double.logit_gradients(x, *given).mul_(2.0 if given[-1] is x else 1.0)


def test_the_probe_accepts_right_kernels_and_refuses_wrong_ones():
    assert disagreement(kernel_double, CPU) is None
    for wrong in (OffByOne, WrongGradient, WithoutStart, WithoutFade, WrongInPlace):
        assert disagreement(wrong, CPU) == "a Triton kernel gives other numbers than torch does on a small input"
    assert disagreement(Refusing(), CPU) == "a Triton kernel failed (AssertionError: the kernel fold was called)"


@pytest.mark.filterwarnings("ignore:the output head is read by torch's operations")
def test_a_device_on_which_kernels_fail_is_left_to_torch():
    there = torch.device("cuda", 7)
    reason = kernel_obstacle(there)
    assert reason == "triton is not installed" or reason.startswith("a Triton kernel failed (")
    assert kernels_for(there) is None


def test_kernels_are_for_cuda_devices_and_the_first_lines_say_so():
    assert kernels_for(CPU) is None
    assert kernel_obstacle(CPU) == "kernels are for CUDA devices, and this is a cpu"
    line = describe_head(HeadPrecision.BF16, CPU, computes_in_bf16=False, asked=True)
    assert line == (
        "products in bf16 (model.policy.head_precision), sums and log-softmax in fp32; tiles of logits are read by "
        "torch (kernels are for CUDA devices, and this is a cpu)"
    )
    assert "(model.policy.head_kernels is false)" in describe_head(HeadPrecision.AUTO, CPU, False, asked=False)


def test_a_scorer_hands_the_kernels_of_its_device_to_the_head_unless_they_are_off(policy_folder, monkeypatch):
    scorer = Scorer(ModelSpec(path=str(policy_folder)).build()).eval().requires_grad_(False)
    text = TruncatedText("", "", "", True, True)
    pair = PreferencePair("1", [5, 6], [7, 8, 9], [10], None, None, {}, None, text)
    batch, needs = collate([pair], 0, layout="padded"), frozenset({TokenLogps()})
    expected = scorer(batch, needs)
    monkeypatch.setattr(scorer_file, "kernels_for", lambda device: kernel_double)
    found = scorer(batch, needs)
    assert scorer.readout(batch).kernels is kernel_double
    torch.testing.assert_close(found.chosen.statistics[TokenLogps()], expected.chosen.statistics[TokenLogps()])
    monkeypatch.setattr(scorer_file, "kernels_for", lambda device: Refusing())
    scorer.head_kernels = False
    assert torch.equal(scorer(batch, needs).chosen.scores, expected.chosen.scores)
