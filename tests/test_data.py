"""Data sets as people have them on disk: what is read, what is refused, and in which words."""

import os
import re
import signal
import subprocess
import sys
import threading
import time
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from irstd_nb.core.errors import UserError
from irstd_nb.core.images import write_png
from irstd_nb.data.check import check_dataset
from irstd_nb.data.download import download, download_dataset
from irstd_nb.data.importers import DataProblems, import_dataset
from irstd_nb.data.samples import components, open_dataset, write_dataset

IDS = [f"im_{i}" for i in range(1, 6)]


@pytest.fixture
def folder(tmp_path):
    "A sound data set of five small images in the DNANet layout, as RGB files."
    root = tmp_path / "set"
    for i, id in enumerate(IDS):
        levels, mask = pixels(i)
        write_png(root / "images" / f"{id}.png", np.repeat(levels[..., None], 3, axis=-1))
        write_png(root / "masks" / f"{id}.png", mask)
    for name, ids in (("train", IDS[:3]), ("test", IDS[3:])):
        (root / "50_50").mkdir(exist_ok=True)
        (root / "50_50" / f"{name}.txt").write_text("\n".join(ids))
    return root


def pixels(i):
    rng = np.random.default_rng(i)
    mask = np.zeros((24, 32), bool)
    mask[4:7, 5 + i:8 + i] = mask[20, 20] = True
    return rng.integers(0, 256, (24, 32), dtype=np.uint8), mask


def test_a_sound_set_keeps_every_pixel_and_list(folder, tmp_path):
    data = import_dataset("mine", folder, tmp_path / "out")
    assert data.ids == tuple(IDS) and data.split("50_50/train") == tuple(IDS[:3]) and data.split("50_50/test") == tuple(IDS[3:])
    for i, id in enumerate(IDS):
        assert all(np.array_equal(got, want) for got, want in zip(data.levels(id), pixels(i)))
    assert data.info["counts"] == {"images": 5, "targets": 10, "images_without_target": 0}
    assert {f.severity for f in check_dataset(data.root)} == {"note"}


# --- the twelve broken data sets: each plants one fault and names the one line that must come of it ------------------------------------


def truncated_png(root):
    path = root / "images/im_2.png"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    return "images/im_2.png: cannot be decoded (image file is truncated); copy or download it again"


def mask_of_another_size(root):
    write_png(root / "masks/im_2.png", np.zeros((10, 12), bool))
    return "masks/im_2.png: is 12×10 but its image images/im_2.png is 32×24; replace it, or name what another size means: --mask-size resize (nearest pixel)"


def gray_mask(root):
    write_png(root / "masks/im_2.png", np.linspace(0, 255, 24 * 32).astype(np.uint8).reshape(24, 32))
    return "masks/im_2.png: is not binary (256 gray levels from 0 to 255); name what gray means: --mask-policy half (target above half scale) or nonzero"


def missing_mask(root):
    (root / "masks/im_2.png").unlink()
    return "images/im_2.png: has no mask; add the mask or remove the image"


def empty_folder(root):
    for path in root.rglob("*.*"):
        path.unlink()
    return ": holds no image; name the folder that holds images/ and masks/, or unpack its archive first"


def id_in_both_lists(root):
    (root / "50_50/test.txt").write_text("im_3\nim_4\nim_5\n")
    return "50_50/test.txt: shares 1 id (im_3) with train.txt; keep every id in one of the two"


def cmyk_jpeg(root):
    (root / "images/im_2.png").unlink()
    Image.fromarray(pixels(1)[0]).convert("CMYK").save(root / "images/im_2.jpg")
    return "images/im_2.jpg: has colour mode CMYK, which has no agreed gray value; convert it to gray or RGB PNG"


def link_loop(root):
    (root / "images/again").symlink_to(root, target_is_directory=True)
    return "images/again: is a symbolic link to a folder that holds it; remove the link"


def link_to_itself(root):
    (root / "50_50/im_2.png").symlink_to(root / "50_50/im_2.png")
    return "50_50/im_2.png: is a symbolic link that leads back to itself; replace it by the file"


def folder_named_like_an_image(root):
    (root / "images/im_9.png").mkdir()
    return "images/im_9.png: is a folder, not an image; remove it or put the image in its place"


def pipe_named_like_an_image(root):
    os.mkfifo(root / "images/im_9.png")
    return "images/im_9.png: is not a regular file, not an image; remove it or put the image in its place"


def dangling_link(root):
    (root / "images/im_9.png").symlink_to("/nowhere/im_9.png")
    return "images/im_9.png: is a symbolic link to nothing (/nowhere/im_9.png); replace it by the file or mend the link"


def list_with_unknown_id(root):
    (root / "50_50/test.txt").write_text("im_4\nim_5\nim_55\n")
    return "50_50/test.txt: names 1 id (im_55) without an image; remove from the list or add the image"


FAULTS = [truncated_png, mask_of_another_size, gray_mask, missing_mask, empty_folder, id_in_both_lists, cmyk_jpeg, link_loop, link_to_itself,
          folder_named_like_an_image, pipe_named_like_an_image, dangling_link, list_with_unknown_id]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda f: f.__name__)
