"""Frames of videos."""

import builtins
import sys

import numpy as np
import pytest
from calibration_data import levels, opened, paint, refused

from onnxq.calibration.video import frames_of

av = pytest.importorskip("av")

FRAMES = 24


def film(path, codec="mpeg4", frames=FRAMES, size=(32, 48), **options):
    """Write a video whose frames become brighter: frame k is of the level 10 k."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=8, options=options)
        stream.height, stream.width, stream.pix_fmt = *size, "yuv420p"
        for level in range(frames):
            image = np.full((*size, 3), 10 * level, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def shown(path):
    """The numbers of the frames that the loaders of a video give."""
    return [round(float(load().mean()) / 10) for load in frames_of(path)]


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.avi", "a.mov"])
@pytest.mark.parametrize("every", ["1", "7", "50"])
def test_each_loader_gives_its_frame(tmp_path, name, every):
    assert shown(film(tmp_path / name, g=every)) == list(range(FRAMES))


def test_frames_that_depend_on_later_ones(tmp_path):
    found = shown(film(tmp_path / "a.mp4", g="12", bf="2"))
    assert np.abs(np.array(found) - np.arange(FRAMES)).max() <= 1  # the encoder rounds the levels in between
    assert found[:10] == list(range(10))


def test_frames_are_upright_rgb(tmp_path):
    [first, *_] = frames_of(film(tmp_path / "a.mp4"))
    assert (first().shape, first().dtype, first().flags.c_contiguous) == ((32, 48, 3), np.uint8, True)


def test_evenly_spaced_frames_are_taken(tmp_path):
    samples = opened(film(tmp_path / "a.mp4"), count=4)
    assert [round(level / 10) for level in levels(samples)] == [3, 9, 15, 21]
    assert samples.description == f"4 of {FRAMES} frames in a.mp4"
    assert samples.files == (tmp_path / "a.mp4",)


def test_a_folder_of_videos(tmp_path):
    (tmp_path / "b").mkdir()
    film(tmp_path / "a.mp4", frames=3)
    film(tmp_path / "b" / "b.avi", frames=2)
    samples = opened(tmp_path)
    assert [round(level / 10) for level in levels(samples)] == [0, 1, 2, 0, 1]
    assert samples.description.startswith("5 frames in ")
    paint(tmp_path / "1.png", 50)
    assert levels(opened(tmp_path)) == [50]
    assert opened([tmp_path / "a.mp4", tmp_path / "1.png"]).description == "4 samples in a.mp4, " + tmp_path.name


@pytest.mark.parametrize("content", [b"", b"no video", b"\0\0\0\x18ftypmp42" + bytes(64)])
def test_no_video(tmp_path, content):
    (tmp_path / "a.mp4").write_bytes(content)
    with refused("a.mp4: cannot be read as a video: "):
        opened(tmp_path / "a.mp4")


def test_a_video_that_is_broken_behind_its_header(tmp_path):
    path = film(tmp_path / "a.avi", g="1")
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 2000] = bytes(2000)
    path.write_bytes(data)
    samples = opened(path)
    assert len(levels(samples)) + len(samples.unreadable) == samples.count == FRAMES


def test_sound_alone(tmp_path):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    with refused("a.mkv: has no video stream; leave it out"):
        opened(tmp_path / "a.mkv")


def test_without_pyav_its_extra_is_named(tmp_path, monkeypatch):
    path = film(tmp_path / "a.mp4")
    monkeypatch.setitem(sys.modules, "av", None)
    with refused("a.mp4: PyAV, which reads videos, is not installed; pip install 'onnxq[video]'"):
        opened(path)


def test_pyav_is_not_imported_for_images(folder, monkeypatch):
    def refuse(name, *rest, **more):
        assert name != "av"
        return imported(name, *rest, **more)

    imported = builtins.__import__
    monkeypatch.setattr(builtins, "__import__", refuse)
    monkeypatch.setitem(sys.modules, "av", None)
    assert len(levels(opened(folder))) == 10
