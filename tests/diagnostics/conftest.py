"""One short real run for all tests of diagnostics: two steps of hsd on a tiny random model, with checkpoints, evaluations and a summary."""

import pytest
from test_resume import settings
from tiny_models import tiny_model, tiny_tokenizer

from selfdistill.runner import execute

SMALL = {"num_problems": 4, "num_samples": 2}


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def run(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("hsd")
    return execute(settings(base, folder, steps=2, checkpoint_every=1, sampling={"num_generations": 6, "max_completion_length": 6}, eval=SMALL))
