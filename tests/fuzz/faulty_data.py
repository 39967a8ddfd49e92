"""Data with faults: arrays, pictures, annotations, calibration files and records of searches, each by its seed.

Nothing here is harmful: no more than some megabytes are written, whatever a header says.
"""

import copy
import io
import json
import math
import random
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

JUNK: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 7, 0.5, -0.0, 1e308, -1e308, 2**31, 2**63, -(2**63), 10**30, math.nan, math.inf,
    -math.inf, "", "x", "images", "0", "-1", "1e999", "\x1b[2J\u202e", "\ud800", "a" * 10_000, "../../x", [], {}, [[]],
    [None], {"a": 1}, [1, 2, 3, 4], [1, 2, 3], ["a", "b"], [[1, 2, 3, 4, 5, 6]], [[1, 2]],
    {"size": [9, 9], "counts": "0"},
)  # fmt: skip

LENGTHS = (0, 1, 2, 3, 8, 32, -1, True, 2**16, 2**31, 2**40, 2**63, 2**64, 10**30, "'a'", 1.5, None)


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _places(inner, (*path, key))


def damaged(value: Any, rng: random.Random, most: int = 3) -> Any:
    """Return JSON with one to a few changes: a value replaced, removed, repeated or moved."""
    made = copy.deepcopy(value)
    for _ in range(rng.randint(1, most)):
        path = rng.choice(list(_places(made)))
        if not path:
            if rng.random() < 0.1:
                return rng.choice(JUNK)
            continue
        inside = made
        for key in path[:-1]:
            inside = inside[key]
        change = rng.randrange(8)
        if change == 0:
            del inside[path[-1]]
        elif change == 1 and isinstance(inside, list):
            inside.extend([inside[path[-1]]] * rng.choice((1, 3, 50)))
        elif change == 2:
            inside[path[-1]] = [inside[path[-1]]]
        elif change == 3 and isinstance(inside, dict):
            inside[rng.choice(("id", "name", "", "more", "score", "bbox", "0", "keypoints"))] = inside.pop(path[-1])
        elif change == 4 and isinstance(inside[path[-1]], int | float):
            inside[path[-1]] = inside[path[-1]] * rng.choice((-1, 0, 1.5, 1000, 1e-9))
        else:
            inside[path[-1]] = copy.deepcopy(rng.choice(JUNK))
    return made


def json_bytes(value: Any, rng: random.Random) -> bytes:
    """Return JSON as text, now and then damaged as text."""
    text = json.dumps(value).encode("utf-8", "surrogatepass")
    return flipped(text, rng) if rng.random() < 0.15 else text


def flipped(content: bytes, rng: random.Random) -> bytes:
    """Return bytes with some changed, left out or repeated."""
    made = bytearray(content)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        if not made:
            break
        at, change = rng.randrange(len(made)), rng.randrange(5)
        if change == 0:
            del made[at:]
        elif change == 1:
            del made[at : at + rng.randrange(1, 9)]
        elif change == 2:
            made[at:at] = made[at : at + rng.randrange(1, 40)]
        else:
            made[at] = rng.randrange(256)
    return bytes(made)


def array_bytes(shape: object, descr: str, values: bytes, version: tuple[int, int] = (1, 0)) -> bytes:
    """Return an array whose header says what it likes."""
    text = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n".encode()
    length = struct.pack("<H" if version == (1, 0) else "<I", len(text))
    return b"\x93NUMPY" + bytes(version) + length + text + values


