"""Take the pictures of the README and the docs: models/demo.onnx before and after quantization.

    python -m docs.tools.screenshots [docs]

The files are `before.png`, a part of the graph in Netron; `after.png`, the same part quantized, with Netron's panel of
a QuantizeLinear; `float.png`, the panel of a node that stays float; `report.png`, a plot of the report; `channels.png`,
its table of channels before and after migration; `uh.svg` and `uh-error.svg`, the bounds of UH on one tensor; and
`detections.jpg`, the detections at 4 bits on a scene of the demo.
The script needs Netron (`pip install '.[view]'`), a Chromium on the PATH, and a font with Chinese brackets.
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
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import netron
import onnx
from onnx.utils import Extractor
from PIL import Image, ImageChops

import onnxq
from docs.tools import histogram_plots
from onnxq.calibration import demo
from onnxq.calibration.dead_leaves import SyntheticImages
from onnxq.errors import ConfigError, ModelError
from onnxq.evaluation.comparison import compare
from onnxq.ir import Model, feeds_only_silu, is_silu, producer
from onnxq.ir.files import atomic_write
from onnxq.pipeline import Facts
from onnxq.qdq.tensor_result import tensor_results
from onnxq.report import build

MODEL = Path(__file__).resolve().parents[2] / "models" / "demo.onnx"

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
OPTIONS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--remote-debugging-pipe",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost",  # no request leaves the machine
)  # fmt: skip
WINDOW = (760, 520)
SIDEBAR = 490
REPORT = (1000, 600)
SCALE = 2  # pixels of a picture for one of the page
MARGIN = 12 * SCALE
COLOURS = 64
SCENE = 41
"""Scene of the demo in which a star is lost and a crescent is found that the float model misses."""
PHOTO = (1000, 60)
"""Width, px, and quality of a JPEG file."""
SECONDS = 60

READY = "document.querySelectorAll('.node-item').length > 0 && document.body.className.includes('default')"
REFUSED = "document.body.className.includes('alert')"
REFUSAL = f"{REFUSED} ? document.getElementById('message-text').innerText : null"
PLOT = """(() => {
  const plot = document.querySelector('details');
  plot.open = true;
  const {x, y, width, height} = plot.getBoundingClientRect();
  return {x, y: y + scrollY, width, height};
})()"""
CHANNELS = """(() => {
  let table = [...document.querySelectorAll('h2')].find((heading) => heading.textContent === 'Migrated scales');
  while (!table.classList.contains('scroll')) table = table.nextElementSibling;
  Object.assign(table.style, {maxHeight: '23rem', overflow: 'hidden'});
  const {x, y, width, height} = table.getBoundingClientRect();
  return {x, y: y + scrollY, width, height};
})()"""
PANEL = """(() => {
  const {x, y, width} = document.getElementById('sidebar').getBoundingClientRect();
  return {x, y, width, height: document.querySelector('.sidebar-section').getBoundingClientRect().top};
})()"""
TIDY = f"""(() => {{
  const style = document.createElement('style');
  style.textContent = '#menu-button, #toolbar, .sidebar-closebutton {{display: none !important}}' +
    '#sidebar {{width: {SIDEBAR}px !important}} #target {{margin-right: {SIDEBAR}px; width: auto !important}}';
  document.head.append(style);
}})()"""
CENTRE = """(() => {
  const target = document.getElementById('target');
  target.scrollTo((target.scrollWidth - target.clientWidth) / 2, (target.scrollHeight - target.clientHeight) / 2);
})()"""
CLICK = """(() => {
  const texts = [...document.querySelectorAll('.node-item text')];
  const wanted = texts.find((text) => text.textContent === '%s');
  wanted?.parentElement.dispatchEvent(new MouseEvent('click', {bubbles: true}));
  return Boolean(wanted);
})()"""


def main(folder: Path = Path("docs")) -> None:
    """Write all pictures."""
    config = onnxq.Config(target="openvino")
    quantized = onnxq.quantize(MODEL, demo.CALIBRATION, config)
    ends = conv_with_silu(onnx.load(MODEL))
    with tempfile.TemporaryDirectory() as place:
        before, after = Path(place, "before.onnx"), Path(place, "after.onnx")
        onnx.save(stretch(onnx.load(MODEL), *ends), before)
        onnx.save(stretch(quantized.model, *ends), after)
        write(cropped(screenshot(before, None)), folder / "before.png")
        write(cropped(screenshot(after, "QuantizeLinear")), folder / "after.png")
        write(screenshot(after, "Sigmoid", PANEL), folder / "float.png")
    with_silu_outputs = onnxq.quantize(MODEL, demo.CALIBRATION, replace(config, migrate=False))
    draw_bounds(with_silu_outputs.facts, folder)
    page = build.to_html(build.build(quantized, config, source=MODEL.name, before=0, after=0))
    write(cropped(part_of(page, PLOT)), folder / "report.png")
    write(cropped(part_of(page, CHANNELS)), folder / "channels.png")
    write_photo(detections(), folder / "detections.jpg")


def draw_bounds(facts: Facts, folder: Path) -> None:
    """Plot values and bounds of the SiLU output with the lowest SQNR: `uh.svg` and `uh-error.svg`."""
    worst = min((each for each in tensor_results(facts) if each.point.silu_output), key=lambda each: each.fit.sqnr)
    assert worst.values is not None, "the range of a SiLU output comes from data"
    for name, picture in (("uh", histogram_plots.picture), ("uh-error", histogram_plots.error_picture)):
        path = folder / f"{name}.svg"
        with atomic_write(path) as temporary:
            temporary.write_text(picture(worst.point.tensor, worst.values), encoding="utf-8")
        print(path)


def write(taken: Image.Image, path: Path) -> None:
    """Write a picture as a PNG of few colours."""
    with atomic_write(path) as temporary:
        taken.quantize(COLOURS).save(temporary, "PNG", optimize=True)
    print(path, taken.size)


def write_photo(taken: Image.Image, path: Path) -> None:
    """Write a picture as a JPEG: one with too many colours for a small PNG."""
    width, quality = PHOTO
    small = taken.resize((width, round(taken.height * width / taken.width)), Image.Resampling.LANCZOS)
    with atomic_write(path) as temporary:
        small.save(temporary, "JPEG", quality=quality, optimize=True)
    print(path, small.size)


def detections() -> Image.Image:
    """Draw a scene with the detections of the float and of a 4-bit model (minmax, rounded to nearest)."""
    narrow = onnxq.Config(target="openvino", weight_bits=4, act_bits=4)
    config = replace(narrow, method="minmax", reconstruct=False, rounding="nearest")
    with tempfile.TemporaryDirectory() as place:
        quantized, drawn = Path(place, "quantized.onnx"), Path(place, "drawn")
        onnxq.quantize(MODEL, demo.CALIBRATION, config).save(quantized)
        compare(MODEL, quantized, SyntheticImages("scene", 1, lambda _: demo.VALIDATION.paint(SCENE)), draw=drawn)
        [picture] = drawn.iterdir()
        return Image.open(picture).convert("RGB")


def conv_with_silu(model: onnx.ModelProto) -> tuple[str, str]:
    """Return the names of the input of the first Conv between two SiLUs, and of the output of the second SiLU."""
    for conv in Model(model).graph.nodes:
        before = producer(conv.inputs[0]) if conv.op == "Conv" else None
        if before is not None and is_silu(before) and feeds_only_silu(conv.outputs[0]):
            behind = next(node for node in conv.outputs[0].outputs if node.op == "Mul")
            return conv.inputs[0].name, behind.outputs[0].name
    raise ModelError("no Conv stands between two SiLUs; take another part of the graph")


def stretch(model: onnx.ModelProto, start: str, end: str) -> onnx.ModelProto:
    """Return the model between two tensors; quantization keeps their names."""
    return Extractor(onnx.shape_inference.infer_shapes(model)).extract_model([start], [end])


def screenshot(model: Path, clicked: str | None, part: str | None = None) -> Image.Image:
    """Return a picture of Netron's page, or of the part whose rectangle a JavaScript expression returns."""
    with in_netron(model, clicked) as page:
        time.sleep(2)  # until the panel has slid in
        page("Runtime.evaluate", expression=CENTRE)
        time.sleep(0.5)
        return page.picture() if part is None else page.picture_of(part)


