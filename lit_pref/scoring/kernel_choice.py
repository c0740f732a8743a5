"""The choice of Triton's kernels for tiles of logits: where they can run, and agree with torch's operations."""

import warnings
from functools import cache
from typing import Any

import torch
from torch import Tensor

from lit_pref.errors import visible
from lit_pref.scoring.head import Readout, token_values
from lit_pref.scoring.products import HeadPrecision

OF_VALUES, OF_GRADIENTS = 1e-5, 2**-8
"""Relative differences that are no fault; gradients may be rounded to bf16 or TF32 on either side of a tie."""

TILE = 8, 1792
"""Rows and columns of tiles, smaller than the small input: the last ones have fewer."""


def kernels_for(device: torch.device) -> Any:
    """Return the module of kernels if they can be used on a device, else None."""
    return _module() if kernel_obstacle(device) is None else None


@cache
def kernel_obstacle(device: torch.device) -> str | None:
    """Return why kernels are not used on a device, or None if they are.

    They are used on a CUDA device if Triton can be imported and they agree with torch's operations, which is tried
    once, on a small input: values and gradients, with one tile that is kept for the backward pass, and with several
    that are computed again. If they do not, a warning says so, and torch's operations are used.
    """
    if device.type != "cuda":
        return f"kernels are for CUDA devices, and this is a {device.type}"
    try:
        module = _module()
    except Exception as error:  # what a damaged installation raises
        reason: str | None = f"triton cannot be imported ({type(error).__name__}: {_first_line(error)})"
    else:
        if module.triton is None:
            return "triton is not installed"
        reason = disagreement(module, device)
    if reason is not None:
        words = f"the output head is read by torch's operations, which take longer: {reason}"
        warnings.warn(visible(words), stacklevel=2)
    return reason


def disagreement(module: Any, device: torch.device) -> str | None:
    """Return a sentence if kernels on a device do not give what torch's operations give on the CPU, else None.

    Args:
        module: the module of kernels.
        device: the device of the kernels.
    """
    try:
        for precision in (HeadPrecision.BF16, HeadPrecision.FP32):
            # A soft-cap bounds the tops of tiles, and a sum that was not rescaled to a new top would differ little.
            for softcap, frozen in ((None, False), (None, True), (3.0, False), (3.0, True)):
                expected = _values_and_gradients(None, torch.device("cpu"), precision, softcap, frozen, None)
                bounds = [OF_VALUES, *[OF_GRADIENTS] * (len(expected) - 1)]
                for tile in (None, TILE):
                    found = _values_and_gradients(module, device, precision, softcap, frozen, tile)
                    for ours, theirs, bound in zip(found, expected, bounds, strict=True):
                        if not (ours.cpu() - theirs).norm() <= bound * theirs.norm():
                            return "a Triton kernel gives other numbers than torch does on a small input"
    except Exception as error:  # a compiler's own, of many classes
        return f"a Triton kernel failed ({type(error).__name__}: {_first_line(error)})"
    return None


def _values_and_gradients(
    module: Any,
    device: torch.device,
    precision: HeadPrecision,
    softcap: float | None,
    frozen: bool,
    tile: tuple[int, int] | None,
) -> list[Tensor]:
    """Return log-probs of a small input, which has every kind of target, and gradients."""
    generator = torch.Generator().manual_seed(0)
    n, vocabulary, width = 19, 4999, 24
    # Values of bf16 are multiplied exactly, also as TF32.
    hidden, weight = (torch.randn(k, width, generator=generator).bfloat16() for k in (n, vocabulary))
    bias = None if frozen or softcap is None else torch.randn(vocabulary, generator=generator)
    targets = torch.randint(vocabulary, (n,), generator=generator)
    targets[:4] = torch.tensor([0, 2047, 2048, vocabulary - 1])
    upstream = torch.randn(n, generator=generator)
    inputs = [None if t is None else t.to(device, torch.float32) for t in (hidden, weight, bias)]
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast(device.type, enabled=False):
        leaves = [t for t in (inputs[:1] if frozen else inputs) if t is not None]
        for leaf in leaves:
            leaf.requires_grad_()
        assert inputs[0] is not None
        readout = Readout(inputs[0], inputs[1], inputs[2], 0.5, softcap, precision, module, tile)
        logps, _ = token_values(readout, targets.to(device))
        gradients = torch.autograd.grad((logps * upstream.to(device)).sum(), leaves)
    return [logps.detach(), *gradients]


def describe_head(precision: HeadPrecision, device: torch.device, computes_in_bf16: bool, asked: bool) -> str:
    """Describe in one line how log-probs are computed from the output head.

    Args:
        precision: as asked for.
        device: the device of the model.
        computes_in_bf16: whether the model computes in bf16.
        asked: whether kernels are to be used where they can be.
    """
    chosen = precision.chosen(device.type, computes_in_bf16)
    how = "chosen by auto" if precision is HeadPrecision.AUTO else "model.policy.head_precision"
    obstacle = kernel_obstacle(device) if asked else "model.policy.head_kernels is false"
    tiles = "by Triton's kernels, where no statistics are needed" if obstacle is None else f"by torch ({obstacle})"
    return f"products in {chosen} ({how}), sums and log-softmax in fp32; tiles of logits are read {tiles}"


def _module() -> Any:
    from lit_pref.scoring import kernels  # imports triton, which takes a while, and no CPU needs it

    return kernels


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
