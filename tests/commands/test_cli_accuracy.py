import json
import re
import sys
from pathlib import Path

import pytest
from command_line import (
    draw,
    misused,
    refused,
    runs,
    save,
)
from graphs import classifier, v5_raw
from tables import write_coco

from onnxq import compare, evaluate
from onnxq.compilers import OF_TARGET
from onnxq.runtime import RUNTIMES

pytestmark = pytest.mark.usefixtures("folder")


class TestSensitivity:
    @pytest.mark.slow
    def test_the_worst_pieces_are_shown_and_all_are_reported(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--sensitivity", "--report", "r.json")
        report = json.loads(Path("r.json").read_text())
        pieces = report["sensitivity"]
        assert {name for piece in pieces for name in piece["nodes"]} >= set(report["layers"]["integer"])
        assert [piece["moved"] for piece in pieces] == sorted((piece["moved"] for piece in pieces), reverse=True)
        assert f"sensitivity, the 10 worst of {len(pieces)} (-v: all), on 3 images" in ran.table
        first = pieces[0]
        assert f"{first['nodes'][0]} {first['sqnr']:.1f} {first['moved']:.2f}" in ran.table
        assert pieces[10]["nodes"][0] not in ran.out

    @pytest.mark.slow
    def test_all_are_shown_with_v_and_in_markdown(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--sensitivity", "-v", "--report", "r.md")
        section = Path("r.md").read_text().split("## Sensitivity, worst first\n\n")[1].split("\n## ")[0]
        rows = section.strip().split("\n\n")[1].splitlines()[2:]
        assert len(rows) > 10
        assert all(row.split("`")[1] in ran.out for row in rows)

    def test_is_not_measured_unasked(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--report", "r.json")
        assert "sensitivity" not in ran.out
        assert json.loads(Path("r.json").read_text())["sensitivity"] == []

    @pytest.mark.slow
    def test_changes_nothing_in_the_file(self, onnxq, model, made):
        made("plain.onnx")
        onnxq(model, "--calib", "calib", "-o", "measured.onnx", "--sensitivity")
        assert Path("plain.onnx").read_bytes() == Path("measured.onnx").read_bytes()


class TestProve:
    def test_the_written_file_is_built_in_the_compiler_of_its_target(self, onnxq, model):
        ran = onnxq(model, "--calib", "calib", "--prove")
        assert ran.code == 0
        [(kept, wanted)] = re.findall(r"^onnxruntime \S+: (\d+) of (\d+) wanted Convs", ran.out, re.MULTILINE)
        assert int(kept) == int(wanted) > 0

    def test_a_compiler_that_is_absent_is_told_before_the_work(self, onnxq, model, monkeypatch):
        monkeypatch.setattr(sys, "executable", "/bin/false")
        line = refused(onnxq, model, "--calib", "calib", "--prove", "--target", "tensorrt")
        assert line == "error: --prove: TensorRT-RTX is not installed; pip install 'onnxq[tensorrt]'"

    def test_a_layer_in_float_is_an_error_and_the_file_is_there(self, onnxq, model, monkeypatch):
        monkeypatch.setitem(OF_TARGET, "tensorrt", "ort")
        ran = onnxq(model, "--calib", "calib", "--prove", "--target", "tensorrt", "-o", "t.onnx")
        assert ran.code == 1
        assert "error: --prove: onnxruntime does not run these layers on integers: " in ran.err
        assert "; t.onnx was written" in ran.err
        assert Path("t.onnx").is_file()


class TestLimits:
    @pytest.fixture
    def others(self):
        for number in range(10, 13):
            draw(f"others/{number}.png", number)
        return "others"

    def plain(self, onnxq, model, others):
        """SQNR of the model if no part is kept at a higher precision, dB."""
        found = onnxq(model, "--calib", "calib", "--min-sqnr", 0, "--images", others, "-o", "plain.onnx")
        return float(re.search(r"measured +([\d.]+) dB on 3 images, after 1 trials?", found.out)[1])

    @pytest.mark.slow
    def test_as_few_pieces_as_needed_stay_float(self, onnxq, model, others):
        plain = self.plain(onnxq, model, others)
        options = ["--calib", "calib", "--min-sqnr", plain + 1, "--images", others, "--report", "r.json"]
        ran = onnxq(model, *options)
        assert ran.code == 0, ran.err
        reached, trials = re.search(r"measured +([\d.]+) dB on 3 images, after (\d+) trials", ran.out).groups()
        assert float(reached) >= plain + 1
        assert int(trials) > 1
        report = json.loads(Path("r.json").read_text())
        excluded, search = report["exclude"], report["search"]
        assert (search["loss_text"], search["images"]) == (f"{reached} dB", 3)
        assert len(search["trials"]) == int(trials)
        assert {"kept": len(search["kept"]), "loss_text": search["loss_text"]} in search["trials"]
        assert [name for piece in search["kept"] for name in piece["nodes"]] == excluded
        kept = re.search(r"kept (\d+) float: (\S+?),? ", ran.table)
        assert 1 <= int(kept[1]) <= len(excluded)
        assert kept[2] == excluded[0]
        assert onnxq(model, "--calib", "calib", "--exclude", *excluded, "-o", "again.onnx").code == 0
        assert Path("again.onnx").read_bytes() == Path("model.int8.onnx").read_bytes()

    @pytest.mark.slow
    def test_a_second_run_takes_the_record_of_the_first(self, onnxq, model, others):
        plain = self.plain(onnxq, model, others)
        options = ["--calib", "calib", "--min-sqnr", plain + 1, "--images", others]
        first = onnxq(model, *options)
        made = Path("model.int8.onnx").read_bytes()
        assert Path("model.int8.search.json").exists()
        second = onnxq(model, *options)
        assert Path("model.int8.onnx").read_bytes() == made
        assert "comparing" in first.err
        assert "comparing" not in second.err

    @pytest.mark.slow
    def test_what_is_calibrated_with_is_not_judged_by(self, onnxq, model):
        message = refused(onnxq, model, "--calib", "calib", "--min-sqnr", 20, "--images", "calib")
        assert "calib/0.png is also a calibration image" in message
        assert "--on-calibration" in message
        ran = onnxq(model, "--calib", "calib", "--min-sqnr", 0, "--images", "calib", "--on-calibration")
        assert ran.code == 0
        assert ran.out.splitlines()[-1].endswith("model.int8.onnx --annotations A.json --images calib")

    @pytest.mark.slow
    def test_what_cannot_be_reached_is_refused(self, onnxq, model, others):
        before = set(Path().iterdir())
        ran = onnxq(model, "--calib", "calib", "--min-sqnr", 500, "--images", others)
        assert ran.code == 1
        assert "the limit cannot be kept" in ran.err
        assert {path.name for path in set(Path().iterdir()) - before} == {"model.int8.search.json"}

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--max-drop", 1], "--annotations JSON and --images DIR"),
            (["--max-drop", 1, "--images", "calib"], "without labels, give --judge agreement and --images DIR"),
            (["--max-drop", 1, "--judge", "agreement"], "--max-drop --judge agreement needs --images DIR"),
            (["--evaluate", "--judge", "agreement"], "--evaluate --judge agreement needs --images DIR"),
            (
                ["--evaluate", "--judge", "agreement", "--images", "calib", "--annotations", "a.json"],
                "--judge agreement needs no labels: leave out --annotations",
            ),
            (["--judge", "agreement", "--min-sqnr", 30, "--images", "calib"], "--judge: for --max-drop or --evaluate"),
            (["--max-drop", "nan", "--demo"], "--max-drop nan: expected a number"),
            (["--min-sqnr", "inf", "--images", "calib"], "--min-sqnr inf: expected a number"),
            (["--min-sqnr", 30], "--images DIR"),
            (["--images", "calib"], "give one of these"),
            (["--on-calibration"], "give one of these"),
            (["--runtime", "exact"], "give one of these"),
        ],
    )
    def test_options_that_do_not_go_together(self, onnxq, model, options, message):
        assert message in misused(onnxq, model, *options)

    def test_a_kept_calibration_has_no_pictures(self, onnxq, model):
        assert "give --calib" in misused(onnxq, model, "--calibration", "seen.npz", "--sensitivity")

    def test_one_limit_at_a_time(self, onnxq, model):
        assert "not allowed with" in misused(onnxq, model, "--max-drop", 1, "--min-sqnr", 30)


class TestAgreement:
    @pytest.fixture
    def others(self):
        for number in range(10, 13):
            draw(f"others/{number}.png", number)
        return ["--judge", "agreement", "--images", "others"]

    def test_a_limit_is_kept_without_labels(self, onnxq, model, others):
        coarse = ["--calib", "calib", "--weight-bits", 4, "--act-bits", 4, "--no-reconstruct"]
        ran = onnxq(model, *coarse, "--max-drop", 90, *others, "-o", "plain.onnx")
        assert ran.code == 0, ran.err
        plain = float(re.search(r"measured +(-[\d.]+) expected AP on 3 images, after 1 trial", ran.out)[1])
        ran = onnxq(model, *coarse, "--max-drop", -plain / 2, *others, "--report", "r.json")
        assert ran.code == 0, ran.err
        reached = float(re.search(r"measured +([+-][\d.]+) expected AP on 3 images, after \d+ trials", ran.out)[1])
        assert reached >= plain / 2 - 0.01
        search = json.loads(Path("r.json").read_text())["search"]
        assert search["loss_text"] == f"{reached:+.2f} expected AP"
        assert search["kept"]

    def test_it_is_measured_after_quantizing_in_the_runtime_of_the_target(self, onnxq, model, others):
        ran = onnxq(model, "--calib", "calib", "--evaluate", *others, "--report", "r.json")
        assert ran.code == 0, ran.err
        measured = rf"agreement with the float model: (\S+) expected AP on 3 images, in {RUNTIMES['ort'].described()}"
        lost = re.search(measured, " ".join(ran.out.split()))[1]
        assert compare.main([str(model), "model.int8.onnx", "--images", "others", "--json", "c.json", "-q"]) == 0
        assert float(lost) == pytest.approx(-json.loads(Path("c.json").read_text())["expected_ap_loss"], abs=0.006)
        assert "next:" not in ran.out
        told = json.loads(Path("r.json").read_text())["agreement"]
        assert told["loss"] == pytest.approx(-float(lost), abs=0.006)
        assert (told["images"], told["runtime"]) == (3, RUNTIMES["ort"].described())

    def test_a_data_set_has_its_images(self, onnxq, model, others):
        Path("data.yaml").write_text("train: calib\nval: others\nnames: [a]\n")
        ran = onnxq(model, "--calib", "data.yaml", "--max-drop", 90, *others[:2])
        assert "expected AP on 3 images" in ran.out

    @pytest.mark.parametrize("option", [["--evaluate"], ["--max-drop", 90]])
    def test_what_is_calibrated_with_is_not_judged_by(self, onnxq, model, option):
        options = ["--calib", "calib", *option, "--judge", "agreement", "--images", "calib"]
        assert "calib/0.png is also a calibration image" in refused(onnxq, model, *options)
        assert onnxq(model, *options, "--on-calibration").code == 0

    @pytest.mark.parametrize("option", [["--evaluate"], ["--max-drop", 1]])
    def test_classifiers_are_refused_before_the_work(self, onnxq, model, others, option):
        save(classifier(), "classifier.onnx")
        message = refused(onnxq, "classifier.onnx", "--calib", "calib", *option, *others)
        assert "--judge agreement cannot judge the model: its task is classify" in message
        assert "--min-sqnr DB compares any outputs" in message


class TestEvaluate:
    @pytest.fixture
    def labelled(self):
        """Pictures with an object each, and the options that name them."""
        pictures = {f"{name}.png": ((48, 40), [(8, 8, 24, 24, 1)]) for name in "ab"}
        annotations, images = write_coco(Path(), pictures, {1: "a", 2: "b", 3: "c"})
        return ["--annotations", annotations, "--images", images]

    @pytest.mark.slow
    def test_says_what_the_command_beside_it_says(self, onnxq, model, labelled, capsys):
        ran = onnxq(model, "--calib", "calib", "--evaluate", *labelled, "--report", "r.json")
        assert ran.code == 0, ran.err
        assert evaluate.main([*map(str, (model, "model.int8.onnx", *labelled)), "--json", "e.json", "-q"]) == 0
        assert ran.out.endswith(capsys.readouterr().out)
        assert "2 images" in ran.out
        assert "next:" not in ran.out
        assert json.loads(Path("r.json").read_text())["evaluation"] == json.loads(Path("e.json").read_text())

    @pytest.mark.parametrize(("options", "runtime"), [([], "ort"), (["--runtime", "exact"], "exact")])
    def test_the_runtime_is_told_and_reported(self, onnxq, model, labelled, options, runtime):
        ran = onnxq(model, "--calib", "calib", "--evaluate", *labelled, "--report", "r.json", *options)
        assert ran.code == 0, ran.err
        title = RUNTIMES[runtime].described()
        assert f"2 images, in {title}\n" in ran.out
        assert f"both models: run in {title}, " in ran.err
        evaluation = json.loads(Path("r.json").read_text())["evaluation"]
        assert [each["runtime"] for each in evaluation["models"]] == [runtime] * 2

    def test_a_target_without_a_runtime_is_computed_exactly(self, onnxq, model, labelled):
        ran = onnxq(model, "--calib", "calib", "--target", "tensorrt", "--evaluate", *labelled, "--report", "r.json")
        evaluation = json.loads(Path("r.json").read_text())["evaluation"]
        assert [each["runtime"] for each in evaluation["models"]] == ["exact"] * 2
        assert f"both models: run in {RUNTIMES['exact'].described()}, as its target, tensorrt, has no" in ran.err

    def test_a_runtime_that_is_not_installed_is_told_before_the_work(self, onnxq, model, labelled, monkeypatch):
        monkeypatch.setitem(sys.modules, "openvino", None)
        message = refused(onnxq, model, "--calib", "calib", "--evaluate", *labelled, "--runtime", "openvino")
        assert message == "error: --runtime openvino: not installed; pip install 'onnxq[openvino]'"

    @pytest.mark.slow
    def test_changes_nothing_in_the_file(self, onnxq, model, made, labelled):
        made("plain.onnx")
        onnxq(model, "--calib", "calib", "-o", "measured.onnx", "--evaluate", *labelled)
        assert Path("plain.onnx").read_bytes() == Path("measured.onnx").read_bytes()

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["r.md", "r.html"])
    def test_is_in_the_report_of_a_quiet_run(self, onnxq, model, labelled, name):
        ran = onnxq(model, "--calib", "calib", "--evaluate", *labelled, "--report", name, "-q")
        assert ran == (0, "", "")
        text = Path(name).read_text()
        assert "Average precision" in text
        assert "on 2 images of" in text

    @pytest.mark.parametrize("given", [[], ["--annotations", "a.json"], ["--images", "calib"]])
    def test_without_labels(self, onnxq, model, given):
        message = misused(onnxq, model, "--evaluate", *given)
        assert "--evaluate measures AP: it needs --annotations JSON and --images DIR" in message

    def test_labels_that_are_missing_are_told_before_the_work(self, onnxq, model):
        message = refused(onnxq, model, "--evaluate", "--annotations", "none.json", "--images", "calib")
        assert "none.json: cannot be read" in message

    @pytest.mark.parametrize(
        ("make", "reason"),
        [(classifier, "its task is classify"), (v5_raw, "the anchors of its boxes are not in the file: give --family")],
    )
    def test_a_model_that_has_no_ap_is_told_before_the_work(self, onnxq, model, labelled, make, reason):
        message = refused(onnxq, save(make(), "other.onnx"), "--calib", "calib", "--evaluate", *labelled)
        assert message.startswith(f"error: --evaluate: the model: {reason}")
        assert "python -m onnxq.compare needs no AP" in message

    def test_other_categories_are_told_before_the_work(self, onnxq, model):
        annotations, images = write_coco(Path(), {"a.png": ((48, 40), [(8, 8, 24, 24, 1)])}, {1: "a"})
        options = ["--annotations", annotations, "--images", images]
        message = refused(onnxq, model, "--calib", "calib", "--evaluate", *options)
        assert "--evaluate: the model: has 3 classes, but the annotations have 1 category, 'a', and" in message

    def test_a_data_set_names_its_images(self, onnxq, model):
        write_coco(Path(), {"a.png": ((48, 40), [(8, 8, 24, 24, 1)])}, {1: "a"})
        Path("images/a.txt").write_text("2 0.4 0.5 0.5 0.6\n")
        Path("data.yaml").write_text("train: calib\nval: images\nnames: [a, b, c]\n")
        ran = onnxq(model, "--calib", "calib", "--evaluate", "--annotations", "data.yaml")
        assert ran.code == 0
        assert "COCO AP of boxes in percent, 1 image" in ran.table
        assert "classes by order of the categories" in ran.err

    def test_what_is_calibrated_with_is_not_measured_on(self, onnxq, model, labelled):
        options = [model, "--calib", "images", "--evaluate", *labelled]
        message = refused(onnxq, *options)
        assert "images/a.png is also a calibration image" in message
        assert "--on-calibration" in message
        assert onnxq(*options, "--on-calibration").code == 0

    @pytest.mark.slow
    def test_of_a_kept_calibration(self, onnxq, model, labelled):
        onnxq(model, "--calib", "calib", "--save-calibration", "seen.npz", "-o", "other.onnx")
        ran = onnxq(model, "--calibration", "seen.npz", "--evaluate", *labelled)
        assert ran.code == 0
        assert "2 images" in ran.out

    def test_the_data_is_opened_once(self, onnxq, model, labelled):
        Path("list.txt").write_text("calib/0.png\nnone.png\n")
        ran = onnxq(model, "--calib", "list.txt", "--evaluate", *labelled)
        assert ran.code == 0
        assert ran.err.count("none.png") == 1
        assert "1 left out, none.png" in ran.table

    def test_what_fails_after_the_work_leaves_the_model(self, onnxq, model, labelled):
        Path("images/b.png").write_text("hello")
        ran = onnxq(model, "--calib", "calib", "--evaluate", *labelled, "--report", "r.json")
        assert ran.code == 1
        last = ran.err.splitlines()[-1]
        assert re.search(r"^error: --evaluate: \S*b\.png: cannot be read as an image", last)
        assert last.endswith("; model.int8.onnx was written")
        runs("model.int8.onnx")
        assert not Path("r.json").exists()

    def test_a_dry_run_measures_nothing(self, onnxq, model):
        ran, plain = onnxq(model, "--dry-run", "--demo", "--evaluate"), onnxq(model, "--dry-run")
        assert (ran.code, ran.out) == (plain.code, plain.out)
        assert ran.err == "warning: without effect, as --dry-run only plans: --evaluate\n"