@contextmanager
def in_netron(model: Path, clicked: str | None) -> "Iterator[Page]":
    """Open a tab with a model in Netron, and click the first node of an operator."""
    with browser() as page, shown(page, model):
        page("Runtime.evaluate", expression=TIDY)
        if clicked is not None:
            page.wait_for(CLICK % clicked)
        yield page


@contextmanager
def shown(page: "Page", model: Path) -> Iterator[None]:
    """Show a model in Netron in a tab.

    Raises:
        ModelError: Netron refuses the model.
    """
    host, port = netron.start(str(model), browse=False)
    try:
        # Answers Netron's question about cookies.
        page("Network.setCookie", name="consent", value="0", url=f"http://{host}:{port}/")
        page("Page.navigate", url=f"http://{host}:{port}/")
        page.wait_for(f"{READY} || {REFUSED}")
        refusal = page.value(REFUSAL)
        if refusal is not None:
            raise ModelError(f"Netron does not open {model}: {refusal}")
        yield
    finally:
        netron.stop((host, port))


def part_of(report: str, part: str) -> Image.Image:
    """Return a picture of the part of an HTML report whose rectangle a JavaScript expression returns."""
    with tempfile.TemporaryDirectory() as place, browser() as page:
        page.resize(*REPORT)
        Path(place, "report.html").write_text(report, encoding="utf-8")
        page("Page.navigate", url=Path(place, "report.html").as_uri())
        page.wait_for("document.readyState === 'complete' && document.querySelector('details') !== null")
        return page.picture_of(part)


