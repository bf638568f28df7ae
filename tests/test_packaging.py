"""What is shipped: the wheel works by itself, pins satisfy ranges, and the repository's commands say what they do."""

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import selfdistill
from selfdistill.report.page import LIBRARIES, SCRIPTS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True, text=True)
    return next(folder.glob("*.whl"))


def test_the_wheel_carries_base_recipes_templates_and_licence(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    folder = ROOT / "src" / "selfdistill" / "assets"
    recipes = {f"selfdistill/assets/{p.relative_to(folder).as_posix()}" for p in [*(folder / "recipes").rglob("*.toml"), folder / "decodings.toml"]}
    base = {f"selfdistill/assets/tiny_base/{name}" for name in ("model.safetensors", "config.json", "tokenizer.json", "README.md")}
    templates = {f"selfdistill/assets/templates/{name}.toml" for name in ("english", "arithmetic")}
    report = {f"selfdistill/assets/report/{name}" for name in ("page.html", "page.css", *LIBRARIES, *SCRIPTS, "vendor/d3.LICENSE", "vendor/plot.LICENSE")}
    assert recipes | base | templates | report | {"selfdistill/assets/rubrics/generic.json"} <= names
    assert any(name.endswith("licenses/LICENSE") for name in names)
    assert not [name for name in names if name.startswith(("tests/", "docs/"))]
    assert zipfile.ZipFile(wheel).getinfo("selfdistill/assets/tiny_base/model.safetensors").file_size <= 8_000_000


def test_the_wheel_trains_from_any_folder(wheel, tmp_path):
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True)
    small = ["--steps", "1", "--prompts_per_step", "2", "--sampling.num_generations", "2", "--eval.num_problems", "2", "--eval.num_samples", "1"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site"), "OMP_NUM_THREADS": "1"}
    options = {"cwd": tmp_path, "capture_output": True, "text": True, "env": environment}
    where = subprocess.run([sys.executable, "-c", "import selfdistill; print(selfdistill.__file__)"], **options)
    assert where.stdout.startswith(str(tmp_path / "site"))
    done = subprocess.run([sys.executable, str(tmp_path / "site" / "bin" / "selfdistill"), "train", "quickstart", *small], **options)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "runs" / "quickstart" / "summary.json").exists()


def test_the_version_is_in_the_changelog_and_the_licence_is_whole():
    assert f"## {selfdistill.__version__}" in (ROOT / "CHANGELOG.md").read_text()
    assert "Apache License" in (text := (ROOT / "LICENSE").read_text()) and "END OF TERMS AND CONDITIONS" in text


def test_every_requirement_is_pinned_inside_its_range():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines)
    pins = {canonicalize_name(name): Version(version) for name, version in (line.split("==") for line in lines)}
    extras = PROJECT["optional-dependencies"]
    for text in [*PROJECT["dependencies"], *extras["dev"], *extras["gguf"], *extras["transport"]]:
        requirement = Requirement(text)
        assert pins[canonicalize_name(requirement.name)] in requirement.specifier, text


def test_versions_of_python_and_torch_are_the_promised_ones():
    requirements = {Requirement(text).name: Requirement(text).specifier for text in PROJECT["dependencies"]}
    assert requirements["torch"].contains("2.10.0") and not requirements["torch"].contains("2.9.1")
    assert requirements["transformers"].contains("5.23.0") and not requirements["transformers"].contains("4.57.0")
    supported = Requirement(f"python{PROJECT['requires-python']}").specifier
    assert [v for v in ("3.10", "3.11", "3.12.5", "3.13") if supported.contains(v)] == ["3.11", "3.12.5"]


def test_ci_runs_exactly_make_test():
    lines = [line for line in (ROOT / ".ci" / "run").read_text().splitlines() if line and not line.startswith(("#", "set ", "cd "))]
    assert lines == ["make test"] and os.access(ROOT / ".ci" / "run", os.X_OK)


def test_the_python_entry_is_reached_without_loading_torch_first():
    code = "import sys, selfdistill; assert 'torch' not in sys.modules; from selfdistill import Method, train; assert callable(train)"
    code += "; import selfdistill.api; assert callable(selfdistill.train) and sorted(selfdistill.__all__) == sorted(selfdistill._HOMES)"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        selfdistill.trian  # noqa: B018
