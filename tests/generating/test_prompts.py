"""Prompts are read from any format of training, and from files of prompts alone; nothing of them is lost."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from lit_pref.data.prepared.preparation import Preparation
from lit_pref.data.sources.row import Row
from lit_pref.data.sources.source import Source
from lit_pref.errors import UserError
from lit_pref.generating.prompts import Prompt, PromptFile, prompt_digest

ASK = {"role": "user", "content": "2+2?"}
REPLY = {"role": "assistant", "content": "4"}
MORE = {"role": "user", "content": "3+3?"}


def jsonl(folder: Path, *rows: dict[str, Any]) -> str:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def texts(path: str, **options: Any) -> list[Any]:
    return [prompt.text for prompt in PromptFile(path, **options).read()]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"prompt": "2+2?"}, "2+2?"),
        ({"prompt": [ASK, REPLY, MORE]}, [ASK, REPLY, MORE]),
        ({"messages": [ASK, REPLY, MORE, REPLY]}, [ASK, REPLY, MORE]),
        ({"messages": [ASK]}, [ASK]),
        ({"conversations": [{"from": "human", "value": "2+2?"}, {"from": "gpt", "value": "4"}]}, [ASK]),
        ({"question": "2+2?", "answer": "4", "id": 7}, "2+2?"),
        ({"prompt": "2+2?", "completion": "long " * 40}, "2+2?"),
        ({"prompt": "2+2?", "completion": "4", "label": True}, "2+2?"),
        ({"prompt": "2+2?", "chosen": "4", "rejected": "5", "margin": 1.0}, "2+2?"),
        ({"prompt": "2+2?", "chosen": "same", "rejected": "same"}, "2+2?"),
        ({"chosen": [ASK, REPLY], "rejected": [ASK, {"role": "assistant", "content": "5"}]}, [ASK]),
        ({"chosen": "\n\nHuman: 2+2?\n\nAssistant: 4", "rejected": "\n\nHuman: 2+2?\n\nAssistant: 5"}, [ASK]),
        ({"prompt": "2+2?", "chosen": "4", "chosen_model": "a", "rejected": "5", "rejected_model": "b"}, "2+2?"),
    ],
)
def test_a_prompt_of_every_form(tmp_path: Path, row: dict[str, Any], expected: Any):
    assert texts(jsonl(tmp_path, row)) == [expected]


def test_a_list_of_answers_has_the_prompt_of_the_pairs_that_training_takes_from_it(tmp_path: Path):
    rows = [
        {
            "prompt": f"q{k}",
            "completions": [{"response": f"r{k}{j}", "overall_score": j} for j in range(3)],
            "instruction": f"q{k}",
            "source": "x",
            "models": ["a"],
        }
        for k in range(3)
    ]
    mapping = {
        "kind": "list",
        "prompt": "prompt",
        "responses": "completions[].response",
        "score": {"path": "completions[].overall_score"},
        "ignore": ["instruction", "completions"],
    }
    path = jsonl(tmp_path, *rows)
    pairs = Preparation(mapping=mapping).checked_pairs(Source(path))
    assert texts(path, mapping=mapping) == [pair.text.prompt for pair in pairs] == ["q0", "q1", "q2"]


def test_kind_none_with_and_without_responses(tmp_path: Path):
    path = jsonl(tmp_path, {"q": "2+2?", "good": "4", "bad": "5"}, {"q": "2+2?", "good": "4", "bad": "6"})
    with_responses = {"kind": "none", "prompt": "q", "chosen": "good", "rejected": "bad"}
    assert texts(path, mapping=with_responses) == ["2+2?"], "of pairs, each prompt is answered once"
    assert texts(path, mapping=with_responses, unique=False) == ["2+2?", "2+2?"]
    assert texts(path, mapping={"kind": "none", "prompt": "q"}) == ["2+2?", "2+2?"]
    assert texts(jsonl(tmp_path, *[{"prompt": "2+2?", "completion": c} for c in "45"])) == ["2+2?"]
    path = jsonl(tmp_path, {"q": "2+2?"}, {"q": "2+2?"})
    file = PromptFile(path, mapping={"kind": "none", "prompt": "q"})
    assert (
        len(file.read()) == 2 and "2 rows read, of which 1 repeat a prompt and are answered too" in file.describe(2)[0]
    )
    (tmp_path / "mine.yaml").write_text("prompt: q\nformat: messages\n")
    assert texts(path, mapping=str(tmp_path / "mine.yaml"), unique=True) == [[ASK]]


def test_texts_become_messages_and_get_their_system_text_and_what_follows(tmp_path: Path):
    path = jsonl(tmp_path, {"prompt": "2+2?", "rule": "Be brief.", "context": "x"})
    mapping = {"format": "messages", "system": "rule", "prompt_then": ["context"]}
    system = {"role": "system", "content": "Be brief."}
    assert texts(path, mapping=mapping) == [[system, {"role": "user", "content": "2+2?\n\nx"}]]


def test_a_column_that_may_belong_to_the_prompt_is_not_lost(tmp_path: Path):
    path = jsonl(tmp_path, {"prompt": "2+2?", "context": "in base 3"})
    with pytest.raises(
        UserError,
        match=r"`context` may belong to the prompt.*--mapping \{system: context\}.*--ignore_columns \[context",
    ):
        texts(path)
    assert texts(path, ignore_columns=("context",)) == ["2+2?"]


def test_files_of_every_ending(tmp_path: Path):
    rows = [{"prompt": "a"}, {"prompt": "b"}]
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["prompt"], ["a"], ["b"]])
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    for name in ("rows.json", "rows.csv", "rows.parquet"):
        assert texts(str(tmp_path / name)) == ["a", "b"]
    assert texts(str(tmp_path / "rows.json"), limit=1) == ["a"]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"prompt": None}, "line 2: prompt is missing or null"),
        ({"prompt": " "}, "line 2: prompt is empty"),
        ({"prompt": 5}, "line 2: prompt is not a text"),
        ({"prompt": [ASK, REPLY]}, "line 2: prompt ends with a message of the assistant"),
        ({"prompt": [{"content": "x"}]}, "line 2: prompt contains a message without a role"),
        ({"prompt": []}, "line 2: prompt is an empty message list"),
        ({"prompt": "[{'role': 'user', 'content': 'x'}]"}, "line 2: prompt is a message list written as text"),
        ({"other": "x"}, "line 2: prompt is missing or null"),
    ],
)
def test_a_faulty_prompt_is_refused_or_counted(tmp_path: Path, row: dict[str, Any], said: str):
    path = jsonl(tmp_path, {"prompt": "a"}, row, {"prompt": "b"})
    with pytest.raises(UserError, match=said) as refused:
        texts(path)
    assert "--bad_rows lenient" in str(refused.value)
    file = PromptFile(path, bad_rows="lenient")
    assert [prompt.text for prompt in file.read()] == ["a", "b"] and file.left_out.total() == 1
    assert any("1 rows are left out" in line for line in file.describe(2))


def test_a_file_without_prompts_and_a_wrong_mapping_are_refused(tmp_path: Path):
    path = jsonl(tmp_path, {"text": "a"})
    with pytest.raises(UserError, match="has the columns text, which are those of no known format"):
        texts(path)
    with pytest.raises(UserError, match=r"`prompt` is txt, which no row of .* has; it has text"):
        texts(path, mapping={"prompt": "txt"})
    with pytest.raises(UserError, match="`promt` is not a key of a mapping; did you mean `prompt`"):
        texts(path, mapping={"promt": "text", "prompt": "text"})
    blank = jsonl(tmp_path, {"prompt": ""}, {"prompt": "  "})
    with pytest.raises(UserError, match=r"contains no prompts \(2 rows; prompt is empty: 2\)"):
        texts(blank, bad_rows="lenient")
    with pytest.raises(UserError, match="There is no file"):
        texts(str(tmp_path / "nowhere.jsonl"))


def test_ids_depend_on_the_text_and_repetitions_are_numbered(tmp_path: Path):
    path = jsonl(tmp_path, {"prompt": "a"}, {"prompt": "b"}, {"prompt": "a"}, {"prompt": "a "})
    ids = [prompt.id for prompt in PromptFile(path).read()]
    assert ids == [prompt_digest("a"), prompt_digest("b"), prompt_digest("a") + "-1", prompt_digest("a ")]
    assert len(set(ids)) == 4
    assert [prompt.row.line for prompt in PromptFile(path, unique=True).read()] == [1, 2, 4]


def test_a_prompt_is_written_as_it_is_read_again(tmp_path: Path):
    tools = [{"type": "function", "function": {"name": "add"}}]
    path = jsonl(tmp_path, {"prompt": [ASK], "tools": tools, "chat_template_kwargs": {"date": "today"}, "id": "x"})
    (prompt,) = PromptFile(path).read()
    assert prompt.record() == {"prompt": [ASK], "tools": tools, "chat_template_kwargs": {"date": "today"}}
    assert prompt.origin() == {"prompt_id": prompt.id, "file": path, "line": 1, "id": "x"}
    assert Prompt("a", "id", Row("f", 1, {})).record() == {"prompt": "a"}
