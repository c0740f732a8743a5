"""Writes docs/one_pair.md: one pair of the testbed in every form it takes, made by the code that training uses."""

import inspect
import json
import math
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from forms import digits, fields_text, mapping_text
from torch import Tensor

from lit_pref.batch import PreferenceBatch
from lit_pref.data.batching.collation import collate
from lit_pref.data.checking.row_reader import RowReader
from lit_pref.data.formats.convert import Conversion
from lit_pref.data.formats.strength import PairStrength
from lit_pref.data.prepared.arrow import PairWriter
from lit_pref.data.prepared.normalisation import Normaliser
from lit_pref.data.prepared.pair_view import PairView, PreparedPairs, SourcePairs
from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.jsonl import json_rows
from lit_pref.data.sources.reading import read_rows, read_source
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.rendering import render
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.metrics.records import PairRecords
from lit_pref.models.encoding import Encoding
from lit_pref.models.prefix_sharing import enable_prefix_sharing
from lit_pref.models.spec import ModelSpec
from lit_pref.models.word_tokenizer import save_word_tokenizer
from lit_pref.modules.base import PairModule
from lit_pref.modules.preference import PreferenceModule
from lit_pref.objectives.mmpo import MMPO
from lit_pref.objectives.pairwise import Pairwise
from lit_pref.objectives.parts.link import Logistic
from lit_pref.objectives.parts.target import MarginTarget
from lit_pref.references.reference import InitialPolicy
from lit_pref.references.stored import Stored
from lit_pref.scores import PairScores
from lit_pref.scoring.layout import padded, prefix_shared
from lit_pref.scoring.scorer import Scorer
from lit_pref.testbed import world
from lit_pref.testbed.samples import SampledPair

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "one_pair.md"
MAPPING = {"kind": "ab", "prompt": "prompt", "a": "a", "b": "b", "score": {"a": "rating_a", "b": "rating_b"}}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
LAYOUTS = {
    "padded": (
        padded,
        "The batch as a model reads it: a row per response. Hidden state `predictors[n]` predicts `targets[n]` of "
        "response `sequences[n]`.",
    ),
    "prefix_shared": (
        prefix_shared,
        "The same batch in one row: the prompt is read once, positions restart for the rejected response.",
    ),
}
LONGEST = 8
"""Words of a response, eos included: the lines of the page stay short."""

HEAD = """# One pair, from its line in a file to its loss

Written by `make docs`: a pair of the testbed, and each object into which the package turns it, in order, with the
functions that make it. Numbers have four digits; fields that are empty or false are left out. The policy is a tiny
Llama with random weights, one optimizer step after the reference; MMPO has beta 0.1 and gamma 1.
"""


def page() -> str:
    """Return the text of the page."""
    with tempfile.TemporaryDirectory() as name:
        folder, before, cache = Path(name), Path.cwd(), os.environ.get("LIT_PREF_CACHE")
        os.environ["LIT_PREF_CACHE"] = str(folder / "cache")
        os.chdir(folder)  # so that the pair's place is a short relative path
        try:
            return "\n".join([HEAD, *_data(folder)])
        finally:
            os.chdir(before)
            os.environ.pop("LIT_PREF_CACHE")
            os.environ |= {} if cache is None else {"LIT_PREF_CACHE": cache}


