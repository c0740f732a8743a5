"""Blocks are written whole, claimed by one process at a time, and resumed; a folder belongs to one command."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from lit_pref.data.sources.row import Row
from lit_pref.errors import UsageError, UserError
from lit_pref.generating.blocks import Blocks
from lit_pref.generating.engine import Answer, Engine, Task, sample_key
from lit_pref.generating.generate import finish, generate_missing
from lit_pref.generating.progress import Progress
from lit_pref.generating.prompts import Prompt
from lit_pref.generating.settings import agree, digest_of

PROMPTS = [Prompt(f"question {k}", f"id{k}", Row("file.jsonl", k + 1, {})) for k in range(10)]


class Echo(Engine):
    """Answers at once, with a text that depends on the task; tasks in `broken` fail."""

    def __init__(self, broken: set[Task] | None = None, of_server: bool = False, more: str = "") -> None:
        self.broken, self.of_server, self.more = broken or set(), of_server, more
        self.asked: list[list[Task]] = []

    def usable(self, prompts: Sequence[Prompt], file: Any) -> list[Prompt]:
        return list(prompts)

    def settings(self) -> dict[str, Any]:
        return {}

    def remarks(self) -> dict[str, Any]:
        return {}

    def describe(self, prompts: Sequence[Prompt]) -> list[str]:
        return []

    def load(self) -> None:
        pass

    def answers(self, tasks: Sequence[Task], progress: Progress) -> list[Answer]:
        self.asked.append([(prompt.id, sample) for prompt, sample in tasks])  # type: ignore[misc]
        return [self._answer(prompt.id, sample) for prompt, sample in tasks]

    def _answer(self, id: str, sample: int) -> Answer:
        if (id, sample) in self.broken:  # type: ignore[comparison-overlap]
            return Answer.failed("timeout: no answer in time", self.of_server)
        return Answer(f"answer to {id}, {sample}{self.more}", "stop", -1.0, 3)


def run(out: Path, engine: Engine, samples: int = 2) -> Any:
    out.mkdir(exist_ok=True)
    blocks = Blocks(out, PROMPTS, samples, size=4)
    generate_missing(engine, blocks, 0, Progress(len(PROMPTS) * samples, blocks.responses_there(), 5))
    return finish(blocks)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "responses.jsonl").read_text().splitlines()]


def test_all_responses_in_the_order_of_the_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    engine = Echo()
    outcome = run(tmp_path, engine)
    assert [len(tasks) for tasks in engine.asked] == [8, 8, 4]
    expected = [(f"id{k}", sample, k + 1) for k in range(10) for sample in range(2)]
    assert [(row["prompt_id"], row["sample"], row["line"]) for row in rows(tmp_path)] == expected
    first = rows(tmp_path)[0]
    assert first == {
        "prompt": "question 0",
        "response": "answer to id0, 0",
        "sample": 0,
        "seed": 0,
        "finish_reason": "stop",
        "logprob": -1.0,
        "tokens": 3,
        "prompt_id": "id0",
        "file": "file.jsonl",
        "line": 1,
    }
    assert outcome.rows == 20 and outcome.finished == {"stop": 20} and outcome.tokens == 3 and not outcome.same
    assert "20 of 20 responses" in capsys.readouterr().out
    assert not list(tmp_path.rglob("*.unfinished"))


def test_complete_blocks_are_kept_and_damaged_or_foreign_ones_are_written_again(tmp_path: Path):
    run(tmp_path, Echo())
    whole = (tmp_path / "responses.jsonl").read_text()
    (tmp_path / "blocks" / "000001.jsonl").unlink()
    third = tmp_path / "blocks" / "000002.jsonl"
    third.write_text(third.read_text()[:-30])
    again = Echo()
    run(tmp_path, again)
    assert [tasks[0] for tasks in again.asked] == [("id4", 0), ("id8", 0)]
    assert (tmp_path / "responses.jsonl").read_text() == whole
    nothing = Echo()
    run(tmp_path, nothing)
    assert nothing.asked == []


def test_a_text_may_hold_every_line_separator(tmp_path: Path):
    more = "\n\r\x0b\x0c\x1c\x85\u2028\u2029\0"
    run(tmp_path, Echo(more=more))
    lines = (tmp_path / "responses.jsonl").read_bytes().split(b"\n")
    assert len(lines) == 21 and all(json.loads(line)["response"].endswith(more) for line in lines[:-1])
    nothing = Echo()
    run(tmp_path, nothing)
    assert nothing.asked == []


def test_rows_that_failed_are_kept_and_only_they_are_asked_for_again(tmp_path: Path):
    broken: Any = {("id1", 1), ("id9", 0)}
    outcome = run(tmp_path, Echo(broken))
    assert outcome.failed == 2 and len(rows(tmp_path)) == 20
    failed = [row for row in rows(tmp_path) if row["finish_reason"] == "error"]
    assert [(row["prompt_id"], row["sample"], row["response"]) for row in failed] == [("id1", 1, ""), ("id9", 0, "")]
    assert failed[0]["error"] == "timeout: no answer in time" and failed[0]["logprob"] is None
    again = Echo({("id9", 0)})  # type: ignore[arg-type]
    assert run(tmp_path, again).failed == 1
    assert again.asked == [[("id1", 1)], [("id9", 0)]]
    assert run(tmp_path, Echo()).failed == 0
    run(tmp_path / "whole", Echo())
    assert rows(tmp_path) == rows(tmp_path / "whole")


def test_a_server_that_answers_nothing_ends_the_command_and_a_model_that_says_nothing_does_not(tmp_path: Path):
    every: Any = {(prompt.id, sample) for prompt in PROMPTS for sample in range(2)}
    with pytest.raises(UserError, match="all 8 requests of block 0 failed"):
        run(tmp_path / "a", Echo(every, of_server=True))
    assert run(tmp_path / "b", Echo(every)).failed == 20
    assert run(tmp_path / "a", Echo()).failed == 0


WORKER = """
import json, os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_blocks import Echo, run
class Slow(Echo):
    def answers(self, tasks, progress):
        with open(sys.argv[3], "a") as file:
            file.write(f"{tasks[0][0].id} {os.getpid()}\\n")
        time.sleep(float(sys.argv[4]))
        return super().answers(tasks, progress)
