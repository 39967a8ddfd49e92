"""Compiles a quantized model with rknn-toolkit2 as it is, and runs it in the toolkit's simulator."""

import json
from importlib import metadata
from pathlib import Path

import numpy as np
from rknn.api import RKNN


def done(step: str, code: int) -> None:
    """End with the name of a step that failed; the toolkit has printed why."""
    if code != 0:
        raise SystemExit(f"{step} returned {code}")


def main() -> None:
    """Compile and run the job in the working folder."""
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    toolkit = RKNN(verbose=True)
    settings = {"optimization_level": job["level"], "disable_rules": job["disabled"]}
    done("config", toolkit.config(target_platform=job["device"], **settings) or 0)
    done("load_onnx", toolkit.load_onnx("model.onnx"))
    done("build", toolkit.build(do_quantization=False))
    done("init_runtime", toolkit.init_runtime())
    for number in range(job["feeds"]):
        with np.load(f"feed_{number}.npz") as feed:
            inputs = [feed[name].astype(np.float32) for name in feed.files]
        found = toolkit.inference(inputs=inputs, data_format=["nchw"] * len(inputs))
        if found is None:
            raise SystemExit("inference returned nothing")
        np.savez(f"outputs_{number}.npz", **{str(place): array for place, array in enumerate(found)})
    result = {"version": metadata.version("rknn-toolkit2")}
    Path("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
