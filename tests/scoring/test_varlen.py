"""The kernel for sequences of different lengths, with functions of every version's signature in its place."""

import inspect
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from varlen_signatures import VERSIONS, top_left, torch_2_10, torch_2_12

from lit_pref.scoring import prefix_attention as sharing
from lit_pref.scoring import varlen
from lit_pref.scoring.prefix_attention import PrefixSharedAttention
from lit_pref.scoring.varlen import VarlenKernel, agrees

SEGMENTS = ((3, 2, 4), (1, 5, 1), (4, 1, 0))  # the last pair is one-sided
TOKENS = 9 + 7 + 5
CPU = torch.device("cpu")


def inputs(key_heads, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = [(1, 4, TOKENS, 16), (1, key_heads, TOKENS, 16), (1, key_heads, TOKENS, 16)]
    return [torch.randn(s, generator=generator, dtype=torch.float64).to(dtype).requires_grad_() for s in shapes]


@pytest.mark.parametrize("scale", [None, 0.25, 0.5, 2.0**-7])
@pytest.mark.parametrize("key_heads", [1, 2, 4])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_signature_gives_the_attention_of_a_cpu_with_its_gradients(version, key_heads, scale):
    kernel = VarlenKernel.of(VERSIONS[version])
    assert kernel is not None and (kernel.has_scale, kernel.has_groups) == (version != "2.10", version == "2.12")
    tensors = inputs(key_heads)
    found = PrefixSharedAttention(SEGMENTS)._one_call(kernel, *tensors, scale)
    expected = PrefixSharedAttention(SEGMENTS)(*tensors, scale)
    upstream = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = [torch.autograd.grad(output, tensors, upstream) for output in (found, expected)]
    for ours, theirs in zip((found, *gradients[0]), (expected, *gradients[1]), strict=True):
        assert (ours - theirs).abs().max() < 1e-13


@pytest.mark.skipif(varlen.varlen_attn is None, reason="this torch has no such kernel")
def test_the_signature_of_the_installed_torch_is_one_of_those_tested():
    def arguments(function):
        return {name: parameter.default for name, parameter in inspect.signature(function).parameters.items()}

    assert arguments(varlen.varlen_attn) in [arguments(function) for function in VERSIONS.values()]


@pytest.fixture
def on_an_h100(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))


@pytest.mark.usefixtures("on_an_h100")
def test_without_a_scale_argument_only_powers_of_two_times_the_usual_scale_are_taken():
    query, key, value = (t.detach().bfloat16() for t in inputs(2))
    old, new = VarlenKernel.of(torch_2_10), VarlenKernel.of(torch_2_12)
    assert old is not None and new is not None
    scales = [None, 0.25, 0.5, 0.3]  # the usual one of 16 is 1/4; a query times 2 is exact, times 1.2 it is rounded
    assert [old.takes(query, key, value, scale) for scale in scales] == [True, True, True, False]
    assert all(new.takes(query, key, value, scale) for scale in scales)


@pytest.mark.usefixtures("on_an_h100")
@pytest.mark.parametrize(("dtype", "sizes"), [(torch.float32, (16, 16)), (torch.bfloat16, (12, 12))])
def test_other_dtypes_and_sizes_are_not_taken(dtype, sizes):
    kernel = VarlenKernel.of(torch_2_12)
    tensors = [torch.zeros(1, 2, 3, size, dtype=dtype) for size in (sizes[0], *sizes)]
    assert kernel is not None and not kernel.takes(*tensors, None)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("group", [1, 2])
def test_a_kernel_that_is_right_passes_its_test_without_a_warning(version, group):
    kernel = VarlenKernel.of(VERSIONS[version])
    assert kernel is not None
    with warnings.catch_warnings(), torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        warnings.simplefilter("error")
        assert agrees(kernel, CPU, torch.bfloat16, 16, group)


def test_its_test_computes_although_the_first_tensors_have_no_data():
    kernel = VarlenKernel.of(lambda *args, window_size=None, **others: torch_2_12(*args, window_size=window_size))
    assert kernel is not None
    with FakeTensorMode():
        assert agrees(kernel, CPU, torch.bfloat16, 8, 2)


