import math

import numpy as np
import pytest
from cpu import saturates
from faulty import erring, noisy
from graphs import csp, feed, pan, quantized, run, sqnr, white_stem
from verification import ROOM

from onnxq.facts import Plan
from onnxq.runtime import OnnxRuntime, OpenVino
from onnxq.runtime.compare_run import Check
from onnxq.targets import GENERIC, OPENVINO


def checked(runtime, build=csp, target=OPENVINO, seeds=(0, 1), **options):
    """The comparison and the fault of a quantized model in a runtime."""
    model = build()
    after, facts = quantized(model, target, **(options or ROOM))
    feeds = [feed(model, seed) for seed in seeds]
    check = Check(feeds, [run(model, values) for values in feeds])
    compared = check.compare(after, runtime(after))
    return compared, check.find_fault(after, runtime, facts[Plan].layers, compared)


def noise_of_the_file():
    return checked(OnnxRuntime)[0].exact["output"]


class TestCompare:
    def test_run_and_exact_computation_and_float_model_are_compared_over_all_feeds(self):
        model, runtime = csp(), erring("conv2_weight_scale")
        after, _ = quantized(model, OPENVINO)
        compared, _ = checked(runtime, weight_bits=8)
        feeds = [feed(model, seed) for seed in (0, 1)]
        plain, exact, found = (
            np.stack([compute(values)["output"] for values in feeds])
            for compute in (lambda f: run(model, f), lambda f: run(after, f), runtime(after).run)
        )
        assert compared.exact["output"] == pytest.approx(sqnr(plain, exact), abs=0.01)
        assert compared.run["output"] == pytest.approx(sqnr(plain, found), abs=0.01)
        assert compared.against_exact["output"] == pytest.approx(sqnr(exact, found), abs=0.01)

    def test_the_worst_feed_is_known(self):
        class Second(OnnxRuntime):
            calls = 0

            def run(self, feed):
                self.calls += 1
                return {k: v * np.float32(1.5 if self.calls == 2 else 1) for k, v in super().run(feed).items()}

        model = csp()
        feeds = [feed(model, seed) for seed in range(3)]
        assert Check(feeds, [run(model, f) for f in feeds]).compare(model, Second(model)).worst == 1

    def test_outputs_that_are_refused_are_told(self):
        def refuse(outputs):
            raise ValueError("refused")

        model = csp()
        with pytest.raises(ValueError, match="refused"):
            Check([feed(model)], [run(model)], refuse).compare(model, OnnxRuntime(model))

    def test_outputs_of_another_shape_than_the_file_declares_are_told(self):
        class Cropping(OnnxRuntime):
            def run(self, feed):
                return {name: values[..., 1:] for name, values in super().run(feed).items()}

        model = csp()
        check = Check([feed(model)], [run(model)])
        compared = check.compare(model, Cropping(model))
        assert compared.misshapen == {"output": run(model)["output"][..., 1:].shape}
        assert not compared.run
        assert not check.compare(model, OnnxRuntime(model)).misshapen

    def test_a_size_that_the_file_leaves_open_may_differ(self):
        class Cropping(OnnxRuntime):
            def run(self, feed):
                return {name: values[..., 1:] for name, values in super().run(feed).items()}

        model = csp()
        model.graph.output[0].type.tensor_type.shape.dim[-1].dim_param = "found"
        assert not Check([feed(model)], [run(model)]).compare(model, Cropping(model)).misshapen

    def test_an_equal_run_has_no_noise(self):
        model = csp()
        check = Check([feed(model)], [run(model)])
        compared = check.compare(model, OnnxRuntime(model))
        assert compared.against_exact["output"] > 100
        assert check.find_fault(model, OnnxRuntime, [], compared) is None


class TestFindFault:
    def test_another_rounding_is_no_fault(self):
        """Two independent roundings of one file are 3 dB further apart than each is from the float model."""
        for further in (-5, 0, 2.5, 5):
            assert checked(noisy(noise_of_the_file() - further))[1] is None

    def test_more_noise_than_that_is_a_fault_though_no_layer_has_it(self):
        compared, fault = checked(noisy(noise_of_the_file() - 8))
        assert fault.output == "output"
        assert fault.sqnr == compared.against_exact["output"]
        assert (fault.layers, fault.saturates, fault.remedy) == ((), False, ())
        assert math.isnan(fault.restored)

    @pytest.mark.parametrize("names", [("conv2",), ("conv1", "last")])
    def test_the_wrong_layers_are_named_and_keeping_them_float_is_tried(self, names):
        compared, fault = checked(erring(*(f"{name}_weight_scale" for name in names)))
        assert sorted(fault.layers) == list(names)
        assert sorted(fault.remedy) == list(names)
        assert not fault.saturates
        assert fault.sqnr == compared.against_exact["output"] < 20
        assert fault.restored > 40

    def test_saturation_is_told_from_other_faults(self):
        _, fault = checked(erring("conv2_weight_scale", only_narrow=True))
        assert (fault.layers, fault.saturates, fault.remedy) == (("conv2",), True, ("conv2",))

    def test_a_remedy_that_does_not_help_is_not_told(self):
        class Worse(noisy(5), erring("conv2_weight_scale")):
            """Wrong in a layer, and noisy whatever is float."""

        _, fault = checked(Worse)
        assert fault.layers == ("conv2",)
        assert fault.remedy == ()

    def test_the_output_with_the_most_noise_is_named(self):
        _, fault = checked(erring("last0_weight_scale"), build=pan)
        assert fault.output == "output0"
        assert fault.layers == ("last0",)

    @pytest.mark.parametrize("kind", [OnnxRuntime, OpenVino], ids=lambda kind: kind.title)
    def test_layers_that_saturate_here_are_found_and_kept_float(self, kind):
        if not kind.is_installed():
            pytest.skip(f"{kind.title} is not installed")
        target = GENERIC if kind is OnnxRuntime else OPENVINO
        compared, fault = checked(kind, build=white_stem, target=target, weight_bits=8, limited=False)
        if not saturates(kind):
            assert fault is None
            return
        assert compared.against_exact["output"] < 20
        assert fault.saturates
        assert "wide" in fault.layers
        assert set(fault.layers) <= set(fault.remedy)
        assert fault.restored > 40
