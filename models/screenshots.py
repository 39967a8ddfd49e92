"""Take pictures of what quantization makes of the small graph of models/make.py.

    python models/screenshots.py [docs]

writes into the folder `before.png` and `after.png`, a stretch of the graph as Netron shows it, with what it tells of a
QuantizeLinear beside the second; `report.png`, a plot of the report; and `detections.jpg`, what few bits lose on a
scene of the demo. It takes Netron (`pip install '.[view]'`), a Chromium on the PATH, and a font that has Chinese
brackets.
"""

import base64
import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import netron
import onnx
from make import build
from onnx.utils import Extractor
from PIL import Image, ImageChops

import onnxq
from onnxq import demo, report
from onnxq.compare import compare
from onnxq.errors import ConfigError
from onnxq.files import replace_file
from onnxq.scenes import Painted

STRETCH = ("Split_12_out1", "Add_19_out")
"""Tensors between which two Convs with SiLU lie, and the Add of what goes past them."""

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",  # nothing is reported to anyone
)  # fmt: skip
WINDOW = (1000, 1100)
SCENE = 22
"""Of the demo: a heart is lost, and a cross becomes a star."""
PHOTO = (1000, 60)
"""Width, px, and quality of a JPEG file."""
MARGIN = 12
COLOURS = 128
SECONDS = 60

READY = "document.querySelectorAll('.node-item').length > 0 && document.body.className.includes('default')"
PLACE = """(() => {
  const {x, y, width, height} = document.querySelector('details').getBoundingClientRect();
  return {x, y: y + scrollY, width, height};
})()"""
TIDY = "for (const id of ['menu-button', 'toolbar']) document.getElementById(id).style.display = 'none'"
CLICK = """(() => {
  const texts = [...document.querySelectorAll('.node-item text')];
  const wanted = texts.find((text) => text.textContent === '%s');
  wanted?.parentElement.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  return Boolean(wanted);
})()"""


def main(folder: Path = Path("docs")) -> None:
    """Make all pictures."""
    model, config = build(), onnxq.Config(target="openvino")
    quantized = onnxq.quantize(model, None, config)
    for name, each, clicked in (("before", model, None), ("after", quantized.model, "QuantizeLinear")):
        with tempfile.TemporaryDirectory() as place:
            path = Path(place, f"{name}.onnx")
            onnx.save(stretch(each), path)
            write(cropped(screenshot(path, clicked)), folder / f"{name}.png")
    made = report.build(quantized, config, source="sketch.onnx", before=0, after=0)
    write(cropped(plot(report.to_html(made))), folder / "report.png")
    write_photo(detections(), folder / "detections.jpg")


def write(taken: Image.Image, path: Path) -> None:
    """Write a picture in few colours."""
    with replace_file(path) as temporary:
        taken.quantize(COLOURS).save(temporary, "PNG", optimize=True)
    print(path, taken.size)


def write_photo(taken: Image.Image, path: Path) -> None:
    """Write a picture that has too many colours for a small PNG."""
    width, quality = PHOTO
    small = taken.resize((width, round(taken.height * width / taken.width)), Image.Resampling.LANCZOS)
    with replace_file(path) as temporary:
        small.save(temporary, "JPEG", quality=quality, optimize=True)
    print(path, small.size)


def detections() -> Image.Image:
    """A scene of the demo with what its detector finds, and what it does in 4 bits, the plainest way."""
    config = onnxq.Config(target="openvino", weight_bits=4, act_bits=4, method="minmax", reconstruct=False)
    model = Path(__file__).with_name("demo.onnx")
    with tempfile.TemporaryDirectory() as place:
        quantized, drawn = Path(place, "quantized.onnx"), Path(place, "drawn")
        onnxq.quantize(model, demo.CALIBRATION, config).save(quantized)
        compare(model, quantized, Painted("scene", 1, lambda _: demo.VALIDATION.paint(SCENE)), draw=drawn)
        [picture] = drawn.iterdir()
        return Image.open(picture).convert("RGB")


def stretch(model: onnx.ModelProto) -> onnx.ModelProto:
    """What lies between the two tensors; quantizing leaves them their names."""
    start, end = STRETCH
    return Extractor(onnx.shape_inference.infer_shapes(model)).extract_model([start], [end])


