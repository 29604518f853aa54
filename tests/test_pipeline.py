"""The pipeline carried out with profile smoke in a clone of the working tree: what runs, what does not, and that two clones agree to the byte."""

import csv
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from imports import ROOT

from irstd_nb.core.params import load_params, set_entry

TABLES, FIGURES = "reports/smoke/pixelgame/tables", "reports/smoke/pixelgame/figures"
AFTER_ACM = ["evaluate@acm", "tables@pixelgame", "tables@sirst5k", "tables@ismallnet", "tables@bafe", "figures@pixelgame", "figures@sirst5k", "figures@ismallnet", "figures@bafe", "report"]
SECOND = ("acm", "ismallnet", "mdvsfa", "pixelgame", "aff-unet-s3"), ("pixelgame-fns",), ("tophat", "pstnn", "tllcm")  # networks, parts and classical methods of the second clone
pytestmark = pytest.mark.skipif(not (ROOT / ".git").exists(), reason="this copy is not a git repository")


def make_clone(folder, profile="smoke"):
    "A new repository with one commit: the files of the working tree that git tracks or would add."
    git = ["git", "-C", folder, "-c", "user.name=test", "-c", "user.email=test@localhost", "-c", "commit.gpgsign=false"]
    listed = subprocess.run(["git", "-C", ROOT, "ls-files", "-z", "--cached", "--others", "--exclude-standard"], capture_output=True, text=True, check=True)
    for name in filter(None, sorted(set(listed.stdout.split("\0")))):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    set_entry(folder / "params.yaml", ["profile"], profile)
    if profile == "smoke":  # its lock begins empty: DVC reads and writes the whole file for every stage
        (folder / "dvc.lock").unlink(missing_ok=True)
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-q", "-m", "all"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    return folder


def environment(clone):
    scripts = Path(sys.executable).parent
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("IRSTD_", "PAPERMILL"))}
    return clean | {"PATH": f"{scripts}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(clone), "PYTHONDONTWRITEBYTECODE": "1",
                    "DVC_NO_ANALYTICS": "1", "DVC_SITE_CACHE_DIR": str(clone.parent / f"{clone.name}-site"), "JUPYTER_PREFER_ENV_PATH": "1", "OMP_NUM_THREADS": "1"}


