"""A real HTTP server on this machine that speaks the shape of OpenAI's chat completions: what endpoints are tested against."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclass
class Served:
    """A running server: where it is, and what it was asked."""

    url: str = ""
    asked: list[dict] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    at_once: int = 0
    """Requests that were on the way together, at most."""


@contextmanager
def serving(
    reply: Callable[[str], str] = str.upper,
    *,
    status: Callable[[int], int] = lambda n: 200,
    body: str | None = None,
    delay_s: float = 0.0,
    kind: str = "application/json",
) -> Iterator[Served]:
    """Answers with reply(last user turn), or with `body`; `status` says the HTTP code of the n-th request from 1."""
    served, lock, busy = Served(), threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                served.asked.append(sent)
                served.keys.append(self.headers["Authorization"])
                served.paths.append(self.path)
                code = status(len(served.asked))
                busy[0] += 1
                served.at_once = max(served.at_once, busy[0])
            time.sleep(delay_s)
            with lock:
                busy[0] -= 1
            self.answer(code, body if body is not None else json.dumps(self.said(sent, code)))

        def said(self, sent, code):
            if code != 200:
                return {"error": {"message": f"The model `{sent['model']}` does not exist, said to {self.headers['Authorization']}.", "type": "NotFound"}}
            message = {"role": "assistant", "content": reply(sent["messages"][-1]["content"])}
            return {
                "id": "x",
                "object": "chat.completion",
                "created": 0,
                "model": sent["model"],
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
            }

        def answer(self, code, text):
            self.send_response(code)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            # a client that has given up waiting takes no answer
            with suppress(BrokenPipeError):
                self.wfile.write(text.encode())

        def log_message(self, *args):
            """Tests print nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    served.url = f"http://127.0.0.1:{server.server_address[1]}/v1"
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
