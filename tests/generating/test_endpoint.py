"""A server's answers: what is sent, and that no failure of a server loses a row. The server is a real one, on HTTP."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from scripted_server import Reply, Server, chat, completion

from lit_pref.__main__ import main
from lit_pref.data.sources.row import Row
from lit_pref.errors import UsageError, UserError
from lit_pref.generating.endpoint import Endpoint
from lit_pref.generating.engine import Answer, sample_key
from lit_pref.generating.progress import Progress
from lit_pref.generating.prompts import Prompt
from lit_pref.models.sampling import Sampling
from lit_pref.pairs import TEMPLATE_ARGUMENTS

ASK = [{"role": "user", "content": "2+2?"}]


def engine(server: Server, sampling: Sampling = Sampling(), **options: Any) -> Endpoint:  # noqa: B008
    return Endpoint(server.url, "m", sampling, 3, 20, **{"wait": 0.01, "retries": 3, **options})


def prompt(text: Any = ASK, id: str = "a") -> Prompt:
    return Prompt(text, id, Row("f.jsonl", 1, {}))


def ask(server: Server, *texts: Any, **options: Any) -> tuple[list[Answer], Endpoint]:
    endpoint = engine(server, **options)
    tasks = [(prompt(text, f"p{k}"), 0) for k, text in enumerate(texts or (ASK,))]
    return endpoint.answers(tasks, Progress(len(tasks), 0, 20)), endpoint


def test_messages_are_sent_as_messages_with_all_settings_and_a_seed_of_their_own(server: Server):
    endpoint = engine(server, Sampling(0.7, 0.9, 5), stop=("x", "y"))
    tasks = [(prompt(), 0), (prompt(), 1), (prompt(id="b"), 0)]
    assert endpoint.answers(tasks, Progress(3, 0, 20)) == [Answer("4", "stop", None, 2)] * 3
    assert {path for path, _ in server.asked} == {"/v1/chat/completions"}
    seeds = {body.pop("seed") for _, body in server.asked}
    assert seeds == {sample_key(3, *key) % 2**31 for key in (("a", 0), ("a", 1), ("b", 0))}
    sent = {"model": "m", "messages": ASK, "temperature": 0.7, "top_p": 0.9, "top_k": 5, "max_tokens": 20}
    assert [body for _, body in server.asked] == [{**sent, "stop": ["x", "y"]}] * 3


def test_texts_are_sent_as_texts_and_arguments_of_the_template_beside_the_messages(server: Server):
    server.reply = lambda path, body: completion(" 4") if path == "/v1/completions" else chat()
    tools = [{"type": "function", "function": {"name": "add"}}]
    given = [{**ASK[0], TEMPLATE_ARGUMENTS: {"tools": tools, "think": False}}]
    (text, messages), _ = ask(server, "2+2=", given)
    assert text == Answer(" 4", "stop", None, 2) and messages.response == "4"
    bodies = dict(server.asked)
    assert bodies["/v1/completions"]["prompt"] == "2+2="
    chatted = bodies["/v1/chat/completions"]
    assert chatted["messages"] == ASK and chatted["tools"] == tools
    assert chatted["chat_template_kwargs"] == {"think": False}


def test_log_probs_are_asked_for_on_demand(server: Server):
    content = [{"token": "4", "logprob": -0.5, "top_logprobs": []}, {"token": "", "logprob": -0.25, "top_logprobs": []}]
    server.reply = lambda path, body: (
        chat(logprobs={"content": content, "refusal": None})
        if "chat" in path
        else completion(" 4", logprobs={"token_logprobs": [-1.0, -2.0], "tokens": [" 4", ""]})
    )
    (messages, text), _ = ask(server, ASK, "2+2=", logprobs=True)
    assert (messages.logprob, text.logprob) == (-0.75, -3.0)
    assert [body["logprobs"] for _, body in sorted(server.asked, key=lambda asked: asked[0])] == [True, 1]


@pytest.mark.parametrize(
    ("first", "kind"),
    [
        ((500, {"error": "broken"}, {}), "server error"),
        ((503, "<html>", {}), "server error"),
        ((429, {"error": "busy"}, {"Retry-After": "0.01"}), "busy"),
        ((200, "{half", {}), "malformed"),
        ((200, "not json", {"Content-Type": "text/plain"}), "malformed"),
        ((200, "<html>hello</html>", {"Content-Type": "text/html"}), "malformed"),
        ((200, "[]", {}), "malformed"),
        ((200, "null", {}), "malformed"),
        ((200, {"choices": []}, {}), "malformed"),
        ((200, {"choices": [None]}, {}), "malformed"),
        ((200, {"choices": [{"message": None, "finish_reason": "stop"}]}, {}), "malformed"),
        ((200, {"error": {"message": "out of memory"}}, {}), "malformed"),
        (chat({"text": "4"}), "malformed"),
        (chat("\ud800"), "malformed"),
        (chat(None, message={"tool_calls": [{"id": "1", "type": "function", "function": {"name": "f"}}]}), "malformed"),
        (chat(""), "empty"),
        (chat(None), "empty"),
        (chat("", message={"refusal": "I will not."}), "refusal"),
        (chat("4", finish_reason="content_filter"), "refusal"),
    ],
)
def test_what_is_no_answer_is_counted_and_asked_for_again(server: Server, first: Reply, kind: str):
    replies = [first, first, chat()]
    server.reply = lambda path, body: replies.pop(0)
    (answer,), endpoint = ask(server)
    assert answer == Answer("4", "stop", None, 2) and endpoint.failed == {kind: 2}
    assert endpoint.last_lines() == [f"attempts    2 failed: 2 {kind}"]
    server.reply = lambda path, body: first
    (answer,), endpoint = ask(server)
    assert answer.finish_reason == "error" and answer.response == "" and str(answer.error).startswith(f"{kind}: ")
    assert endpoint.failed == {kind: 4}, "one attempt and three more"


def test_a_server_that_is_slow_or_hangs_up_is_asked_again(server: Server):
    calls = iter(range(100))

    def reply(path: str, body: dict[str, Any]) -> Reply:
        if (call := next(calls)) == 0:
            time.sleep(3)
        if call == 1:
            raise ConnectionError
        return chat()

    server.reply = reply
    (answer,), endpoint = ask(server, timeout=1.0)
    assert answer.response == "4" and endpoint.failed == {"timeout": 1, "connection": 1}


def test_a_request_that_will_always_be_rejected_is_not_asked_again(server: Server):
    server.reply = lambda path, body: (400, {"error": {"message": "the context is too long"}}, {})
    (answer,), _ = ask(server)
    assert len(server.asked) == 1 and "rejected: " in str(answer.error) and "too long" in str(answer.error)


def test_a_server_that_wants_the_newer_name_of_the_limit_gets_it(server: Server):
    said = {"error": {"message": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."}}
    server.reply = lambda path, body: (400, said, {}) if "max_tokens" in body else chat()
    answers, endpoint = ask(server, *[ASK] * 6, concurrency=3)
    assert {answer.response for answer in answers} == {"4"} and not endpoint.failed
    assert server.asked[-1][1]["max_completion_tokens"] == 20


@pytest.mark.parametrize(
    ("status", "asked", "said"),
    [
        (401, ASK, "OPENAI_API_KEY"),
        (403, ASK, "OPENAI_API_KEY"),
        (404, "2+2=", r"--mapping '\{format: messages\}'"),
        (404, ASK, r"check --endpoint and --model_name$"),
    ],
)
def test_an_error_that_every_request_would_meet_ends_the_command(server: Server, status: int, asked: Any, said: str):
    server.reply = lambda path, body: (status, {"error": {"message": "no"}}, {})
    with pytest.raises(UserError, match=said):
        ask(server, *[asked] * 40, concurrency=2)
    assert len(server.asked) < 40


def test_texts_end_before_a_stop_string_even_if_the_server_does_not_know_it(server: Server):
    replies = [
        chat("4. Next: 5"),
        chat("4", stop_reason="###"),
        chat("4", finish_reason="length"),
        chat("4", finish_reason=None),
    ]
    server.reply = lambda path, body: replies.pop(0)
    answers, _ = ask(server, *[ASK] * 4, stop=(". Next",), concurrency=1)
    found = [(answer.response, answer.finish_reason) for answer in answers]
    assert found == [("4", "stop_string"), ("4", "stop_string"), ("4", "length"), ("4", "unknown")]


def test_requests_run_at_the_same_time_and_answers_keep_their_order(server: Server):
    def reply(path: str, body: dict[str, Any]) -> Reply:
        time.sleep(0.1 if body["messages"][0]["content"] == "0" else 0.02)
        return chat(body["messages"][0]["content"])

    server.reply = reply
    asked = [[{"role": "user", "content": str(k)}] for k in range(30)]
    answers, _ = ask(server, *asked, concurrency=5)
    assert [answer.response for answer in answers] == [str(k) for k in range(30)] and server.most == 5


def test_the_model_of_the_server_is_found_or_its_names_are_told(server: Server):
    only = Endpoint(server.url, None, Sampling(), 0, 5)
    only.load()
    assert only.settings() == {"endpoint_model": "m"}
    server.models = (200, {"object": "list", "data": [{"id": "llama-8b"}, {"id": "llama-70b"}]}, {})
    with pytest.raises(UsageError, match="--endpoint needs --model_name, one of: llama-8b, llama-70b"):
        Endpoint(server.url, None, Sampling(), 0, 5).load()
    with pytest.raises(UsageError, match="has no model 'lama-8b'; did you mean llama-8b"):
        Endpoint(server.url, "lama-8b", Sampling(), 0, 5).load()
    server.models = (404, {}, {})
    Endpoint(server.url, "m", Sampling(), 0, 5).load()
    with pytest.raises(UserError, match="usually end in /v1"):
        Endpoint(server.url.removesuffix("/v1"), "m", Sampling(), 0, 5).load()
    server.models = (401, {}, {})
    with pytest.raises(UserError, match="OPENAI_API_KEY"):
        Endpoint(server.url, "m", Sampling(), 0, 5).load()
    with pytest.raises(UserError, match=r"nothing answers at http://127\.0\.0\.1:1/v1"):
        Endpoint("http://127.0.0.1:1/v1", "m", Sampling(), 0, 5).load()
    with pytest.raises(UsageError, match="give an address such as"):
        Endpoint("localhost:8000", "m", Sampling(), 0, 5)
    with pytest.raises(UsageError, match="--timeout 0"):
        Endpoint(server.url, "m", Sampling(), 0, 5, timeout=0.0)


def test_rows_that_failed_are_written_and_the_same_command_asks_for_them_alone(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "prompts.jsonl").write_text(
        "".join(json.dumps({"prompt": [{"role": "user", "content": f"{k}"}]}) + "\n" for k in range(9))
    )
    command = ["generate", "--endpoint", server.url, "--prompts", str(tmp_path / "prompts.jsonl"), "--retries", "0"]
    command += ["--out", str(tmp_path / "out"), "--block", "4", "--max_new_tokens", "5"]
    broken = {"2", "5"}
    server.reply = lambda path, body: (
        (500, "x", {}) if (text := body["messages"][0]["content"]) in broken else chat(f"it is {text}")
    )

    def run() -> int:
        with pytest.raises(SystemExit) as ended:
            main(command)
        return int(ended.value.code or 0)

    assert run() == 1
    said = capsys.readouterr()
    assert "2 of 9 responses are missing" in said.err and "attempts    2 failed: 2 server error" in said.out
    rows = [json.loads(line) for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == ["" if str(k) in broken else f"it is {k}" for k in range(9)]
    assert [row["error"][:14] for row in rows if row["finish_reason"] == "error"] == ["server error: "] * 2
    broken.clear()
    server.asked.clear()
    assert run() == 0
    assert sorted(body["messages"][0]["content"] for _, body in server.asked) == ["2", "5"]
    rows = [json.loads(line) for line in (tmp_path / "out" / "responses.jsonl").read_text().splitlines()]
    assert [row["response"] for row in rows] == [f"it is {k}" for k in range(9)] and "error" not in rows[2]
    assert "7 of 9 responses are there" in capsys.readouterr().out
