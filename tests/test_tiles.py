"""Images of any size in tiles: nothing is lost, nothing is counted twice, and where a filter is local no seam can be seen."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from irstd_nb.core.errors import UserError
from irstd_nb.core.images import write_png
from irstd_nb.methods.registry import method
from irstd_nb.training.predict import find_images, predict_files
from irstd_nb.training.tiles import score_in_tiles, tiles


@given(st.integers(1, 300), st.integers(1, 300), st.integers(0, 20), st.sampled_from([1, 2, 4, 16]), st.integers(0, 100))
def test_tiles_keep_every_pixel_once_within_their_own_part_and_begin_at_the_stride(height, width, margin, stride, more):
    side, kept = 2 * margin + 2 * stride + more, np.zeros((height, width), int)
    for tile in tiles((height, width), side, margin, stride):
        kept[tile.kept] += 1
        for read, inner, extent in zip(tile.read, tile.kept, (height, width)):
            assert read.start % stride == 0 and 0 <= read.start <= inner.start < inner.stop <= read.stop <= extent and read.stop - read.start <= side
            assert inner.start - read.start >= margin or read.start == inner.start == 0
            assert read.stop - inner.stop >= margin or read.stop == inner.stop == extent
    assert (kept == 1).all()


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 70), st.integers(1, 70), st.integers(1, 40), st.sampled_from([("tophat", 4), ("mpcm", 13), ("lcm", 13)]), st.integers(0, 2**32))
def test_a_local_filter_gives_in_tiles_what_it_gives_on_the_whole(height, width, more, which, seed):
    (name, radius), image = which, np.random.default_rng(seed).random((height, width), dtype=np.float32)
    score = method(name)
    whole = score(image)
    found = score_in_tiles(image, score, 2 * radius + 8 + more, radius)
    assert found.dtype == whole.dtype and np.array_equal(found, whole)


def test_a_scorer_never_sees_more_than_a_tile():
    seen = []
    score_in_tiles(np.zeros((1000, 700), np.float32), lambda image: seen.append(image.shape) or image, 128, 16, 32)
    assert max(map(max, seen)) <= 128 and len(seen) > 60


@pytest.mark.parametrize("side", [-5, -1])
def test_a_side_that_leaves_nothing_to_keep_is_refused(tmp_path, side):
    write_png(tmp_path / "a.png", np.zeros((20, 20), np.uint8))
    with pytest.raises(UserError, match="take a side above"):
        predict_files(find_images([tmp_path]), "tophat", tmp_path / "out", tile=side)


def test_predict_cuts_only_images_above_the_limit_and_says_which(tmp_path):
    rng = np.random.default_rng(0)
    for name, shape in (("small", (40, 50)), ("large", (90, 120))):
        write_png(tmp_path / "images" / f"{name}.png", rng.integers(0, 256, shape, dtype=np.uint8))
    files = find_images([tmp_path / "images"])
    whole = predict_files(files, "tophat", tmp_path / "whole")
    cut = predict_files(files, "tophat", tmp_path / "cut", tile=48)
    never = predict_files(files, "tophat", tmp_path / "never", tile=0)
    assert whole.detections == cut.detections == never.detections
    assert (whole.tiled, cut.tiled, never.tiled) == ((), ("large",), ())
    record = json.loads((tmp_path / "cut/predict.json").read_text())
    assert record["tiled"] == ["large"] and record["tiles"] == {"side": 48, "margin": 12, "stride": 1, "above": 2304}
    assert "tiles" not in json.loads((tmp_path / "whole/predict.json").read_text())
