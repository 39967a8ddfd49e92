import json
import re
from pathlib import Path

import numpy as np
import pytest
from command_line import NEVER_SATURATES, metadata, misused, refused, save
from graphs import v8

from onnxq.yolo.inputs.image_files import read_image
from onnxq.yolo.preprocess import YOLO

pytestmark = pytest.mark.usefixtures("folder")


def _sources():
    """The same three images, named in every way; each gives the arguments of --calib and the description."""
    files = [f"calib/{number}.png" for number in range(3)]
    Path("list.txt").write_text("# pictures\n" + "\n".join(files) + "\n")
    annotations = {"images": [{"id": k, "file_name": Path(file).name} for k, file in enumerate(files)]}
    Path("instances_calib.json").write_text(json.dumps(annotations))
    arrays = np.concatenate([YOLO(read_image(Path(file)), (32, 32))[0] for file in files])
    np.savez("data.npz", images=arrays)
    np.save("data.npy", arrays)
    for number, array in enumerate(arrays):
        np.save(f"{number}.npy", array)
    return {
        "folder": (["calib"], "3 images in calib"),
        "glob": (["calib/*.png"], "3 images in calib/*.png"),
        "files": (files, "3 images in calib"),
        "list": (["list.txt"], "3 images in list.txt"),
        "coco": (["instances_calib.json"], "3 images in instances_calib.json"),
        "npz": (["data.npz"], "3 samples in data.npz"),
        "npy": (["data.npy"], "3 samples in data.npy"),
        "several npy": (["0.npy", "1.npy", "2.npy"], "3 samples in 0.npy, 1.npy, 2.npy"),
    }


