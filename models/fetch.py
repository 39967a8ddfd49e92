"""Download official releases of trained models, and check their SHA-256.

    python models/fetch.py yolov5n yolox_nano [--folder models]

Each file has a pinned size and SHA-256; a file that differs is not written. The models keep their authors' licences.
"""

import argparse
import hashlib
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from onnxq.console.terminal import ERR, OUT, ProgressBar, guarded, say
from onnxq.errors import DataError
from onnxq.ir.files import atomic_write, check_writable
from onnxq.progress import Progress, silent

_TIMEOUT = 30
"""Seconds without data after which a download fails."""

_CHUNK = 1 << 20


@dataclass(frozen=True)
class Release:
    """A file of an official release.

    Attributes:
        url: its address.
        bytes: its size in bytes.
        sha256: SHA-256 of its content, hexadecimal.
        licence: SPDX identifier.
        note: input size and format.
    """

    url: str
    bytes: int
    sha256: str
    licence: str
    note: str


_YOLOV5 = "https://github.com/ultralytics/yolov5/releases/download/v7.0"
_YOLOX = "https://github.com/Megvii-BaseDetection/YOLOX/releases/download/0.1.1rc0"

RELEASES = {
    "yolov5n": Release(
        f"{_YOLOV5}/yolov5n.onnx", 3_981_910,
        "04f0e55c26f58d17145b36045780fe1250d5bd2187543e11568e5141d05b3262",
        "AGPL-3.0", "640 x 640, float16",
    ),
    "yolox_nano": Release(
        f"{_YOLOX}/yolox_nano.onnx", 3_659_407,
        "c789161ed43c8269fcd4e67c67eeeb4e80c622da2eb296a20bc6007bd18a0b7d",
        "Apache-2.0", "416 x 416, BGR 0-255",
    ),
    "yolox_tiny": Release(
        f"{_YOLOX}/yolox_tiny.onnx", 20_219_662,
        "427cc366d34e27ff7a03e2899b5e3671425c262ea2291f88bb942bc1cc70b0f7",
        "Apache-2.0", "416 x 416, BGR 0-255",
    ),
    "yolox_s": Release(
        f"{_YOLOX}/yolox_s.onnx", 35_858_002,
        "c5c2d13e59ae883e6af3b45daea64af4833a4951c92d116ec270d9ddbe998063",
        "Apache-2.0", "640 x 640, BGR 0-255",
    ),
}  # fmt: skip


def fetch(name: str, target: Path, progress: Progress = silent) -> None:
    """Download one of `RELEASES`, unless the file exists; `progress` counts megabytes.

    Raises:
        DataError: the download fails, or its SHA-256 is another one; nothing is written then.
        ConfigError: the target cannot be written.
    """
    release = RELEASES[name]
    if target.is_file() and hashlib.sha256(target.read_bytes()).hexdigest() == release.sha256:
        return
    check_writable(target)
    digest, size = hashlib.sha256(), 0
    with atomic_write(target) as temporary:
        try:
            with urllib.request.urlopen(release.url, timeout=_TIMEOUT) as answer, temporary.open("wb") as file:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    progress(f"{name}, MB", size // 10**6, release.bytes // 10**6)
        except (OSError, urllib.error.URLError) as error:
            cause = getattr(error, "reason", None) or error
            raise DataError(
                f"{name}: {release.url} cannot be downloaded ({cause}); check the connection to the internet"
            ) from None
        if (size, digest.hexdigest()) != (release.bytes, release.sha256):
            raise DataError(
                f"{name}: {release.url} returned {size} bytes with SHA-256 {digest.hexdigest()}, expected "
                f"{release.bytes} with {release.sha256}; the file is discarded"
            )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    known = "\n".join(f"  {name:<12}{r.bytes / 1e6:5.1f} MB  {r.licence:<11} {r.note}" for name, r in RELEASES.items())
    parser = argparse.ArgumentParser(
        description="Download official releases of trained models.",
        epilog=f"names:\n{known}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="+", metavar="NAME", choices=tuple(RELEASES), help="models to download")
    parser.add_argument(
        "--folder", metavar="DIR", type=Path, default=Path(__file__).parent, help="target folder (models)"
    )
    args = parser.parse_args(argv)
    return guarded(lambda: _fetch_all(args.names, args.folder))


def _fetch_all(names: Sequence[str], folder: Path) -> None:
    for name in names:
        target = folder / f"{name}.onnx"
        with ProgressBar() as progress:
            fetch(name, target, progress)
        OUT.print(str(target))
        say(f"licence: {RELEASES[name].licence}", ERR)


if __name__ == "__main__":
    sys.exit(main())