def faulty_array(rng: random.Random, size: int) -> bytes:
    """Return an array for a model that takes (1, 3, size, size)."""
    rows = rng.choice((1, 2, 2, 5))
    values = np.random.default_rng(rng.randrange(10**6)).random((rows, 3, size, size), np.float32)
    change = rng.randrange(9)
    if change == 0:
        shape = [rows, 3, size, size]
        shape[rng.randrange(4)] = rng.choice(LENGTHS)
        return array_bytes(f"({', '.join(map(str, shape))},)", "'<f4'", values.tobytes())
    if change == 1:
        descr = rng.choice(
            ("'|O'", "'>f4'", "'<f2'", "'<f8'", "'|b1'", "'<c8'", "'<M8[s]'", "[('a', '<f4')]", "'|S3'", "3")
        )
        return array_bytes(values.shape, descr, values.tobytes())
    if change == 2:
        values.flat[rng.randrange(values.size)] = rng.choice((np.nan, np.inf, -np.inf, 1e38, -1e38))
    elif change == 3:
        values = values.reshape(rng.choice(((-1,), (rows, -1), (rows, size, size, 3), (1, rows, 3, size, size))))
    elif change == 4:
        values = (values * rng.choice((0, 1e-30, 1e30, 255, -1))).astype(rng.choice((np.float32, np.float64)))
    elif change == 5:
        return array_bytes(values.shape, "'<f4'", values.tobytes(), rng.choice(((2, 0), (3, 0), (0, 0), (255, 9))))
    elif change == 6:
        return flipped(array_bytes(values.shape, "'<f4'", values.tobytes()), rng)
    elif change == 7:
        return array_bytes("(" * rng.choice((1, 200, 4000)) + "1", "'<f4'", values.tobytes())
    buffer = io.BytesIO()
    np.save(buffer, np.asfortranarray(values) if rng.random() < 0.3 else values)
    return buffer.getvalue()


def faulty_archive(rng: random.Random, size: int) -> bytes:
    """Return an archive of arrays for a model with one input, `images`."""
    buffer = io.BytesIO()
    method = rng.choice((zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2))
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name in rng.choice((["images"], ["x"], ["images", "x"], [], [""], ["images/../x"])):
            zeros = rng.random() < 0.1
            content = (
                array_bytes((2000, 3, size, size), "'<f4'", bytes(2000 * 3 * size * size * 4))
                if zeros
                else faulty_array(rng, size)
            )
            archive.writestr(name + rng.choice((".npy", ".npy", "/")), content)
    return flipped(buffer.getvalue(), rng) if rng.random() < 0.4 else buffer.getvalue()


MODES = {
    "png": ("RGB", "RGBA", "L", "LA", "P", "1", "I;16"), "jpg": ("RGB", "L", "CMYK"), "bmp": ("RGB", "L", "P"),
    "gif": ("P", "L"), "tif": ("RGB", "F", "I;16", "CMYK", "I"), "webp": ("RGB", "RGBA"), "ppm": ("RGB", "L"),
    "tga": ("RGB", "L"), "jp2": ("RGB",),
}  # fmt: skip
"""Suffix -> modes of Pillow that are saved."""


