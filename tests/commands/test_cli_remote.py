"""Pictures at addresses, for `python -m onnxq`, `onnxq.evaluate` and `onnxq.compare`."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from cases import fast_first
from command_line import draw, snapshot
from PIL import Image
from web_server import serving

from onnxq import compare, evaluate

pytest.importorskip("aiohttp", reason="the extra remote is not installed")

FILES = ("model.int8.onnx", "c.npz")


@pytest.fixture
def web(folder):
    """A server of the folder `served` with twelve pictures, one of them broken and one of 14 bits."""
    for number in range(10):
        draw(f"served/pics/{number} %.png", number)
    Path("served/pics/a.png").write_text("no picture")
    Image.fromarray(np.arange(1600, dtype=np.uint16).reshape(40, 40) * 10).save("served/pics/deep.png")
    shutil.make_archive("served/all", "zip", "served/pics")
    names = sorted(path.name for path in Path("served/pics").iterdir())
    Path("served/list.txt").write_text("# pictures\n" + "\n".join(f"pics/{name}" for name in names))
    with serving("served") as server:
        yield server


def write_coco(names):
    """Annotations of an object on each of these pictures."""
    images = [{"id": number, "file_name": name} for number, name in enumerate(names, 1)]
    shape = {"bbox": [10, 10, 20, 20], "area": 400, "iscrowd": 0, "category_id": 1}
    objects = [{"id": each["id"], "image_id": each["id"], **shape} for each in images]
    kinds = [{"id": number, "name": name} for number, name in enumerate("abc", 1)]
    Path("a.json").write_text(json.dumps({"images": images, "annotations": objects, "categories": kinds}))


def made():
    return [Path(name).read_bytes() for name in FILES]


KINDS = ["folder", "archive", "list", "pattern", "file", "local list", "data set", "pictures"]


@pytest.mark.parametrize("kind", fast_first(KINDS, 2))
def test_pictures_at_addresses_give_the_same_bytes(onnxq, model, web, kind):
    options = ("--save-calibration", "c.npz", "--count", "7")
    plain = onnxq(model, "--calib", "served/pics", *options)
    expected = made()
    names = sorted(path.name for path in Path("served/pics").iterdir())
    there = [f"{web.address}/pics/{name.replace(' ', '%20').replace('%.', '%25.')}" for name in names]
    Path("local.txt").write_text("\n".join(there))
    Path("data.yaml").write_text(f"path: {web.address}\ntrain: pics\nval: pics\nnames: [a]\n")
    sources = {
        "folder": [f"{web.address}/pics"],
        "list": [f"{web.address}/list.txt"],
        "archive": [f"{web.address}/all.zip"],
        "pattern": [f"{web.address}/pics/*.png"],
        "file": [f"file://{Path.cwd()}/served/pics"],
        "local list": ["local.txt"],
        "data set": ["data.yaml"],
        "pictures": there[::-1],
    }
    ran = onnxq(model, "--calib", *sources[kind], *options)
    assert (ran.code, ran.err.count("cannot be read as an image")) == (0, plain.err.count("cannot be read as an image"))
    assert made() == expected
    assert "7 of 12 images in" in ran.out


def test_workers_read_the_pictures_themselves(onnxq, model, web, dask_pool):
    options = ("--save-calibration", "c.npz")
    assert onnxq(model, "--calib", "served/pics", *options).code == 0
    expected = made()
    address = dask_pool._client.scheduler.address
    said = []
    for words in ((), ("--workers", address)):
        ran = onnxq(model, "--calib", f"{web.address}/pics", *options, *words)
        assert (ran.code, made()) == (0, expected)
        said.append([line for line in ran.err.splitlines() if "calibrating" not in line])
    assert said[0] == said[1]


@pytest.mark.parametrize("workers", [False, True])
def test_a_picture_that_is_refused_ends_the_run(onnxq, model, web, dask_pool, workers):
    web.faults["/pics/3%20%25.png"] = 403, 99
    before = snapshot()
    words = ("--workers", dask_pool._client.scheduler.address) if workers else ()
    ran = onnxq(model, "--calib", f"{web.address}/pics", *words)
    assert ran.code == 1
    assert "/pics/3%20%25.png: access is refused (403); check that" in " ".join(ran.err.split())
    after = snapshot()
    if after.pop("model.int8.finished.npz", None):  # of workers that were faster than the refusal
        assert workers
        assert "kept in model.int8.finished.npz: run the same again" in " ".join(ran.err.split())
    assert after == before


def test_a_picture_that_is_missing_is_left_out(onnxq, model, web):
    Path("served/some.txt").write_text("pics/1 %.png\npics/none.png\npics/2 %.png\n")
    ran = onnxq(model, "--calib", f"{web.address}/some.txt")
    assert ran.code == 0
    assert "/pics/none.png: there is no such file (404)" in " ".join(ran.err.split())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("s3://bucket/folder", "the package s3fs is not installed, here or on a worker; pip install s3fs"),
        ("memory://none", "memory://none: there is no such folder, or it has no files; check the address"),
        ("simplecache::s3://b", "only ZIP archives can be chained, as zip://FOLDER::ADDRESS; give another"),
        ("s3://b/x.npy", "at an address only pictures are read, folders, .zip archives and .txt lists of them"),
        ("s3://b/x.yaml", "download this file, and give its path"),
        ("file:///dev/*.jpg", "matches no image; check the pattern"),
    ],
)
def test_what_is_wrong_with_an_address(onnxq, model, source, message):
    ran = onnxq(model, "--calib", source)
    assert ran.code == 1
    assert message in " ".join(ran.err.split())


def test_a_folder_of_other_files(onnxq, model, web):
    Path("served/other").mkdir()
    Path("served/other/x.heic").write_text("x")
    ran = onnxq(model, "--calib", f"{web.address}/other")
    assert ran.code == 1
    assert "1 .heic are not read: convert them to .png or .jpg, or give another folder" in " ".join(ran.err.split())


@pytest.mark.parametrize("option", ["-o", "--save-calibration", "--report"])
def test_no_output_goes_to_an_address(onnxq, model, option):
    ran = onnxq(model, option, "s3://bucket/out.html" if option == "--report" else "s3://bucket/out.onnx")
    assert ran.code == 1
    assert "files are written to paths, not to addresses; give a path, and upload the file" in " ".join(ran.err.split())


def test_agreement_on_pictures_at_an_address(onnxq, model, web, capsys):
    Path("served/pics/a.png").unlink()
    assert onnxq(model, "--calib", "calib").code == 0
    for number, source in enumerate(("served/pics", f"{web.address}/pics")):
        assert compare.main([str(model), "model.int8.onnx", "--images", source, "--json", f"{number}.json"]) == 0
    assert Path("0.json").read_bytes() == Path("1.json").read_bytes()


@pytest.mark.parametrize("kind", ["coco", "yolo"])
def test_precision_on_pictures_at_an_address(onnxq, model, web, kind, capsys):
    assert onnxq(model, "--calib", "calib").code == 0
    for number in range(4):
        draw(f"served/images/val/{number} %.png", number)
        Path(f"served/labels/val/{number} %.txt").parent.mkdir(parents=True, exist_ok=True)
        if number:
            Path(f"served/labels/val/{number} %.txt").write_text("0 0.5 0.5 0.4 0.4\n")
    if kind == "yolo":
        for name, path in (("0", "served"), ("1", web.address)):
            Path(f"{name}.yaml").write_text(f"path: {path}\ntrain: images/val\nval: images/val\nnames: [a, b, c]\n")
        sources = [("--annotations", "0.yaml"), ("--annotations", "1.yaml")]
    else:
        write_coco([f"images/val/{number} %.png" for number in range(4)])
        sources = [("--annotations", "a.json", "--images", each) for each in ("served", web.address)]
    for number, words in enumerate(sources):
        assert evaluate.main([str(model), "model.int8.onnx", *words, "--json", f"{number}.json"]) == 0
    found = [json.loads(Path(f"{number}.json").read_text()) for number in range(2)]
    assert found[0]["images"] == 4
    for each in found:
        each.pop("annotations", None)
    assert found[0] == found[1]


def test_calibration_images_are_known_by_their_content(onnxq, model, web):
    write_coco(["1 %.png"])
    words = ("--evaluate", "--annotations", "a.json", "--images", f"{web.address}/pics")
    ran = onnxq(model, "--calib", "served/pics", *words)
    assert ran.code == 1
    assert "is also a calibration image, as served/pics/1 %.png" in " ".join(ran.err.split())
