"""The cases in which cuDNN's attention is reported to fail, through a CPU's kernel, and the verdicts on a kernel."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).parents[2] / "tools"))
import bench_gpu_attention
from bench_gpu_attention import CASES, attention_rows

SMALL = [replace(case, queries=min(case.queries, 40), keys=min(case.keys, 40)) for case in CASES if case.size <= 128]


def test_every_kind_of_case_agrees_with_the_math_kernel_on_a_cpu(monkeypatch: pytest.MonkeyPatch):
    kinds = {
        (case.mask, case.transposed, case.queries == case.keys, case.heads == case.key_heads): case for case in SMALL
    }
    monkeypatch.setattr(bench_gpu_attention, "CASES", tuple(kinds.values()))
    monkeypatch.setattr(bench_gpu_attention, "SEGMENTS", ((6, 5, 4), (3, 1, 1)))
    rows = attention_rows("cpu", dry_run=True)
    assert len(rows) == len(kinds) + 4
    assert [row["verdict"] for row in rows] == ["ok"] * len(rows)


@pytest.mark.parametrize(
    ("broken", "verdict"),
    [(lambda t: t * torch.nan, "not finite: output"), (lambda t: -t, "wrong: "), (None, "refused")],
)
def test_a_broken_kernel_is_found(monkeypatch: pytest.MonkeyPatch, broken, verdict):
    true = bench_gpu_attention.scaled_dot_product_attention

    def attention(query, *args, **how):
        output = true(query, *args, **how)
        if query.dtype == torch.float32:
            return output
        if broken is None:
            raise RuntimeError("No available kernel. Aborting execution.")
        return broken(output)

    monkeypatch.setattr(bench_gpu_attention, "scaled_dot_product_attention", attention)
    monkeypatch.setattr(bench_gpu_attention, "CASES", (replace(SMALL[0], logit=0.0),))
    monkeypatch.setattr(bench_gpu_attention, "SEGMENTS", ((1, 1, 1),))
    assert attention_rows("cpu", dry_run=True)[0]["verdict"].startswith(verdict)
