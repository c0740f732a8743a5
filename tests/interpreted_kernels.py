"""Runs Triton's kernels in its interpreter on CPU tensors, and prints their errors against the formula in fp64.

The interpreter is chosen when triton is imported, so that this runs in a process of its own:
`TRITON_INTERPRET=1 python tests/interpreted_kernels.py`.
"""

import itertools
import json

import torch

from lit_pref.scoring import head, kernels, tile_passes
from lit_pref.scoring.head import Readout, token_values
from lit_pref.scoring.kernel_choice import disagreement

FORMS = {"plain": (False, 1.0, None), "bias": (True, 0.3, None), "cap": (False, 1.0, 3.0), "all": (True, 0.7, 1.5)}
SHAPES = {"one token": (1, 5, 3), "odd": (7, 301, 5), "blocks": (5, 2 * kernels.BLOCK + 1, 4)}


def full(hidden, weight, bias, scale, softcap):
    logits = hidden @ weight.T
    logits = (logits if bias is None else logits + bias) * scale
    logits = logits if softcap is None else softcap * torch.tanh(logits / softcap)
    return torch.log_softmax(logits, -1)


def errors(shape, form, wanted, few, size=1.0, tied=False):
    """The largest error of log-probs, in nats, and the relative errors of gradients."""
    n, vocabulary, width = shape
    bias, scale, softcap = form
    g = torch.Generator().manual_seed(0)
    drawn = (torch.randn(*s, generator=g) * size for s in ((n, width), (vocabulary, width), (vocabulary,)))
    hidden, weight, offset = drawn
    targets = torch.randint(vocabulary, (n,), generator=g)
    targets[0] = vocabulary - 1
    upstream = torch.randn(n, generator=g)
    head.few_tiles = lambda *_: few
    results = []
    for dtype in (torch.float64, torch.float32):
        inputs = [hidden.to(dtype), weight.to(dtype), offset.to(dtype) if bias else None]
        leaves = [t.requires_grad_() for t, name in zip(inputs, "hwb", strict=True) if t is not None and name in wanted]
        states = torch.tanh(inputs[1][torch.arange(n) % vocabulary]) if tied else inputs[0]
        if dtype == torch.float64:
            logps = full(states, *inputs[1:], scale, softcap).gather(1, targets[:, None]).squeeze(1)
        else:
            logps, _ = token_values(Readout(states, *inputs[1:], scale, softcap, kernels=kernels), targets)
        gradients = torch.autograd.grad((logps * upstream.to(dtype)).sum(), leaves, allow_unused=tied)
        results.append((logps.detach(), [t for t in gradients if t is not None]))
    (expected, theirs), (found, ours) = results
    relative = [((a.double() - b).norm() / b.norm()).item() for a, b in zip(ours, theirs, strict=True)]
    return [(found.double() - expected).abs().max().item(), *relative]


def of_rounding():
    """The largest relative difference between results in bf16 and in fp32. The interpreter truncates."""
    g = torch.Generator().manual_seed(0)
    x, lse, upstream = torch.randn(6, 70, generator=g), torch.full((6,), 5.0), torch.randn(6, generator=g)
    results = []
    for dtype in (torch.float32, torch.bfloat16):
        sums = torch.full((6,), -9.0), torch.zeros(6), torch.zeros(6)
        e, change = torch.empty(6, 70, dtype=dtype), torch.empty(6, 70, dtype=dtype)
        kernels.fold(x, None, 1.0, 2.0, torch.arange(6) * 9, 3, sums, e)
        kernels.logit_gradients(x, None, 1.0, 2.0, torch.arange(6) * 9, 3, lse, upstream, change)
        results.append(torch.stack([e, change]).float())
    return ((results[1] - results[0]) / results[0]).abs().max().item()


def main():
    tile_passes.tile_shape = lambda device, n, vocabulary: (4, min(vocabulary, 2 * kernels.BLOCK - 7))
    found = {}
    for (name, shape), (kind, form) in itertools.product(SHAPES.items(), FORMS.items()):
        for wanted, few in (("hwb", False), ("h", False), ("hwb", True), ("w", False)):
            found[f"{name}, {kind}, {wanted}, {'kept' if few else 'again'}"] = errors(shape, form, wanted, few)
    found["tied"] = errors(SHAPES["odd"], FORMS["all"], "w", False, tied=True)
    found["large logits"] = errors(SHAPES["odd"], FORMS["plain"], "hw", False, size=30.0)
    found["large logits, frozen"] = errors(SHAPES["odd"], FORMS["plain"], "h", False, size=30.0)
    facts = {"errors": found, "of_rounding": of_rounding(), "probe": disagreement(kernels, torch.device("cpu"))}
    print(json.dumps(facts))


if __name__ == "__main__":
    main()
