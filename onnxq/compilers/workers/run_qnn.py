"""Compiles a model with onnxruntime's QNN provider, and runs it in the simulator of the NPU that comes with it."""

import json
from pathlib import Path

import numpy as np
import onnxruntime
import onnxruntime_qnn

NAME = "QNNExecutionProvider"

KINDS = {"tensor(float)": np.float32, "tensor(float16)": np.float16}


def main() -> None:
    """Compile and run the job in the working folder."""
    job = json.loads(Path("job.json").read_text(encoding="utf-8"))
    onnxruntime.register_execution_provider_library(NAME, onnxruntime_qnn.get_library_path())
    devices = [device for device in onnxruntime.get_ep_devices() if device.ep_name == NAME]
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    graphs = Path("graphs")
    graphs.mkdir()
    settings = {
        "backend_path": onnxruntime_qnn.get_qnn_htp_path(),
        "soc_model": job["device"],  # without it, some graphs fail with a memory error
        "dump_json_qnn_graph": "1",
        "json_qnn_graph_dir": str(graphs),
    }
    options.add_provider_for_devices(devices[:1], settings)
    session = onnxruntime.InferenceSession("model.onnx", options)
    left = [
        [node.name, node.op_type]
        for part in session.get_provider_graph_assignment_info()
        for node in part.get_nodes()
        if part.ep_name != NAME
    ]
    for number in range(job["feeds"]):
        with np.load(f"feed_{number}.npz") as feed:
            inputs = {
                each.name: feed[each.name].astype(KINDS.get(each.type, feed[each.name].dtype), copy=False)
                for each in session.get_inputs()
            }
        found = session.run(None, inputs)
        np.savez(f"outputs_{number}.npz", **{str(place): array for place, array in enumerate(found)})
    result = {"version": onnxruntime_qnn.__version__, "onnxruntime": onnxruntime.__version__, "on_cpu": left}
    Path("result.json").write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main()
