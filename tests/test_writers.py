"""Who writes: the student under its own words, and a model behind a URL, by the real client against a real server."""

import json
import socket
import sys
from dataclasses import replace

import pytest
from serving import serving
from stepping import tools_of
from tiny_models import full_logp, tiny_policy

from selfdistill.cli import main
from selfdistill.critics import TAG
from selfdistill.method import Method
from selfdistill.methods import opsd
from selfdistill.tasks.arithmetic import Arithmetic
from selfdistill.types import Problem
from selfdistill.writers import Checkpoint, Endpoint, Student, Teacher, reply

CHATS = [({"role": "user", "content": f"w{i} w{i + 1}"},) for i in range(5)]


@pytest.fixture
def tools():
    return tools_of(tiny_policy(), Method())


def test_the_student_writes_its_likeliest_words_in_the_order_asked(tools):
    said = Student(max_completion_length=4)(CHATS, tools)
    policy = tools.policy
    for chat, text in zip(CHATS, said, strict=True):
        prompt, written = policy.chat.encode(chat), []
        while len(written) < 4 and policy.chat.end_id not in written:
            written.append(int(full_logp(policy, prompt + written, [0])[0].argmax()))
        assert text == policy.chat.decode(written)
    assert len(set(said)) > 1 and Student()([], tools) == []


def test_a_students_text_is_as_long_as_its_rollouts_unless_told(tools):
    told, untold = (max(len(t.split()) for t in Student(max_completion_length=n)(CHATS, tools)) for n in (3, None))
    assert told == 3 and 10 < untold <= tools.sampler.max_completion_length == 16


def test_a_students_prompt_may_be_longer_than_a_rollouts(tools):
    short = replace(tools, sampler=replace(tools.sampler, max_prompt_length=1))
    assert Student(max_completion_length=2)(CHATS, short) == Student(max_completion_length=2)(CHATS, tools)


@pytest.mark.parametrize(("text", "said"), [("<think> no </think> so 4", "so 4"), (" so 4 ", "so 4"), ("<think>\nno end", ""), ("", "")])
def test_thinking_is_not_part_of_a_reply(text, said):
    assert reply(text) == said


def test_thinking_reaches_the_prompt_of_whoever_writes_here(tmp_path):
    """Under a template that closes the thinking where it is off, a writer continues another prompt; None leaves the flag to the rollouts."""
    policy = tiny_policy()
    policy.tokenizer.chat_template += "{% if enable_thinking is defined and not enable_thinking %}{{ 'w40 w41 ' }}{% endif %}"
    policy.base.save_pretrained(tmp_path)
    policy.tokenizer.save_pretrained(tmp_path)
    tools = tools_of(policy, opsd())
    quiet = replace(tools, sampler=replace(tools.sampler, thinking=False))
    on, off = (Student(thinking=flag)(CHATS, tools) for flag in (True, False))
    assert on != off
    for writer in (Student(), Teacher(), Checkpoint(str(tmp_path))):
        assert [replace(writer, thinking=flag)(CHATS, tools) for flag in (True, False, None)] == [on, off, on], writer
        assert replace(writer, thinking=None)(CHATS, quiet) == off, writer


openai = pytest.importorskip("openai")


