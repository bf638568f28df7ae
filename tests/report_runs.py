"""Short real runs on the tiny model that pages are made of."""

import json

from test_resume import settings

from selfdistill.runner import execute

EVAL = {"eval": {"every": 1, "num_problems": 4, "num_samples": 2}}
HOSTILE = "</script><script>document.title = 'taken'</script><img src=x onerror=\"document.title='taken'\">&lt;b&gt; <b>"


def short_run(base, folder, **changes):
    return execute(settings(base, folder, **({"steps": 2, "checkpoint_every": 1, "output_dir": str(folder)} | EVAL | changes)))


def rewrite(folder, step, change):
    """Rollouts of a step after `change` was applied to each row."""
    path = folder / "rollouts" / f"step_{step:06d}.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(change(row) or row) + "\n" for row in rows))
