"""`irstd score` on folders made by hand: the numbers of each paper, worked out on paper, and one line for every mistake."""

import io
import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from types import SimpleNamespace

import numpy as np
import pytest
from imports import ROOT
from PIL import Image

from irstd_nb.cli import main
from irstd_nb.core.images import write_png
from irstd_nb.data.samples import write_dataset

SIZE = (8, 8)
TRUTH = {"a": [(1, 1)], "b": [(3, 3)], "c": []}
FOUND = {"a": [(1, 1), (6, 6)], "b": [(r, c) for r in (2, 3, 4) for c in (2, 3, 4)], "c": []}  # a: one alarm; b: one target as a blob of 9 pixels


def process(*words, folder):
    "The command as a user runs it."
    here = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    return subprocess.run([sys.executable, "-m", "irstd_nb.cli", "score", *words], capture_output=True, text=True, cwd=folder, env=here)


def run(*words, folder):
    "The same without the half second that a process takes to start; `test_a_process_says_the_same` ties the two together."
    said, complained, before = io.StringIO(), io.StringIO(), os.getcwd()
    os.chdir(folder)
    try:
        with redirect_stdout(said), redirect_stderr(complained):
            status = main(["score", *words])
    finally:
        os.chdir(before)
    return SimpleNamespace(returncode=status, stdout=said.getvalue(), stderr=complained.getvalue())


def drawn(pixels, value=True, size=SIZE):
    map = np.zeros(size, type(value) if value is not True else bool)
    for pixel in pixels:
        map[pixel] = value
    return map


def scored(folder, *words, preset):
    "The columns of a preset, by label (and reading), from the JSON file; the text must hold them, too."
    done = run("pred", "masks", "--preset", preset, "--json", "out.json", *words, folder=folder)
    assert done.returncode == 0, done.stderr
    found = json.loads((folder / "out.json").read_text())
    columns = {(c["label"], c["reading"]) if c["reading"] else c["label"]: c["value"] for c in found["presets"][0]["columns"]}
    for column in found["presets"][0]["columns"]:
        if column["value"] is not None:
            assert f"{column['value']:.{4 if column['scale'] == 1 else 2}f}" in done.stdout
    return columns, found, done.stdout


def close(found, **expected):
    assert found.keys() == expected.keys() and np.allclose([*found.values()], [expected[name] for name in found], rtol=1e-9), found


@pytest.fixture
def three(tmp_path):
    "Three masks as PNG files, and three predictions as binary PNG files."
    for id in TRUTH:
        write_png(tmp_path / "masks" / f"{id}_pixels0.png", drawn(TRUTH[id]))
        write_png(tmp_path / "pred" / f"{id}_pred.png", drawn(FOUND[id]))
    return tmp_path


@pytest.fixture
def arrays(three):
    "The same with probabilities 0.99 as .npy files, and a pixel of 0.01 in the empty image."
    for id in TRUTH:
        (three / "pred" / f"{id}_pred.png").unlink()
        np.save(three / "pred" / f"{id}.npy", drawn(FOUND[id], 0.99) + (drawn([(0, 0)], 0.01) if id == "c" else 0))
    return three


# --- numbers -----------------------------------------------------------------------------------------------------------------------------


def test_the_recommended_definitions_by_hand(three):
    # TP 2, FP 1 + 8, FN 0; images with a union: 1/2 and 1/9; false pixels: 1 of 192
    columns, found, text = scored(three, preset="standard")
    close(columns, IoU=200 / 11, nIoU=1100 / 36, Precision=200 / 11, Recall=100, F1=400 / 13, Pd=100, Fa=1e6 / 192)
    preset = found["presets"][0]
    assert (preset["n_images"], preset["n_targets"], preset["n_empty"], preset["pixels"]) == (3, 2, 1, 192)
    assert "3 images, 2 targets, 1 image with neither target nor prediction, 192 pixels" in text and "predictions are masks already" in text
    assert "per_image" not in found and len(found["presets"]) == 1


@pytest.mark.parametrize("preset, expected", {
    "dnanet": {"mIoU": 200 / 11, "Pd": 100, "Fa": 0},  # 256×256; the alarm has the area of the target in its image and is dropped
    "sirst5k": {"IoU": 200 / 11, "Pd": 100, "Fa": 0},
    "basicirstd": {"mIoU": 200 / 11, "Pd": 100, "Fa": 1e6 / 192},
    "sctransnet": {"mIoU": 200 / 11, "nIoU": 1100 / 54, "F1": 400 / 13, "Pd": 100, "Fa": 0},
    "acm": {"IoU": 2 / 11, "nIoU": 11 / 54},           # the empty image counts 0
    "ismallnet": {"mIoU": 1100 / 54, "Precision": 1100 / 54, "Recall": 200 / 3, "F1-score": 2 * (1100 / 54) * (200 / 3) / (1100 / 54 + 200 / 3)}}.items())
