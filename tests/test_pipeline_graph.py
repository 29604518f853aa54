"""The pipeline as DVC resolves it: each stage depends on what it uses, and on nothing else."""

import ast
import re
import shlex
from functools import cache
from pathlib import Path

import nbformat
import pytest
from dvc.repo import Repo
from imports import PACKAGE, ROOT, absolute, closure, does_something, imported, module_file

from irstd_nb.core.params import load_params

STAGES = {stage.addressing: stage for stage in Repo(str(ROOT)).index.stages if stage.cmd}
NOTEBOOK_STAGES = [name for name, stage in STAGES.items() if " irstd_nb.nbrun run " in f" {stage.cmd} "]
PARAMS = load_params(ROOT / "params.yaml")
METHODS = {path.stem: {found.relative_to(ROOT).as_posix() for found in map(module_file, closure([f"{PACKAGE}.methods.{path.stem}"]))}
           for path in (ROOT / PACKAGE / "methods").glob("[!_]*.py")}  # what the stage `code` lists for each method
each_stage = pytest.mark.parametrize("name", NOTEBOOK_STAGES)


def command(name):
    "Stripped notebook of a stage, and the parameters that it gets."
    words = shlex.split(STAGES[name].cmd)
    source, _, *pairs = words[words.index("run") + 1:]
    return source, dict(pair.split("=", 1) for pair in pairs)


def source_notebook(name):
    return ROOT / "nbs/pipeline" / Path(command(name)[0]).name