def screenshot(model: Path, clicked: str | None) -> Image.Image:
    """A picture of Netron's page."""
    with in_netron(model, clicked) as page:
        time.sleep(2)  # until what slides in has come to rest
        return page.picture()


@contextmanager
def in_netron(model: Path, clicked: str | None) -> "Iterator[Page]":
    """A tab with a model in Netron, in which the first node of an operator was clicked."""
    host, port = netron.start(str(model), browse=False)
    try:
        with browser() as page:
            # Netron asks about cookies, and nobody is there to answer.
            page("Network.setCookie", name="consent", value="0", url=f"http://{host}:{port}/")
            page("Page.navigate", url=f"http://{host}:{port}/")
            page.wait_for(READY)
            page("Runtime.evaluate", expression=TIDY)
            if clicked is not None:
                page.wait_for(CLICK % clicked)
            yield page
    finally:
        netron.stop((host, port))


def plot(page_text: str) -> Image.Image:
    """A picture of the plot of the tensor that has lost most, from the report's page."""
    with tempfile.TemporaryDirectory() as place, browser() as page:
        Path(place, "report.html").write_text(page_text, encoding="utf-8")
        page("Page.navigate", url=Path(place, "report.html").as_uri())
        page.wait_for("document.readyState === 'complete' && document.querySelector('details') !== null")
        page("Runtime.evaluate", expression="document.querySelector('details').open = true")
        found = page("Runtime.evaluate", expression=PLACE, returnByValue=True)["result"]["value"]
        return page.picture(clip={**found, "scale": 1})


class Page:
    """A tab, told what to do by the Chrome DevTools Protocol: JSON messages with a zero byte behind each."""

    def __init__(self, sending: IO[bytes], receiving: IO[bytes]) -> None:
        self._sending = sending
        self._receiving = receiving
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        size = {"width": WINDOW[0], "height": WINDOW[1]}
        self("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=1, mobile=False)

    def __call__(self, method: str, **parameters: object) -> dict[str, Any]:
        """Do something and return what came of it."""
        number = next(self._numbers)
        message = {"id": number, "method": method, "params": parameters, **self._session}
        self._sending.write(json.dumps(message).encode() + b"\0")
        self._sending.flush()
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == number:
                return answer["result"]

    def _read(self) -> bytes:
        return b"".join(iter(lambda: self._receiving.read(1), b"\0"))

    def picture(self, **clip: object) -> Image.Image:
        """What the tab shows, or a part of its page."""
        taken = self("Page.captureScreenshot", captureBeyondViewport=bool(clip), **clip)["data"]
        return Image.open(io.BytesIO(base64.b64decode(taken))).convert("RGB")

    def wait_for(self, condition: str) -> None:
        """Wait until an expression in JavaScript is true.

        Raises:
            TimeoutError: it does not become so.
        """
        end = time.monotonic() + SECONDS
        while not self("Runtime.evaluate", expression=condition)["result"].get("value"):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {SECONDS} s: {condition}")
            time.sleep(0.2)


@contextmanager
def browser() -> Iterator[Page]:
    """A headless Chromium with one tab.

    Raises:
        ConfigError: there is none.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise ConfigError(f"no browser is on the PATH: install one of {', '.join(BROWSERS)}")
    (read, sending), (receiving, write) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads from its file 3 and writes to its file 4.
        command = f'exec "$@" 3<&{read} 4>&{write}'
        ran = subprocess.Popen(
            ["bash", "-c", command, "bash", path, *OPTIONS, f"--user-data-dir={profile}"],
            pass_fds=(read, write), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read), os.close(write)
        try:
            with os.fdopen(sending, "wb") as to_it, os.fdopen(receiving, "rb") as from_it:
                yield Page(to_it, from_it)
        finally:
            ran.terminate()
            ran.wait()


def cropped(taken: Image.Image) -> Image.Image:
    """What is drawn, with a margin."""
    width, height = taken.size
    empty = Image.new("RGB", taken.size, taken.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(taken, empty).getbbox() or (0, 0, width, height)
    return taken.crop((
        max(0, left - MARGIN), max(0, top - MARGIN), min(width, right + MARGIN), min(height, bottom + MARGIN),
    ))  # fmt: skip


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
