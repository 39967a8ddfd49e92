"""Builds an engine with TensorRT-RTX, which needs no GPU for it; the kernels are in what it prints."""

import json
from pathlib import Path

import tensorrt_rtx as trt


class Logger(trt.ILogger):  # type: ignore[misc]  # it has no types
    """Prints every message."""

    def log(self, severity: object, message: str) -> None:
        """Print a message."""
        print(f"[{getattr(severity, 'name', severity)}] {message}")


def main() -> None:
    """Build the job in the working folder."""
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    logger = Logger()
    builder = trt.Builder(logger)
    network = builder.create_network(0)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file("model.onnx"):
        errors = [parser.get_error(number) for number in range(parser.num_errors)]
        raise SystemExit("\n".join(f"{error.node_name()}: {error.desc()}" for error in errors))
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.num_compute_capabilities = 1
    known = trt.ComputeCapability.__members__
    if job["device"] not in known:
        raise SystemExit(f"no compute capability {job['device']}; it has {', '.join(known)}")
    config.set_compute_capability(known[job["device"]], 0)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise SystemExit("no engine was built")
    result = {"version": trt.__version__, "bytes": engine.nbytes}
    Path("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
