"""The command `irstd` as a new user meets it: help everywhere, and one line for every mistake."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from imports import ROOT

from irstd_nb.cli import main
from irstd_nb.core.images import write_png
from irstd_nb.core.params import load_params
from irstd_nb.data.samples import open_dataset, write_dataset

VERBS = [[], ["data"], ["data", "list"], ["data", "import"], ["data", "download"], ["data", "check"], ["data", "statistics"],
         ["data", "simulate"], ["data", "sirst5k"], ["data", "densify"], ["data", "sky"], ["methods"], ["train"], ["evaluate"], ["predict"], ["score"], ["compare"],
         ["coverage"], ["record"], ["benchmark"], ["doctor"]]
SMALL = ["--hyper", "widths=[4,8,16]", "blocks=1", "--recipe", "crop=32", "batch=2", "epochs=1"]  # trains in a moment, should a mistake go unseen


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    "A folder with a sound data set, one whose training list has one image, one without images, and a weights folder of other hyper-parameters."
    root = tmp_path_factory.mktemp("made")
    scene = lambda i: (f"im_{i}", np.random.default_rng(i).integers(0, 256, (48, 48), dtype=np.uint8), np.pad(np.ones((3, 3), bool), ((20, 25), (10 + i, 35 - i))), None)
    write_dataset(root / "set", "mine", [scene(i) for i in range(8)], {"train": [f"im_{i}" for i in range(5)], "test": ["im_5", "im_6", "im_7"]}, {})
    write_dataset(root / "one", "mine", [scene(i) for i in range(3)], {"train": ["im_0"], "test": ["im_1", "im_2"]}, {})
    write_dataset(root / "none", "mine", [], {"train": [], "test": []}, {})
    write_dataset(root / "unlisted", "mine", [scene(0)], {"all": ["im_0"]}, {})
    (root / "file").write_text("not a folder")
    (root / "weights").mkdir()
    (root / "weights/weights.safetensors").write_bytes(b"no weights")
    (root / "broken.zip").write_bytes(b"PK not a zip file")
    return root


@pytest.fixture
def outside(made, tmp_path, monkeypatch):
    "The working folder is a copy of `made`, outside any clone."
    shutil.copytree(made, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.fixture
def clone(outside):
    "The same folder with what makes it a clone: params.yaml and dvc.yaml."
    for name in ("params.yaml", "dvc.yaml"):
        shutil.copy(ROOT / name, outside / name)
    return outside


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def run(*words, **options):
    return subprocess.run([sys.executable, "-m", "irstd_nb.cli", *words], capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"}, **options)


# --- help --------------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", VERBS, ids=lambda verb: " ".join(verb) or "irstd")
def test_help_is_printed(verb, capsys):
    with pytest.raises(SystemExit) as stop:
        main([*verb, "--help"])
    said = capsys.readouterr()
    assert stop.value.code == 0 and said.err == "" and said.out.startswith(f"usage: irstd{' ' if verb else ''}{' '.join(verb)}") and "--help" in said.out


def test_the_help_of_every_verb_is_tested(capsys):
    for group in ([], ["data"]):
        with pytest.raises(SystemExit):
            main([*group, "--help"])
        listed = {line.split()[0] for line in capsys.readouterr().out.splitlines() if line.startswith("    ") and line[4:5].strip()}
        assert listed == {verb[-1] for verb in VERBS if len(verb) == len(group) + 1 and verb[:len(group)] == group}


def test_data_sets_and_methods_are_listed(capsys):
    assert main(["data", "list"]) == 0 and main(["methods"]) == 0
    said = capsys.readouterr().out
    assert "NUAA-SIRST" in said and "427 images" in said and "tophat: Top-Hat (classical" in said and "acm: ACM (network" in said


# --- mistakes ----------------------------------------------------------------------------------------------------------------------------

TRAIN, MEASURE = ["train", "acm", "set", "--out", "out", *SMALL], ["evaluate", "tophat", "set", "--out", "out"]
MISTAKES = {
    "unknown method": (["train", "akm", "set", "--out", "out"], "akm: unknown method; did you mean acm"),
    "unknown training list": ([*TRAIN, "--train", "trian"], "trian: unknown split of mine; did you mean train?"),
    "unknown test list": ([*TRAIN, "--test", "tset"], "tset: unknown split of mine; did you mean test?"),
    "unknown test list of a classical method": ([*MEASURE, "--test", "tset"], "tset: unknown split of mine; did you mean test?"),
    "no pair of lists": (["train", "acm", "unlisted", "--out", "out", *SMALL], "unlisted: has no pair of lists train and test, only all; name them: --train LIST --test LIST"),
    "a policy that is none": ([*MEASURE, "--decision", "mean_std(val)"], "'mean_std(val)': is not a decision rule"),
    "a rule without a constant": ([*MEASURE, "--decision", "peak_or_mean(train)"], "'peak_or_mean(train)': has no constant to choose"),
    "unknown objective": ([*TRAIN, "objective=sfot_iou"], "sfot_iou: unknown objective; did you mean soft_iou"),
    "unknown recipe entry": ([*TRAIN, "epoch=3"], "epoch: unknown entry of a recipe; did you mean epochs?"),
    "unknown optimiser": ([*TRAIN, "optimiser=adan"], "adan: unknown optimiser of a recipe; did you mean adam"),
    "word for a number of epochs": ([*TRAIN, "epochs=three"], "recipe.epochs: is"),
    "fraction of an epoch": ([*TRAIN, "epochs=1.5"], "recipe.epochs: is 1.5"),
    "nothing for a number of epochs": ([*TRAIN, "epochs="], "recipe.epochs: is"),
    "no epochs": ([*TRAIN, "epochs=0"], "recipe.epochs: is 0"),
    "word for a learning rate": ([*TRAIN, "learning_rate=high"], "recipe.learning_rate: is"),
    "word for a crop": ([*TRAIN, "crop=large"], "recipe.crop: is"),
    "list for an optimiser": ([*TRAIN, "optimiser=[adam]"], "recipe.optimiser: is"),
    "one number for a range of sides": ([*TRAIN, "long_side=300"], "recipe.long_side: is 300"),
    "words for a range of sides": ([*TRAIN, "long_side=[small,large]"], "recipe.long_side: is ('small', 'large')"),
    "tiny crop": ([*TRAIN, "crop=2"], "crop"),
    "not a setting": (["train", "acm", "set", "--out", "out", "--recipe", "epochs"], "epochs: is not a setting; write name=value, e.g. epochs=200"),
    "unfinished list": (["train", "acm", "set", "--out", "out", "--hyper", "widths=[4,"], "widths=[4,: is not a setting; write name=value"),
    "unknown hyper-parameter": ([*TRAIN, "--hyper", "widht=[4,8,16]"], "widht: unknown hyper-parameter of acm; did you mean widths?"),
    "word for a hyper-parameter": ([*TRAIN, "--hyper", "widths=wide"], "acm: cannot be built with {'widths': 'wide'}"),
    "fraction of a channel": ([*TRAIN, "--hyper", "widths=[4.5,8,16]", "blocks=1"], "acm: cannot be built with {'widths'"),
    "even window": ([*MEASURE, "--hyper", "size=4"], "tophat: cannot be built with {'size': 4} (size must be odd and positive, not 4)"),
    "not a data set": (["train", "acm", ".", "--out", "out", *SMALL], ".: has no folder images/; bring the data in with `irstd data import NAME FOLDER`"),
    "file for a data set": (["evaluate", "tophat", "file", "--out", "out"], "file: is not a data set folder"),
    "missing data set": (["evaluate", "tophat", "nowhere", "--out", "out"], "nowhere: is not a data set folder"),
    "empty data set": (["train", "acm", "none", "--out", "out", *SMALL], "none: has an empty list train; "),
    "empty data set, measured": (["evaluate", "tophat", "none", "--out", "out"], "none: has an empty list of images"),
    "one training image": (["train", "acm", "one", "--out", "out", *SMALL], "training list: has 1 image, too few"),
    "one training image, none held out": (["train", "acm", "one", "--out", "out", *SMALL, "validation=0"], "a batch of 1 image"),
    "one image a step": ([*TRAIN, "batch=1"], "a batch of 1 image"),
    "classical method trained": (["train", "tophat", "set", "--out", "out"], "tophat: is a classical method and has nothing to train; evaluate it directly"),
    "network without weights": (["evaluate", "acm", "set", "--out", "out"], "acm: is a network and needs weights; name the folder that `irstd train` wrote: --trained FOLDER"),
    "missing weights": (["evaluate", "acm", "set", "--out", "out", "--trained", "nowhere"], f"nowhere{os.sep}weights.safetensors: does not exist"),
    "broken weights": (["evaluate", "acm", "set", "--out", "out", "--trained", "weights"], f"weights{os.sep}weights.safetensors: is not a safetensors file"),
    "file for --out": (["evaluate", "tophat", "set", "--out", "file"], "file"),
    "file above --out": (["evaluate", "tophat", "set", "--out", "file/out"], "file"),
    "file for --out of a training": (["train", "acm", "set", "--out", "file", *SMALL], "file"),
    "import of nothing": (["data", "import", "mine", "nowhere", "--into", "out"], "nowhere: does not exist; check the path"),
    "import of a file": (["data", "import", "mine", "file", "--into", "out"], "file: is neither a folder nor a zip file"),
    "import of a broken archive": (["data", "import", "mine", "broken.zip", "--into", "out"], "broken.zip: "),
    "import with no place to go": (["data", "import", "mine", "set"], "mine: has no place to go, because this folder is not inside a clone of irstd_nb; name one: --into FOLDER"),
    "import over a file": (["data", "import", "mine", "set", "--into", "file"], "file"),
    "import into itself": (["data", "import", "mine", "set", "--into", "set"], "set"),
    "download of an unknown set": (["data", "download", "NUAA-SIRT", "--into", "out"], "NUAA-SIRT: unknown"),
    "check of nothing": (["data", "check", "nowhere"], "nowhere: does not exist; check the path"),
    "unknown preset": (["data", "simulate", "sim-nuua", "out"], "sim-nuua: unknown scene preset"),
    "simulation over a file": (["data", "simulate", "sim-nuaa", "file"], "file: exists and is not a folder"),
    "no simulated images": (["data", "simulate", "sim-nuaa", "out", "--train", "0", "--test", "0"], ""),
    "fewer simulated images than none": (["data", "simulate", "sim-nuaa", "out", "--train", "-1"], ""),
    "simulated images too small": (["data", "simulate", "sim-nuaa", "out", "--height", "8"], "size 8×128: is too small"),
    "comparison outside a clone": (["compare"], "is not inside a clone of irstd_nb"),
}


@pytest.mark.parametrize("words, expected", MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_gives_one_line_and_changes_nothing(words, expected, outside, capsys):
    before = files(outside)
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and said.err.endswith("\n"), said
    assert expected in said.err and "; " in said.err, "what is wrong; what to do"
    assert files(outside) == before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
@pytest.mark.parametrize("words", [MEASURE, TRAIN], ids=["evaluate", "train"])
def test_a_folder_that_may_not_be_written_gives_one_line(words, outside, capsys):
    (outside / "out").mkdir(mode=0o555)
    assert main(words) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "out" in said.err


def test_a_folder_that_the_system_refuses_to_write_gives_one_line(outside, capsys, monkeypatch):
    "The case above for root, who may write everywhere."
    true_mkdir = os.mkdir

    def refuse(path, *rest, **options):
        if Path(path).name == "out":
            raise PermissionError(13, "Permission denied", str(path))
        return true_mkdir(path, *rest, **options)

    monkeypatch.setattr(os, "mkdir", refuse)
    assert main(MEASURE) == 1
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1 and "out" in said.err


def test_as_a_process_a_mistake_has_exit_status_1_and_no_traceback(outside):
    done = run("train", "akm", "set", "--out", "out", cwd=outside)
    assert (done.returncode, done.stdout, done.stderr) == (1, "", "akm: unknown method; did you mean acm or nram or admd?\n")


def test_a_missing_word_is_answered_with_the_usage(outside, capsys):
    for words in ([], ["data"], ["train"], ["data", "import"], ["nonsense"]):
        with pytest.raises(SystemExit) as stop:
            main(words)
        said = capsys.readouterr()
        assert stop.value.code == 2 and said.err.startswith("usage: irstd") and "Traceback" not in said.err


def test_output_into_a_pipe_that_closes_gives_no_traceback(outside):
    done = subprocess.run(f"{sys.executable} -m irstd_nb.cli methods | head -n 0", shell=True, cwd=outside, capture_output=True, text=True)
    assert done.stderr == ""


# --- what works --------------------------------------------------------------------------------------------------------------------------


def test_a_classical_method_is_measured(outside, capsys):
    assert main(MEASURE) == 0
    said = capsys.readouterr()
    assert said.out.startswith("tophat@mine#0, list test, native size: 3 images, 3 targets; decision peak_or_mean\n") and said.err == ""
    assert {path.name for path in (outside / "out").iterdir()} >= {"metrics.json", "counts.csv", "run.json"}


def test_a_threshold_is_learned_on_the_training_list_and_every_policy_is_measured(outside, capsys):
    assert main([*MEASURE, "--decision", "mean_std(train)", "--policies", "--no-sweep", "--jobs", "2"]) == 0
    record, policies = (json.loads((outside / "out" / name).read_text()) for name in ("run.json", "policies.json"))
    assert f"decision mean_std(train) = {record['rule']}\n" in capsys.readouterr().out and record["rule"] == policies["mean_std(train)"]["rule"]
    assert set(policies) == {"peak_or_mean", "mean_std(train)", "fraction(train)", "mean_std(test)", "fraction(test)"}
    assert policies["mean_std(test)"]["f1"] >= policies["mean_std(train)"]["f1"] == json.loads((outside / "out/metrics.json").read_text())["f1"]
    assert {line.split(",")[0] for line in (outside / "out/counts.csv").read_text().splitlines()[1:]} == {"decision"}


def test_trained_weights_are_measured_with_the_hyper_parameters_that_they_were_trained_with(outside, capsys):
    assert main(TRAIN) == 0
    trained = capsys.readouterr().out.splitlines()
    assert main(["evaluate", "acm", "set", "--out", "again", "--trained", "out"]) == 0
    assert capsys.readouterr().out.splitlines()[:-1] == trained[:-1]
    assert (outside / "again/metrics.json").read_bytes() == (outside / "out/metrics.json").read_bytes()


def test_a_folder_of_images_is_searched_with_a_classical_method_and_with_trained_weights(outside, capsys):
    (outside / "set/images/broken.png").write_bytes(b"no image")
    assert main(["predict", "set/images", "-m", "tophat", "-o", "found", "--jobs", "1"]) == 1
    said = capsys.readouterr()
    assert said.out.startswith("8 images, ") and said.err.startswith("left out: broken (") and "Traceback" not in said.err
    assert {path.name for path in (outside / "found").iterdir()} == {"masks", "scores", "overlays", "detections.csv", "boxes.json", "predict.json"}
    assert main(["score", "found/scores", "set", "--list", "test", "--rule", "fraction(0.5)"]) == 0
    assert main(TRAIN) == 0
    assert main(["predict", "set/images/im_0.png", "-m", "out", "-o", "mine", "--write"]) == 0
    assert json.loads((outside / "mine/predict.json").read_text())["hyper"]["widths"] == [4, 8, 16] and not (outside / "mine/masks").exists()


def test_benchmark_puts_methods_into_one_table_and_keeps_what_it_could_measure(outside, capsys):
    assert main(["benchmark", "set", "-m", "tophat,tophta", "-o", "bench"]) == 1
    printed = capsys.readouterr().out
    assert "tophat" in printed and "tophta" in printed and "list test" in printed
    rows = {row["method"]: row for row in csv.DictReader((outside / "bench/benchmark.csv").read_text().splitlines())}
    assert rows["tophat"]["iou"] and "did you mean tophat" in rows["tophta"]["problem"]


def test_doctor_names_versions_and_the_place(capsys):
    assert main(["doctor"]) in (0, 1)
    printed = capsys.readouterr().out
    assert "torch" in printed and "profile" in printed


def test_check_of_a_sound_folder_is_good(outside, capsys):
    assert main(["data", "check", "set"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[-1] == "set: good" and said.err == ""


def test_check_of_a_broken_folder_names_every_fault(outside, capsys):
    write_png(outside / "set/masks/im_1.png", np.zeros((5, 5), bool))
    (outside / "set/masks/im_3.png").unlink()
    (outside / "set/splits/test.txt").write_text("im_0\nim_6\n")
    assert main(["data", "check", "set"]) == 1
    lines = capsys.readouterr().out.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) >= 3 and all("; " in line for line in errors) and lines[-1] == f"set: {len(errors)} errors"
    assert all(any(name in line for line in errors) for name in ("masks/im_1.png", "im_3.png", "splits/test.txt"))


def test_an_import_inside_a_clone_points_params_at_the_set_and_keeps_every_comment(clone, capsys):
    before = (clone / "params.yaml").read_text(encoding="utf-8")
    assert main(["data", "import", "nuaa-sirst", "set"]) == 0
    said = capsys.readouterr().out
    assert "NUAA-SIRST: 8 images" in said and "params.yaml: NUAA-SIRST is now data/real/NUAA-SIRST, trained on train, tested on test; next: dvc repro" in said
    after = (clone / "params.yaml").read_text(encoding="utf-8")
    changed = [(old, new) for old, new in zip(before.splitlines(), after.splitlines()) if old != new]
    assert len(before.splitlines()) == len(after.splitlines()) and len(changed) == 1 and changed[0][0].strip().startswith("NUAA-SIRST:")
    assert load_params(clone / "params.yaml")["datasets"]["NUAA-SIRST"] == {"folder": "data/real/NUAA-SIRST", "train": "train", "test": "test"}
    assert open_dataset(clone / "data/real/NUAA-SIRST").ids == open_dataset(clone / "set").ids


def test_a_second_import_replaces_the_first(clone):
    assert main(["data", "import", "NUAA-SIRST", "set"]) == main(["data", "import", "NUAA-SIRST", "one"]) == 0
    assert len(open_dataset(clone / "data/real/NUAA-SIRST").ids) == 3
    assert [path.name for path in (clone / "data/real").iterdir()] == ["NUAA-SIRST"]


@pytest.mark.parametrize("words", [["import", "NUAA-SIRST", "set", "--keep-params"], ["import", "of-my-own", "set"], ["import", "NUAA-SIRST", "unlisted"]],
                         ids=["asked to", "not in params", "no lists"])
def test_an_import_leaves_params_alone(words, clone, capsys):
    before = (clone / "params.yaml").read_bytes()
    assert main(["data", *words]) == 0
    assert (clone / "params.yaml").read_bytes() == before
    assert (clone / "data/real" / words[1] / "images").is_dir()


def test_an_import_from_a_folder_within_the_clone_finds_the_clone(clone, monkeypatch):
    (clone / "nbs").mkdir()
    monkeypatch.chdir(clone / "nbs")
    assert main(["data", "import", "NUAA-SIRST", "../set"]) == 0
    assert load_params(clone / "params.yaml")["datasets"]["NUAA-SIRST"]["folder"] == "data/real/NUAA-SIRST"


def test_a_failed_import_leaves_params_alone(clone):
    before = files(clone)
    (clone / "set/masks/im_3.png").unlink()
    assert main(["data", "import", "NUAA-SIRST", "set"]) == 1
    assert {name: content for name, content in before.items() if name.name != "im_3.png"} == {name: content for name, content in files(clone).items() if name.name != "im_3.png"}


# --- the real data set -------------------------------------------------------------------------------------------------------------------


@pytest.mark.real
def test_top_hat_on_the_real_set_counts_the_published_images_and_targets(clone, capsys):
    source = Path(os.environ.get("IRSTD_DATA", ROOT.parent / "shared" / "data")) / "NUAA-SIRST"
    if not source.is_dir():
        pytest.skip("no copy of NUAA-SIRST in $IRSTD_DATA or ../shared/data")
    assert main(["data", "import", "NUAA-SIRST", str(source)]) == 0
    assert "tested on dnanet_50_50/test" in capsys.readouterr().out
    assert main(["evaluate", "tophat", "data/real/NUAA-SIRST", "--test", "dnanet_50_50/test", "--out", "out"]) == 0
    assert capsys.readouterr().out.startswith("tophat@NUAA-SIRST#0, list dnanet_50_50/test, native size: 214 images, 263 targets; decision peak_or_mean\n")
    metrics = json.loads((clone / "out/metrics.json").read_text())
    assert (metrics["n_images"], metrics["n_targets"]) == (214, 263) and 0 < metrics["iou"] < 1 and 0 < metrics["pd"] < 1
    assert not list((clone / "out").glob("examples/*")), "pictures of data that may not be passed on are kept apart"
