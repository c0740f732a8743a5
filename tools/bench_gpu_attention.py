"""Attention on a GPU in the cases in which cuDNN's gives NaN or wrong gradients according to public reports.

Every case is computed by each of torch's kernels and compared with the math kernel in fp32, on the same rounded inputs.
`python tools/bench_gpu_attention.py` prints a table and takes seconds; with `--device cpu` it is a dry run of the same
cases through torch's kernel for CPUs. lit_pref turns cuDNN's attention off (`lit_pref.models.loading`).
"""

import argparse
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from lit_pref.scoring.prefix_attention import PrefixSharedAttention

Mask = Literal["none", "is_causal", "all_true", "causal", "right_padded", "left_padded", "additive", "additive_fp32"]

ISSUE = "https://github.com/{}/issues/{}".format
MASKED = (
    ISSUE("pytorch/pytorch", 196678),
    "torch 2.11 to 2.13, H100 and H200: NaN in dq; a fix is announced for cuDNN 9.26",
)
SHORT = ISSUE("NVIDIA/cudnn-frontend", 160), "cuDNN 9.12, H100: NaN"
ONE_QUERY = ISSUE("NVIDIA/cudnn-frontend", 1072), "cuDNN 9.25.1 and 9.26.0, H200: NaN in dk and dv"
FP32_MASK = ISSUE("pytorch/pytorch", 191612), "torch to 2.13 with cuDNN 9.15 or newer: wrong values and gradients"
EMPTY_ROWS = ISSUE("NVIDIA/cudnn-frontend", 262), "exp(-inf + inf) in the backward pass"
DPO = ISSUE("huggingface/trl", 7181), "torch 2.13: DPO and KTO of Qwen2.5-0.5B end in NaN"
FEW_HEADS = ISSUE("pytorch/pytorch", 193893), "torch 2.11 and 2.13, B200: wrong texts with 2 or 4 key heads of size 128"
WIDE = ISSUE("pytorch/pytorch", 152076), "head size 256: the backward pass is missing on some devices"
ODD_LENGTHS = ISSUE("pytorch/pytorch", 137347), "cuDNN before 9.5: an error for lengths that 64 does not divide"
STRIDES = ISSUE("pytorch/pytorch", 169849), "CUDA before 12.9: illegal memory access in the backward pass"
LARGE_BATCH = ISSUE("kyutai-labs/pocket-tts", 264), "H100, bf16: NaN in gradients at batch 128, not at batch 64"


@dataclass(frozen=True)
class Case:
    """Shapes, dtype and mask of one attention.

    Args:
        name: what is special about it.
        report: the address of the public report, and what it says; two empty strings for a control.
        queries: number of queries.
        keys: number of keys.
        size: head size.
        heads: heads of queries.
        key_heads: heads of keys; fewer than `heads` is grouped attention.
        batch: sequences.
        mask: `is_causal` is the argument of that name, without a mask; `additive` is a mask of 0 and -inf in the dtype
            of the queries; the others are boolean. In `left_padded` the first queries see no key.
        dtype: dtype of queries, keys and values.
        logit: a number near all logits, such as those of a head with massive activations.
        transposed: whether heads and positions are transposed in memory, as a projection leaves them.
    """

    name: str
    report: tuple[str, str]
    queries: int
    keys: int
    size: int = 64
    heads: int = 2
    key_heads: int = 2
    batch: int = 1
    mask: Mask = "none"
    dtype: torch.dtype = torch.bfloat16
    logit: float = 0.0
    transposed: bool = False


