"""onnxruntime and OpenVINO on this machine's CPU, which onnxq runs in its own process."""

from onnxq.compilers.base import Built, Compiler, Job, Ran
from onnxq.errors import ConfigError
from onnxq.runtime import RUNTIMES


class CpuRuntime(Compiler):
    """A runtime of `onnxq.runtime`; subclasses name it."""

    in_own_process = False

    def require(self, python: str) -> None:
        """Look for it in onnxq's own environment."""
        if not RUNTIMES[self.name].is_installed():
            raise ConfigError(f"{self.title} is not installed; pip install 'onnxq[{self.name}]'")

    def build(self, job: Job) -> Built:
        """Load the file, count its layers on integers and run it."""
        runtime = RUNTIMES[self.name].inspected(job.model)
        wanted = [layer for layer in job.layers if layer.is_wanted]
        found = runtime.integer_layers(job.model, [layer.name for layer in wanted])
        layers = {layer.name: Ran("float32", False) for layer in job.layers}
        layers.update({each.name: Ran(each.types, True) for each in wanted if each.name in found.wanted})
        others = f"it runs {found.others} more layers on integers by itself" if found.others else ""
        return Built(
            version=RUNTIMES[self.name].version(),
            layers=layers,
            outputs=[runtime.run(feed) for feed in job.feeds],
            notes=tuple(filter(None, [others])),
        )


class Ort(CpuRuntime):
    """onnxruntime's CPU provider."""

    name = "ort"
    title = "onnxruntime"


class OpenVinoCpu(CpuRuntime):
    """OpenVINO's CPU plugin."""

    name = "openvino"
    title = "OpenVINO"