class Page:
    """A tab, controlled by the Chrome DevTools Protocol: JSON messages, each followed by a zero byte."""

    def __init__(self, sending: IO[bytes], receiving: IO[bytes]) -> None:
        self._sending = sending
        self._receiving = receiving
        self._numbers = itertools.count(1)
        self._session: dict[str, str] = {}
        target = self("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        self.resize(*WINDOW)

    def __call__(self, method: str, **parameters: object) -> dict[str, Any]:
        """Call a method of the protocol and return its result."""
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

    def resize(self, width: int, height: int) -> None:
        """Set the size of the tab, px."""
        size = {"width": width, "height": height}
        self("Emulation.setDeviceMetricsOverride", **size, deviceScaleFactor=SCALE, mobile=False)

    def picture(self, **clip: object) -> Image.Image:
        """Return a picture of the visible page, or of a rectangle of it."""
        taken = self("Page.captureScreenshot", captureBeyondViewport=bool(clip), **clip)["data"]
        return Image.open(io.BytesIO(base64.b64decode(taken))).convert("RGB")

    def picture_of(self, place: str) -> Image.Image:
        """Return a picture of the rectangle (x, y, width, height) that a JavaScript expression returns."""
        return self.picture(clip={**self.value(place), "scale": 1})

    def value(self, expression: str) -> Any:
        """Return the value of a JavaScript expression; None for null and undefined."""
        return self("Runtime.evaluate", expression=expression, returnByValue=True)["result"].get("value")

    def wait_for(self, condition: str) -> None:
        """Wait until a JavaScript expression is true.

        Raises:
            TimeoutError: it is not true within `SECONDS`.
        """
        end = time.monotonic() + SECONDS
        while not self.value(condition):
            if time.monotonic() > end:
                raise TimeoutError(f"not within {SECONDS} s: {condition}")
            time.sleep(0.2)


@contextmanager
def browser() -> Iterator[Page]:
    """Run a headless Chromium with one tab.

    Raises:
        ConfigError: no browser is on the PATH.
    """
    path = next(filter(None, map(shutil.which, BROWSERS)), None)
    if path is None:
        raise ConfigError(f"no browser is on the PATH: install one of {', '.join(BROWSERS)}")
    (read, sending), (receiving, write) = os.pipe(), os.pipe()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        # The browser reads from file descriptor 3 and writes to 4.
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
    """Crop the empty border of a picture, but for a margin."""
    width, height = taken.size
    empty = Image.new("RGB", taken.size, taken.getpixel((0, 0)))
    left, top, right, bottom = ImageChops.difference(taken, empty).getbbox() or (0, 0, width, height)
    return taken.crop((
        max(0, left - MARGIN), max(0, top - MARGIN), min(width, right + MARGIN), min(height, bottom + MARGIN),
    ))  # fmt: skip


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:2]))