def faulty_picture(rng: random.Random) -> tuple[str, bytes]:
    """Return the suffix and the content of a picture."""
    suffix = rng.choice(list(MODES))
    mode = rng.choice(MODES[suffix])
    side = rng.choice(((40, 30), (1, 1), (300, 2), (2, 500)))
    pixels = np.random.default_rng(rng.randrange(10**6)).integers(0, 256, (*side, 3), np.uint8)
    picture = Image.fromarray(pixels)
    if mode in ("I;16", "I", "F"):
        levels = pixels[:, :, 0].astype(np.float32) * rng.choice((1 / 255, 1, 100, -3))
        if mode == "F":
            levels[0, 0] = rng.choice((0, 0, np.nan, np.inf))
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        picture = Image.fromarray(levels.clip(0 if mode == "I;16" else -1e6, 65535).astype(kind))
    else:
        picture = picture.convert(mode)
    buffer = io.BytesIO()
    options: dict[str, Any] = {"format": {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000"}.get(suffix, suffix.upper())}
    if suffix in ("jpg", "png", "webp") and rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = rng.choice((0, 1, 3, 6, 8, 9, 60000))
        options["exif"] = exif
    if suffix == "jpg":
        options["progressive"] = rng.random() < 0.3
    picture.save(buffer, **options)
    content = buffer.getvalue()
    change = rng.randrange(6)
    if change == 0 and suffix == "png":
        content = with_png_size(content, *(rng.choice((0, 1, 9, 20_000, 40_000, 2**31 - 1)) for _ in range(2)))
    elif change in (1, 2, 3):
        content = flipped(content, rng)
    elif change == 4:
        at = rng.randrange(min(64, len(content)))
        content = (
            content[:at] + rng.choice((b"\xff\xff\xff\xff", b"\0\0\0\0", b"\x7f\xff", b"\x40\0\0")) + content[at + 4 :]
        )
    return (rng.choice(list(MODES)) if rng.random() < 0.1 else suffix), content


def with_png_size(content: bytes, width: int, height: int) -> bytes:
    """Return a PNG whose header states another size."""
    made = bytearray(content)
    made[16:24] = struct.pack(">II", width, height)
    made[29:33] = struct.pack(">I", zlib.crc32(made[12:29]))
    return bytes(made)


def annotations(names: list[str], side: tuple[int, int]) -> dict[str, Any]:
    """Return sound annotations of pictures of a size, (width, height)."""
    entries = [
        {
            "id": 10 * image + k, "image_id": image, "category_id": 1 + k % 2, "bbox": [3 * k, 2 * k, 12 + k, 10],
            "area": 120, "iscrowd": 0,
            "segmentation": [[3 * k, 2 * k, 3 * k + 12, 2 * k, 3 * k + 12, 2 * k + 10]],
            "keypoints": [5, 5, 2] * 3, "num_keypoints": 3,
        }
        for image in range(1, len(names) + 1) for k in range(4)
    ]  # fmt: skip
    images = [
        {"id": k, "file_name": name, "width": side[0], "height": side[1]} for k, name in enumerate(names, start=1)
    ]
    kinds = [{"id": 1, "name": "0"}, {"id": 2, "name": "1"}]
    return {"info": {}, "images": images, "annotations": entries, "categories": kinds}


def faulty_calibration(path: Path, rng: random.Random) -> bytes:
    """Return a calibration file that was changed."""

    def change(header: Any) -> Any:
        if rng.random() < 0.4:
            return damaged(header, rng)
        header["tensors"][0] = damaged(header["tensors"][0], rng, 1)
        return header

    return _faulty_sums(path, rng, change)


def faulty_finished(path: Path, rng: random.Random) -> bytes:
    """Return a file of finished samples that was changed."""
    return _faulty_sums(
        path,
        rng,
        lambda header: (
            damaged(header, rng) if rng.random() < 0.1 else {**header, "state": damaged(header["state"], rng, 2)}
        ),
    )


def _faulty_sums(path: Path, rng: random.Random, change_header: Callable[[Any], Any]) -> bytes:
    """Return an archive of arrays and a header of JSON that was changed: its bytes, its header or an array."""
    content = path.read_bytes()
    if rng.random() < 0.3:
        return flipped(content, rng)
    with np.load(path) as archive:
        arrays = {name: archive[name] for name in archive.files}
    header = json.loads(arrays["header"].tobytes())
    if rng.random() < 0.6:
        header = change_header(header)
        arrays["header"] = np.frombuffer(json.dumps(header).encode("utf-8", "surrogatepass"), np.uint8)
    else:
        name = rng.choice(list(arrays))
        changes: tuple[Callable[[Any], Any], ...] = (
            lambda a: a[:-1], lambda a: -a if a.dtype.kind != "u" else a[::-1], lambda a: a.astype(np.float32),
            lambda a: a * 0, lambda a: a[None], lambda a: np.append(a, a), lambda a: a.astype(object),
            lambda a: a.astype(np.float64) * np.nan, lambda a: a.astype(np.float64) * 1e300,
            lambda a: a.reshape(-1)[:1], lambda a: np.zeros((0, *a.shape[1:]), a.dtype), lambda a: a[::-1],
            lambda a: a.astype("<U9"),
        )  # fmt: skip
        arrays[name] = rng.choice(changes)(arrays[name])
    if rng.random() < 0.1:
        del arrays[rng.choice(list(arrays))]
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()
