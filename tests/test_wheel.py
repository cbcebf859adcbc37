"""The wheel as a user gets it: built, installed into an environment of its own without the network, and used."""

from __future__ import annotations

import re
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    offline = ["--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
    subprocess.run([sys.executable, "-m", "pip", "wheel", "-q", *offline, "-w", str(out), str(ROOT)], check=True)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def fresh(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python with the wheel in it. What the wheel depends on is reached where it lies, the checkout is not."""
    home = tmp_path_factory.mktemp("fresh")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    packages = home / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    with zipfile.ZipFile(wheel) as files:
        files.extractall(packages)
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin" / "python"


def says(python: Path, *words: str) -> str:
    done = subprocess.run(
        [str(python), *words], capture_output=True, text=True, cwd=python.parent, env={"HOME": "/tmp"}
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_the_wheel_holds_what_the_package_reads_and_its_types(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert "autointerp/py.typed" in names
    for folder in ("prompts", "pipelines"):
        shipped = {f"autointerp/_shipped/{folder}/{file.name}" for file in (ROOT / folder).iterdir() if file.is_file()}
        assert shipped
        assert shipped <= names
    code = {str(file.relative_to(ROOT)) for file in (ROOT / "autointerp").rglob("*.py")}
    assert code <= names
    pages = [file for file in (ROOT / "autointerp").rglob("*") if file.suffix in (".js", ".css", ".j2")]
    assert {str(file.relative_to(ROOT)) for file in pages} <= names
    assert "autointerp/report/viewer/static/viewer.js" in names
    assert not [name for name in names if name.startswith(("tests", "benchmarks", "results"))]


def test_a_fresh_environment_imports_the_wheel_and_not_the_checkout(fresh: Path) -> None:
    told = says(fresh, "-c", "import autointerp; print(autointerp.__file__, autointerp.__version__)").split()
    assert Path(told[0]).is_relative_to(fresh.parents[1])
    assert told[1] == yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"]


def test_the_command_of_a_fresh_environment_finds_its_shipped_files(fresh: Path) -> None:
    assert "export" in says(fresh, "-m", "autointerp", "--help")
    reads = "from autointerp import config, prompting; prompting.prompts_hash(['judge_one']); "
    code = f"{reads}print(config.load_config('demo').name)"
    assert says(fresh, "-c", code) == "demo\n"


def test_the_distribution_has_a_name_of_its_own_and_every_extra_that_messages_name() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert project["name"] == "autointerp-sae"
    named = {
        extra
        for file in (ROOT / "autointerp").rglob("*.py")
        for extra in re.findall(r"autointerp-sae\[(\w+)\]", file.read_text())
    }
    assert named
    assert named <= project["optional-dependencies"].keys()
