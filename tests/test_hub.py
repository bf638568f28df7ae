# ruff: noqa: F811
"""Models of the hub: its cache, what it says of those that are not there, and its bars."""

import os
import re
import shutil
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from huggingface_hub.utils import are_progress_bars_disabled
from test_loading import folder, logits  # noqa: F401
from transformers import AutoModelForCausalLM

import selfdistill
from selfdistill.loading import load_policy


def test_a_hub_that_does_not_answer_leaves_its_cache(folder, tmp_path, monkeypatch, capfd):
    """As the hub's own library lays it out; nothing is asked twice and nothing is printed."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    kept = tmp_path / "models--owner--name"
    (kept / "refs").mkdir(parents=True)
    (kept / "refs" / "main").write_text("abc")
    shutil.copytree(folder, kept / "snapshots" / "abc")
    assert logits(load_policy("owner/name").model).equal(logits(load_policy(str(folder)).model))
    assert "Retry" not in capfd.readouterr().err


class Hub(BaseHTTPRequestHandler):
    """What the hub says of models that are not there, hidden, not open: status and code by the owner's name. One it hangs up on, of the rest it fails."""

    ANSWERS: ClassVar = {"nobody": (404, "RepoNotFound"), "hidden": (401, "RepoNotFound"), "gated": (403, "GatedRepo"), "stranger": (401, "GatedRepo")}

    def do_HEAD(self):
        owner = self.path.split("/")[1]
        if owner == "silent":
            return
        status, code = self.ANSWERS.get(owner, (500, ""))
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, format, *args):
        """Not on the test's stderr."""


def test_what_the_hub_says_is_one_sentence():
    """Asked for real, of a server on this machine."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    code = (
        "import sys\nfrom selfdistill.loading import load_tokenizer\nfor name in sys.argv[1:]:\n"
        "    try: load_tokenizer(name + '/model', setting='MODEL')\n    except ValueError as error: print(error)"
    )
    environment = {**os.environ, "HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HUB_OFFLINE": "0"}
    environment |= {"PYTHONPATH": str(Path(selfdistill.__file__).parents[1]), "NO_PROXY": "127.0.0.1"}
    names = [*Hub.ANSWERS, "broken", "silent"]
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, env=environment, check=True)
    server.shutdown()
    server.server_close()
    absent = "is neither a folder here nor a model on the hub; a private one needs: hf auth login"
    gated = "is gated on the hub; ask for access on its page, then log in with: hf auth login"
    said = dict(zip(names, done.stdout.splitlines(), strict=True))
    for name, words in {"nobody": absent, "hidden": absent, "gated": gated, "stranger": gated}.items():
        assert said[name] == f"MODEL = '{name}/model' {words}"
    assert re.match(r"MODEL = 'broken/model' is not a folder here, and the hub answers with an error \(.*500", said["broken"])
    assert re.fullmatch(r"MODEL = 'silent/model' is not a folder here, and the hub does not answer \(.+\)", said["silent"])


def test_loading_hides_its_own_bars_but_not_a_download(folder, capfd, monkeypatch):
    """A model of many gigabytes that comes from the hub shows how far it is; the files of a local one do not."""
    hidden, real = [], AutoModelForCausalLM.from_pretrained
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *a, **k: hidden.append(are_progress_bars_disabled()) or real(*a, **k))
    load_policy(str(folder))
    assert hidden == [False] and "Loading" not in capfd.readouterr().err
