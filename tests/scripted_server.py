"""A server on HTTP in this process, whose answers a test writes; the fixture is `server` in conftest.py."""

import json
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = tuple[int, Any, dict[str, str]]


def chat(text: Any = "4", **choice: Any) -> Reply:
    message = {"role": "assistant", "content": text, **choice.pop("message", {})}
    whole = {"index": 0, "message": message, "finish_reason": "stop", **choice}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return (
        200,
        {"id": "x", "object": "chat.completion", "created": 0, "model": "m", "choices": [whole], "usage": usage},
        {},
    )


def completion(text: str, **choice: Any) -> Reply:
    whole = {"index": 0, "text": text, "finish_reason": "stop", "logprobs": None, **choice}
    usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
    return (
        200,
        {"id": "x", "object": "text_completion", "created": 0, "model": "m", "choices": [whole], "usage": usage},
        {},
    )


class _Http(ThreadingHTTPServer):
    request_queue_size = 128  # of requests that wait on a busy machine; more are hung up on


class Server:
    """A server whose answers are those of `reply(path, body)`: status, content (text is sent as it is), headers."""

    def __init__(self) -> None:
        self.reply: Callable[[str, dict[str, Any]], Reply] = lambda path, body: chat()
        self.models: Reply = (200, {"object": "list", "data": [{"id": "m", "object": "model"}]}, {})
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.most = self.at_once = 0
        lock, server = threading.Lock(), self

        class Handler(BaseHTTPRequestHandler):
            def answer(self, reply: Reply) -> None:
                status, content, headers = reply
                data = (content if isinstance(content, str) else json.dumps(content)).encode()
                self.send_response(status)
                for name, value in {"Content-Type": "application/json", **headers}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                self.wfile.write(data)

            def do_GET(self) -> None:
                self.answer(server.models)

            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with lock:
                    server.asked.append((self.path, body))
                    server.at_once += 1
                    server.most = max(server.most, server.at_once)
                try:
                    try:
                        reply = server.reply(self.path, body)
                    finally:  # before it is sent: the client's next request may arrive sooner than this thread goes on
                        with lock:
                            server.at_once -= 1
                    self.answer(reply)
                except (ConnectionError, BrokenPipeError):
                    self.close_connection = True

            def log_message(self, *arguments: Any) -> None:
                pass

        self.http = _Http(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """Stop answering."""
        self.http.shutdown()
        self.http.server_close()
