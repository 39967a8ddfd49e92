"""Pictures that are too large to be decoded whole: JPEG and PNG at a smaller scale, others only if memory allows."""

import math
import struct
import zlib
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from onnxq import memory
from onnxq.remote.fetched import Fetched

LARGE = 64_000_000
"""Pixels above which a picture is decoded alone, and at a smaller scale."""

REDUCED = 16_000_000
"""Pixels that a picture is scaled down to."""

_DEFAULT_LIMIT = 500_000_000
"""Bytes that decoding a picture may take unless the user allows another number."""

_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}
"""Mode of Pillow -> bytes of a pixel in memory; 4 in all others."""

_CONVERTED, _ARRAY, _SCALED = 4, 3, 12
"""Bytes of a pixel that a copy as RGB, the array and the scaling of deep levels take beside the picture itself."""

_COPIES = frozenset({"WEBP", "AVIF", "JPEG2000"})
"""Formats whose decoders hold the whole picture too."""

_COEFFICIENT = 2
"""Bytes of a coefficient of a progressive JPEG, which are all held until the last pass."""

_BAND = 1 << 20
"""Pixels of the bands in which a picture is decoded or scaled down."""

_SIGNATURE = b"\x89PNG\r\n\x1a\n"

_AT_BITS = 24
"""Place of the number of bits in the header of a PNG."""