class TestData:
    @pytest.mark.slow
    @pytest.mark.parametrize("kind", ["folder", "glob", "files", "list", "coco", "npz", "npy", "several npy"])
    def test_every_way_to_give_it_gives_the_same_result_as_the_folder(self, onnxq, model, made, kind):
        paths, description = _sources()[kind]
        ran = onnxq(model, "--calib", *paths)
        assert ran.code == 0, ran.err
        assert f"calibration {description}" in ran.table
        assert "synthetic" not in ran.err + ran.out
        made("folder.onnx")
        assert Path("model.int8.onnx").read_bytes() == Path("folder.onnx").read_bytes()
        assert metadata("model.int8.onnx")["onnxq.samples"] == "3"

    def test_without_any_synthetic_scenes_are_used_and_a_warning_says_so(self, onnxq, model):
        ran = onnxq(model, "--count", 4)
        assert ran.code == 0
        assert re.search("^warning: .*synthetic scenes.*--calib", ran.err, re.MULTILINE)
        assert "calibration 4 synthetic scenes" in ran.table
        assert metadata("model.int8.onnx")["onnxq.samples"] == "4"

    def test_count_limits_it(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--count", 2)
        assert "calibration 2 of 3 images in calib" in ran.table
        assert metadata("model.int8.onnx")["onnxq.samples"] == "2"

    @pytest.mark.slow
    def test_an_unreadable_image_is_named_skipped_and_counted(self, onnxq, model, made):
        made("good.onnx")
        Path("calib/broken.png").write_bytes(b"no picture")
        ran = onnxq(model, "--calib", "calib")
        assert ran.code == 0
        assert re.search(r"^warning: .*calib/broken\.png", ran.err, re.MULTILINE)
        assert "1 left out, calib/broken.png" in ran.table
        assert Path("model.int8.onnx").read_bytes() == Path("good.onnx").read_bytes()

    def test_several_unreadable_images_are_counted_and_one_is_named(self, onnxq, model):
        for name in ("x", "y"):
            Path(f"calib/{name}.png").write_bytes(b"no picture")
        ran = onnxq(model, "--calib", "calib", *NEVER_SATURATES)
        assert re.search(r"2 left out, such as calib/[xy]\.png", ran.table)
        assert len(re.findall("^warning: skipped ", ran.err, re.MULTILINE)) == 2

    def test_kinds_that_are_not_read_are_counted(self, onnxq, model):
        for name in ("x.heic", "y.heic", "z.exr", "0.txt"):
            Path(f"calib/{name}").touch()
        ran = onnxq(model, "--calib", "calib")
        assert "left out by kind: 1 .exr, 2 .heic" in ran.table
        assert "warning: calib: left out 1 .exr, 2 .heic, which are not read with images" in ran.err

    def test_a_file_that_a_list_names_and_that_is_not_there_is_counted(self, onnxq, model):
        Path("list.txt").write_text("calib/0.png\ncalib/none.png\n")
        ran = onnxq(model, "--calib", "list.txt")
        assert ran.code == 0
        assert re.search(r"^warning: list\.txt: .*calib/none\.png", ran.err, re.MULTILINE)
        assert "1 left out, calib/none.png" in ran.table


class TestSavedCalibration:
    @pytest.mark.slow
    @pytest.mark.parametrize("options", [["--method", "mse"], ["--act-bits", "5", "--symmetric", "--no-reconstruct"]])
    def test_gives_the_bytes_that_a_direct_run_with_other_options_gives(self, onnxq, model, options):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", "-o", "uh.onnx").code == 0
        ran = onnxq(model, "--calibration", "seen.npz", *options, "-o", "later.onnx")
        assert ran.code == 0
        assert "calibration from seen.npz" in ran.table
        assert onnxq(model, "--calib", "calib", *options, "-o", "direct.onnx").code == 0
        assert Path("later.onnx").read_bytes() == Path("direct.onnx").read_bytes()
        assert Path("later.onnx").read_bytes() != Path("uh.onnx").read_bytes()

    def test_gives_the_same_bytes_with_error_feedback(self, onnxq, model):
        nearest = ["--rounding", "nearest"]
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", "-o", "a.onnx").code == 0
        assert onnxq(model, "--calibration", "seen.npz", "-o", "b.onnx").code == 0
        assert onnxq(model, "--calibration", "seen.npz", *nearest, "-o", "nearest.onnx").code == 0
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes() != Path("nearest.onnx").read_bytes()

    def test_without_covariances_is_refused_for_error_feedback(self, onnxq, model):
        nearest = ["--rounding", "nearest"]
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", *nearest).code == 0
        said = refused(onnxq, model, "--calibration", "seen.npz", "--rounding", "feedback")
        assert "it was made with --rounding nearest; calibrate again, or leave --rounding out" in said
        assert onnxq(model, "--calibration", "seen.npz", "-o", "b.onnx").code == 0  # to nearest

    def test_spares_the_calibration(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        ran = onnxq(model, "--calibration", "seen.npz")
        assert "calibrating" not in ran.err
        assert "synthetic" not in ran.err + ran.out

    @pytest.mark.parametrize(
        ("before", "later", "cause"),
        [
            ([], ["--preprocess", "bgr"], "RGB, 0-1, letterbox centred, and now they are prepared as BGR, 0-1"),
            (["--preprocess", "stretch"], [], "RGB, 0-1, stretched, and now they are prepared as RGB, 0-1, letterbox"),
        ],
    )
    def test_of_images_that_were_prepared_differently_is_refused(self, onnxq, model, before, later, cause):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", *before).code == 0
        assert cause in refused(onnxq, model, "--calibration", "seen.npz", *later, "-o", "b.onnx")
        assert onnxq(model, "--calibration", "seen.npz", *before, "-o", "b.onnx").code == 0

    def test_of_arrays_fits_any_preprocessing(self, onnxq, model):
        _write_npz(images=np.random.default_rng(0).random((4, 3, 32, 32), np.float32))
        assert onnxq(model, "--calib", "data.npz", "--save-calibration", "seen.npz").code == 0
        assert onnxq(model, "--calibration", "seen.npz", "--preprocess", "bgr", "-o", "b.onnx").code == 0

    def test_may_be_saved_again(self, onnxq, model):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        assert onnxq(model, "--calibration", "seen.npz", "--save-calibration", "again.npz").code == 0
        assert Path("again.npz").read_bytes() == Path("seen.npz").read_bytes()


def _write_npz(**arrays):
    np.savez("data.npz", **arrays)


SAMPLE = np.full((1, 3, 32, 32), 0.5, np.float32)


class TestBadData:
    def test_missing(self, onnxq, model):
        assert "nowhere: no such file or folder; check the path" in refused(onnxq, model, "--calib", "nowhere")

    def test_one_of_several_missing(self, onnxq, model):
        assert "nowhere: no such file or folder" in refused(onnxq, model, "--calib", "calib", "nowhere")

    def test_a_pattern_that_matches_nothing(self, onnxq, model):
        assert "calib/*.gif: matches no image" in refused(onnxq, model, "--calib", "calib/*.gif")

    def test_brackets_of_a_name_are_shown(self, onnxq, model):
        assert "error: [red]none[/]: " in refused(onnxq, model, "--calib", "[red]none[/]")

    def test_an_empty_folder(self, onnxq, model):
        Path("empty").mkdir()
        message = refused(onnxq, model, "--calib", "empty")
        assert re.search(r"empty: has no images \(.*\.jpg.*\).*; give another folder", message)

    def test_all_images_unreadable(self, onnxq, model):
        for number in range(3):
            Path(f"calib/{number}.png").write_bytes(b"no picture")
        message = refused(onnxq, model, "--calib", "calib")
        assert re.search(r"none of the 3 images could be read; first: calib/\d\.png", message)

    def test_a_kind_of_file_that_is_not_known(self, onnxq, model):
        Path("data.tar").write_bytes(b"")
        assert "data.tar: unknown kind of file; give" in refused(onnxq, model, "--calib", "data.tar")

    def test_a_list_of_files_that_are_not_there(self, onnxq, model):
        Path("list.txt").write_text("a.png\nb.png\n")
        message = refused(onnxq, model, "--calib", "list.txt")
        assert "list.txt: names 2 files and none exists, such as a.png; put them in" in message

    def test_json_that_is_no_coco(self, onnxq, model):
        Path("data.json").write_text('{"pictures": []}')
        message = refused(onnxq, model, "--calib", "data.json")
        assert "data.json: has no images with a file_name; give annotations in COCO's format" in message

    @pytest.mark.parametrize(
        ("arrays", "message"),
        [
            ({"images": SAMPLE[:, :, :16]}, r"images has shape \(1, 3, 16, 32\), not \(\?, 3, 32, 32\); resize"),
            ({"images": SAMPLE.transpose(0, 2, 3, 1)}, r"images has shape \(1, 32, 32, 3\), not .*transpose"),
            ({"images": SAMPLE[0, 0]}, r"images has shape \(32, 32\), not"),
            ({"images": SAMPLE[:0]}, "holds no samples; leave it out"),
            ({"picture": SAMPLE, "other": SAMPLE}, "has picture, other, the model's inputs are images; give"),
            ({"images": (SAMPLE * 255).astype(np.uint8)}, "takes float32, values 0-255 as uint8: scale them"),
            ({"images": SAMPLE.astype(np.int64)}, "takes float32, not int64: convert it"),
            ({"images": SAMPLE * np.nan}, "sample 0: input images has NaN or infinite values; repair it"),
            ({"images": SAMPLE * np.float32(np.inf)}, "input images has NaN or infinite values; repair it"),
        ],
        ids=["size", "layout", "rank", "no rows", "keys", "uint8", "int64", "nan", "inf"],
    )
    def test_arrays_that_do_not_fit(self, onnxq, model, arrays, message):
        _write_npz(**arrays)
        assert re.search(rf"error: data\.npz.*{message}", refused(onnxq, model, "--calib", "data.npz"))

    def test_nan_in_a_later_row(self, onnxq, model):
        rows = np.repeat(SAMPLE, 5, axis=0)
        rows[3, 2, 5, 7] = np.nan
        _write_npz(images=rows)
        assert "error: data.npz, sample 3: input images has NaN" in refused(onnxq, model, "--calib", "data.npz")

    @pytest.mark.parametrize("content", [b"", b"no archive", b"PK\x03\x04 cut short"])
    def test_no_archive(self, onnxq, model, content):
        Path("data.npz").write_bytes(content)
        assert "error: data.npz: cannot be read as arrays" in refused(onnxq, model, "--calib", "data.npz")


class TestBadCalibration:
    def test_beside_data(self, onnxq, model):
        message = misused(onnxq, model, "--calib", "calib", "--calibration", "seen.npz")
        assert "--calib and --calibration: give one of the two" in message

    def test_missing(self, onnxq, model):
        message = refused(onnxq, model, "--calibration", "none.npz")
        assert "none.npz: no such calibration file; make one with --save-calibration" in message

    @pytest.mark.parametrize(
        "content", [b"", b"garbage", b"PK\x03\x04garbage", b"\x93NUMPY\x01\x00"], ids=["empty", "text", "zip", "npy"]
    )
    def test_garbage(self, onnxq, model, content):
        Path("seen.npz").write_bytes(content)
        message = refused(onnxq, model, "--calibration", "seen.npz")
        assert "seen.npz: not a calibration file written by --save-calibration" in message

    def test_data_instead(self, onnxq, model):
        _write_npz(images=SAMPLE)
        message = refused(onnxq, model, "--calibration", "data.npz")
        assert "data.npz: not a calibration file written by --save-calibration" in message

    @pytest.mark.parametrize("damage", ["cut", "flipped"])
    def test_damaged(self, onnxq, model, damage):
        assert onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        whole = Path("seen.npz").read_bytes()
        middle = len(whole) // 2
        broken = whole[:middle] if damage == "cut" else whole[:middle] + bytes(50) + whole[middle + 50 :]
        Path("seen.npz").write_bytes(broken)
        message = refused(onnxq, model, "--calibration", "seen.npz")
        assert "seen.npz: not a calibration file written by --save-calibration" in message

    def test_of_another_model(self, onnxq, model):
        save(v8(seed=1), "other.onnx")
        assert onnxq("other.onnx", "--calib", "calib", "--save-calibration", "seen.npz").code == 0
        message = refused(onnxq, model, "--calibration", "seen.npz")
        assert "with another model, or with another choice of --equalize, --migrate or --target" in message

    def test_of_migrated_scales_where_none_migrate(self, onnxq, model):
        target = ["--target", "openvino"]
        made = onnxq(model, "--calib", "calib", *target, "--migrate", "--save-calibration", "seen.npz", "-o", "a.onnx")
        assert made.code == 0
        message = refused(onnxq, model, "--calibration", "seen.npz", *target, "--no-migrate")
        assert "with another choice of --equalize, --migrate or --target" in message
        assert onnxq(model, "--calibration", "seen.npz", *target, "-o", "b.onnx").code == 0
        assert Path("a.onnx").read_bytes() == Path("b.onnx").read_bytes()

    def test_without_migrated_scales_where_scales_migrate(self, onnxq, model):
        target = ["--target", "openvino"]
        assert onnxq(model, "--calib", "calib", *target, "--save-calibration", "seen.npz", "-o", "a.onnx").code == 0
        done = onnxq(model, "--calibration", "seen.npz", *target, "--migrate", "-o", "b.onnx")
        assert done.code == 0
        assert "no scales migrate: the calibration was made with too few images or with --no-migrate" in " ".join(
            done.err.split()
        )

    def test_of_another_target(self, onnxq, model):
        arguments = ["--calib", "calib", "--target", "openvino", "--save-calibration", "seen.npz"]
        assert onnxq(model, *arguments).code == 0
        message = refused(onnxq, model, "--calibration", "seen.npz", "--target", "generic")
        assert re.search("has no tensor '.+': it was made for another target .*; calibrate again", message)