def _data(folder: Path) -> list[str]:
    """The forms from the record to the batch, and all that follow."""
    record = _record()
    (folder / "pairs.jsonl").write_text(json.dumps(record) + "\n")
    save_word_tokenizer(folder / "tokenizer", world.VOCABULARY, world.PAD, world.BOS, world.EOS)
    spec = ModelSpec(config=LLAMA, tokenizer="tokenizer", dtype="float64", seed=0)
    tokenizer = spec.load_tokenizer()
    source, preparation = Source("pairs.jsonl", mapping=MAPPING), Preparation()
    row = next(iter(read_source(source)))
    checked = next(preparation.checked_pairs(source))
    rendered = render(Encoding(tokenizer), checked.row, checked.text)
    tokenization = Tokenization(tokenizer)
    prepared = preparation.prepare(source, tokenization)
    arrow = pa.ipc.open_file(pa.memory_map(str(prepared / "train.arrow"))).read_all().to_pylist()[0]
    every = PreparedPairs(prepared, "train")
    pair = PairView([SourcePairs("pairs", every, np.arange(len(every)), Normaliser())])[0]
    tokenized = tokenization.tokenize(checked.row, checked.text)
    words = ", ".join(f"{k} `{word.strip()}`" for k in pair.rejected or [] for word in [tokenizer.decode([k])])
    batches = {layout: collate([pair], tokenizer.pad_token_id, layout=layout) for layout in LAYOUTS}
    return [
        _form(
            "Record",
            [],
            "An annotator rated two answers in `pairs.jsonl`; `b` is better.",
            json.dumps(record, indent=1),
        ),
        _form("Row", [json_rows, read_rows], "The line is parsed; file and line number are kept.", fields_text(row)),
        _form(
            "Canonical row",
            [Conversion.canonical_rows, PairStrength.of],
            "The mapping renames the fields; margin = rating of `chosen` - rating of `rejected`. Without a mapping the "
            "row stays as it is, and the next form takes `margin`, or `score_chosen` - `score_rejected`.",
            fields_text(checked.row),
        ),
        _form(
            "Checked pair",
            [RowReader.read],
            "Text and numbers are checked. The margin was negative, so the texts are swapped and it is positive.",
            fields_text(checked.text),
        ),
        _form(
            "Rendered text",
            [render],
            "Prompt and response as the tokenizer reads them: joined, or written by a chat template.",
            "\n".join(f"{one.side:8}  {one.written.text!r}" for one in rendered.responses),
        ),
        _form(
            "Tokenized pair",
            [Tokenization.tokenize_all],
            f"Ids, with bos before the prompt and eos after the responses. The rejected response: {words}.",
            fields_text(tokenized, {"text", "special_texts"})
            + f"\ntext      {type(tokenized.text).__name__} with the text after truncation",
        ),
        _form(
            "Arrow record",
            [Preparation.prepare, PairWriter.add],
            "The pair in `train.arrow`, with its id and place, and further fields for reports.",
            mapping_text(arrow),
        ),
        _form(
            "PreferencePair",
            [PairView.__getitem__, PreparedPairs.__getitem__],
            "The pair read from the memory-mapped file; margins are normalised here if the mapping says so.",
            fields_text(pair, {"text"}) + f"\ntext       {type(pair.text).__name__} with the text after truncation",
        ),
        _form(
            "PairData", [collate], "The batch as objectives and metrics read it.", fields_text(batches["padded"].pairs)
        ),
        *(
            _form(f"Rows, {layout.replace('_', '-')}", [collate, maker], sentence, fields_text(batches[layout].rows))
            for layout, (maker, sentence) in LAYOUTS.items()
        ),
        *_scores(spec, tokenizer, batches),
    ]


