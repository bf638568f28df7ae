"""Runs that several files look at, made once."""

import pytest
from report_runs import short_run
from tiny_models import tiny_model, tiny_tokenizer


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "base"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def runs(base, tmp_path_factory):
    """Two seeds of HSD, and GRPO: a method with a teacher and one without."""
    folder = tmp_path_factory.mktemp("runs")
    made = {f"hsd_{seed}": short_run(base, folder / f"hsd_{seed}", seed=seed) for seed in (0, 1)}
    return made | {"grpo_0": short_run(base, folder / "grpo_0", method="grpo")}
