"""The timed work is what the page says: lengths, models, the same ids in the same batches on both sides."""

import math
import statistics
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[2] / "tools"))
from bench_work import BEGIN, END, MODELS, Work


def lengths(work: Work) -> tuple[list[int], list[int]]:
    pairs = work.draw()
    return [len(p["prompt"]) for p in pairs], [len(p[side]) for p in pairs for side in ("chosen", "rejected")]


@pytest.mark.parametrize(
    ("case", "prompts", "responses"),
    [("a", (451, 573), (96, 160)), ("b", (96, 160), (192, 320)), ("16k", (14592, 16128), (768, 1280))],
)
def test_jittered_lengths_fill_their_range(case: str, prompts: tuple[int, int], responses: tuple[int, int]):
    for drawn, (low, high) in zip(lengths(Work(case, "s", 1000, 8, windows=8)), (prompts, responses), strict=True):
        assert low <= min(drawn) <= low + 0.02 * high
        assert high - 0.02 * high <= max(drawn) <= high
        assert statistics.mean(drawn) == pytest.approx((low + high) / 2, rel=0.01)


def test_lognormal_lengths_have_their_median_and_spread():
    prompts, responses = lengths(Work("c", "s", 1000, 8, windows=50))
    for drawn, median, sigma, most in ((prompts, 180, 0.9, 1024), (responses, 150, 0.8, 512)):
        assert statistics.median(drawn) == pytest.approx(median, rel=0.02)
        below, above = (sorted(drawn)[round(len(drawn) * share)] for share in (0.1587, 0.8413))  # one sigma
        assert below == pytest.approx(median * math.exp(-sigma), rel=0.03)
        assert above == pytest.approx(median * math.exp(sigma), rel=0.03)
        assert max(drawn) == most


def test_random_batches_of_lognormal_lengths_are_padded_to_twice_their_tokens():
    tokens = Work("c", "s", 1000, 8, windows=100).tokens()
    assert 2.0 < tokens["padded"] / tokens["separate"] < 2.3


def test_tokens_are_counted_by_hand():
    work = Work("smoke", "smoke", 300, 2, windows=1)
    first, second = work.draw()
    prompts = len(first["prompt"]) + len(second["prompt"])
    responses = [len(p[side]) for p in (first, second) for side in ("chosen", "rejected")]
    longest = max(len(p["prompt"]) + len(p[side]) for p in (first, second) for side in ("chosen", "rejected"))
    shared = prompts + sum(responses)
    assert work.tokens() == {"padded": 4 * longest, "separate": shared + prompts, "shared": shared}


def test_every_response_ends_and_every_prompt_begins_once():
    for pair in Work("smoke", "smoke", 300, 4).draw():
        assert pair["prompt"][0] == BEGIN and BEGIN not in pair["prompt"][1:]
        for side in ("chosen", "rejected"):
            assert pair[side][-1] == END and END not in pair[side][:-1]


def test_models_have_the_shapes_of_the_measured_document():
    sizes = ("num_hidden_layers", "hidden_size", "num_attention_heads", "num_key_value_heads", "intermediate_size")
    assert [MODELS["s"][name] for name in sizes] == [6, 256, 8, 4, 1024]
    assert [MODELS["m"][name] for name in sizes] == [12, 512, 8, 4, 1408]
    assert not MODELS["s"]["tie_word_embeddings"]