def test_a_fault_gives_one_line_and_nothing_is_written(fault, folder, tmp_path):
    line = fault(folder)
    expected = f"{folder}{line}" if line.startswith(":") else f"{folder}/{line}"
    with pytest.raises(UserError) as caught:
        import_dataset("mine", folder, tmp_path / "out")
    assert str(caught.value) == expected
    assert sorted(p.name for p in tmp_path.iterdir()) == ["set"]
    assert [str(f) for f in check_dataset(folder) if f.severity == "error"] == [f"error: {expected}"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every file")
def test_an_unreadable_file_and_an_unreadable_folder_give_one_line_each(folder, tmp_path):
    (folder / "images/im_2.png").chmod(0)
    (folder / "more").mkdir(mode=0)
    with pytest.raises(DataProblems) as caught:
        import_dataset("mine", folder, tmp_path / "out")
    assert str(caught.value).splitlines() == [f"{folder}/more: may not be read; give yourself permission (chmod +rx)",
                                              f"{folder}/images/im_2.png: may not be read; give yourself read permission (chmod +r)"]


def test_a_file_that_the_system_refuses_to_open_gives_one_line(folder, tmp_path, monkeypatch):
    "The case above for root, who may read everything: opening fails as it would for others."
    true_open = Image.open

    def refuse(path, *rest, **options):
        if Path(path).name == "im_2.png" and Path(path).parent.name == "images":
            raise PermissionError(13, "Permission denied", str(path))
        return true_open(path, *rest, **options)

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(UserError) as caught:
        import_dataset("mine", folder, tmp_path / "out")
    assert str(caught.value) == f"{folder}/images/im_2.png: may not be read; give yourself read permission (chmod +r)"


@pytest.mark.parametrize("name", ["../evil.png", "/tmp/evil.png", "images/../../evil.png", "..\\evil.png"])
def test_an_archive_that_reaches_outside_is_refused_as_a_whole(name, folder, tmp_path):
    archive = zipped(folder)
    with zipfile.ZipFile(archive, "a") as file:
        file.writestr(name, b"evil")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        import_dataset("mine", archive, tmp_path / "out")
    assert str(caught.value) == f"{archive}: names a path outside its folder ({name}); do not trust this archive; get it from the data set's official page"
    assert sorted(tmp_path.rglob("*")) == before and not Path("/tmp/evil.png").exists()


@pytest.mark.parametrize("suffix", ["png", "tiff"])
def test_16_bit_images_are_fine_and_keep_every_bit(suffix, folder, tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (24, 32)).astype(np.uint16)
    (folder / "images/im_2.png").unlink()
    Image.fromarray(deep).save(folder / f"images/im_2.{suffix}")
    data = import_dataset("mine", folder, tmp_path / "out")
    assert data.levels("im_2")[0].dtype == np.uint16 and np.array_equal(data.levels("im_2")[0], deep)
    assert data.sample("im_2").image.max() == np.float32(deep.max()) / np.float32(65535)
    assert "note: " in "\n".join(map(str, check_dataset(folder))) and not [f for f in check_dataset(folder) if f.severity != "note"]


# --- beyond the twelve -------------------------------------------------------------------------------------------------------------------


def zipped(folder):
    archive = folder.with_suffix(".zip")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        for path in sorted(folder.rglob("*.*")):
            file.write(path, f"top/{path.relative_to(folder)}")
    return archive


def test_all_problems_come_at_once_one_line_each(folder, tmp_path):
    lines = [fault(folder) for fault in (gray_mask, cmyk_jpeg, id_in_both_lists)]
    (folder / "masks/im_5.png").unlink()
    with pytest.raises(DataProblems) as caught:
        import_dataset("mine", folder, tmp_path / "out")
    assert len(str(caught.value).splitlines()) == len(caught.value.errors) == 4
    assert all(line in str(caught.value) for line in lines)


def test_a_fault_inside_an_archive_is_shown_under_its_name(folder, tmp_path):
    gray_mask(folder)
    archive = zipped(folder)
    with pytest.raises(DataProblems) as caught:
        import_dataset("mine", archive, tmp_path / "out")
    assert str(caught.value).startswith(f"{archive}/top/masks/im_2.png: is not binary")


def test_the_known_fault_of_sirst_v1_is_named_and_a_policy_settles_it(tmp_path):
    root = tmp_path / "sirst"
    mask = np.zeros((400, 592), bool)
    mask[205:215, 260:275] = True
    write_png(root / "images/Misc_111.png", np.zeros((220, 325), np.uint8))
    write_png(root / "masks/Misc_111_pixels0.png", mask)
    with pytest.raises(DataProblems, match=re.escape("is 592×400 but its image images/Misc_111.png is 325×220 (a known fault of SIRST v1")):
        import_dataset("NUAA-SIRST", root, tmp_path / "out")
    data = import_dataset("NUAA-SIRST", root, tmp_path / "out", mask_size="resize")
    assert components(data.levels("Misc_111")[1]).boxes.tolist() == [[143, 113, 151, 118]]
    assert data.info["notes"] == ["the source has no list of ids; the list `all` names every image", "mask of Misc_111 resized from 592×400 to 325×220"]


def test_an_import_never_replaces_a_folder_that_is_no_data_set(folder, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis/chapter.tex").write_text("years")
    for into in (tmp_path / "thesis", folder, tmp_path):
        with pytest.raises(UserError):
            import_dataset("mine", folder, into)
    assert (tmp_path / "thesis/chapter.tex").read_text() == "years" and (folder / "images/im_1.png").exists()


def test_an_import_that_is_killed_leaves_the_earlier_set_whole(tmp_path):
    earlier = write_dataset(tmp_path / "out/mine", "mine", [("a", *pixels(0), None)], {"all": ["a"]}, {}).manifest_hash
    for i in range(400):
        write_png(tmp_path / f"source/images/{i}.png", np.random.default_rng(i).integers(0, 256, (64, 64), dtype=np.uint8))
        write_png(tmp_path / f"source/masks/{i}.png", np.zeros((64, 64), bool))
    code = "import sys; from irstd_nb.data.importers import import_dataset; import_dataset('mine', sys.argv[1], sys.argv[2])"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "source"), str(tmp_path / "out/mine")])
    while process.poll() is None and not list((tmp_path / "out").glob(".mine.*/images/1*.png")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the import ended before it could be killed"
    assert open_dataset(tmp_path / "out/mine").manifest_hash == earlier and not [f for f in check_dataset(tmp_path / "out/mine") if f.severity == "error"]


class Slow(BaseHTTPRequestHandler):
    content, pause, seen = bytes(range(256)) * 4096, 0.01, []

    def log_message(self, *_): pass

    def do_GET(self):
        self.seen.append(self.headers.get("Range"))
        start = int(self.headers["Range"][6:-1]) if self.headers.get("If-Range") == '"v1"' else 0
        self.send_response(206 if start else 200)
        self.send_header("ETag", '"v1"')
        self.send_header("Content-Length", str(len(self.content) - start))
        self.send_header("Content-Range", f"bytes {start}-{len(self.content) - 1}/{len(self.content)}")
        self.end_headers()
        try:
            for at in range(start, len(self.content), 1 << 16):
                self.wfile.write(self.content[at: at + (1 << 16)])
                time.sleep(self.pause)
        except OSError:
            pass  # the other side was killed


def test_a_download_that_is_killed_continues_where_it_stopped(tmp_path):
    Slow.seen, Slow.pause = [], 0.1
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    url, part = f"http://127.0.0.1:{httpd.server_port}/set.zip", tmp_path / "set.zip.part"
    process = subprocess.Popen([sys.executable, "-c", "import sys; from irstd_nb.data.download import download; download(*sys.argv[1:])", url, str(tmp_path / "set.zip")])
    while process.poll() is None and not (part.exists() and part.stat().st_size):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL, "the download ended before it could be killed"
    got, Slow.pause = part.stat().st_size, 0
    assert 0 < got < len(Slow.content) and not (tmp_path / "set.zip").exists()
    assert download(url, tmp_path / "set.zip").read_bytes() == Slow.content
    assert Slow.seen == [None, f"bytes={got}-"]
    httpd.shutdown()
    httpd.server_close()


def test_a_set_on_a_cloud_drive_names_the_page(tmp_path):
    with pytest.raises(UserError, match="get it from https://github.com/RuiZhang97/ISNet, then `irstd data import IRSTD-1K FOLDER`"):
        download_dataset("irstd-1k", tmp_path / "set")


# --- the real data sets ------------------------------------------------------------------------------------------------------------------


def real(name):
    root = Path(os.environ.get("IRSTD_DATA", Path(__file__).parents[2] / "shared" / "data")) / name
    if not root.is_dir():
        pytest.skip(f"no copy of {name} in $IRSTD_DATA or ../shared/data")
    return root


@pytest.mark.real
@pytest.mark.parametrize("name, split, images, targets", [("NUAA-SIRST", "dnanet_50_50/test", 214, 263), ("NUDT-SIRST", "dnanet_50_50/test", 664, 945)])
def test_the_published_counts_are_confirmed(name, split, images, targets):
    found = check_dataset(real(name))
    assert not [f for f in found if f.severity == "error"]
    assert any(f.where.endswith(f"{split}.txt") and f.problem.startswith(f"{images} images and {targets} targets, as published") for f in found)


@pytest.mark.real
def test_nuaa_sirst_is_imported_pixel_by_pixel(tmp_path):
    source = open_dataset(real("NUAA-SIRST"))
    data = import_dataset("nuaa-sirst", source.root, tmp_path / "out")
    assert data.info["counts"] == {"images": 427, "targets": 533, "images_without_target": 0}
    assert data.info["splits"]["dnanet_50_50/test"] == {"images": 214, "targets": 263} and data.info["splits"]["official_427/test"] == {"images": 86, "targets": 109}
    assert data.ids == source.ids and data.splits == source.splits
    assert all(np.array_equal(a, b) for id in data.ids for a, b in zip(data.levels(id), source.levels(id)))
