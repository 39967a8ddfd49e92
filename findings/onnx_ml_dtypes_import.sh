#!/usr/bin/env bash
# `import onnx` takes ten times as long with ml_dtypes 0.7.0 as with 0.6.0. onnx imports ml_dtypes for its narrow types, and
# allows any version from 0.5.4 on, so pip takes the newest. While ml_dtypes 0.7.0 is imported, it adds loops to numpy's
# ufuncs: almost all samples of a profile are in numpy's PyUFunc_AddLoop.
#
# Expected: a new version of a package of number types takes as long to import as the one before.
# Seen with onnx 1.23.2, numpy 2.4.6 and Python 3.11, CPU time in ms on an AMD EPYC (Zen 3), least of 7 processes:
#   ml_dtypes     import ml_dtypes, behind numpy    import onnx, behind numpy
#   0.6.0                              7                          95
#   0.7.0                            822                        1063
# The time is the same in each process, so each command that reads ONNX, and each worker of a pool, starts later by it.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for version in 0.6.0 0.7.0; do
    python3 -m venv "$work/$version"
    "$work/$version/bin/pip" install --quiet onnx==1.23.2 numpy==2.4.6 ml_dtypes=="$version"
done
cd "$work"
alone=()
whole=()

# Print the CPU time in ms of an import behind numpy, the least of 7 processes.
# Usage: import_time VERSION MODULE
import_time() {
    for _ in 1 2 3 4 5 6 7; do
        "$work/$1/bin/python" -c "
import time
import numpy
before = time.process_time()
import $2
print(round(1000 * (time.process_time() - before)))"
    done | sort -n | head -n 1
}

"$work/0.7.0/bin/python" --version
echo "ml_dtypes     import ml_dtypes    import onnx"
for version in 0.6.0 0.7.0; do
    alone[${#alone[@]}]=$(import_time "$version" ml_dtypes)
    whole[${#whole[@]}]=$(import_time "$version" onnx)
    printf '%-9s %16s ms %11s ms\n' "$version" "${alone[-1]}" "${whole[-1]}"
done
if ((alone[1] < 10 * alone[0] || whole[1] < 2 * whole[0])); then
    echo "changed: ml_dtypes 0.7.0 is imported about as fast as 0.6.0" >&2
    exit 1
fi
