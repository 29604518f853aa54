"""The package from Python: quick to import, and the names of `irstd_nb` do what they say."""

import subprocess
import sys
from dataclasses import make_dataclass

import numpy as np
import pytest

import irstd_nb
from irstd_nb.core.errors import UserError
from irstd_nb.core.images import write_png
from irstd_nb.data.samples import write_dataset
from irstd_nb.methods.registry import Method, register


def scene(i):
    "A quiet image of 48×48 with one target of 3×3 pixels."
    image = np.random.default_rng(i).integers(80, 90, (48, 48), dtype=np.uint8)
    mask = np.zeros((48, 48), bool)
    mask[20:23, 5 + 3 * i:8 + 3 * i] = True
    image[mask] = 200
    return f"im_{i}", image, mask, None


@pytest.fixture
def dataset(tmp_path):
    return write_dataset(tmp_path / "set", "mine", [scene(i) for i in range(6)], {"train": [f"im_{i}" for i in range(4)], "test": ["im_4", "im_5"]}, {})


def python(script):
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)


def test_importing_the_package_imports_no_library_and_a_name_is_imported_at_its_first_use():
    done = python("import sys, irstd_nb\n"
                  "heavy = {'torch', 'numpy', 'scipy', 'pandas', 'irstd_nb.api'}\n"
                  "assert not heavy & set(sys.modules) and set(irstd_nb.__all__) <= set(dir(irstd_nb)) and irstd_nb.__version__\n"
                  "assert not hasattr(irstd_nb, 'metod') and not heavy & set(sys.modules)\n"
                  "from irstd_nb import Dataset, load, method, predict, score\n"
                  "assert heavy <= set(sys.modules) and callable(method('tophat'))\n")
    assert done.returncode == 0, done.stderr


def test_a_module_is_found_before_a_name_and_an_unknown_name_is_an_import_error():
    done = python("import sys\nfrom irstd_nb import core, metrics\nassert 'torch' not in sys.modules\n"
                  "try:\n    from irstd_nb import metod\nexcept ImportError:\n    print('refused')")
    assert done.stdout == "refused\n", done.stderr


def test_a_filter_finds_the_targets_of_a_data_set_and_the_score_is_a_dict_of_numbers(dataset):
    found = irstd_nb.predict(dataset, "tophat")
    metrics = irstd_nb.score(found, dataset)
    assert list(found.masks) == ["im_4", "im_5"] and metrics["pd"] == metrics["f1"] == 1 and metrics["n_images"] == 2
    table = found.table()
    assert table[["image", "y", "x", "area"]].values.tolist() == [["im_4", 21, 18, 9], ["im_5", 21, 21, 9]]
    assert irstd_nb.score(irstd_nb.predict(dataset, "tophat", test="train"), dataset)["n_images"] == 4


def test_files_that_cannot_be_read_and_images_that_a_method_breaks_on_cost_nothing_else(tmp_path):
    write_png(tmp_path / "images/good.png", scene(0)[1])
    (tmp_path / "images/bad.png").write_bytes(b"no image")
    assert set(irstd_nb.predict(tmp_path / "images", "tophat").failed) == {"bad"}
    found = irstd_nb.predict({"gray": scene(0)[1], "colour": np.zeros((5, 5, 3)), "dead": np.full((5, 5), np.nan)}, irstd_nb.method("tophat"))
    assert list(found.masks) == list(found.scores) == ["gray"] and set(found.failed) == {"colour", "dead"}


def test_a_method_that_was_registered_by_hand_is_found_predicts_and_joins_a_benchmark(dataset, tmp_path):
    hyper = make_dataclass("Hyper", [("power", float, 2.0)], frozen=True)
    register(Method(name="by_hand", title="By hand", kind="classical", family="mine", year=2026, reference="here", papers=(), hyper=hyper,
                    build=lambda hyper: lambda image: image ** hyper.power, decision="fraction(0.5)"))
    assert irstd_nb.score(irstd_nb.predict(dataset, irstd_nb.method("by_hand", power=3.0)), dataset)["iou"] == 1
    table = irstd_nb.benchmark(dataset, ["by_hand", "tophat", "tophatt"], tmp_path / "out")
    assert list(table.f1[:2]) == [1, 1] and "did you mean tophat" in table.problem[2] and (table.peak_mb[:2] > 50).all()
    assert (tmp_path / "out/benchmark.md").read_text().count("| `") == 3 and len(list((tmp_path / "out/rows").iterdir())) == 1  # tophat; code by hand may change


def test_a_folder_without_lists_is_imported_with_lists_and_stays_as_it_is(tmp_path):
    for i in range(5):
        write_png(tmp_path / f"mine/images/{i}.png", scene(i)[1]), write_png(tmp_path / f"mine/masks/{i}.png", scene(i)[2])
    before = {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()}
    data = irstd_nb.load(tmp_path / "mine", into=tmp_path / "set", test=0.4)
    assert (len(data.split("train")), len(data.split("test"))) == (3, 2) and not set(data.split("train")) & set(data.split("test"))
    assert {path: path.read_bytes() for path in (tmp_path / "mine").rglob("*") if path.is_file()} == before
    with pytest.raises(UserError, match="would replace the source"):
        irstd_nb.load(tmp_path / "mine", into=tmp_path / "mine")


def test_five_lines_train_and_measure_a_network_and_a_second_call_does_not_train_again(dataset, tmp_path):
    small = {"hyper": {"widths": [4, 8, 16], "blocks": 1}, "epochs": 1, "batch": 2, "crop": 32, "long_side": None}
    acm = irstd_nb.train("acm", dataset, tmp_path / "acm", **small)
    written = (tmp_path / "acm/weights.safetensors").stat().st_mtime_ns
    again = irstd_nb.train("acm", dataset, tmp_path / "acm", **small)
    assert (tmp_path / "acm/weights.safetensors").stat().st_mtime_ns == written and acm.hyper == again.hyper
    found = irstd_nb.predict(dataset, tmp_path / "acm")
    assert all(np.array_equal(found.scores[id], acm(dataset.levels(id)[0])) and found.scores[id].shape == (48, 48) for id in dataset.split("test"))
    assert set(irstd_nb.score(found, dataset)) >= {"f1", "iou", "niou", "pd", "fa"}