def test_a_papers_columns_by_hand(three, preset, expected):
    columns, found, _ = scored(three, preset=preset)
    close(columns, **expected)
    assert [p["preset"] for p in found["presets"]] == [preset, "standard"] and np.isclose(found["presets"][1]["metrics"]["iou"], 2 / 11)


def test_low_thresholds_and_soft_readings_by_hand(arrays):
    columns, _, _ = scored(arrays, preset="ismallnet")  # 0.01 > 0.002 is an alarm in the empty image: same means, another reason
    close(columns, **{"mIoU": 1100 / 54, "Precision": 1100 / 54, "Recall": 200 / 3, "F1-score": 2 * (1100 / 54) * (200 / 3) / (1100 / 54 + 200 / 3)})
    columns, _, _ = scored(arrays, preset="pixelgame")
    tp, said, true = 2 * 0.99, 11 * 0.99 + 0.01, 2
    soft = {"Precision": tp / said, "Recall": tp / true, "F1": 2 * tp / (said + true), "IoU": tp / (said + true - tp)}
    one, two = 0.99 / (1.98 + 1 - 0.99), 0.99 / (8.91 + 1 - 0.99)
    assert np.allclose([columns[name, "soft, over the set"] for name in soft], [*soft.values()])
    assert np.isclose(columns["IoU", "soft, mean over images"], (one + two + 0) / 3)  # 0.01 on an empty image is a union, so it counts 0
    assert np.isclose(columns["IoU", "above 0.5, over the set"], 2 / 11) and np.isclose(columns["IoU", "above 0.5, mean over images"], 11 / 36)
    columns, _, _ = scored(arrays, preset="uiunet")     # stretched: 0.01 of the empty image becomes 1
    close(columns, IoU=columns["IoU"], nIoU=columns["nIoU"])


def test_a_score_of_exactly_one_half_and_gray_masks(tmp_path):
    # case I: p = 0.9 0.5 0.01 on 1 1 0; case J: p = 0.9 0.9 0.1 on a mask of 255 150 0
    for name, p, mask in (("I", [0.9, 0.5, 0.01], [255, 255, 0]), ("J", [0.9, 0.9, 0.1], [255, 150, 0])):
        folder = tmp_path / name
        write_png(folder / "masks" / "x.png", np.array([mask], np.uint8))
        (folder / "pred").mkdir()
        np.save(folder / "pred" / "x.npy", np.array([p]))
    value = lambda case, preset, label, *words: scored(tmp_path / case, *words, preset=preset)[0][label]
    assert [value("I", preset, label) for preset, label in (("basicirstd", "mIoU"), ("ismallnet", "mIoU"))] == [50, pytest.approx(200 / 3)]
    assert value("J", "basicirstd", "mIoU") == pytest.approx(100 / 3)
    assert value("J", "standard", "IoU", "--mask-policy", "half") == 100
    refused = run("pred", "masks", folder=tmp_path / "J")
    assert refused.returncode == 1 and "x: mask: has 1 gray pixel between" in refused.stderr and "--mask-policy half" in refused.stderr


