"""The lines with which a run shows its data: what was read as what, and what to look at."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.prepared.splits import open_splits
from lit_pref.data.sources.source import Source
from lit_pref.data.tokenizing.tokenization import Tokenization
from lit_pref.models.spec import ModelSpec
from lit_pref.run.data_lines import data_lines

HONEST = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
HONEST += "{% if add_generation_prompt %}[assistant]{% endif %}"


@pytest.fixture
def tokenizer(policy_folder: Path) -> PreTrainedTokenizerBase:
    return ModelSpec(path=str(policy_folder)).load_tokenizer()


@pytest.fixture
def lines(tmp_path: Path, tokenizer: PreTrainedTokenizerBase):
    def of(*files: list[dict[str, Any]], template: str | None = None, **options: Any) -> list[str]:
        sources = []
        for k, rows in enumerate(files):
            path = tmp_path / f"{'ab'[k]}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
            sources.append(Source(str(path), **options.get("of_sources", [{}, {}])[k]))
        tokenizer.chat_template = template
        preparation = Preparation(**{"val_fraction": 0.0, **options.get("preparation", {})})
        train, val = open_splits(sources, None, preparation, Tokenization(tokenizer, 64))
        described = {name: (pairs.fingerprint, pairs.reports) for name, pairs in (("train", train), ("val", val))}
        has = template is not None
        data = SimpleNamespace(train_pairs=train, val_pairs=val, describe=lambda: described, has_chat_template=has)
        return list(data_lines(data))

    return of


def rows(number: int = 4, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"red {k} :", "chosen": " big", "rejected": " old", "margin": k + 1, **more} for k in range(number)
    ]


def message(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def notes(told: list[str]) -> list[str]:
    return [line for line in told if line.startswith("note ")]


def test_format_a_pair_in_words_and_counts_come_first(lines):
    told = lines(rows(), preparation={"val_fraction": 0.3})
    assert told[0].startswith("source      a, read as format pairs: texts")
    assert "big" in told[1] and "is preferred to" in told[1]
    assert told[2].startswith("data        train: ")


def test_shares_and_scales_of_a_mixture_are_said(lines):
    scaled = {"mapping": {"margin": {"normalise": "minmax"}}}
    told = lines(rows(), rows(6), of_sources=[{"weight": 1.0}, {"weight": 1.0, **scaled}])
    assert "mixture     8 training pairs: a 4 of 4, b 4 of 6" in told
    (line,) = [line for line in told if line.startswith("normalised")]
    assert "b: margins are divided by 6, fitted on its 6 training pairs; then mean" in line


def test_plain_prompts_beside_a_chat_template_are_noted_and_messages_are_not(lines):
    assert any("4 prompts are plain text" in note for note in notes(lines(rows(), template=HONEST)))
    assert not any("plain text" in note for note in notes(lines(rows())))
    chats = [{**row, "prompt": message(row["prompt"])} for row in rows()]
    assert not any("plain" in note or "template" in note for note in notes(lines(chats, template=HONEST)))


def test_texts_that_meet_without_a_space_are_noted(lines):
    assert not any("no space" in note for note in notes(lines(rows())))
    assert any("a: 4 pairs have no space" in note for note in notes(lines(rows(chosen="big"))))


def test_a_template_that_asks_otherwise_than_it_writes_is_noted(lines):
    chats = [{**row, "prompt": message(row["prompt"])} for row in rows()]
    broken = HONEST.replace("[assistant]", "[helper]")
    assert any(
        "in 4 pairs the assistant's turn does not begin" in note for note in notes(lines(chats, template=broken))
    )


def test_validation_pairs_with_a_prompt_that_is_trained_on_are_counted(tmp_path: Path, tokenizer: Any):
    def told(name: str, held_out: list[dict[str, Any]]) -> list[str]:
        sources = []
        for path, written in ((tmp_path / "train.jsonl", rows()), (tmp_path / name, held_out)):
            path.write_text("".join(json.dumps(row) + "\n" for row in written))
            sources.append([Source(str(path))])
        train, val = open_splits(*sources, Preparation(val_fraction=0.0), Tokenization(tokenizer, 64))
        data = SimpleNamespace(train_pairs=train, val_pairs=val, describe=dict, has_chat_template=False)
        return [line for line in data_lines(data) if "validation" in line]

    other = [{**row, "prompt": f"tin {k} :"} for k, row in enumerate(rows())]
    line = "note        3 of 7 validation pairs have a prompt that is trained on"
    assert told("some.jsonl", [*other, *rows(3, chosen=" cat")]) == [line]
    assert told("none.jsonl", other) == []


def test_a_run_without_validation_pairs_says_so(lines):
    assert any("no pair is held out" in note for note in notes(lines(rows())))
