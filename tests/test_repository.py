"""What must hold of the files in git: notebooks and package agree, imports point down, nothing private or foreign is tracked."""

import importlib.util
import json
import re
import shutil
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import nbformat
import pytest
from imports import PACKAGE, ROOT, absolute, dotted, imported_by, modules
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from packaging.specifiers import SpecifierSet

from irstd_nb.core.params import load_params

SCRIPTS = Path(sys.executable).parent
NOTEBOOKS = sorted(path for path in (ROOT / "nbs").rglob("*.ipynb") if ".ipynb_checkpoints" not in path.parts)
PIPELINE = [path for path in NOTEBOOKS if path.parent.name == "pipeline"]
FLOORS = {"core": 0, "data": 1, "synthesis": 2, "metrics": 2, "layers": 3, "methods": 4, "training": 5, "reporting": 6}  # the rest: 7
PICTURES = {".png", ".svg", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".gif", ".webp", ".npz", ".npy"}


def names(paths, root=ROOT):
    return [path.relative_to(root).as_posix() for path in paths]


def tracked():
    "Files that git tracks or would add."
    listed = subprocess.run(["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("this copy is not a git repository")
    return [ROOT / name for name in sorted(set(listed.stdout.split("\0"))) if name and (ROOT / name).is_file()]


@pytest.fixture
def copy(tmp_path):
    "A copy of what nbdev reads and writes."
    root, litter = tmp_path / "copy", shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints")
    for name in ("nbs", PACKAGE):
        shutil.copytree(ROOT / name, root / name, ignore=litter)
    for name in ("settings.ini", "pyproject.toml"):
        shutil.copy(ROOT / name, root / name)
    return root


def run(command, folder):
    done = subprocess.run([SCRIPTS / command], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


# --- notebooks and what is made of them ------------------------------------------------------------------------------------------------


def test_the_package_is_what_the_notebooks_export(copy):
    for path in (copy / PACKAGE).rglob("*.py"):
        path.unlink()
    run("nbdev_export", copy)
    committed, exported = ({name: path.read_text(encoding="utf-8") for path in sorted((root / PACKAGE).rglob("*.py")) for name in names([path], root)}
                           for root in (ROOT, copy))
    differ = [name for name in committed | exported if committed.get(name) != exported.get(name)]
    assert not differ and len(exported) > 20, f"run nbdev_export; these are not what the notebooks say: {', '.join(differ)}"


def test_notebooks_are_clean(copy):
    before = {path: path.read_bytes() for path in (copy / "nbs").rglob("*.ipynb")}
    run("nbdev_clean", copy)
    dirty = [path for path, content in before.items() if path.read_bytes() != content]
    assert before and not dirty, f"run nbdev_clean; not clean: {', '.join(names(dirty, copy))}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=names(NOTEBOOKS))
def test_a_notebook_is_valid_and_of_format_4_5(path):
    content = json.loads(path.read_text(encoding="utf-8"))
    assert (content["nbformat"], content["nbformat_minor"]) == (4, 5)
    nbformat.validate(content)
    ids = [cell["id"] for cell in content["cells"]]
    assert len(set(ids)) == len(ids)


def test_notebooks_are_stored_line_by_line_as_jupyterlab_saves_them():
    cells = {path: json.loads(path.read_text(encoding="utf-8"))["cells"] for path in NOTEBOOKS}
    packed = [path for path in NOTEBOOKS if any(isinstance(cell["source"], str) and cell["source"] for cell in cells[path])]
    assert not packed, f"one changed line would show as a changed cell; save these in JupyterLab: {', '.join(names(packed))}"


@pytest.mark.parametrize("path", PIPELINE, ids=names(PIPELINE))
def test_a_pipeline_notebook_has_one_parameter_cell_and_no_outputs(path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


def test_readme_is_what_the_index_notebook_says():
    if not (ROOT / "nbs/index.ipynb").exists():
        pytest.skip("nbs/index.ipynb does not exist yet")
    done = subprocess.run([sys.executable, ROOT / "tools/readme.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_readme_has_fenced_text_links_from_the_root_and_no_hidden_cell():
    cell = new_code_cell("#| echo: true\nprint(1)", outputs=[new_output("stream", name="stdout", text="\x1b[31m1\x1b[0m\n"), new_output("stream", name="stderr", text="noise")])
    table = new_code_cell("#| echo: false\nframe", outputs=[new_output("execute_result", {"text/plain": "a  b", "text/html": "<table>"})])
    text = new_markdown_cell("[params](../params.yaml) [errors](core/00_errors.ipynb#a) [out](https://example.org/x)\n```\n[a](b)\n```")
    made = readme_tool().readme(new_notebook(cells=[new_code_cell("#| hide\nsecret"), text, cell, table]))
    assert made.split("\n\n", 1)[1] == ("[params](params.yaml) [errors](nbs/core/00_errors.ipynb#a) [out](https://example.org/x)\n```\n[a](b)\n```\n\n"
                                        "```python\nprint(1)\n```\n\n```text\n1\n```\n\n```text\na  b\n```\n")
    assert made.startswith("<!-- generated from nbs/index.ipynb by tools/readme.py; do not edit -->\n")


@pytest.mark.parametrize("cell", [new_code_cell("x", outputs=[new_output("display_data", {"image/png": "aaaa", "text/plain": "x"})]),
                                  new_markdown_cell("![](attachment:a.png)", attachments={"a.png": {"image/png": "aaaa"}})], ids=["output", "attachment"])
def test_a_readme_refuses_pictures(cell):
    with pytest.raises(ValueError, match="holds a picture"):
        readme_tool().readme(new_notebook(cells=[cell]))


def readme_tool():
    spec = importlib.util.spec_from_file_location("readme", ROOT / "tools/readme.py")
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    return tool


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_a_document_links_only_to_files_that_exist(name):
    links = re.findall(r"\]\(([^)\s#]+)(?:#[^)\s]*)?\)", (ROOT / name).read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not link.startswith("mailto:") and not (ROOT / link).exists()]
    assert not missing, f"{name} links to {', '.join(missing)}"


# --- the floors ------------------------------------------------------------------------------------------------------------------------


def room(name):
    "Folder of a module, empty for those that lie directly in the package."
    parts = name.split(".")
    return parts[1] if len(parts) > 1 and parts[1] in FLOORS else ""


@pytest.mark.parametrize("name", sorted(modules()))
def test_a_module_imports_only_from_its_own_floor_or_below(name):
    above = [other for other in imported_by(name) - {PACKAGE} if FLOORS.get(room(other), 7) > FLOORS.get(room(name), 7)]
    assert not above, f"{name} imports {', '.join(sorted(above))}"


@pytest.mark.parametrize("name", [name for name in sorted(modules()) if room(name) == "methods"])
def test_a_method_imports_no_other_method(name):
    package = f"{PACKAGE}.methods"
    others = {other for other in imported_by(name) if room(other) == "methods"} - {package, f"{package}.registry", name}
    assert not others, f"{name} imports {', '.join(sorted(others))}; what two methods share belongs in irstd_nb/layers"


@pytest.mark.parametrize("name", [name for name in sorted(modules()) if room(name) == "reporting"])
def test_reporting_knows_files_on_disk_and_no_model(name):
    code = modules()[name].read_text(encoding="utf-8")
    models = [other for other in absolute(code, name.rpartition(".")[0]) if other.split(".")[0] in ("torch", "lightning_fabric")]
    models += [other for other in imported_by(name) if room(other) in ("layers", "methods", "training")]
    assert not models, f"{name} imports {', '.join(models)}"


def test_every_library_that_the_package_imports_is_a_declared_dependency():
    known = metadata.packages_distributions()
    required = [line for line in metadata.requires(PACKAGE) or []]
    always, extra = ({re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in required if wanted(line)}
                     for wanted in (lambda line: "extra ==" not in line, lambda line: "extra ==" in line and "pipeline" in line))
    assert {"torch", "numpy"} <= always and "papermill" in extra
    optional = {f"{PACKAGE}.training.checks": {"onnx", "onnxruntime"}, f"{PACKAGE}.training.recipe": {"dadaptation"}}  # extras; what uses them says so without
    assert set().union(*optional.values()) <= {re.match(r"[\w.-]+", line)[0] for line in required if "extra ==" in line}
    undeclared = []
    for name, path in modules().items():
        allowed = always | (extra | {"nbformat"} if name == f"{PACKAGE}.nbrun" else optional.get(name, set()))  # papermill brings nbformat
        for other in {other.split(".")[0] for other in absolute(path.read_text(encoding="utf-8"), name.rpartition(".")[0])}:
            sources = {source.lower().replace("_", "-") for source in known.get(other, [other])}
            if other not in sys.stdlib_module_names and other != PACKAGE and not sources & allowed:
                undeclared.append(f"{name}: {other}")
    assert not undeclared, f"add to the dependencies in pyproject.toml: {', '.join(undeclared)}"


def test_dotted_names_are_those_of_python():
    assert dotted(ROOT / PACKAGE / "core/files.py") == f"{PACKAGE}.core.files" and dotted(ROOT / PACKAGE / "core/__init__.py") == f"{PACKAGE}.core"
    assert set(FLOORS) >= {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}, "a folder of the package has no floor"


# --- what git holds --------------------------------------------------------------------------------------------------------------------

START = r"(?:(?<=\\[nrt])|(?<![\w.}\])*]))"  # of an absolute path; JSON writes the end of a line as \n
FOREIGN = {
    "a home folder": START + r"/(?:home|Users|root)/\w",
    "a work folder": START + r"/work/\w",
    "a folder of this machine": START + r"/opt/\w",
    "the host of a registry": r"\b(?:pypi[.]org|pythonhosted[.]org|download[.]pytorch[.]org|npmjs[.]org|anaconda[.]org)\b",
    "where pip looks for packages": r"find[-_]links|index[-_]url",
}


@pytest.mark.parametrize("example", ["see /ho" "me/ann/x", "'/wo" "rk/main'", "--find" "-links", "https://py" "pi.org/simple", "=/o" "pt/wheels", r"\n/wo" "rk/x"])
def test_the_search_for_foreign_places_finds_one(example):
    assert any(re.search(pattern, example) for pattern in FOREIGN.values())


@pytest.mark.parametrize("example", ["/work/\n", "work/nb/train.ipynb", "{root}/work/x", "/data/real/"])
def test_the_search_for_foreign_places_lets_paths_inside_the_clone_pass(example):
    assert not any(re.search(pattern, example) for pattern in FOREIGN.values())


def test_no_tracked_file_names_a_place_of_one_machine():
    found = []
    for path in tracked():
        text = path.read_bytes().decode("utf-8", "replace")
        found += [f"{names([path])[0]}: {what}: {match[0]}" for what, pattern in FOREIGN.items() if (match := re.search(pattern, text))]
    assert not found, "\n".join(found)


def test_no_tracked_picture_is_made_of_data_that_may_not_be_passed_on():
    refused = []
    for path in tracked():
        if path.suffix.lower() in PICTURES and not (allowed(path) and ".local" not in path.as_posix()):
            refused.append(names([path])[0])
    assert not refused, f"nothing proves that these may be passed on: {', '.join(refused)}"


def allowed(path):
    "Whether the record beside a picture says that its data may be passed on."
    parts = path.relative_to(ROOT).parts
    if parts[0] == "data":
        return parts[1] != "real" and record(path, "dataset.json").get("redistributable") is True
    if parts[0] == "runs":
        return record(path, "run.json").get("data", {}).get("redistributable") is True
    if parts[:2] == ("reports", "recorded"):
        return path.stem == "convergence"  # curves of numbers, see irstd_nb.reporting.sirst5k_figures
    if parts[0] == "reports":  # reports/<profile>/<paper>/figures/NAME.png draws the data set that params.yaml gives NAME
        params = load_params(ROOT / "params.yaml")
        drawn = params["figures"].get(path.stem.split(".")[0])
        if not drawn or "dataset" not in drawn:
            return bool(drawn)
        folder = (params["datasets"] | params["box_datasets"])[drawn["dataset"]]["folder"]
        return folder.startswith("work/simulated/") or record(ROOT / folder / "x", "dataset.json").get("redistributable") is True
    return False


def record(path, name):
    "The nearest record of that name in the folders above a file."
    found = next((folder / name for folder in path.parents if folder.is_relative_to(ROOT) and (folder / name).is_file()), None)
    return json.loads(found.read_text(encoding="utf-8")) if found else {}


def test_every_tracked_data_set_may_be_passed_on():
    folders = {path.parent.parent for path in tracked() if path.is_relative_to(ROOT / "data") and path.parent.name == "images"}
    refused = [name for folder, name in zip(folders, names(folders)) if record(folder / "x", "dataset.json").get("redistributable") is not True]
    assert folders and not refused, f"data sets without the right to pass them on: {', '.join(refused)}"


def test_constraints_pin_every_library_once_and_no_build_of_it():
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pinned = [re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in lines]
    assert len(set(pinned)) == len(pinned)
    required = {re.match(r"[\w.-]+", line)[0].lower().replace("_", "-") for line in metadata.requires(PACKAGE)} - {"irstd-nb"}
    assert required <= set(pinned), f"not pinned: {', '.join(sorted(required - set(pinned)))}"


def test_every_pinned_library_runs_on_the_first_release_of_python_3_11():
    pins = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if line and not line.startswith("#"))
    installed = {name: metadata.distribution(name).metadata for name in pins if any(metadata.distributions(name=name))}
    newer = [name for name, about in installed.items() if about["Version"].split("+")[0] == pins[name] and about["Requires-Python"]
             and not SpecifierSet(about["Requires-Python"]).contains("3.11.0")]
    assert len(installed) > 100 and not newer, f"pin an older release of {', '.join(newer)}"


def test_params_yaml_means_the_same_to_dvc_and_to_pyyaml():
    yaml = pytest.importorskip("yaml")
    from ruamel.yaml import YAML
    text = (ROOT / "params.yaml").read_text(encoding="utf-8")
    ours, theirs = YAML(typ="safe").load(text), yaml.safe_load(text)
    assert json.dumps(ours) == json.dumps(theirs), "write 1.0e-3 for 1e-3, quote words such as no and on"