_LOW = Case("logits near -120, a causal mask, length 64 above a multiple of 128", MASKED, 704, 704, logit=-120)
_LOW = replace(_LOW, mask="causal")
_CONTROL = replace(_LOW, report=("", ""))
CASES = (
    *(replace(_LOW, size=size, dtype=dtype) for dtype in (torch.bfloat16, torch.float16) for size in (32, 64, 128)),
    replace(_LOW, name="logits near -120, a mask that hides nothing, length 64", mask="all_true", queries=64, keys=64),
    replace(_LOW, name="logits near -120, an additive causal mask", mask="additive"),
    replace(_CONTROL, name="control: is_causal in place of a mask", mask="is_causal"),
    replace(_CONTROL, name="control: a length that is a multiple of 128", queries=640, keys=640),
    replace(_CONTROL, name="control: logits near 0", logit=0.0),
    Case("right-padded rows, 14 heads on 2", DPO, 704, 704, heads=14, batch=4, mask="right_padded", logit=-120),
    Case("left-padded rows: queries without a key", EMPTY_ROWS, 320, 320, batch=4, mask="left_padded"),
    Case("queries without a key, logits near -120", EMPTY_ROWS, 320, 320, batch=4, mask="left_padded", logit=-120),
    Case("one query on 128 keys, logits near -128", ONE_QUERY, 1, 128, logit=-128),
    Case("one query on 128 keys, logits near -128, a mask", ONE_QUERY, 1, 128, logit=-128, mask="all_true"),
    Case("two queries on two keys of size 8", SHORT, 2, 2, size=8, heads=1, key_heads=1, logit=-60),
    Case("an fp32 mask for bf16 queries", FP32_MASK, 32, 32, size=16, heads=4, key_heads=4, mask="additive_fp32"),
    Case("8 heads on 2 of size 128", FEW_HEADS, 256, 256, size=128, heads=8, batch=8, mask="right_padded"),
    Case("one query, 12 heads on 2 of size 128", FEW_HEADS, 1, 300, size=128, heads=12, batch=64, mask="all_true"),
    Case("head size 256, is_causal", WIDE, 512, 512, size=256, mask="is_causal"),
    Case("head size 256, a mask", WIDE, 512, 512, size=256, mask="causal"),
    Case("head size 20, which no fused kernel takes", ("", ""), 256, 256, size=20, mask="causal"),
    Case("157 queries on 6404 keys, a mask", ODD_LENGTHS, 157, 6404, size=128, batch=2, mask="all_true"),
    Case("length 261, heads and positions transposed", STRIDES, 261, 261, heads=24, key_heads=24, transposed=True),
    Case("batch 128, is_causal", LARGE_BATCH, 256, 256, heads=8, key_heads=8, batch=128, mask="is_causal"),
    Case("batch 128, a mask", LARGE_BATCH, 256, 256, heads=8, key_heads=8, batch=128, mask="right_padded"),
)

GPU = {
    "cudnn": [SDPBackend.CUDNN_ATTENTION],
    "flash": [SDPBackend.FLASH_ATTENTION],
    "efficient": [SDPBackend.EFFICIENT_ATTENTION],
    "without cudnn": [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH],
}
"""The kernels that are compared: single ones, and the choice that a run of lit_pref has."""
TOLERANCE = {torch.bfloat16: 0.05, torch.float16: 0.01}
SEGMENTS = ((448, 129, 64), (70, 1, 128), (128, 320, 1))
"""A prefix-shared row; its second and third pair have responses of one token."""


def attention_rows(device: str = "cuda", dry_run: bool = False) -> list[dict[str, Any]]:
    """Return one row for each case and kernel: its verdict, and the relative differences from the math kernel.

    Args:
        device: `cuda`, or `cpu` for torch's choice of kernel there.
        dry_run: shrink batches and heads, for a CPU.
    """
    kernels = GPU if device.startswith("cuda") else {"cpu": [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]}
    rows = []
    for case in CASES:
        small = replace(case, batch=min(case.batch, 2), heads=case.key_heads, dtype=case.dtype) if dry_run else case
        for kernel, backends in kernels.items():
            rows.append({**_described(small), "kernel": kernel, **_compare(small, kernel, backends, device)})
    for dtype in (torch.bfloat16, torch.float32):
        rows += [_shared_row(dtype, logit, device) for logit in (0.0, -120.0)]
    return rows


def _described(case: Case) -> dict[str, Any]:
    address, says = case.report
    return asdict(case) | {"dtype": str(case.dtype).removeprefix("torch."), "report": address, "says": says}


def _inputs(case: Case, device: str) -> list[Tensor]:
    """Return queries, keys, values and the gradient of the output."""
    generator = torch.Generator().manual_seed(0)

    def draw(heads: int, length: int) -> Tensor:
        shape = (case.batch, length, heads, case.size) if case.transposed else (case.batch, heads, length, case.size)
        drawn = torch.randn(shape, generator=generator)
        return drawn.transpose(1, 2) if case.transposed else drawn

    q, k, v, upstream = (
        draw(heads, length)
        for heads, length in (
            (case.heads, case.queries),
            (case.key_heads, case.keys),
            (case.key_heads, case.keys),
            (case.heads, case.queries),
        )
    )
    if case.logit:
        q, k = q * 0.1, k * 0.1
        q[..., 0], k[..., 0] = 1.0, case.logit * math.sqrt(case.size)
    return [t.to(device, case.dtype) for t in (q, k, v, upstream)]