class WrongGradient(torch.autograd.Function):
    """Values as they should be, with a gradient that is not finite."""

    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * torch.nan


def nan_gradient(*args, **kwargs):
    return WrongGradient.apply(torch_2_12(*args, **kwargs))


nan_gradient.__signature__ = inspect.signature(torch_2_12)  # type: ignore[attr-defined]


def missing(query, key, value, *lengths, window_size=(-1, -1)):
    raise RuntimeError("USE_FLASH_ATTENTION was not enabled for build.\nMore lines")


REASONS = {top_left: "differs", nan_gradient: "differs", missing: "fails .USE_FLASH_ATTENTION was not enabled"}


@pytest.mark.parametrize("function", REASONS)
def test_a_wrong_or_missing_kernel_fails_its_test_with_one_warning(function):
    kernel = VarlenKernel.of(function)
    assert kernel is not None
    with pytest.warns(UserWarning, match=f"{REASONS[function]}.*masked attention"):
        assert not agrees(kernel, CPU, torch.bfloat16, 16, 2)
    assert not agrees(kernel, CPU, torch.bfloat16, 16, 2)  # a second warning would be an error


def test_its_test_runs_within_a_checkpointed_block_as_well():
    kernel = VarlenKernel.of(lambda *args, window_size=None, **others: torch_2_12(*args, window_size=window_size))
    found = []

    def block(tensor):
        found.append(agrees(kernel, CPU, torch.float16, 8, 1))
        return tensor.exp().sin()

    tensor = torch.ones(2, requires_grad=True)
    torch.utils.checkpoint.checkpoint(block, tensor, use_reentrant=False).sum().backward()
    assert found == [True, True]


def test_there_is_no_kernel_without_a_function_or_a_causal_argument():
    assert VarlenKernel.of(None) is None
    assert VarlenKernel.of(lambda query, key, value, cu_seq_q, cu_seq_k, max_q, max_k: query) is None


@pytest.mark.parametrize("version", VERSIONS)
def test_on_a_gpu_a_shared_row_is_one_call_that_reads_no_value(version, monkeypatch):
    """Fake CUDA tensors hold no values: reading one, or mixing devices, raises."""
    calls = []

    def fake(query, key, value, *lengths, **how):
        calls.append((query.shape, key.shape, how))
        return query * value.sum() * key.sum()

    fake.__signature__ = inspect.signature(VERSIONS[version])  # type: ignore[attr-defined]
    kernel = VarlenKernel.of(fake)
    assert kernel is not None
    monkeypatch.setattr(sharing, "KERNEL", kernel)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(varlen, "agrees", lambda *of: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with FakeTensorMode():
        tensors = [torch.empty(1, h, TOKENS, 16, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2)]
        output = PrefixSharedAttention(SEGMENTS)(*tensors, 0.25)
    assert (output.shape, output.device.type) == ((1, 4, TOKENS, 16), "cuda")
    keys = (5 + 7) + (6 + 2) + 5
    heads = 2 if version == "2.12" else 4
    causal = {"is_causal": True} if version == "2.10" else {"window_size": (-1, 0)}
    how = causal | ({} if version == "2.10" else {"scale": 0.25}) | ({"enable_gqa": True} if heads == 2 else {})
    assert calls == [((TOKENS, 4, 16), (keys, heads, 16), how)]


@pytest.mark.skipif(varlen.KERNEL is None, reason="this torch has no such kernel")
def test_the_kernel_of_the_installed_torch_accepts_the_call(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (9, 0))
    monkeypatch.setattr(varlen, "agrees", lambda *of: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with FakeTensorMode():
        tensors = [torch.empty(1, h, TOKENS, 16, device="cuda", dtype=torch.bfloat16) for h in (4, 2, 2)]
        assert PrefixSharedAttention(SEGMENTS)(*tensors, 0.25).shape == (1, 4, TOKENS, 16)
