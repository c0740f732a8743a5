"""Nothing in the pass over tiles waits for a device; a CUDA device's operations are walked without one.

In a fake mode a read that waits raises, as mixing devices does. It needs a CUDA build of torch, but no device.
"""

import itertools

import kernel_double
import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from lit_pref.scores import Entropy, Kl, LogSumSquares, ReferenceKl, SumSquares, Tilt, TiltSlope, TopOne
from lit_pref.scoring import head, tile_passes
from lit_pref.scoring.head import Readout, token_values
from lit_pref.scoring.products import HeadPrecision, Products

EVERY = (Tilt(0.01), TiltSlope(), Kl(), ReferenceKl(), Entropy(), SumSquares(), LogSumSquares(), TopOne())
SMALL = ((20, 5), (301, 5), (301,))
FEW, MANY = (40, 1000), (1100, 70_000)  # more logits than are kept, in several tiles


class Walked:
    """Kernels that compute nothing."""

    @staticmethod
    def fold(x, bias, scale, softcap, targets, start, sums, out=None):
        assert all(t.device.type == "cuda" for t in (x, targets, *sums))
        return None if out is None else torch.ones_like(sums[0])

    @staticmethod
    def logit_gradients(x, bias, scale, softcap, targets, start, lse, upstream, out):
        assert all(t.device.type == "cuda" for t in (x, targets, lse, upstream, out))
        return out


WAITING = {"_local_scalar_dense", "nonzero", "masked_select", "_unique2", "unique_consecutive", "repeat_interleave"}


class Waiting(TorchDispatchMode):
    """Names of the operations within that a device would have to be waited for, or of others that are looked for."""

    def __init__(self, names=WAITING):
        super().__init__()
        self.sought, self.names = names, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names |= {func.overloadpacket.__name__} & self.sought
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("few", [True, False])
@pytest.mark.parametrize(("needs", "kernels"), [((), None), ((), kernel_double), (EVERY, None)])
@pytest.mark.parametrize("wanted", ["hwb", "h", ""])
def test_no_operation_reads_a_value(few, needs, kernels, wanted, monkeypatch):
    monkeypatch.setattr(head, "few_tiles", lambda *_: few)
    monkeypatch.setattr(tile_passes, "tile_shape", lambda *_: (16, 64))
    inputs = [torch.ones(*shape, requires_grad=name in wanted) for name, shape in zip("hwb", SMALL, strict=True)]
    other = Readout(torch.ones(20, 3), torch.ones(297, 3))
    targets = torch.arange(20)
    with Waiting() as waiting:
        logps, _ = token_values(Readout(*inputs, 0.5, 3.0, HeadPrecision.BF16, kernels), targets, needs, other)
        if wanted:
            logps.sum().backward()
    assert not waiting.names
    with Waiting() as waiting:
        assert (logps < 0).all()
    assert waiting.names == {"_local_scalar_dense"}


class Context:
    """What autograd gives a function; its engine looks for the streams of a device."""

    def __init__(self, *wanted):
        self.needs_input_grad = (*wanted, *(False,) * 5)

    def save_for_backward(self, *tensors):
        self.saved_tensors = tensors

    def mark_non_differentiable(self, *tensors):
        pass


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="a CPU build of torch cannot slice a fake CUDA tensor")
@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")
@pytest.mark.parametrize("precision", list(HeadPrecision))
@pytest.mark.parametrize(("needs", "kernels"), [((), None), ((), Walked), (EVERY, None)])
def test_no_read_waits_for_the_device(precision, needs, kernels):
    dtypes = [(torch.bfloat16, torch.float32), (torch.float32, torch.bfloat16)]
    for size, wanted, of_both in itertools.product((FEW, MANY), ("hwb", "h", ""), dtypes):
        with FakeTensorMode():
            assert_nothing_waits(*size, precision, needs, kernels, wanted, *of_both)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="a CPU build of torch multiplies no fake CUDA tensors")
@pytest.mark.filterwarnings("ignore:.*CUDA is not available.*")
def test_a_product_is_added_to_its_sum_without_a_temporary():
    with FakeTensorMode():
        total = torch.empty(16, 16, device="cuda")
        products = Products(HeadPrecision.BF16, torch.float32, total.device)
        parts = products.summands(torch.empty(16, 16, device="cuda"))
        with Waiting({"add_", "mm", "addmm"}) as seen:
            products.add(total, parts, parts)
    assert seen.names == {"addmm"}


def assert_nothing_waits(n, vocabulary, precision, needs, kernels, wanted, of_hidden, of_weight):
    hidden = torch.empty(n, 64, dtype=of_hidden, device="cuda")
    weight = torch.empty(vocabulary, 64, dtype=of_weight, device="cuda")
    bias = torch.empty(vocabulary, dtype=of_weight, device="cuda")
    other = Readout(torch.empty(n, 32, device="cuda"), torch.empty(vocabulary - 3, 32, device="cuda"))
    targets = torch.empty(n, dtype=torch.int64, device="cuda")
    readout = Readout(hidden, weight, bias, 0.5, 30.0, precision.chosen_for(hidden), kernels)
    context = Context(*(name in wanted for name in "hwb"))
    form = (readout.scale, readout.softcap, readout.precision, readout.kernels)
    values = head._TilePass.forward(context, hidden, weight, bias, targets, form, needs, other, bool(wanted))
    gradients = head._TilePass.backward(context, *values)[:3] if wanted else ()
    logps, _ = token_values(readout, targets, needs, other)
    every = [(logps, torch.float32), *((value, torch.float32) for value in values)]
    every += [(g, t.dtype) for g, t in zip(gradients, (hidden, weight, bias), strict=False) if g is not None]
    assert all(t.device.type == "cuda" and t.dtype == dtype for t, dtype in every)
    assert sum(g is not None for g in gradients) == len(wanted)
    with pytest.raises(DataDependentOutputException):
        bool((logps > 0).all())  # what a read that waits does here