@cache
def code(path):
    "The code of a notebook; lines that only IPython reads are left out."
    cells = [cell.source for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    return re.sub(r"^\s*[%!].*$", "", "\n".join(cells), flags=re.MULTILINE)


def dependencies(name):
    return [dep.def_path for dep in STAGES[name].deps if type(dep).__name__ != "ParamsDependency"]


def tracked_params(name):
    return [key for dep in STAGES[name].deps if type(dep).__name__ == "ParamsDependency" for key in dep.params]


def inside(path, folder):
    "Whether a dependency covers a file: it is the file, a folder above it, or the list of modules that a method is made of."
    if folder.startswith("work/code/"):
        return path in METHODS[Path(folder).name]
    return path == folder or path.startswith(f"{folder.rstrip('/')}/")


@cache
def used_modules(name):
    "Files of the package that a stage executes: what its notebook imports, and its method."
    start = imported(code(source_notebook(name)))
    entry = {**PARAMS["classical"], **PARAMS["networks"], **PARAMS["parts"], **PARAMS["detectors"]}.get(command(name)[1].get("key"))
    if entry:
        start.add(f"{PACKAGE}.methods.{entry['method']}")
    return {path.relative_to(ROOT).as_posix() for path in map(module_file, closure(start)) if does_something(path)}


def test_every_stage_but_the_stripping_one_executes_a_pipeline_notebook():
    assert set(STAGES) - set(NOTEBOOK_STAGES) == {"notebooks", "code"} and len(NOTEBOOK_STAGES) >= 6
    assert {path.name for path in (ROOT / "nbs/pipeline").glob("*.ipynb")} == {source_notebook(name).name for name in NOTEBOOK_STAGES}


def test_the_import_closure_follows_relative_absolute_and_deferred_imports():
    text = "from .files import write_text\nimport irstd_nb.core.images\ndef f():\n    from ..methods import registry\n"
    assert set(absolute(text, "irstd_nb.data")) >= {"irstd_nb.data.files", "irstd_nb.core.images", "irstd_nb.methods.registry"}
    assert {"irstd_nb.core.errors", "irstd_nb.core.files", "irstd_nb.core"} <= closure(["irstd_nb.data.samples"])


@each_stage
def test_a_stage_depends_on_every_module_that_it_executes(name):
    missing = [path for path in sorted(used_modules(name)) if not any(inside(path, dep) for dep in dependencies(name))]
    assert not missing, f"dvc.yaml: add to the deps of {name}: {', '.join(missing)}"


@each_stage
def test_a_stage_depends_on_no_module_that_it_does_not_execute(name):
    used = used_modules(name)
    idle = [dep for dep in dependencies(name) if inside(dep, PACKAGE) and not any(inside(path, dep) for path in used)]
    assert not idle, f"dvc.yaml: {name} executes nothing of {', '.join(idle)}"


@each_stage
def test_a_stage_depends_on_the_code_only_copy_of_its_notebook(name):
    assert command(name)[0] in dependencies(name)


@each_stage
def test_a_pipeline_notebook_knows_the_parameters_that_its_stage_passes(name):
    cell = next(cell for cell in nbformat.read(source_notebook(name), as_version=4).cells if "parameters" in cell.metadata.get("tags", []))
    known = {target.id for node in ast.parse(cell.source).body if isinstance(node, ast.Assign) for target in node.targets}
    assert set(command(name)[1]) <= known


@each_stage
def test_a_stage_writes_where_its_outputs_are_declared_and_reads_what_it_depends_on(name):
    given, outs = command(name)[1], [out.def_path for out in STAGES[name].outs]
    assert outs
    if "out" in given:
        assert given["out"] in outs
    if "trained" in given:
        assert given["trained"] in dependencies(name)


@each_stage
def test_a_stage_tracks_only_single_entries_of_params_yaml(name):
    keys = tracked_params(name)
    assert keys and not {"networks", "classical", "detectors", "profiles", "box_profiles", "synthesis", "simulated"} & set(keys), f"{name} would run again for every entry of {keys}"
    if "key" in (given := command(name)[1]):
        assert any(key.endswith(f".{given['key']}") for key in keys), f"{name} does not track its own entry"


@pytest.mark.parametrize("name", [name for name in NOTEBOOK_STAGES if {"datasets", "box_datasets"} & set(tracked_params(name))])
def test_a_stage_that_reads_data_sets_depends_on_their_folders(name):
    read = [kind for kind in ("datasets", "box_datasets") if kind in tracked_params(name)]
    missing = [entry["folder"] for kind in read for entry in PARAMS[kind].values() if entry["folder"] not in dependencies(name)]
    assert not missing, f"dvc.yaml: add to the deps of {name}: {', '.join(missing)}"


def test_every_run_of_the_registry_names_a_method_that_exists():
    for name, entry in {**PARAMS["classical"], **PARAMS["networks"], **PARAMS["parts"], **PARAMS["detectors"]}.items():
        assert module_file(f"{PACKAGE}.methods.{entry['method']}"), f"params.yaml: {name} names the unknown method {entry['method']}"


def test_results_that_git_keeps_are_metrics_or_plots_because_uncached_outs_lose_the_run_cache():
    for name, stage in STAGES.items():
        for out in stage.outs:
            assert out.use_cache or out.metric or out.plot, f"dvc.yaml: {out.def_path} of {name} belongs under `plots:` or `metrics:`"


def test_the_list_of_a_methods_modules_is_the_closure_of_its_imports(tmp_path):
    from irstd_nb.nbrun import list_modules
    for path in list_modules(ROOT / PACKAGE / "methods", tmp_path):
        listed = {line.split("  ")[1] for line in path.read_text(encoding="utf-8").splitlines()}
        assert listed == {name for name in METHODS[path.name] if does_something(ROOT / name) or not name.endswith("__init__.py")}


def test_every_part_belongs_to_a_network_of_the_same_method():
    for name, part in PARAMS["parts"].items():
        assert PARAMS["networks"].get(part["of"], {}).get("method") == part["method"], f"params.yaml: {name} is a part of {part['of']}, which is no network of {part['method']}"


def test_no_two_entries_share_a_name_and_every_row_of_a_table_is_made():
    kinds = [set(PARAMS[kind]) for kind in ("classical", "networks", "parts", "detectors")]
    assert len(set.union(*kinds)) == sum(map(len, kinds)), "two runs would be written into one folder"
    made = {name for spec in PARAMS["tables"].values() for name in spec["rows"].values()}
    assert made <= set.union(*kinds) and set(PARAMS["detectors"]) <= made