def test_boxes_of_a_detector(tmp_path):
    # two targets; found exactly at 0.9 and two columns too wide at 0.8 (IoU 1/2, legacy 3/5); an alarm of 0.95 goes before: precision 0, 1/2, 2/3
    mask = np.zeros((12, 20), bool)
    mask[1:5, 1:5] = mask[8:11, 1:3] = True
    write_png(tmp_path / "masks" / "x.png", mask)
    write_png(tmp_path / "masks" / "y.png", mask & False)
    (tmp_path / "boxes.json").write_text(json.dumps({"x": [[1, 1, 5, 5, 0.9], [1, 8, 5, 11, 0.8]], "y": [[15, 5, 16, 6, 0.95]]}))
    done = run("boxes.json", "masks", "--preset", "bafe", "--json", "out.json", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    preset = json.loads((tmp_path / "out.json").read_text())["presets"][0]
    assert np.allclose([c["value"] for c in preset["columns"]], [2 / 3, 1, 2 / 3, 1])
    assert (preset["n_images"], preset["n_targets"], preset["n_detections"]) == (2, 2, 3) and "3 detections" in done.stdout
    wrong = run("boxes.json", "masks", folder=tmp_path)
    assert wrong.returncode == 1 and "scores masks, not boxes" in wrong.stderr and "--preset bafe" in wrong.stderr
    (tmp_path / "boxes.json").write_text('{"x": [[1, 1, 5, 5]], "y": []}')
    wrong = run("boxes.json", "masks", "--preset", "bafe", folder=tmp_path)
    assert wrong.returncode == 1 and "boxes.json: x: does not hold rows of five numbers" in wrong.stderr
    (tmp_path / "boxes.json").write_text('{"x": []}')
    wrong = run("boxes.json", "masks", "--preset", "bafe", folder=tmp_path)
    assert wrong.returncode == 1 and "lacks 1 image of 2: y" in wrong.stderr
    samples = [(id, np.zeros(mask.shape, np.uint8), mask, None) for id in ("x_mask", "y")]  # a data set with boxes of its own, and an id that ends like a mask's
    write_dataset(tmp_path / "set", "mine", samples, {}, {}, boxes={"x_mask": [[0, 0, 3, 3]], "y": []})
    (tmp_path / "boxes.json").write_text('{"x": [[0, 0, 3, 3, 0.5]], "y": [], "z": []}')
    done = run("boxes.json", "set", "--preset", "bafe", folder=tmp_path)
    assert done.returncode == 0 and "2 images, 1 target, 1 image with neither" in done.stdout and "| 1.0000 | 1.0000 | 1.0000 | 1.0000 |" in done.stdout
    assert "1 image of boxes.json without a mask" in done.stdout


def test_all_presets_print_one_row_each_and_the_way_between_two(three):
    done = run("pred", "masks", "--all-presets", "--json", "out.json", "--markdown", "out.md", "--per-image", folder=three)
    assert done.returncode == 0 and (three / "out.md").read_text() == done.stdout
    found = json.loads((three / "out.json").read_text())
    names = [p["preset"] for p in found["presets"]]
    assert {"standard", "dnanet", "sirst5k", "mshnet", "basicirstd", "sctransnet", "acm", "agpcnet", "basicisos", "uiunet", "ismallnet", "pixelgame"} == set(names)
    assert all(any(line.startswith(f"| {name}") for line in done.stdout.splitlines()) for name in names) and "bafe" not in done.stdout
    assert found["steps"][0]["choice"] == "dnanet" and np.isclose(found["steps"][0]["value"], 200 / 11) and np.isclose(found["steps"][-1]["value"], 1100 / 54)
    rows = found["per_image"]["basicirstd"]["fixed(0.5)"]
    assert [row["id"] for row in rows] == ["a", "b", "c"] and [row["tp"] for row in rows] == [1, 1, 0] and [row["false_pixels"] for row in rows] == [1, 0, 0]


def test_equal_files_give_equal_bytes_whatever_their_order_and_type(three, tmp_path_factory):
    other = tmp_path_factory.mktemp("other")
    for id in reversed(TRUTH):
        write_png(other / "masks" / f"{id}_pixels0.png", drawn(TRUTH[id]))
        write_png(other / "pred" / f"{id}_pred.png", drawn(FOUND[id]))
    texts = [process("pred", "masks", "--preset", "dnanet", "--json", "out.json", folder=folder).stdout for folder in (three, other, three)]
    assert texts[0] == texts[1] == texts[2] and (three / "out.json").read_bytes() == (other / "out.json").read_bytes()
    numbers = [scored(three, preset="standard")[0]]
    for write in (lambda path, mask: write_png(path.with_suffix(".png"), mask.astype(np.uint8)),                   # levels 0 and 1
                  lambda path, mask: write_png(path.with_suffix(".png"), mask.astype(np.uint16) * 65535),
                  lambda path, mask: Image.fromarray(mask.astype(np.uint8) * 255).save(path.with_suffix(".bmp")),
                  lambda path, mask: np.save(path.with_suffix(".npy"), mask),
                  lambda path, mask: np.save(path.with_suffix(".npy"), mask.astype(np.int64)[None, :, :, None]),
                  lambda path, mask: np.savez(path.with_suffix(".npz"), score=mask.astype(np.float32))):
        for path in (three / "pred").iterdir():
            path.unlink()
        for id in TRUTH:
            write(three / "pred" / f"{id}.x", drawn(FOUND[id]))
        numbers.append(scored(three, preset="standard")[0])
    assert all(n == numbers[0] for n in numbers)


def test_logits_and_other_sizes_on_request(arrays):
    for path in (arrays / "pred").glob("*.npy"):
        p = np.load(path)
        np.save(path, np.kron(np.log((p + 1e-9) / (1 + 1e-9 - p)), np.ones((2, 2))))  # logits, and twice the size
    refused = run("pred", "masks", folder=arrays)
    assert refused.returncode == 1 and "apply the sigmoid" in refused.stderr and "--logits" in refused.stderr
    refused = run("pred", "masks", "--logits", folder=arrays)
    assert refused.returncode == 1 and "a: score map: is 16×16 but its mask is 8×8" in refused.stderr and "--resize" in refused.stderr
    close(scored(arrays, "--logits", "--resize", preset="basicirstd")[0], mIoU=200 / 11, Pd=100, Fa=1e6 / 192)
    write_png(arrays / "masks" / "a_pixels0.png", drawn([(1, 1)], size=(8, 9)))
    refused = run("pred", "masks", "--logits", folder=arrays)
    assert refused.returncode == 1 and "is 16×16 but its mask is 9×8" in refused.stderr


def test_a_papers_grid_takes_maps_of_its_own_size(three):
    for path in (three / "pred").iterdir():
        write_png(path, np.kron(np.asarray(Image.open(path)), np.ones((32, 32), np.uint8)))  # 256×256, as DNANet's network makes them
    close(scored(three, preset="dnanet")[0], mIoU=200 / 11, Pd=100, Fa=0)
    assert run("pred", "masks", "--preset", "basicirstd", folder=three).returncode == 1


def test_a_list_chooses_the_images(three):
    (three / "some.txt").write_text("a\nb_pixels0.png\n")
    columns, found, text = scored(three, "--list", "some.txt", preset="standard")
    assert found["presets"][0]["n_images"] == 2 and found["files"]["unused"] == 1 and "List some.txt; predictions outside it: 1" in text
    for wrong, words in (("a\na\n", "names a twice"), ("a\nz\n", "names 1 image without a mask: z"), ("\n", "is empty")):
        (three / "some.txt").write_text(wrong)
        refused = run("pred", "masks", "--list", "some.txt", folder=three)
        assert refused.returncode == 1 and words in refused.stderr, refused.stderr
    samples = [(id, np.zeros(SIZE, np.uint8), drawn(TRUTH[id]), None) for id in TRUTH]
    write_dataset(three / "set", "mine", samples, {"50_50/train": ["c"], "50_50/test": ["a", "b"]}, {})
    done = run("pred", "set", "--list", "50_50/test", folder=three)
    assert done.returncode == 0 and "2 images, 2 targets" in done.stdout
    (three / "pred" / "c_pred.png").unlink()
    refused = run("pred", "set", folder=three)
    assert refused.returncode == 1 and "lacks 1 prediction of 3: c" in refused.stderr and "--list 50_50/test" in refused.stderr
    refused = run("pred", "set", "--list", "50_50/tset", folder=three)
    assert refused.returncode == 1 and "did you mean 50_50/test" in refused.stderr


def test_a_process_says_the_same(three):
    for words in (["pred", "masks", "--preset", "dnanet"], ["pred", "nowhere"]):
        alone, here = process(*words, folder=three), run(*words, folder=three)
        assert (alone.returncode, alone.stdout, alone.stderr) == (here.returncode, here.stdout, here.stderr)


# --- mistakes ----------------------------------------------------------------------------------------------------------------------------


def unlink(name):
    return lambda folder: (folder / name).unlink()


def array(name, values):
    def change(folder):
        (folder / "pred" / "a_pred.png").unlink()
        np.save(folder / "pred" / name, values)
    return change


MISTAKES = {
    "no such predictions": (lambda folder: None, ["nowhere", "masks"], "nowhere: does not exist; check the path"),
    "no such masks": (lambda folder: None, ["pred", "nowhere"], "nowhere: does not exist"),
    "masks are a file": (lambda folder: None, ["pred", "masks/a_pixels0.png"], "is a file; give the folder"),
    "empty predictions": (lambda folder: (folder / "none").mkdir(), ["none", "masks"], "none: holds no predictions (.png"),
    "one folder too high": (lambda folder: None, [".", "masks"], "did you mean masks or pred?"),
    "no masks": (lambda folder: (folder / "none").mkdir(), ["pred", "none"], "none: holds no masks"),
    "a missing prediction": (unlink("pred/b_pred.png"), ["pred", "masks"], "pred: lacks 1 prediction of 3: b; predict them too, or score fewer images: --list FILE"),
    "a surplus prediction": (unlink("masks/b_pixels0.png"), ["pred", "masks"], "pred: holds 1 prediction without a mask: b_pred.png"),
    "other names": (lambda folder: [p.rename(p.with_name(f"x{p.name}")) for p in (folder / "pred").iterdir()], ["pred", "masks"], "paired by name"),
    "two for one": (lambda folder: write_png(folder / "pred" / "a_gt.png", drawn([])), ["pred", "masks"], "holds a_gt.png and a_pred.png, which both belong to a"),
    "nothing fits the pattern": (lambda folder: None, ["pred", "masks", "--pattern", "*_prob.png"], "that fits *_prob.png"),
    "an unreadable image": (lambda folder: (folder / "pred" / "a_pred.png").write_text("no image"), ["pred", "masks"], "a_pred.png: is not an image"),
    "an unreadable mask": (lambda folder: (folder / "masks" / "b_pixels0.png").write_bytes(b""), ["pred", "masks"], "b_pixels0.png: is not an image"),
    "an unreadable array": (lambda folder: (array("a.npy", 0)(folder), (folder / "pred" / "a.npy").write_text("x")), ["pred", "masks"], "a.npy: cannot be read as NumPy file"),
    "NaN": (array("a.npy", np.full(SIZE, np.nan)), ["pred", "masks"], "a.npy: has 64 values that are NaN"),
    "negative": (array("a.npy", np.full(SIZE, -3.0)), ["pred", "masks"], "a.npy: has values from -3 to -3, which are no probabilities; apply the sigmoid"),
    "a stack of maps": (array("a.npy", np.zeros((2, *SIZE))), ["pred", "masks"], "a.npy: has shape (2, 8, 8)"),
    "logits in images": (lambda folder: None, ["pred", "masks", "--logits"], "is an image, which cannot hold logits"),
    "a colour map": (lambda folder: Image.fromarray(np.full((*SIZE, 3), (200, 0, 0), np.uint8)).save(folder / "pred" / "a_pred.png"), ["pred", "masks"], "is a coloured picture"),
    "another size": (lambda folder: write_png(folder / "pred" / "b_pred.png", drawn([], size=(8, 9))), ["pred", "masks"], "b: score map: is 9×8 but its mask is 8×8"),
    "an unknown preset": (lambda folder: None, ["pred", "masks", "--preset", "dnnet"], "dnnet: unknown preset; did you mean dnanet"),
    "an unknown rule": (lambda folder: None, ["pred", "masks", "--rule", "fixed"], "'fixed': is not a decision rule"),
    "a list that is none": (lambda folder: None, ["pred", "masks", "--list", "test"], "test: is no file"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line(three, mistake):
    change, words, said = MISTAKES[mistake]
    change(three)
    done = run(*words, "--json", "out.json", folder=three)
    assert done.returncode == 1 and done.stdout == "" and said in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert not (three / "out.json").exists()


def test_what_does_not_stop_is_noted(three):
    assert "the truth is scored against itself" in run("masks", "masks", folder=three).stdout
    (three / "large").mkdir()
    for id in TRUTH:
        np.save(three / "large" / f"{id}.npy", np.full(SIZE, 0.7))
    done = run("large", "masks", "--rule", "fixed(0.8)", folder=three)
    assert "100% of all pixels score above 0.5" in done.stdout and "Mask from score: fixed(0.8)" in done.stdout
    for id in TRUTH:
        Image.fromarray(drawn(FOUND[id]).astype(np.uint8) * 40).save(three / "pred" / f"{id}_pred.jpg", quality=100)
        (three / "pred" / f"{id}_pred.png").unlink()
    done = run("pred", "masks", folder=three)
    assert done.returncode == 0 and "3 predictions in JPEG files" in done.stdout and "no score is above 0.5, the highest is 0.1" in done.stdout


def test_help_lists_the_presets(tmp_path):
    done = process("--help", folder=tmp_path)
    assert done.returncode == 0 and all(f"  {name} " in done.stdout for name in ("standard", "dnanet", "ismallnet", "pixelgame", "sirst5k", "uiunet", "bafe"))