def _mask(case: Case, device: str) -> Tensor | None:
    """Return the mask (batch or 1, 1, queries, keys), True where a query sees a key, or additive."""
    if case.mask in ("none", "is_causal"):
        return None
    sees = torch.ones(1, 1, case.queries, case.keys, dtype=torch.bool)
    if case.mask != "all_true":
        sees = sees.tril(case.keys - case.queries)
    if case.mask in ("right_padded", "left_padded"):
        # Row b has 37 b tokens of padding.
        padding = torch.arange(case.batch)[:, None, None, None] * 37 % (case.keys // 2)
        position = torch.arange(case.keys)
        sees = sees & (position < case.keys - padding if case.mask == "right_padded" else position >= padding)
    if case.mask.startswith("additive"):
        dtype = torch.float32 if case.mask == "additive_fp32" else case.dtype
        return torch.zeros_like(sees, dtype=dtype).masked_fill_(~sees, -torch.inf).to(device)
    return sees.to(device)


def _attend(case: Case, inputs: list[Tensor], mask: Tensor | None, upstream: Tensor) -> list[Tensor]:
    """Return the output and the gradients of queries, keys and values."""
    q, k, v = leaves = [t.detach().requires_grad_() for t in inputs]
    grouped = case.heads != case.key_heads
    output = scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=case.mask == "is_causal", enable_gqa=grouped
    )
    return [output.detach(), *torch.autograd.grad(output, leaves, upstream)]


def _compare(case: Case, kernel: str, backends: list[SDPBackend], device: str) -> dict[str, Any]:
    *inputs, upstream = _inputs(case, device)
    mask = _mask(case, device)
    blind = torch.zeros(1, 1, 1, 1, dtype=torch.bool, device=device)
    if mask is not None:
        hidden = ~mask if mask.dtype == torch.bool else mask.isinf()
        blind = hidden.all(-1, keepdim=True)
    upstream = upstream.masked_fill(blind, 0)  # no loss reads the output of padding
    with sdpa_kernel([SDPBackend.MATH]):
        wide = None if mask is None else mask if mask.dtype == torch.bool else mask.float()
        expected = _attend(case, [t.float() for t in inputs], wide, upstream.float())
    try:
        with sdpa_kernel(backends):
            found = _attend(case, inputs, mask, upstream)
    except RuntimeError as error:  # no kernel, or an error of cuDNN
        return {"verdict": "refused", "error": str(error).splitlines()[0][:200]}
    found[0], expected[0] = (t.masked_fill(blind, 0) for t in (found[0], expected[0]))
    return _verdict(found, expected, TOLERANCE[case.dtype])


def _verdict(found: list[Tensor], expected: list[Tensor], tolerance: float) -> dict[str, Any]:
    names = ("output", "dq", "dk", "dv")
    bad = [name for name, t in zip(names, found, strict=True) if not bool(t.isfinite().all())]
    if bad:
        return {"verdict": f"not finite: {', '.join(bad)}"}
    differences = {}
    for name, ours, theirs in zip(names, found, expected, strict=True):
        # The first channel of keys is large where logits are, and amplifies the rounding of the gradient of queries.
        a, b = (t[..., 1:].float() if name == "dq" else t.float() for t in (ours, theirs))
        differences[name] = float((a - b).norm() / b.norm().clamp_min(1e-30))
    worst = max(differences, key=lambda name: differences[name])
    verdict = "ok" if differences[worst] < tolerance else f"wrong: {worst} by {differences[worst]:.0e}"
    return {"verdict": verdict, "differences": differences}


def _shared_row(dtype: torch.dtype, logit: float, device: str) -> dict[str, Any]:
    """Compare the attention of prefix-shared rows as a run calls it with one masked call in fp32 on the CPU."""
    tokens = sum(map(sum, SEGMENTS))
    case = Case("a prefix-shared row", ("", ""), tokens, tokens, heads=14, dtype=dtype, logit=logit)
    *inputs, upstream = _inputs(case, device)
    leaves = [t.requires_grad_() for t in inputs]
    with sdpa_kernel(GPU["without cudnn"]):
        output = PrefixSharedAttention(SEGMENTS)(*leaves, None)
        found = [output.detach().cpu(), *(g.cpu() for g in torch.autograd.grad(output, leaves, upstream))]
    mask = PrefixSharedAttention(SEGMENTS).mask(torch.float32)
    expected = _attend(case, [t.detach().cpu().float() for t in inputs], mask, upstream.cpu().float())
    return {**_described(case), "kernel": "lit_pref", **_verdict(found, expected, TOLERANCE.get(dtype, 1e-3))}


def _lines(rows: list[dict[str, Any]]) -> Iterator[str]:
    yield f"{'kernel':<14} {'dtype':<9} {'verdict':<28} case, and what was reported"
    for row in rows:
        says = f" [{row['says']}; {row['report']}]" if row["report"] else ""
        yield f"{row['kernel']:<14} {row['dtype']:<9} {row['verdict']:<28} {row['name']}, size {row['size']}{says}"


def main() -> None:
    """Print the table, and write the rows as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--json", type=Path, help="a file for the rows")
    options = parser.parse_args()
    rows = attention_rows(options.device, dry_run=options.device == "cpu")
    print(f"torch {torch.__version__}, cuDNN {torch.backends.cudnn.version()}, {options.device}")
    print("\n".join(_lines(rows)))
    if options.json is not None:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
