#!/usr/bin/env bash
# On AArch64 a zero point makes OpenVINO run quantized Convs in float16 by its reference kernel, although float32 is asked for,
# and refuse them on CPUs without float16 (Cortex-A72, as in the Raspberry Pi 4). It concerns 1x1 and strided Convs that a
# QuantizeLinear follows; the other Convs run in float32.
#
# Expected: QDQ Convs run on integers, as on x86-64, or in the float type of INFERENCE_PRECISION_HINT; a model that compiles
# on one CPU compiles on the other.
# Seen with openvino 2026.4.1, INFERENCE_PRECISION_HINT=f32, on CPUs emulated by qemu-user 7.2; uint8, Q and DQ are the nodes:
#                               cortex-a76     cortex-a72
#   1x1 zero 0: Q DQ Conv Q DQ  acl_I8         acl_I8
#   1x1 zero 4: Q DQ Conv Q DQ  ref_any_f16    refused: object is not initialized
#   3x3 zero 4: Q DQ Conv       gemm_acl_f32   gemm_acl_f32
#   3x3 zero 4: Q DQ Conv Q DQ  gemm_acl_f32   gemm_acl_f32
#   3x3 by 2 zero 4: as before  ref_any_f16    refused: object is not initialized
# Weights are int8 with a scale per channel, 16 channels, and there is a bias.
# Needs qemu-aarch64 (Debian: qemu-user), apt-get and dpkg-deb: Python for AArch64 comes from Debian's packages.
set -euo pipefail
for program in qemu-aarch64 apt-get dpkg-deb; do
    command -v "$program" >/dev/null || { echo "install $program" >&2; exit 2; }
done
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
export LC_ALL=C # order of files
mkdir -p apt/lists/partial apt/cache/archives/partial root/proc
touch apt/status
keys=/usr/share/keyrings/debian-archive-keyring.gpg
echo "deb [arch=arm64 signed-by=$keys] http://deb.debian.org/debian bookworm main" >apt/sources.list
apt=(apt-get -qq -y -oAPT::Architecture=arm64 -oAPT::Architectures::=arm64 -oAPT::Install-Recommends=0
    -oAPT::Sandbox::User=root -oDir::State::lists="$work/apt/lists" -oDir::State::status="$work/apt/status"
    -oDir::Cache="$work/apt/cache" -oDir::Etc::sourcelist="$work/apt/sources.list" -oDir::Etc::sourceparts=/dev/null)
"${apt[@]}" update
"${apt[@]}" --download-only install python3-minimal libpython3.11-stdlib libstdc++6 libgomp1 zlib1g >/dev/null
for package in apt/cache/archives/*.deb; do dpkg-deb -x "$package" root; done
python3 -m venv venv
venv/bin/pip install --quiet onnx==1.23.2 numpy==2.4.6
venv/bin/pip install --quiet --target packages --only-binary=:all: --python-version 3.11 \
    --platform manylinux_2_28_aarch64 --platform manylinux_2_35_aarch64 openvino==2026.4.1 numpy==2.4.6

venv/bin/python - <<'PYTHON'
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIDE = 16, 16


def save(name: str, zero: int, kernel: int, stride: int, quantized: bool) -> None:
    """A Conv with a quantized input, and a quantized output if asked for."""
    weights = np.random.default_rng(0).integers(-127, 128, (CHANNELS, CHANNELS, kernel, kernel)).astype(np.int8)
    constants = {
        "scale": np.float32(0.02), "zero": np.uint8(zero), "w": weights,
        "w_scale": np.linspace(0.001, 0.002, CHANNELS, dtype=np.float32), "w_zero": np.zeros(CHANNELS, np.int8),
        "bias": np.linspace(-1, 1, CHANNELS, dtype=np.float32),
    }
    ends = ["sum"] if quantized else ["y"]
    attributes = {"pads": [kernel // 2] * 4, "strides": [stride] * 2}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["x_float"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["w_float"], axis=0),
        helper.make_node("Conv", ["x_float", "w_float", "bias"], ends, **attributes),
    ]
    if quantized:
        nodes.append(helper.make_node("QuantizeLinear", ["sum", "scale", "zero"], ["y_q"]))
        nodes.append(helper.make_node("DequantizeLinear", ["y_q", "scale", "zero"], ["y"]))
    graph = helper.make_graph(
        nodes, "conv", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, CHANNELS, SIDE, SIDE])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, CHANNELS, SIDE // stride, SIDE // stride])],
        [numpy_helper.from_array(np.asarray(values), key) for key, values in constants.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(model, full_check=True)
    onnx.save(model, f"{name}.onnx")


save("1x1 zero 0 Q DQ Conv Q DQ", 0, 1, 1, True)
save("1x1 zero 4 Q DQ Conv Q DQ", 4, 1, 1, True)
save("3x3 zero 4 Q DQ Conv", 4, 3, 1, False)
save("3x3 zero 4 Q DQ Conv Q DQ", 4, 3, 1, True)
save("3x3 by 2 zero 4 Q DQ Conv Q DQ", 4, 3, 2, True)
PYTHON

cat >run.py <<'PYTHON'
"""Print the kernel of the Conv of each model."""
import sys

import openvino

core = openvino.Core()
for path in sys.argv[1:]:
    try:
        compiled = core.compile_model(core.read_model(path), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    except RuntimeError as error:
        kernel = "refused: " + [line for line in str(error).splitlines() if line.strip()][-1]
    else:
        infos = [node.get_rt_info() for node in compiled.get_runtime_model().get_ordered_ops()]
        [kernel] = [i["primitiveType"].astype(str) for i in infos if i["layerType"].astype(str) == "Convolution"]
    print(f"{path.removesuffix('.onnx')}: {kernel}")
PYTHON

armv8="fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid"
# Usage: kernels CPU PART FEATURES; qemu-user shows the /proc/cpuinfo of the host unless the root has one.
kernels() {
    printf 'processor\t: 0\nFeatures\t: %s\nCPU implementer\t: 0x41\nCPU architecture: 8\nCPU variant\t: 0x0\nCPU part\t: %s\nCPU revision\t: 3\n' \
        "$3" "$2" >root/proc/cpuinfo
    PYTHONPATH="$work/packages" OPENBLAS_NUM_THREADS=1 \
        qemu-aarch64 -cpu "$1" -L "$work/root" root/usr/bin/python3.11 run.py *.onnx 2>>log >"$1.txt"
    echo "$1"
    sed 's/^/  /' "$1.txt"
}
kernels cortex-a76 0xd0b "$armv8 atomics fphp asimdhp asimdrdm lrcpc dcpop asimddp"
kernels cortex-a72 0xd08 "$armv8"
diff cortex-a76.txt - <<'EXPECTED'
1x1 zero 0 Q DQ Conv Q DQ: acl_I8
1x1 zero 4 Q DQ Conv Q DQ: ref_any_f16
3x3 by 2 zero 4 Q DQ Conv Q DQ: ref_any_f16
3x3 zero 4 Q DQ Conv Q DQ: gemm_acl_f32
3x3 zero 4 Q DQ Conv: gemm_acl_f32
EXPECTED
sed 's/ref_any_f16/refused: object is not initialized/' cortex-a76.txt | diff cortex-a72.txt -