def _scores(spec: ModelSpec, tokenizer: Any, batches: Mapping[str, PreferenceBatch]) -> list[str]:
    """The forms from the scores to the validation record."""
    batch, objective, reference = batches["padded"], MMPO(beta=0.1, gamma=1.0), InitialPolicy()
    scorer = Scorer(spec.build())
    enable_prefix_sharing(scorer.model)
    reference.attach(spec, scorer, tokenizer)
    anchor = reference.score(batch)
    optimizer = torch.optim.SGD(scorer.parameters(), lr=2.0)
    objective(scorer(batch), [anchor], batch.pairs).losses.mean().backward()
    optimizer.step()
    with torch.no_grad():
        policy = scorer(batch)
        shared = scorer(batches["prefix_shared"])
        output = objective(policy, [anchor], batch.pairs)
    _same(policy.chosen.scores, shared.chosen.scores)
    _same(policy.rejected.scores, shared.rejected.scores)
    x, p = float(output.logged["logits"]), float(output.logged["target"])
    h = [policy.chosen.scores - anchor.chosen.scores, policy.rejected.scores - anchor.rejected.scores]
    loss = p * math.log1p(math.exp(-x)) + (1 - p) * math.log1p(math.exp(x))
    _same(output.losses, torch.tensor([loss], dtype=torch.float64))
    step = (output.losses * batch.pairs.is_real).sum() / batch.pairs.window_pairs
    records = PairRecords()
    records.add(batch.pairs, policy, [anchor], output)
    record = {name: column[0] for name, column in records.collect().items()}
    return [
        _form(
            "PairScores",
            [PreferenceModule.scores, Scorer.forward, Stored.score],
            "Summed log-prob of each response, nats, of the policy and of its reference; the same in both layouts. "
            "Scores of a frozen reference are read from the store, unless `model.reference_store` is false.",
            f"policy     {_sides(policy)}\nreference  {_sides(anchor)}",
        ),
        _form(
            "ObjectiveOutput",
            [Pairwise.forward, MarginTarget.forward, Logistic.loss],
            "MMPO is this target with this link: loss = -p log σ(x) - (1 - p) log σ(-x), where h = policy's score - "
            "reference's score.",
            f"h        chosen {digits(h[0])}, rejected {digits(h[1])}\n"
            f"x        beta (h_chosen - h_rejected) = 0.1 ({digits(h[0])} - ({digits(h[1])})) = {digits(x)}\n"
            f"p        σ(gamma margin) = σ({digits(batch.pairs.margin)}) = {digits(p)}\n"
            f"loss     -{digits(p)} log σ({digits(x)}) - {digits(1 - p)} log σ({digits(-x)}) = {digits(loss)}\n\n"
            + fields_text(output),
        ),
        _form(
            "Training step",
            [PairModule.training_step],
            "The mean loss over the pairs of an optimizer step, here of this pair alone, whose gradient is taken.",
            f"loss  is_real * loss / window_pairs = {int(batch.pairs.is_real)} * {digits(loss)} / "
            f"{batch.pairs.window_pairs} = {digits(step)}",
        ),
        _form(
            "Validation record",
            [PairRecords.add],
            "One record per pair, in `records/*.parquet` of the run; metrics are means over records "
            "([metrics.md](metrics.md)).",
            mapping_text(record),
        ),
    ]


def _record() -> dict[str, Any]:
    """Two short demonstrations for one prompt, rated by the annotator, the better one second."""
    for number, prompt in enumerate(world.shuffled_prompts(0)):
        first, second = (world.demonstrate(prompt, world.random_for(k, "page", number)) for k in range(2))
        row = SampledPair(prompt, first, second).row(1.0, False, world.random_for(0, "annotator", number))
        short = max(len(first), len(second)) <= LONGEST and len(first) != len(second)
        if row is not None and short and 0.5 < float(row["margin"]) < 2:
            a, b = (round(float(row[name]), 2) for name in ("score_rejected", "score_chosen"))
            return {"prompt": row["prompt"], "a": row["rejected"], "b": row["chosen"], "rating_a": a, "rating_b": b}
    raise AssertionError("no demonstrations are this short")


def _form(name: str, makers: list[Callable[..., Any]], sentence: str, text: str) -> str:
    """A section of the page; `makers` are the functions that make the object, in the order of their calls."""
    files = [Path(inspect.getfile(maker)).relative_to(ROOT) for maker in makers]
    made = ", ".join(f"`{maker.__qualname__}` in `{file}`" for maker, file in zip(makers, files, strict=True))
    return f"## {name}\n\n{f'Made by {made}. ' if made else ''}{sentence}\n\n```\n{text}\n```\n"


def _sides(scores: PairScores) -> str:
    assert scores.rejected is not None
    return f"chosen {digits(scores.chosen.scores)}, rejected {digits(scores.rejected.scores)}"


def _same(first: Tensor, second: Tensor) -> None:
    torch.testing.assert_close(first, second, rtol=1e-9, atol=1e-9)


if __name__ == "__main__":
    if "--check" in sys.argv:
        text = PAGE.read_text(encoding="utf-8") if PAGE.exists() else ""
        sys.exit(0 if text == page() else "docs/one_pair.md is out of date: run `make docs`")
    PAGE.write_text(page(), encoding="utf-8")