run(Path(sys.argv[1]), Slow())
"""


def worker(out: Path, log: Path, seconds: float) -> subprocess.Popen:
    arguments = [str(out), str(Path(__file__).parent), str(log), str(seconds)]
    return subprocess.Popen([sys.executable, "-c", WORKER, *arguments], stdout=subprocess.PIPE, text=True)


def test_processes_share_the_blocks_and_a_killed_one_loses_its_block_alone(tmp_path: Path):
    out, log = tmp_path / "out", tmp_path / "log"
    out.mkdir()
    log.touch()
    first = worker(out, log, seconds=600)
    while not log.read_text():
        time.sleep(0.05)
    others = [worker(out, log, seconds=0.2) for _ in range(2)]
    while len(log.read_text().splitlines()) < 3:
        time.sleep(0.05)
    time.sleep(0.5)
    assert others[0].poll() is None and others[1].poll() is None, "they wait for the block of the first"
    assert not (out / "blocks" / "000000.jsonl").exists()
    first.kill()
    first.wait()
    for other in others:
        other.communicate(timeout=60)
        assert other.returncode == 0
    started = [line.split() for line in log.read_text().splitlines()]
    assert sorted(id for id, _ in started) == ["id0", "id0", "id4", "id8"]
    assert next(pid for id, pid in started if id == "id0") == str(first.pid)
    run(tmp_path / "alone", Echo())
    assert (out / "responses.jsonl").read_text() == (tmp_path / "alone" / "responses.jsonl").read_text()


def test_a_folder_with_other_settings_or_other_content_is_refused(tmp_path: Path):
    out = tmp_path / "out"
    settings = {"temperature": 1.0, "stop": ["x"], "prompts_digest": digest_of(PROMPTS)}
    agree(out, settings, {"model": "here"})
    agree(out, {**settings}, {"model": "moved"})
    written = json.loads((out / "settings.json").read_text())
    assert written == {"settings": settings, "remarks": {"model": "here"}}
    with pytest.raises(UsageError, match=r"other settings \(temperature is 0\.7 and was 1\.0\); give another --out"):
        agree(out, {**settings, "temperature": 0.7}, {})
    with pytest.raises(UsageError, match=r"top_p is 0\.9 and was null"):
        agree(out, {**settings, "top_p": 0.9}, {})
    (out / "settings.json").write_text("{}")
    with pytest.raises(UsageError, match="was not written by generate"):
        agree(out, settings, {})
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    with pytest.raises(UsageError, match=r"contains thesis\.tex and no settings\.json"):
        agree(tmp_path / "mine", settings, {})
    assert digest_of(PROMPTS) != digest_of(PROMPTS[::-1])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path):
    tmp_path.chmod(0o500)
    with pytest.raises(UserError, match="cannot be written"):
        agree(tmp_path / "out", {}, {})


def test_a_file_in_place_of_the_folder_is_named(tmp_path: Path):
    (tmp_path / "out").touch()
    with pytest.raises(UserError, match="out cannot be written"):
        agree(tmp_path / "out", {}, {})


def test_random_numbers_depend_on_seed_prompt_and_sample():
    keys = {sample_key(seed, id, sample) for seed in range(3) for id in ("a", "b") for sample in range(12)}
    assert len(keys) == 72 and all(0 <= key < 2**64 for key in keys)


def test_progress_says_speed_and_time_left(capsys: pytest.CaptureFixture[str]):
    now = [0.0]
    progress = Progress(total=100, done=20, most=10, clock=lambda: now[0])
    now[0] = 5.0
    progress.add(100)
    assert progress.line().endswith("20 of 100 responses, 20 tokens/s, at most 35 s left")
    now[0] = 10.0
    progress.add(100)
    progress.finish(20)
    assert progress.line().endswith("40 of 100 responses, 20 tokens/s, 30 s left")
    progress.shared(60)  # another process is as fast
    assert progress.line().endswith("60 of 100 responses, 20 tokens/s, 10 s left")
    assert capsys.readouterr().out == ""
    now[0] = 31.0
    progress.add(1)
    assert capsys.readouterr().out.count("\n") == 1
