"""Images to compare models on: files, frames of videos, and painted scenes."""

import numpy as np
import pytest
from PIL import Image

from onnxq.calibration.demo import VALIDATION
from onnxq.calibration.image_sources import image_sources
from onnxq.errors import DataError


@pytest.fixture
def folder(tmp_path):
    for name, level in (("b", 20), ("a", 10)):
        Image.fromarray(np.full((4, 6, 3), level, np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def test_files_come_in_the_order_of_their_paths(folder):
    found = image_sources(folder)
    assert [(each.name, each.file, int(each.load().max())) for each in found] == [
        ("a", folder / "a.png", 10),
        ("b", folder / "b.png", 20),
    ]


def test_of_a_data_set_the_validation_images_are_taken(folder):
    (folder / "list.txt").write_text("a.png\n")
    (folder / "data.yaml").write_text("train: missing\nval: list.txt\n")
    assert [each.name for each in image_sources(folder / "data.yaml")] == ["a"]


def test_frames_of_a_video_have_its_file(tmp_path):
    av = pytest.importorskip("av")
    path = tmp_path / "film.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=8)
        stream.height, stream.width, stream.pix_fmt = 32, 48, "yuv420p"
        for level in (0, 200):
            image = np.full((32, 48, 3), level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    found = image_sources(path)
    assert [(each.name, each.file) for each in found] == [("film-1", path), ("film-2", path)]
    assert found[1].load().mean() > 150


def test_painted_scenes_have_no_file():
    found = image_sources(VALIDATION)
    assert len(found) == VALIDATION.count
    assert (found[3].name, found[3].file) == ("demo-scene-3", None)
    assert (found[3].load() == VALIDATION.paint(3)).all()


def test_a_source_without_images(tmp_path):
    np.save(tmp_path / "a.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"a\.npy: has no images \(\.avif, .*\); give another folder"):
        image_sources(tmp_path / "a.npy")
