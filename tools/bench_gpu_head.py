"""The head alone: log-probs of tokens from hidden states, forward and backward, in time, memory and error."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import trl.trainer.utils
from bench_gpu_device import Device
from torch import Tensor
from trl.kernels import ChunkedLogProbFunction

from lit_pref.scoring.head import Readout, token_values
from lit_pref.scoring.kernel_choice import kernels_for
from lit_pref.scoring.products import HeadPrecision

LogProbs = Callable[[Tensor, Tensor, Tensor], Tensor]  # hidden states, weights, targets -> log-probs


def heads(device: Device) -> dict[str, LogProbs]:
    """Every way to compute log-probs that exists here, by name."""
    return {"TRL": _trl, "lit_pref": _ours, **_precisions(device)}


def _ours(hidden: Tensor, weight: Tensor, targets: Tensor, **options: Any) -> Tensor:
    return token_values(Readout(hidden, weight, **options), targets)[0]


def _precisions(device: Device) -> dict[str, LogProbs]:
    """Every precision of lit_pref's head, with its kernels and without them."""
    kernels = kernels_for(device.torch)
    return {
        f"lit_pref, {precision}, {'tiles' if reader is None else 'kernels'}": partial(
            _ours, precision=precision, kernels=reader
        )
        for precision in HeadPrecision
        for reader in dict.fromkeys((None, kernels))
    }


def _trl(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """The fused head of TRL under autocast, without its metrics."""
    chunk = trl.trainer.utils._CHUNKED_LOGPROB_CHUNK_SIZE
    with torch.autocast(hidden.device.type, torch.bfloat16):
        return ChunkedLogProbFunction.apply(hidden, weight, None, targets, 1.0, chunk, None, 1.0, ("log_probs",))[0]


def head_alone(device: Device) -> dict[str, Any]:
    """Measure each head on the same random hidden states in bf16 with weights in fp32, as under autocast.

    Errors are against the same hidden states and weights in fp64: the largest of log-probs in nats, and the norm of the
    difference of gradients over the norm of the gradient.
    """
    n, width, vocabulary, exact = (8192, 896, 151_936, 256) if device.is_gpu else (16, 32, 512, 16)
    torch.manual_seed(0)
    hidden = torch.randn(n, width, device=device.torch).bfloat16()
    weight = torch.randn(vocabulary, width, device=device.torch) * 0.02
    targets = torch.randint(vocabulary, (n,), device=device.torch)
    truth = _gradients(_exact, hidden[:exact].double(), weight.double(), targets[:exact])
    outcomes: dict[str, Any] = {}
    for name, head in heads(device).items():
        try:
            found = _gradients(head, hidden[:exact], weight, targets[:exact])
            logps, by_hidden, by_weight = ((f.double() - t) for f, t in zip(found, truth, strict=True))
            errors = {
                "logp_error": logps.abs().max().item(),
                "hidden_gradient_error": (by_hidden.norm() / truth[1].norm()).item(),
                "weight_gradient_error": (by_weight.norm() / truth[2].norm()).item(),
            }
            del found, logps, by_hidden, by_weight
            outcomes[name] = errors | _cost(head, hidden, weight, targets, device)
        except Exception as error:
            outcomes[name] = {"error": f"{type(error).__name__}: {error}"[:300]}
    return {"tokens": n, "width": width, "vocabulary": vocabulary, "heads": outcomes}


def _exact(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return (hidden @ weight.T).log_softmax(-1).gather(1, targets[:, None])[:, 0]


def _gradients(head: LogProbs, hidden: Tensor, weight: Tensor, targets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    logps = head(hidden, weight, targets)
    by_hidden, by_weight = torch.autograd.grad(logps.sum(), (hidden, weight))
    return logps.detach(), by_hidden, by_weight


def _cost(head: LogProbs, hidden: Tensor, weight: Tensor, targets: Tensor, device: Device) -> dict[str, float]:
    hidden, weight = hidden.clone().requires_grad_(), weight.clone().requires_grad_()
    forward, backward = [], []
    for _ in range(4):
        device.reset_peak()
        before = device.allocated()
        start = _now(device)
        logps = head(hidden, weight, targets)
        middle = _now(device)
        torch.autograd.grad(logps.sum(), (hidden, weight))
        forward.append(middle - start)
        backward.append(_now(device) - middle)
        peak = device.peak() - before
    return {"forward_s": min(forward[1:]), "backward_s": min(backward[1:]), "peak_gib": peak}


def _now(device: Device) -> float:
    device.synchronize()
    return time.perf_counter()