def test_an_endpoint_answers_every_chat_in_order_with_the_key_of_the_environment(tools, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with serving(lambda text: f"<think>hm</think> {text.upper()}") as server:
        found = Endpoint(server.url, "critic", max_completion_length=7)(CHATS, tools)
        assert Endpoint(server.url, "critic")([], tools) == []
    assert found == [f"W{i} W{i + 1}" for i in range(5)]
    assert set(server.keys) == {"Bearer sk-mine"} and set(server.paths) == {"/v1/chat/completions"}
    assert all(a["model"] == "critic" and a["temperature"] == 0 and a["max_completion_tokens"] == 7 for a in server.asked)


def test_what_is_left_to_the_server_is_not_sent(tools, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    with serving() as server:
        Endpoint(server.url, "critic", temperature=None)(CHATS[:1], tools)
    assert not {"temperature", "max_completion_tokens"} & server.asked[0].keys()


def test_requests_are_on_the_way_together_but_no_more_than_allowed(tools):
    with serving(delay_s=0.2) as server:
        Endpoint(server.url, "critic", concurrency=3)(CHATS, tools)
    assert server.at_once == 3


def test_a_busy_server_is_asked_again(tools):
    with serving(status=lambda n: 503 if n == 1 else 200) as server:
        assert Endpoint(server.url, "critic")(CHATS[:1], tools) == ["W0 W1"]
    assert len(server.asked) == 2


def refused(endpoint, tools) -> str:
    with pytest.raises(ValueError) as caught:
        endpoint(CHATS, tools)
    said = str(caught.value)
    assert endpoint.url in said and "\n" not in said
    return said


def test_an_http_error_is_one_sentence_with_the_servers_words_and_without_the_key(tools, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    with serving(status=lambda n: 404) as server:
        said = refused(Endpoint(server.url, "critik"), tools)
    assert "HTTP 404 (The model `critik` does not exist" in said and "correct the endpoint's model or url" in said and "sk-mine" not in said
    with serving(status=lambda n: 401) as server:
        said = refused(Endpoint(server.url, "critic"), tools)
    assert "HTTP 401" in said and "set OPENAI_API_KEY" in said and "sk-mine" not in said


def test_a_server_that_stays_broken_is_given_up(tools):
    with serving(status=lambda n: 500) as server:
        said = refused(Endpoint(server.url, "critic", retries=1, concurrency=1), tools)
    assert "HTTP 500" in said and 2 <= len(server.asked) < 2 * len(CHATS), "not all of the others are asked in vain"


def test_a_server_that_is_down_or_slow_names_what_to_turn(tools):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    said = refused(Endpoint(url, "critic", retries=0), tools)
    assert "cannot be reached" in said and "refused" in said and "start the server" in said
    with serving(delay_s=1.0) as server:
        assert "within 0.1 s; raise the endpoint's timeout_s" in refused(Endpoint(server.url, "critic", timeout_s=0.1, retries=0), tools)


@pytest.mark.parametrize(("body", "kind"), [("<html>hello</html>", "text/html"), ('{"choices": []}', "application/json"), ("{", "application/json")])
def test_what_is_no_chat_completion_is_told_apart(tools, body, kind):
    with serving(body=body, kind=kind) as server:
        assert "no chat completion" in refused(Endpoint(server.url, "critic", retries=0), tools)


def test_a_missing_client_and_a_wrong_knob_are_one_sentence(tools, monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    assert "pip install 'selfdistill[endpoint]'" in refused(Endpoint("http://127.0.0.1:1/v1", "critic"), tools)
    for given, said in (({"url": "localhost:8000"}, "begins with http"), ({"concurrency": 0}, "concurrency >= 1"), ({"timeout_s": 0}, "timeout_s > 0")):
        with pytest.raises(ValueError, match=said):
            Endpoint(**({"url": "http://x/v1", "model": "m"} | given))


def test_an_endpoint_prints_and_compares_without_a_key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    assert "sk-mine" not in repr(Endpoint("http://x/v1", "m")) and Endpoint("http://x/v1", "m") == Endpoint("http://x/v1", "m")


TRAIN = ["train", "quickstart", "--steps", "1", "--prompts_per_step", "2", "--sampling.num_generations", "2", "--eval.at_end", "false", "--eval.every", "0"]


def checker(text: str) -> str:
    """The testbed's own checker behind a URL: reads what a critic is shown."""
    question, shown = text.split(" solution ", 1)
    attempt = TAG.sub("", shown.split(" check ", 1)[1].removesuffix(" end review"))
    return Arithmetic().critique(Problem(prompt=question), attempt.replace("\n", " ").strip())


def test_a_run_whose_critic_is_behind_a_url(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-mine")
    run = tmp_path / "run"
    with serving(checker) as server:
        critic = f"ModelCritic(Endpoint('{server.url}', 'checker'), steps=ClosedBy(';'))"
        main([*TRAIN, "--method", "step_critique", "--method.critic", critic, "--output_dir", str(run)])
    assert len(server.asked) == 8, "four rollouts before the run begins, to prove alignment, and four of its step"
    task, rows = Arithmetic(), [json.loads(line) for line in (run / "rollouts" / "step_000001.jsonl").read_text().splitlines()]
    problems = {p.id: p for p in task.problems("train")}
    shown = [(row["feedback"]["critique"], task.critique(problems[row["problem_id"]], row["text"])) for row in rows]
    assert len(shown) == 4 and all(found == exact for found, exact in shown)
    written = "".join(path.read_text() for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".md"))
    assert "checker" in written and "sk-mine" not in written + "".join(capsys.readouterr())


def test_a_run_whose_critic_is_down_stops_before_it_writes_anything(tmp_path, capsys):
    critic = "ModelCritic(Endpoint('http://127.0.0.1:9/v1', 'checker', retries=0))"
    with pytest.raises(SystemExit) as left:
        main([*TRAIN, "--method", "step_critique", "--method.critic", critic, "--output_dir", str(tmp_path / "run")])
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert left.value.code == 2 and said.startswith("selfdistill: the model 'checker' at http://127.0.0.1:9/v1 wrote nothing: it cannot be reached")
    assert not (tmp_path / "run").exists()