_SAMPLES = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Colour type of PNG -> bytes of a pixel, with 8 bits per sample."""

_PIECE = 1 << 16
"""Bytes of a PNG that are read at once; they unpack to a thousand times as many at most."""

_UNPACKED = 1 << 20
"""Bytes that are unpacked at once."""


def require_memory(path: Path | Fetched, image: Image.Image, deep: bool) -> None:
    """Check what decoding a picture takes against the limit of memory.

    Args:
        path: its file, for the message.
        image: opened, not loaded.
        deep: its levels have more than 8 bits, so that it is decoded whole.

    Raises:
        DataError: it takes more than the limit.
    """
    pixels = image.width * image.height
    per_pixel: float = _BYTES.get(image.mode, 4)
    remedy = "cut it into tiles"
    if pixels <= LARGE or deep:
        per_pixel += _SCALED if deep else _ARRAY + (0 if image.mode == "RGB" else _CONVERTED)
    elif _is_banded(path, image):
        per_pixel = 0
    elif image.format in ("JPEG", "MPO"):
        per_pixel = _coefficients(image) * _COEFFICIENT
        remedy = "save it as a JPEG that is not progressive, or cut it into tiles"
    else:
        per_pixel *= 2 if image.format in _COPIES else 1
        remedy = "save it as JPEG or as PNG of 8 bits, which are decoded at a smaller scale, or cut it into tiles"
    size = f"{image.width} x {image.height} pixels"
    memory.require(int(pixels * per_pixel), f"{path}: decoding its {size}", remedy, default=_DEFAULT_LIMIT)


def _coefficients(image: Image.Image) -> float:
    """Return the coefficients of a pixel that are held while a JPEG is decoded; 0 unless it is progressive."""
    if not (image.info.get("progressive") or image.info.get("progression")):
        return 0.0
    layers = [(h, v) for _, h, v, _ in getattr(image, "layer", ())]
    across, down = (max((int(layer[k]) for layer in layers), default=1) for k in (0, 1))
    return sum(int(h) * int(v) for h, v in layers) / (across * down)


def reduced(path: Path | Fetched, image: Image.Image, rgb: Callable[[Image.Image], Image.Image]) -> Image.Image:
    """Decode a picture at a smaller scale: by the least whole number that leaves at most some 16 million pixels.

    Args:
        path: its file.
        image: opened, not loaded; of 8 bits.
        rgb: turns a part of the picture into RGB.
    """
    factor = math.ceil(math.sqrt(image.width * image.height / REDUCED))
    if _is_banded(path, image):
        return _joined(_png_bands(path, factor), image.size, factor, rgb)
    if image.format == "TIFF":
        image.load()  # some versions of Pillow turn it only now
    width = image.width
    image.draft(None, (image.width // factor, image.height // factor))
    return _joined(_bands(image, factor := max(1, factor * image.width // width)), image.size, factor, rgb)


def to_array(image: Image.Image) -> NDArray[np.uint8]:
    """Return the pixels, uint8 (height, width, 3), of an RGB image; Pillow would copy the whole twice."""
    if image.width * image.height <= _BAND:
        return np.asarray(image)
    pixels = np.empty((image.height, image.width, 3), np.uint8)
    for top, part in _bands(image, 1):
        pixels[top : top + part.height] = np.asarray(part)
    return pixels


def _rows(width: int, factor: int) -> int:
    """Return the rows of a band, a multiple of the factor."""
    return max(1, _BAND // (width * factor)) * factor


def _bands(image: Image.Image, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """Yield the first row and the pixels of each band."""
    rows = _rows(image.width, factor)
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _joined(
    bands: Iterator[tuple[int, Image.Image]],
    size: tuple[int, int],
    factor: int,
    rgb: Callable[[Image.Image], Image.Image],
) -> Image.Image:
    """Return a picture of a size, (width, height), whose bands are scaled down by a factor."""
    whole = Image.new("RGB", (-(-size[0] // factor), -(-size[1] // factor)))
    for top, part in bands:
        whole.paste(rgb(part).reduce(factor), (0, top // factor))
    return whole


def _is_banded(path: Path | Fetched, image: Image.Image) -> bool:
    """Return whether a picture is a PNG whose rows can be decoded one after the other, with 8 bits per sample."""
    if image.format != "PNG" or image.info.get("interlace"):
        return False
    with path.open("rb") as file:
        return file.read(_AT_BITS + 1)[_AT_BITS:] == b"\x08"


def _png_bands(path: Path | Fetched, factor: int) -> Iterator[tuple[int, Image.Image]]:
    """Decode a PNG band by band, each as a small PNG of its own that begins with the last row of the one before.

    Raises:
        ValueError: the file is damaged.
    """
    with path.open("rb") as file:
        if file.read(len(_SIGNATURE)) != _SIGNATURE:
            raise ValueError("not a PNG")
        chunks = _chunks(file)
        _, header = next(chunks)
        width, height, _, colour = struct.unpack(">IIBB", header[:10])
        palette = bytearray()
        rows = _unpacked(_data(chunks, palette), width * _SAMPLES[colour] + 1)
        before = b""
        for top in range(0, height, _rows(width, factor)):
            count = min(_rows(width, factor), height - top)
            body = b"".join([before, *(next(rows) for _ in range(count))])
            shape = struct.pack(">II", width, count + bool(before)) + header[8:]
            written = [_packed(b"IHDR", shape), _packed(b"IDAT", zlib.compress(body, 0)), _packed(b"IEND", b"")]
            if palette:
                written.insert(1, _packed(b"PLTE", bytes(palette)))
            with Image.open(BytesIO(_SIGNATURE + b"".join(written))) as band:
                part = band.crop((0, bool(before), width, band.height))
            before = b"\0" + part.crop((0, count - 1, width, count)).tobytes()
            yield top, part


def _chunks(file: BinaryIO) -> Iterator[tuple[bytes, bytes]]:
    """Yield the name and the content of each chunk before IEND, a long content in pieces.

    Raises:
        ValueError: the file is cut short, or a chunk is damaged.
    """
    while True:
        head = file.read(8)
        left, name = struct.unpack(">I4s", head) if len(head) == 8 else (0, b"")
        if name == b"IEND":
            return
        sum_ = zlib.crc32(name)
        while piece := file.read(min(left, _PIECE)):
            left, sum_ = left - len(piece), zlib.crc32(piece, sum_)
            yield name, piece
        if file.read(4) != sum_.to_bytes(4):
            raise ValueError("the file is damaged or cut short")


def _packed(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def _data(chunks: Iterator[tuple[bytes, bytes]], palette: bytearray) -> Iterator[bytes]:
    """Yield the packed pixels, and append the palette."""
    for name, data in chunks:
        if name == b"PLTE":
            palette += data
        elif name == b"IDAT":
            yield data


def _unpacked(parts: Iterator[bytes], length: int) -> Iterator[bytes]:
    """Yield rows of a length.

    Raises:
        ValueError: the pixels end too early, or are damaged.
    """
    unpacker, held = zlib.decompressobj(), bytearray()
    for part in parts:
        rest = part
        while rest:
            try:
                held += unpacker.decompress(rest, _UNPACKED)
            except zlib.error as error:
                raise ValueError(f"the pixels are damaged ({error})") from None
            rest = unpacker.unconsumed_tail
            whole = len(held) // length * length
            for at in range(0, whole, length):
                yield bytes(held[at : at + length])
            del held[:whole]
    raise ValueError("the file has fewer rows than it says")
