"""What a person sees on a terminal: bars that move, rates, time left, completions, and where everything is."""

import io
import re

import rich.console
from tiny_models import tiny_groups, tiny_policy

from selfdistill.config import make_settings
from selfdistill.console import Console
from selfdistill.trainer import StepResult

METRICS = {"reward": 0.25, "loss": 1.5, "taught_share": 0.5, "tokens_per_s": 1234.0}


def console(*, terminal):
    made = Console()
    made.out = rich.console.Console(file=io.StringIO(), force_terminal=terminal, width=140, highlight=False, soft_wrap=True)
    return made


def shown(made):
    """What was printed, without colours and cursor moves."""
    return re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", made.out.file.getvalue())


def result(step):
    policy = tiny_policy()
    return StepResult(step=step, metrics=METRICS, seconds={}, groups=tiny_groups(policy), samples=[], policy=policy)


def test_a_terminal_shows_progress_rates_and_time_left():
    made = console(terminal=True)
    with made.training(3, done=1) as show:
        show(result(2), False)
        show(result(3), False)
    assert "3/3 reward 0.250, loss 1.5000, taught 50%, 1,234 tokens/s" in shown(made)
    assert re.search(r"3/3.*\d:\d\d:\d\d \d:\d\d:\d\d", shown(made)), "elapsed and remaining time"


def test_an_evaluation_inside_training_has_its_own_bar_while_it_lasts():
    made = console(terminal=True)
    with made.training(2, done=0) as show:
        show(result(1), False)
        with made.bar("evaluating step 1", 10) as advance:
            advance(10, 10)
            made.progress.refresh()
            assert "10/10" in shown(made)
        assert [task.description for task in made.progress.tasks] == ["training"]
    assert made.progress is None


def test_a_file_gets_lines_now_and_then_instead_of_bars(monkeypatch):
    """Within seconds the first and the last step; where steps take longer, each one."""
    made = console(terminal=False)
    with made.training(20, done=0) as show:
        for step in range(1, 20):
            show(result(step), step == 1)
        monkeypatch.setattr("selfdistill.console.EVERY", 0.0)
        show(result(20), False)
    lines = shown(made).splitlines()
    assert lines[0].startswith("step 1, reward 0.0, gold w")
    assert lines[-1] == "training: step 20/20, reward 0.250, loss 1.5000, taught 50%, 1,234 tokens/s" and len(lines) <= 5
    with made.training(3, done=0, whose=" of the peer") as show, made.bar("evaluating base", 8) as advance:
        advance(4, 8)
        for step in (1, 2, 3):
            show(result(step), False)
    lines = shown(made).splitlines()[len(lines) :]
    assert [line.split(",")[0] for line in lines] == [
        "evaluating base: 8 samples",
        "evaluating base: 4/8",
        *(f"training of the peer: step {step}/3" for step in (1, 2, 3)),
    ]


def test_text_of_rollouts_is_not_read_as_markup():
    made = console(terminal=False)
    step = result(1)
    step.groups[0].rollouts[0].text = "[bold]w1[/] [link=x]"
    made.sample(step)
    assert "[bold]w1[/] [link=x]" in shown(made)


def test_the_end_names_what_is_there(tmp_path):
    made, settings = console(terminal=False), make_settings({"method": "opsd", "steps": 7}, {})
    (tmp_path / "metrics.jsonl").touch()
    made.end(tmp_path, settings)
    assert f"results    {tmp_path}/metrics.jsonl\n" in shown(made) and "summary.json" not in shown(made)
    assert f"{tmp_path}/checkpoints/step_000007" in shown(made) and "selfdistill describe opsd --vs grpo" in shown(made)


def test_the_summary_puts_base_and_trained_side_by_side():
    made = console(terminal=False)
    figures = {"avg_at_k": 0.25, "ci95": [0.2, 0.3], "pass_at_k": 0.5, "truncated": 0.01, "mean_length": 52.34}
    about = {"method": "hsd", "num_problems": 250, "num_samples": 8, "difference": 0.05, "difference_ci95": [-0.01, 0.11]}
    made.summary({**about, "base": figures, "trained": figures | {"avg_at_k": 0.3}})
    for words in ("hsd: 250 held-out problems x 8 samples", "25.0%", "30.0%", "[20.0, 30.0]", "+5.0 points", "[-1.0, +11.0]", "52.3"):
        assert words in shown(made), words
