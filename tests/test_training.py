"""Training as real processes: killed, resumed, repeated, spread over processes; the weights are the same bytes each time."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from irstd_nb.core.errors import UserError
from irstd_nb.training.machine import Machine

IRSTD = [sys.executable, "-m", "irstd_nb.cli"]
RECIPE = {"epochs": 6, "crop": 48, "long_side": "null", "batch": 4, "optimiser": "adam", "learning_rate": 0.02, "on_target": 1, "validation": 0.25, "select": "last"}
ALONE = {key: value for key, value in os.environ.items() if not key.startswith("IRSTD_")} | {"OMP_NUM_THREADS": "1"}
RESULTS = ("weights.safetensors", "history.csv", "metrics.json", "counts.csv")


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "set"
    subprocess.run([*IRSTD, "data", "simulate", "sim-nuaa", folder, "--train", "16", "--test", "4", "--height", "96", "--width", "96"], check=True, env=ALONE)
    return folder


@pytest.fixture(scope="module")
def whole(data, tmp_path_factory):
    "A run that nobody interrupted."
    return trained(data, tmp_path_factory.mktemp("whole") / "run")


def command(data, out, **recipe):
    settings = [f"{key}={value}" for key, value in (RECIPE | recipe).items()]
    return [*IRSTD, "train", "acm", data, "--out", out, "--hyper", "widths=[4,8,16]", "blocks=1", "--recipe", *settings]


def finished(data, out, environment=None, **recipe):
    return subprocess.run(command(data, out, **recipe), env=ALONE | (environment or {}), capture_output=True, text=True)


def trained(data, out, environment=None, **recipe):
    done = finished(data, out, environment, **recipe)
    assert done.returncode == 0, done.stderr
    return out


def killed(data, out, moment, environment=None, **recipe):
    "Train until `moment(out)` and kill the whole process group."
    process = subprocess.Popen(command(data, out, **recipe), env=ALONE | (environment or {}), start_new_session=True, stdout=subprocess.DEVNULL)
    while process.poll() is None and not moment(out):
        time.sleep(0.001)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the training ended before it could be killed"
    assert not (out / "run.json").exists()
    return out


def checkpoints(out):
    return list(out.glob("unfinished/*/checkpoint.pt"))


def epochs(out):
    return [len(path.read_text().splitlines()) - 1 for path in out.glob("unfinished/*/history.csv")]


def same(out, whole):
    "Assert that two runs have the same results to the byte."
    for name in RESULTS:
        assert (out / name).read_bytes() == (whole / name).read_bytes(), f"{name} differs"


def clean(out):
    "Assert that a run left nothing but its results."
    # machine.json (device, wall time) is lost when the kill falls between run.json and it
    assert {path.relative_to(out).as_posix() for path in out.rglob("*")} - {"machine.json"} == {*RESULTS, "run.json"}


def after_an_epoch(out):
    "The first checkpoint is there: the epoch has ended."
    return bool(checkpoints(out))


def within_an_epoch(out):
    "Some way into the third epoch."
    if max(epochs(out), default=0) < 2:
        return False
    time.sleep(0.03)
    return True


def before_the_first_checkpoint(out):
    return bool(list(out.glob("unfinished/*/history.csv"))) and not checkpoints(out)


def while_a_checkpoint_is_written(out):
    "A part of a checkpoint exists beside the one that it will replace."
    return bool(checkpoints(out) and list(out.glob("unfinished/*/.checkpoint.pt.*.part")))


@pytest.mark.parametrize("moment", [after_an_epoch, within_an_epoch, before_the_first_checkpoint, while_a_checkpoint_is_written], ids=lambda m: m.__name__)
def test_a_killed_training_goes_on_to_the_same_bytes(moment, data, whole, tmp_path):
    out = trained(data, killed(data, tmp_path / "run", moment))
    same(out, whole)
    clean(out)


def test_a_training_killed_three_times_ends_with_the_same_bytes(data, whole, tmp_path):
    out = tmp_path / "run"
    for reached in (1, 3, 4):
        killed(data, out, lambda out: max(epochs(out), default=0) >= reached)
    assert max(epochs(out)) < RECIPE["epochs"]
    same(trained(data, out), whole)
    clean(out)


def test_the_training_above_learns_so_that_equal_bytes_mean_something(whole):
    losses = [float(line.split(",")[2]) for line in (whole / "history.csv").read_text().splitlines()[1:]]
    assert len(losses) == RECIPE["epochs"] and len(set(losses)) == len(losses)
    assert json.loads((whole / "run.json").read_text())["selected_epoch"] == RECIPE["epochs"]


def test_another_seed_gives_other_weights(data, whole, tmp_path):
    done = subprocess.run([*command(data, tmp_path / "run"), "--seed", "1"], env=ALONE, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run/weights.safetensors").read_bytes() != (whole / "weights.safetensors").read_bytes()


def test_mixed_precision_goes_on_to_the_same_bytes(data, whole, tmp_path):
    unbroken = trained(data, tmp_path / "unbroken", precision="bf16-mixed")
    same(trained(data, killed(data, tmp_path / "run", within_an_epoch, precision="bf16-mixed"), precision="bf16-mixed"), unbroken)
    assert (unbroken / "weights.safetensors").read_bytes() != (whole / "weights.safetensors").read_bytes()


def test_the_selected_epoch_survives_a_kill(data, tmp_path):
    "The best epoch may lie before the kill; its weights must be kept."
    unbroken = trained(data, tmp_path / "unbroken", select="best", batch=2)
    out = trained(data, killed(data, tmp_path / "run", lambda out: max(epochs(out), default=0) >= 4, select="best", batch=2), select="best", batch=2)
    same(out, unbroken)
    assert all(json.loads((folder / "run.json").read_text())["selected_epoch"] < 5 for folder in (unbroken, out)), "choose a recipe whose best epoch is an early one"


def test_a_changed_recipe_starts_afresh(data, tmp_path):
    out = killed(data, tmp_path / "run", within_an_epoch, learning_rate=0.01)
    same(trained(data, out), trained(data, tmp_path / "fresh"))


def test_changed_data_start_afresh(data, tmp_path):
    copy = tmp_path / "set"
    shutil.copytree(data, copy)
    out = killed(copy, tmp_path / "run", within_an_epoch)
    ids = (copy / "splits/train.txt").read_text().split()
    (copy / "splits/train.txt").write_text("\n".join(ids[:-4]) + "\n")
    same(trained(copy, out), trained(copy, tmp_path / "fresh"))


def test_a_finished_run_is_not_repeated(data, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = (out / "weights.safetensors").stat().st_mtime_ns
    said = finished(data, out)
    assert said.returncode == 0 and "native size: 4 images" in said.stdout
    assert (out / "weights.safetensors").stat().st_mtime_ns == before, "the weights were written again"
    assert (out / "run.json").read_bytes() == (whole / "run.json").read_bytes()
    same(out, whole)
    clean(out)


def test_a_run_killed_before_its_last_clean_up_is_tidied_and_not_repeated(data, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    before = (out / "weights.safetensors").stat().st_mtime_ns
    waiting = out / "unfinished" / json.loads((out / "run.json").read_text())["identity"][:16]
    waiting.mkdir(parents=True, exist_ok=True)
    for name in ("checkpoint.pt", ".checkpoint.pt.abc.part"):
        (waiting / name).write_bytes(b"left behind")
    (out / ".weights.safetensors.abc.part").write_bytes(b"left behind")
    trained(data, out)
    assert (out / "weights.safetensors").stat().st_mtime_ns == before
    same(out, whole)
    clean(out)


def test_a_finished_run_whose_weights_were_damaged_is_repeated(data, whole, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(whole, out)
    (out / "weights.safetensors").write_bytes((whole / "weights.safetensors").read_bytes()[:-8] + bytes(8))
    same(trained(data, out), whole)


def test_a_corrupt_checkpoint_gives_one_line(data, whole, tmp_path):
    out = killed(data, tmp_path / "run", after_an_epoch)
    [checkpoint] = checkpoints(out)
    content = checkpoint.read_bytes()
    for damaged in (content[:len(content) // 2], b"", b"not a checkpoint"):
        checkpoint.write_bytes(damaged)
        done = finished(data, out)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"{checkpoint}: cannot be read as a checkpoint (") and done.stderr.endswith("); delete it to start again\n")
        assert len(done.stderr.splitlines()) == 1
    checkpoint.unlink()
    same(trained(data, out), whole)


def test_a_diverging_training_gives_one_line(data, tmp_path):
    done = finished(data, tmp_path / "run", learning_rate="1e9")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("training: diverged in epoch ") and done.stderr.endswith(": the loss is not finite; lower recipe.learning_rate\n")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "run/weights.safetensors").exists()


def test_loader_processes_do_not_change_the_weights(data, whole, tmp_path):
    same(trained(data, tmp_path / "run", {"IRSTD_WORKERS": "2"}), whole)


def test_two_processes_train_one_network_and_write_one_result(data, tmp_path):
    runs = [finished(data, tmp_path / name, {"IRSTD_DEVICES": "2"}, epochs=2) for name in ("first", "second")]
    assert all(run.returncode == 0 for run in runs), runs[0].stderr + runs[1].stderr
    assert runs[0].stdout.count("native size: 4 images") == 1, "only one process measures and speaks"
    for name in ("first", "second"):
        clean(tmp_path / name)
    same(tmp_path / "first", tmp_path / "second")
    assert json.loads((tmp_path / "first/run.json").read_text())["recipe"]["epochs"] == 2


@pytest.mark.slow
def test_two_processes_go_on_after_a_kill(data, tmp_path):
    both = {"IRSTD_DEVICES": "2"}
    unbroken = trained(data, tmp_path / "unbroken", both, epochs=4)
    out = killed(data, tmp_path / "run", within_an_epoch, both, epochs=4)
    same(trained(data, out, both, epochs=4), unbroken)


@pytest.mark.parametrize("name, value", [("IRSTD_DEVICES", "two"), ("IRSTD_DEVICES", "0"), ("IRSTD_WORKERS", "-1"), ("IRSTD_ACCELERATOR", "gpu0")])
def test_a_wrong_machine_setting_is_named(name, value, monkeypatch):
    monkeypatch.setenv(name, value)
    with pytest.raises(UserError) as caught:
        Machine.from_environment().fabric("32-true")
    assert caught.value.where == name and len(str(caught.value).splitlines()) == 1


def test_the_result_says_what_made_it(data, whole):
    record = json.loads((whole / "run.json").read_text())
    assert record["hyper"]["widths"] == [4, 8, 16] and record["recipe"]["learning_rate"] == RECIPE["learning_rate"]
    assert record["images"] == {"train": 12, "validation": 4, "test": 4} and set(record["versions"]) >= {"torch", "numpy", "python"}
    assert str(Path(data).parent) not in json.dumps(record)
