import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from compared import AWAY, finding, noise_images, save_models
from faulty import erring
from graphs import ULTRALYTICS, classifier, csp, quantized, separate, v5_raw, v8, with_metadata
from installed import needs_openvino
from PIL import Image
from tables import BOX, always, giving, table_of

from onnxq.errors import ConfigError, DataError, ModelError
from onnxq.evaluation.comparison import compare
from onnxq.evaluation.criteria import AgreementCriterion
from onnxq.evaluation.predictor import Settings
from onnxq.progress import silent
from onnxq.runtime import RUNTIMES
from onnxq.targets import OPENVINO


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return noise_images(tmp_path / "images")


@pytest.fixture
def saved(tmp_path: Path) -> Callable[..., list[Path]]:
    return partial(save_models, tmp_path)


class TestCompare:
    def test_a_model_agrees_with_itself(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        [path] = saved(finding((*BOX, 0.9, 1)))
        found = compare(path, str(path), images)
        assert found.agreement is not None
        assert found.agreement.numbers("detect") == {
            "objects": 3, "found_again": 1, "iou": 1, "score_difference": 0, "new": 0,
        }  # fmt: skip
        assert (found.images, found.traced_images, found.outputs) == (3, 3, {"out": math.inf})
        assert found.expected_ap_loss == 0
        assert all(each.added == 0 for each in found.traced)

    def test_what_differs(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        expected = finding((*BOX, 0.9, 1), (*AWAY, 0.5, 0))
        paths = saved(expected, finding((8, 16, 32, 28, 0.8, 1), (0, 0, 9, 9, 0.3, 0)))
        found = compare(*paths, images)
        assert found.agreement is not None
        assert found.agreement.numbers("detect") == {
            "objects": 6, "found_again": 0.5, "iou": pytest.approx(0.75), "score_difference": pytest.approx(0.1),
            "new": 3,
        }  # fmt: skip
        criterion = AgreementCriterion(expected, images, Settings(runtime="ort"))
        assert found.expected_ap_loss == criterion.loss(onnx.load(paths[1]), silent) > 10
        strict = compare(*paths, images, settings=Settings(confidence=0.6, max_images=1)).agreement
        assert strict is not None
        assert (strict.expected, strict.matched, strict.new) == (1, 1, 0)

    def test_faint_objects_are_judged_whatever_the_confidence(
        self, images: Path, saved: Callable[..., list[Path]]
    ) -> None:
        faint, shifted = finding((*BOX, 0.1, 1)), finding((9, 16, 33, 32, 0.05, 1))
        paths = saved(faint, shifted)
        losses = [compare(*paths, images, settings=Settings(confidence=c)).expected_ap_loss for c in (0.01, 0.25, 0.9)]
        assert losses[0] is not None
        assert losses == [losses[0]] * 3
        assert losses[0] > 0.1
        nothing = compare(*saved(finding(), finding()), images).expected_ap_loss
        assert nothing is not None
        assert math.isnan(nothing)

    def test_duplicates_are_removed_as_the_settings_say(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        paths = saved(*[finding((*BOX, 0.9, 1), (9, 16, 33, 32, 0.8, 1))] * 2)
        counts = [compare(*paths, images, settings=Settings(confidence=0.25, iou=iou)).agreement for iou in (0.5, 1.0)]
        assert [each.expected for each in counts if each] == [3, 6]

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("build", "metadata"),
        [
            (v8, {}),
            (v5_raw, {}),
            (separate, {}),
            (lambda: v8(masks=True), {"task": "segment"}),
            (lambda: v8(keypoints=4), {"task": "pose", "kpt_shape": "[4, 3]"}),
            (lambda: v8(angle=True), {"task": "obb"}),
            (classifier, {"task": "classify"}),
        ],
    )
    def test_quantized_models_of_every_task(
        self, images: Path, saved: Callable[..., list[Path]], build: Callable[[], onnx.ModelProto],
        metadata: dict[str, str],
    ) -> None:  # fmt: skip
        model = with_metadata(build(), ULTRALYTICS | metadata)
        found = compare(*saved(model, quantized(model)[0]), images, settings=Settings(confidence=0.1))
        task = found.detector.outputs.task
        assert task == metadata.get("task", "detect")
        assert found.agreement is not None
        numbers = found.agreement.numbers(task)
        assert numbers.get("found_again", 1) > 0.5
        assert numbers.get("objects", 100) > 30
        assert {"segment": "mask_iou", "pose": "keypoint_similarity", "classify": "top5"}.get(task, "iou") in numbers
        assert all(number >= 0 for number in numbers.values())
        assert (found.expected_ap_loss is None) == (task in ("obb", "classify"))
        assert all(0 < sqnr < 100 for sqnr in found.outputs.values())
        assert found.outputs.keys() == {output.name for output in model.graph.output}
        assert found.traced

    def test_models_that_are_not_understood_are_compared_by_their_numbers(
        self, images: Path, saved: Callable[..., list[Path]]
    ) -> None:
        model = csp()
        found = compare(*saved(model, quantized(model)[0]), images)
        assert found.agreement is None
        assert found.expected_ap_loss is None
        assert 0 < found.outputs["output"] < 100
        assert found.traced

    def test_outputs_whose_values_tell_no_layout_are_not_read(
        self, images: Path, saved: Callable[..., list[Path]]
    ) -> None:
        table = np.random.default_rng(0).uniform(2, 9, (9, 6)).astype(np.float32)
        found = compare(*saved(always(table)), *saved(always(table)), images)
        assert found.agreement is None
        assert found.outputs == {"out": math.inf}
        assert "but the scores reach" in found.detector.why

    @needs_openvino
    def test_both_models_run_in_the_runtime_of_the_quantized_one(
        self, images: Path, saved: Callable[..., list[Path]]
    ) -> None:
        after, _ = quantized(csp(), OPENVINO)
        paths = saved(csp(), with_metadata(after, {"onnxq.target": "openvino"}))
        auto, openvino, ort = (
            compare(*paths, images, settings=Settings(runtime=name)) for name in ("auto", "openvino", "ort")
        )
        assert auto.outputs == openvino.outputs != ort.outputs
        assert (auto.reference_runtime.name, auto.runtime.name) == ("openvino", "openvino")
        assert ort.traced == auto.traced

    def test_exports_that_are_put_right_before_they_are_quantized_are_so_here_too(
        self, images: Path, saved: Callable[..., list[Path]]
    ) -> None:
        unsorted = v8()
        first = unsorted.graph.node[0]
        del unsorted.graph.node[0]
        unsorted.graph.node.append(first)
        found = compare(*saved(unsorted, quantized(v8())[0]), images)
        assert found.traced[0].op == "Conv"
        assert len(found.traced) > 50

    def test_quantized_outputs_are_read_as_the_float_model_s_are(
        self, images: Path, saved: Callable[..., list[Path]]
    ) -> None:
        names = "{0: 'a', 1: 'b'}"
        found = compare(*saved(finding((*BOX, 0.9, 1), names=names), finding((*BOX, 0.9, 1), names="['a']")), images)
        assert found.agreement is not None
        assert found.agreement.matched == 3

    def test_a_quantized_model_in_place_of_the_float_one_is_warned_of(
        self, images: Path, saved: Callable[..., list[Path]], caplog: pytest.LogCaptureFixture
    ) -> None:
        model = v5_raw()
        paths = saved(model, quantized(model)[0])
        compare(*paths, images)
        assert not caplog.messages
        compare(*reversed(paths), images)
        assert f"{paths[1].name} is quantized, {paths[0].name} is not: the float model comes first" in caplog.messages

    def test_a_file_that_another_runtime_computes_wrongly_is_warned_of(
        self,
        images: Path,
        saved: Callable[..., list[Path]],
        caplog: pytest.LogCaptureFixture,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        paths = saved(csp(), with_metadata(quantized(csp(), OPENVINO)[0], {"onnxq.target": "openvino"}))
        settings = Settings(runtime="ort")
        right = compare(*paths, images, settings=settings)
        assert not caplog.messages
        monkeypatch.setitem(RUNTIMES, "ort", erring("conv2_weight_scale"))
        wrong = compare(*paths, images, settings=settings)
        assert wrong.outputs["output"] < right.outputs["output"] - 10
        [warning] = caplog.messages
        assert warning.startswith(f"{paths[1].name}: {RUNTIMES['ort'].described()} computes the file, which is for")

    def test_nodes_may_stand_in_any_order(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        model = v8()
        other = quantized(model)[0]
        nodes = list(model.graph.node)
        del model.graph.node[:]
        model.graph.node.extend([*nodes[1:], nodes[0]])
        assert len(compare(*saved(model, other), images).traced) > 20

    def test_a_model_of_a_fixed_batch(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        table = table_of([(*BOX, 0.9, 1)], "v8", 2)
        [path] = saved(always(np.stack([table, table]), batch=2))
        agreement = compare(path, path, images).agreement
        assert agreement is not None
        assert agreement.expected == 3

    def test_pictures_are_spread_and_progress_is_told(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        [path] = saved(finding((*BOX, 0.9, 1)))
        told: list[tuple[str, int, int]] = []
        settings = Settings(max_images=2, threads=1)
        found = compare(path, path, images, settings=settings, progress=lambda *step: told.append(step))
        assert found.images == 2
        assert told == [
            ("loading", 0, 0),
            *(("comparing", done, 2) for done in (1, 2)),
            *(("tracing", done, 2) for done in (0, 1, 2)),
        ]

    def test_the_order_of_the_pictures_does_not_matter(
        self, images: Path, saved: Callable[..., list[Path]], tmp_path: Path
    ) -> None:
        paths, found = saved(v8(), quantized(v8())[0]), []
        for order in ((0, 1, 2), (1, 0, 2)):
            (tmp_path / "list.txt").write_text("".join(f"images/{number}.png\n" for number in order))
            found.append(compare(*paths, tmp_path / "list.txt", settings=Settings(max_images=2)).outputs)
        assert found[0] == found[1]

    def test_tensors_are_followed_over_fewer_pictures(
        self, images: Path, saved: Callable[..., list[Path]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("onnxq.evaluation.comparison._TRACED", 2)
        [path] = saved(finding((*BOX, 0.9, 1)))
        found = compare(path, path, images)
        assert (found.images, found.traced_images) == (3, 2)

    def test_the_same_numbers_with_any_threads(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        paths = saved(v8(), quantized(v8())[0])
        one, other = (compare(*paths, images, settings=Settings(confidence=0.1, threads=n)) for n in (1, 3))
        assert (one.outputs, one.agreement, one.traced) == (other.outputs, other.agreement, other.traced)


class TestDrawing:
    def test_each_picture_is_drawn_with_what_both_find(
        self, images: Path, saved: Callable[..., list[Path]], tmp_path: Path
    ) -> None:
        paths = saved(finding((*BOX, 0.9, 1), (*AWAY, 0.5, 0)), finding((*BOX, 0.8, 1)))
        found = compare(*paths, images, draw=tmp_path / "deep" / "drawn")
        assert found.images == 3
        drawn = sorted((tmp_path / "deep" / "drawn").iterdir())
        assert [path.name for path in drawn] == ["001-0.jpg", "002-1.jpg", "003-2.jpg"]
        with Image.open(drawn[0]) as picture:
            assert picture.width > 2 * 600

    def test_pictures_of_one_name_are_kept_apart(
        self, images: Path, saved: Callable[..., list[Path]], tmp_path: Path
    ) -> None:
        (images / "more").mkdir()
        (images / "0.png").rename(images / "more" / "1.png")
        (tmp_path / "list.txt").write_text("images/1.png\nimages/more/1.png\n")
        [path] = saved(finding((*BOX, 0.9, 1)))
        compare(path, path, tmp_path / "list.txt", draw=tmp_path / "drawn")
        assert sorted(path.name for path in (tmp_path / "drawn").iterdir()) == ["001-1.jpg", "002-1.jpg"]

    def test_masks_of_the_outputs_themselves(
        self, images: Path, saved: Callable[..., list[Path]], tmp_path: Path
    ) -> None:
        def segmenting(*signs: float) -> onnx.ModelProto:
            """The prototype is 1 left of the middle, and the coefficient of every box as given."""
            prototype = np.where(np.arange(16) < 8, 1, -1).astype(np.float32) * np.ones((1, 1, 16, 1), np.float32)
            table = table_of([(*BOX, 0.9, 1), (*AWAY, 0.8, 0)], "v8", 2)
            table = np.concatenate([table, np.zeros((1, table.shape[1]), np.float32)])
            table[-1, -2:] = signs
            return giving({"out": table[np.newaxis], "protos": prototype}, names="['a', 'b']")

        compare(*saved(segmenting(1, -1), segmenting(1, 1)), images, draw=tmp_path / "drawn")
        with Image.open(tmp_path / "drawn" / "001-0.jpg") as drawn, Image.open(images / "0.png") as picture:
            pixels, own = np.asarray(drawn).astype(int), np.asarray(picture.resize((640, 640))).astype(int)
        left, right = pixels[26:, :640], pixels[26:, 644:]
        first, second = (slice(180, 300), slice(100, 300)), (slice(420, 580), slice(420, 580))  # the boxes' insides
        tints = [np.abs(half[box] - own[box]).mean() > 15 for half in (left, right) for box in (first, second)]
        assert tints == [True, True, True, False]

    def test_classes_are_written_beside_the_picture(
        self, images: Path, saved: Callable[..., list[Path]], tmp_path: Path
    ) -> None:
        [path] = saved(with_metadata(classifier(), ULTRALYTICS | {"task": "classify"}))
        compare(path, path, images, draw=tmp_path)
        with Image.open(tmp_path / "001-0.jpg") as picture:
            assert picture.width > 640 + 2 * 100
            assert picture.height == 640

    def test_models_that_are_not_understood_are_refused(
        self, images: Path, saved: Callable[..., list[Path]], tmp_path: Path
    ) -> None:
        [path] = saved(csp())
        with pytest.raises(
            ConfigError, match=r"--draw .*drawn: there is nothing to draw, as the output layout is unknown"
        ):
            compare(path, path, images, draw=tmp_path / "drawn")
        assert not (tmp_path / "drawn").exists()

    def test_a_place_that_cannot_be_had(self, images: Path, saved: Callable[..., list[Path]], tmp_path: Path) -> None:
        [path] = saved(finding((*BOX, 0.9, 1)))
        with pytest.raises(ConfigError, match=r"--draw .*0\.onnx.*: cannot be made \(.*\); choose another place"):
            compare(path, path, images, draw=path / "drawn")


class TestErrors:
    @pytest.mark.parametrize(
        ("other", "message"),
        [
            (
                always(table_of([(*BOX, 0.9, 1)], "v8", 3)),
                r"output out differs: 0.onnx has tensor\(float\) \(1, 6, 84\), 1.onnx .* \(1, 7, 84\); give",
            ),
            (v8(size=64), r"input images differs|output out differs: 0.onnx has .*, 1.onnx none"),
            (v8(), r"input images differs: 0.onnx has tensor\(float\) \(1, 3, 64, 64\), 1.onnx .* \(1, 3, 32, 32\)"),
        ],
    )
    def test_models_that_do_not_belong_together(
        self, images: Path, saved: Callable[..., list[Path]], other: onnx.ModelProto, message: str
    ) -> None:
        with pytest.raises(ModelError, match=message):
            compare(*saved(finding((*BOX, 0.9, 1)), other), images)

    def test_dimensions_with_names_may_be_any(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        dynamic = finding((*BOX, 0.9, 1))
        dynamic.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
        found = compare(*saved(finding((*BOX, 0.9, 1)), dynamic), images)
        assert found.agreement is not None

    def test_no_pictures(self, tmp_path: Path, saved: Callable[..., list[Path]]) -> None:
        [path] = saved(finding())
        np.save(tmp_path / "a.npy", np.zeros(3))
        with pytest.raises(DataError, match=r"a\.npy: has no images \(\.avif, .*\); give another folder"):
            compare(path, path, tmp_path / "a.npy")

    def test_a_model_that_gives_what_is_no_number(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        table = table_of([(*BOX, 0.9, 1)], "v8", 2)
        table[0, 0] = np.nan
        with pytest.raises(ModelError, match=r"1\.onnx: output out has values that are NaN or infinite"):
            compare(*saved(finding((*BOX, 0.9, 1)), always(table)), images)

    def test_an_image_size_that_does_not_fit(self, images: Path, saved: Callable[..., list[Path]]) -> None:
        [path] = saved(finding())
        with pytest.raises(ConfigError, match=r"0\.onnx: the image size 32x32 was given, but .* 64x64"):
            compare(path, path, images, settings=Settings(image_size=(32, 32)))
