"""The package as `pip install .` gives it: complete, and at work without the tools of the pipeline and of development."""

import os
import shutil
import subprocess
import sys
import zipfile

import pytest
from imports import PACKAGE, ROOT, modules

ABSENT = ["nbdev", "execnb", "fastcore", "ghapi", "dvc", "papermill", "jupyter", "jupyter_core", "jupyter_client", "jupyterlab", "jupytext",
          "IPython", "ipykernel", "ipywidgets", "nbconvert", "nbformat", "nbclient", "sklearn", "pycocotools", "hypothesis", "pytest"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    "A wheel, built from a copy so that nothing is left in the clone."
    copy, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT / PACKAGE, copy / PACKAGE, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "tests", copy / "tests", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    built = subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, copy], capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return next(out.glob("*.whl"))


def test_a_wheel_holds_the_package_its_numbers_and_its_licence_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        content = set(archive.namelist())
        commands = archive.read(next(name for name in content if name.endswith("entry_points.txt"))).decode()
    outside = {name for name in content if not name.startswith((f"{PACKAGE}/", f"{PACKAGE}-"))}
    inside = {path.relative_to(ROOT).as_posix() for path in modules().values()} | {f"{PACKAGE}/reporting/published.csv"}
    assert not outside and {name for name in content if name.startswith(f"{PACKAGE}/")} == inside
    assert "irstd = irstd_nb.cli:main" in commands and any(name.endswith("LICENSE") for name in content)


SCRIPT = """
import importlib, pathlib, sys

class Without:
    "A finder that does not see the listed libraries, as in an environment without them."
    def __init__(self, finder):
        self.finder = finder

    def __getattr__(self, name):
        return getattr(self.finder, name)

    def find_spec(self, name, path=None, target=None):
        return None if name.partition(".")[0] in {absent} else self.finder.find_spec(name, path, target)

sys.meta_path[:] = [Without(finder) for finder in sys.meta_path]
for name in {modules}:
    module = importlib.import_module(name)
    assert pathlib.Path(module.__file__).is_relative_to({site!r}), module.__file__

from irstd_nb.cli import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
assert main(["data", "list"]) == 0 and main(["methods"]) == 0
assert not {absent}.intersection(name.partition(".")[0] for name in sys.modules)
from tqdm.auto import tqdm
assert sum(tqdm(range(3), disable=False)) == 3
"""


def test_an_installed_package_imports_and_its_command_works_without_the_pipeline_and_development_tools(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    names = sorted(set(modules()) - {f"{PACKAGE}.nbrun"})
    script = SCRIPT
    for key, value in (("{absent}", repr(set(ABSENT))), ("{modules}", repr(names)), ("{site!r}", repr(str(site)))):
        script = script.replace(key, value)
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", script], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(site)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "usage: irstd" in done.stdout and "NUAA-SIRST" in done.stdout and "tophat" in done.stdout and "acm" in done.stdout