def dvc(clone, *words):
    done = subprocess.run([sys.executable, "-m", "dvc", *words], cwd=clone, env=environment(clone), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def repro(clone, *words):
    "Stages that `dvc repro` ran."
    return re.findall(r"Running stage '(.+)'", dvc(clone, "repro", *words))


def results(clone):
    "Every file of runs and reports of profile smoke, and the page."
    paths = [path for folder in ("runs/smoke", "reports/smoke") for path in (clone / folder).rglob("*") if path.is_file()]
    return {path.relative_to(clone).as_posix(): path.read_bytes() for path in [*paths, clone / "reports/index.html"]}


@pytest.fixture(scope="module")
def second(tmp_path_factory):
    "Another clone, in which a part of the pipeline was killed in training and goes on beside the first one's: folder, the process that goes on, what it says."
    clone = make_clone(tmp_path_factory.mktemp("second"))
    networks, parts, classical = SECOND
    stages = [*(f"evaluate@{key}" for key in networks), *(f"part@{key}" for key in parts), *(f"measure@{key}" for key in classical)]
    command = {"args": [sys.executable, "-m", "dvc", "repro", *stages], "cwd": clone, "env": environment(clone), "start_new_session": True}
    process = subprocess.Popen(**command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not training(clone):
        time.sleep(0.01)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the pipeline ended before it could be killed"
    said = clone.parent / f"{clone.name}.log"
    with open(said, "w") as file:
        process = subprocess.Popen(**command, stdout=file, stderr=subprocess.STDOUT)
    yield clone, process, said
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def first(second, tmp_path_factory):
    "A clone in which the pipeline ran once: folder, stages that ran, results."
    clone = make_clone(tmp_path_factory.mktemp("first"))
    ran = repro(clone)
    return clone, ran, results(clone)


def test_every_stage_runs_and_every_report_is_made(first):
    clone, ran, made = first
    params = load_params(clone / "params.yaml")
    papers = {spec["paper"] for spec in params["tables"].values()}
    assert sorted(ran) == sorted(["notebooks", "code", "report", *(f"figures@{paper}" for paper in {spec["paper"] for spec in params["figures"].values()}), *(f"tables@{paper}" for paper in papers), *(f"synthesize@{key}" for key in params["synthesis"]),
                                  *(f"{stage}@{key}" for key in params["networks"] for stage in ("train", "evaluate")), *(f"measure@{key}" for key in params["classical"]), *(f"part@{key}" for key in params["parts"]), *(f"simulate@{key}" for key in params["simulated"]),
                                  *(f"{stage}@{key}" for key in params["detectors"] for stage in ("train_boxes", "evaluate_boxes"))])
    assert {f"{TABLES}/pixelgame-VI.{suffix}" for suffix in ("csv", "md", "tex")} <= set(made) and f"{FIGURES}/pixelgame-predictions.png" in made
    page = made["reports/index.html"].decode()
    assert "smoke" in page and str(clone) not in page
    for suffix in ("md", "tex"):
        text = made[f"{TABLES}/pixelgame-VI.{suffix}"].decode()
        assert "smoke" in text and "ACM" in text and "Top-Hat" in text


def test_the_tables_hold_what_the_runs_measured(first):
    clone, _, made = first
    metrics = json.loads(made["runs/smoke/tophat/NUAA-SIRST/s0/metrics.json"])
    assert metrics["n_images"] == load_params(clone / "params.yaml")["profiles"]["smoke"]["test_images"]
    rows = list(csv.DictReader(made[f"{TABLES}/pixelgame-VI.csv"].decode().splitlines()))
    [ours] = [float(row["ours"]) for row in rows if (row["row"], row["dataset"], row["metric"]) == ("Top-Hat", "NUAA-SIRST", "iou")]
    assert ours == pytest.approx(metrics["iou"], abs=1e-6)


def test_git_sees_reports_and_runs_but_no_working_file(first):
    clone, _, _ = first
    changed = subprocess.run(["git", "-C", clone, "status", "--porcelain", "-uall"], capture_output=True, text=True, check=True).stdout.splitlines()
    names = [line[3:] for line in changed]
    assert names and all(name.startswith(("runs/smoke/", "reports/")) or name == "dvc.lock" for name in names), names


def test_a_second_repro_runs_nothing(first):
    clone, _, made = first
    assert repro(clone) == [] and results(clone) == made


def test_outputs_saved_in_a_pipeline_notebook_run_no_stage_but_the_stripping_one(first):
    clone, _, made = first
    path = clone / "nbs/pipeline/tables.ipynb"
    content = json.loads(path.read_text(encoding="utf-8"))
    cell = next(cell for cell in content["cells"] if cell["cell_type"] == "code")
    cell |= {"execution_count": 7, "outputs": [{"output_type": "stream", "name": "stdout", "text": ["saved in JupyterLab\n"]}]}
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    assert repro(clone) == ["notebooks"]
    assert repro(clone) == [] and results(clone) == made


def test_a_changed_parameter_of_one_network_runs_that_network_and_the_reports(first):
    clone, _, made = first
    text = (clone / "params.yaml").read_text(encoding="utf-8")
    set_entry(clone / "params.yaml", ["networks", "acm", "recipe"], {"learning_rate": 0.02})
    assert sorted(repro(clone)) == sorted(["train@acm", *AFTER_ACM])
    changed = results(clone)
    assert {name for name in made if made[name] != changed[name]} >= {"runs/smoke/acm/NUAA-SIRST/s0/history.csv", "runs/smoke/acm/NUST-SIRST/s0/run.json"}
    assert all(made[name] == changed[name] for name in made if name.startswith("runs/smoke/tophat/"))
    (clone / "params.yaml").write_text(text, encoding="utf-8")
    assert "train@acm" not in repro(clone), "weights of the earlier parameters are still in the cache"
    assert results(clone) == made


def training(clone):
    "Whether the stage `train` is at work: an epoch is done, or the first of its runs."
    return list((clone / "work").glob("checkpoints/*/checkpoint.pt")) or list((clone / "work").glob("smoke/trained/**/weights.safetensors"))


def test_a_pipeline_killed_in_training_heals_and_a_second_clone_agrees_to_the_byte(first, second):
    earlier, _, made = first
    clone, process, said = second
    assert process.wait() == 0, said.read_text()
    healed = re.findall(r"Running stage '(.+)'", said.read_text())
    assert any(name.startswith("train@") for name in healed) and not {"notebooks", "code", "synthesize@sim-nuaa"} & set(healed)
    keys = {key for kind in SECOND for key in kind}
    again, made = ({name: content for name, content in files.items() if name.split("/")[:2] == ["runs", "smoke"] and name.split("/")[2] in keys}
                   for files in (results(clone), made))
    assert set(again) == set(made) and {name.split("/")[2] for name in made} == keys
    differ = [name for name in made if made[name] != again[name]]
    assert not differ, f"not the same bytes: {', '.join(differ)}"
    assert not list(clone.glob("work/checkpoints/*")) and not list(clone.rglob("*.part"))
    other = [path.name for path in (clone / "work/smoke/trained").rglob("*.*") if path.read_bytes() != (earlier / path.relative_to(clone)).read_bytes()]
    assert not other, f"a clone that trains again would measure again, and git would show dvc.lock as changed: {', '.join(other)}"


def test_no_committed_result_is_stale(tmp_path):
    "In a fresh clone only the code-only notebooks and the lists of modules are made anew; `--dry` then names every stage whose committed results are out of date."
    if subprocess.run(["git", "-C", ROOT, "ls-files", "--error-unmatch", "dvc.lock"], capture_output=True).returncode:
        pytest.skip("dvc.lock is not committed yet")
    clone = make_clone(tmp_path / "clone", load_params(ROOT / "params.yaml")["profile"])
    dvc(clone, "repro", "-q", "notebooks", "code")
    assert not (names := stale(clone)), f"run dvc repro and commit what it changes; stale: {', '.join(names)}"
    module = clone / "irstd_nb/methods/acm.py"
    module.write_text(module.read_text(encoding="utf-8") + "\nchanged = True\n", encoding="utf-8")
    dvc(clone, "repro", "-q", "code")
    assert "train@acm" in stale(clone), "the check above cannot fail"


def stale(clone):
    "Stages that `dvc repro` would run; the dry run ends with an error at the first whose inputs only exist in the cache."
    done = subprocess.run([sys.executable, "-m", "dvc", "repro", "--dry", "--allow-missing"], cwd=clone, env=environment(clone), capture_output=True, text=True)
    names = re.findall(r"Running stage '(.+)'|failed to reproduce '(.+?)'", done.stdout + done.stderr)
    assert done.returncode == 0 or names, done.stdout + done.stderr
    return ["".join(name) for name in names]
