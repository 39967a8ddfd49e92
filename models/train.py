"""Train the small detector in `models/demo.onnx` on the scenes of `onnxq.calibration.demo`, on a CPU, within an hour.

    pip install '.[train]'           # PyTorch, which nothing else in onnxq needs
    python models/train.py [models/demo.onnx]

The network has the parts of exported YOLO detectors: SiLU, split and residual blocks, SPPF, a neck that goes up and
down again, and on two scales a decoupled head: boxes as distributions (Li et al., "Generalized Focal Loss", NeurIPS
2020), and scores. Objects are assigned to cells by task alignment (Feng et al., "TOOD: Task-aligned One-stage Object
Detection", ICCV 2021).
"""

import argparse
import copy
import itertools
import math
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx

from onnxq.calibration import demo
from onnxq.ir.files import atomic_write

try:
    import torch
    import torch.nn.functional as F
    from torch import Tensor, nn
except ImportError as error:
    raise SystemExit("models/train.py needs PyTorch: pip install '.[train]'") from error

WIDTHS = (16, 24, 48, 72)
"""Channels at strides 2, 4, 8 and 16."""

STRIDES = (8, 16)
BINS = 16
HEAD_WIDTH = 24
CLASSES = len(demo.CLASSES)

BATCH, LEARNING_RATE, DECAY = 16, 2.5e-3, 0.02
WARM_UP = 300  # steps
AVERAGED = 2000  # steps over which weights are averaged
CANDIDATES = 8  # cells that may learn an object
BOX, SCORE, BIN = 7.5, 0.5, 1.5  # weights of the losses
MOST = 16  # objects in a picture at most


# The network


class Conv(nn.Sequential):
    """Conv, batch normalization and SiLU."""

    def __init__(self, inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
        super().__init__(conv, nn.BatchNorm2d(outputs, eps=1e-3, momentum=0.03), nn.SiLU())


class Block(nn.Module):
    """Split block: a residual pair of Convs on one half, then a Concat of all parts."""

    def __init__(self, inputs: int, outputs: int, add: bool = True) -> None:
        super().__init__()
        self.half = half = outputs // 2
        self.enter = Conv(inputs, outputs)
        self.deeper = nn.Sequential(Conv(half, half, 3), Conv(half, half, 3))
        self.leave = Conv(3 * half, outputs)
        self.add = add

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, inputs, h, w) to (batch, outputs, h, w)."""
        left, right = self.enter(x).split(self.half, 1)
        deeper = self.deeper(right)
        return self.leave(torch.cat([left, right, right + deeper if self.add else deeper], 1))


class Pools(nn.Module):
    """Spatial pyramid pooling (SPPF): three MaxPools in a row, concatenated."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.enter = Conv(channels, channels // 2)
        self.pool = nn.MaxPool2d(5, 1, 2)
        self.leave = Conv(2 * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """Map (batch, channels, h, w) to the same shape."""
        parts = [self.enter(x)]
        for _ in range(3):
            parts.append(self.pool(parts[-1]))
        return self.leave(torch.cat(parts, 1))


class Head(nn.Module):
    """Decoupled head of one scale."""

    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.boxes = nn.Sequential(Conv(channels, HEAD_WIDTH, 3), nn.Conv2d(HEAD_WIDTH, 4 * BINS, 1))
        self.scores = nn.Sequential(Conv(channels, HEAD_WIDTH, 3), nn.Conv2d(HEAD_WIDTH, CLASSES, 1))
        # The initial scores expect 5 objects in a picture.
        nn.init.constant_(self.scores[-1].bias, math.log(5 / CLASSES / (demo.SIDE / stride) ** 2))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return distributions (batch, 4 * BINS, cells) of the sides' distances, and logits (batch, CLASSES, cells)."""
        return self.boxes(x).flatten(2), self.scores(x).flatten(2)


class Detector(nn.Module):
    """float32 (batch, 3, SIDE, SIDE), RGB, 0-1, to (batch, 4 + CLASSES, cells): x, y, width, height in px, scores."""

    def __init__(self) -> None:
        super().__init__()
        a, b, c, d = WIDTHS
        self.stem = nn.Sequential(Conv(3, a, 3, 2), Conv(a, b, 3, 2), Block(b, b))
        self.fine = nn.Sequential(Conv(b, c, 3, 2), Block(c, c))
        self.coarse = nn.Sequential(Conv(c, d, 3, 2), Block(d, d), Pools(d))
        self.upsample = nn.Upsample(scale_factor=2, mode="nearest")
        self.merge_up = Block(d + c, c, add=False)
        self.down = Conv(c, c, 3, 2)
        self.merge_down = Block(c + d, d, add=False)
        self.heads = nn.ModuleList([Head(c, STRIDES[0]), Head(d, STRIDES[1])])
        centres, strides = cells()
        self.register_buffer("centres", centres, persistent=False)
        self.register_buffer("strides", strides, persistent=False)
        self.register_buffer("bins", torch.arange(BINS, dtype=torch.float32).view(1, 1, BINS, 1), persistent=False)

    def raw(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return distributions (batch, 4 * BINS, cells) and logits (batch, CLASSES, cells) of all scales."""
        fine = self.fine(self.stem(x))
        coarse = self.coarse(fine)
        up = self.merge_up(torch.cat([self.upsample(coarse), fine], 1))
        down = self.merge_down(torch.cat([self.down(up), coarse], 1))
        boxes, scores = zip(*(head(level) for head, level in zip(self.heads, (up, down))))
        return torch.cat(boxes, 2), torch.cat(scores, 2)

    def corners(self, distributions: Tensor) -> tuple[Tensor, Tensor]:
        """Return upper left and lower right corners, each (batch, 2, cells), in cells."""
        spread = distributions.view(-1, 4, BINS, distributions.shape[-1]).softmax(2)
        near, far = (spread * self.bins).sum(2).split(2, 1)
        return self.centres - near, self.centres + far

    def forward(self, x: Tensor) -> Tensor:
        """Return the boxes and scores of all cells."""
        distributions, logits = self.raw(x)
        first, last = self.corners(distributions)
        boxes = torch.cat([(first + last) / 2, last - first], 1) * self.strides
        return torch.cat([boxes, logits.sigmoid()], 1)


def cells() -> tuple[Tensor, Tensor]:
    """Return centres (1, 2, cells) in cells, and strides (1, 1, cells) in px."""
    centres, strides = [], []
    for stride in STRIDES:
        rows, columns = np.mgrid[: demo.SIDE // stride, : demo.SIDE // stride].astype(np.float32) + 0.5
        centres.append(np.stack([columns.ravel(), rows.ravel()]))
        strides.append(np.full((1, rows.size), stride, np.float32))
    return tuple(torch.from_numpy(np.concatenate(parts, axis=1)[np.newaxis]) for parts in (centres, strides))


# The loss


class Objects(NamedTuple):
    """Objects of a batch, padded: boxes (batch, MOST, 4) xyxy in px, kinds (batch, MOST), mask of valid objects."""

    boxes: Tensor
    kinds: Tensor
    there: Tensor


class Targets(NamedTuple):
    """Cell targets: boxes (batch, cells, 4) xyxy in px, scores (batch, cells, CLASSES), a mask of assigned cells."""

    boxes: Tensor
    scores: Tensor
    chosen: Tensor


def overlaps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return IoU and generalized IoU (Rezatofighi et al., CVPR 2019) of boxes (..., 4) xyxy."""
    (a1, a2), (b1, b2) = (boxes.split(2, -1) for boxes in (a, b))
    inter = (torch.minimum(a2, b2) - torch.maximum(a1, b1)).clamp(min=0).prod(-1)
    union = (a2 - a1).prod(-1) + (b2 - b1).prod(-1) - inter + 1e-7
    hull = (torch.maximum(a2, b2) - torch.minimum(a1, b1)).prod(-1) + 1e-7
    iou = inter / union
    return iou, iou - (hull - union) / hull


@torch.no_grad()
def assign(boxes: Tensor, logits: Tensor, centres: Tensor, objects: Objects) -> Targets:
    """Assign each object to the best aligned cells within it, and each cell to at most one object.

    Args:
        boxes: found by each cell, (batch, cells, 4) xyxy in px.
        logits: (batch, cells, CLASSES).
        centres: of cells, (cells, 2) in px.
        objects: of the batch.
    """
    near = centres - objects.boxes[:, :, None, :2]
    far = objects.boxes[:, :, None, 2:] - centres
    inside = (torch.cat([near, far], -1).amin(-1) > 0) & objects.there[:, :, None]
    iou = overlaps(objects.boxes[:, :, None], boxes[:, None])[0].clamp(min=0) * inside
    kinds = objects.kinds[:, :, None].expand(-1, -1, boxes.shape[1])
    scores = logits.sigmoid().transpose(1, 2).gather(1, kinds)
    merit = (scores.sqrt() * iou**6 + 1e-9 * iou) * inside
    best = merit.topk(CANDIDATES, -1)
    chosen = torch.zeros_like(merit).scatter_(-1, best.indices, (best.values > 0).float())
    winner = (iou * chosen).argmax(1, keepdim=True)
    chosen *= torch.zeros_like(chosen).scatter_(1, winner, 1.0)
    merit *= chosen
    # Target score: for the best cell of an object the IoU of its box, for the others in proportion.
    worth = merit / (merit.amax(-1, keepdim=True) + 1e-9) * (iou * chosen).amax(-1, keepdim=True)
    which = winner.squeeze(1)
    found = chosen.amax(1) > 0
    wanted = F.one_hot(objects.kinds.gather(1, which), CLASSES) * (worth.amax(1) * found)[..., None]
    return Targets(objects.boxes.gather(1, which[..., None].expand(-1, -1, 4)), wanted, found)


def loss_of(network: Detector, pictures: Tensor, objects: Objects) -> Tensor:
    """Return the loss of a batch of pictures (batch, 3, SIDE, SIDE)."""
    distributions, logits = (part.float() for part in network.raw(pictures))
    logits = logits.transpose(1, 2)
    strides = network.strides.transpose(1, 2)
    found = torch.cat(network.corners(distributions), 1).transpose(1, 2) * strides
    centres = (network.centres * network.strides)[0].T
    targets = assign(found, logits, centres, objects)
    total = targets.scores.sum().clamp(min=1)
    score = F.binary_cross_entropy_with_logits(logits, targets.scores, reduction="sum") / total
    if not targets.chosen.any():
        return SCORE * score
    weight = targets.scores.sum(-1)[targets.chosen]
    box = ((1 - overlaps(found, targets.boxes)[1][targets.chosen]) * weight).sum() / total
    sides = torch.cat([centres - targets.boxes[..., :2], targets.boxes[..., 2:] - centres], -1) / strides
    sides = sides[targets.chosen].clamp(0, BINS - 1.01)
    spread = distributions.unflatten(1, (4, BINS)).permute(0, 3, 1, 2)[targets.chosen].log_softmax(-1)
    bins = (spread_loss(spread, sides).mean(-1) * weight).sum() / total
    return BOX * box + SCORE * score + BIN * bins


def spread_loss(spread: Tensor, sides: Tensor) -> Tensor:
    """Return the cross entropy of log-probabilities (..., BINS) with the two bins beside each distance (...)."""
    below = sides.long()
    share = sides - below
    low, high = (spread.gather(-1, (below + k)[..., None])[..., 0] for k in (0, 1))
    return -(low * (1 - share) + high * share)


# The data


class Scenes(NamedTuple):
    """All pictures of a split in memory: uint8 (n, SIDE, SIDE, 3), and their objects."""

    pictures: Tensor
    objects: Objects


def paint(split: str, count: int) -> Scenes:
    """Paint the first pictures of a split, in as many processes as there are cores."""
    pictures = np.empty((count, demo.SIDE, demo.SIDE, 3), np.uint8)
    boxes, kinds = np.zeros((count, MOST, 4), np.float32), np.zeros((count, MOST), np.int64)
    there = np.zeros((count, MOST), bool)
    with ProcessPoolExecutor() as pool:
        for k, scene in enumerate(pool.map(partial(demo.scene, split), range(count), chunksize=64)):
            found = len(scene.boxes)
            pictures[k], boxes[k, :found], kinds[k, :found] = scene.picture, scene.boxes, scene.labels
            there[k, :found] = True
    return Scenes(torch.from_numpy(pictures), Objects(*map(torch.from_numpy, (boxes, kinds, there))))


def batches(scenes: Scenes, random: torch.Generator) -> Iterator[tuple[Tensor, Objects]]:
    """Yield all scenes in random order; each batch is mirrored, turned and coloured at random."""
    for chosen in torch.randperm(len(scenes.pictures), generator=random).split(BATCH)[:-1]:
        pictures, boxes = scenes.pictures[chosen], scenes.objects.boxes[chosen]
        flip_x, flip_y, turn = (torch.rand(3, generator=random) < 0.5).tolist()
        if flip_x:
            pictures = pictures.flip(2)
            boxes = mirrored(boxes, 0)
        if flip_y:
            pictures = pictures.flip(1)
            boxes = mirrored(boxes, 1)
        if turn:
            pictures, boxes = pictures.transpose(1, 2), boxes[..., [1, 0, 3, 2]]
        pictures = pictures[..., torch.randperm(3, generator=random)].contiguous().permute(0, 3, 1, 2).float()
        pictures *= (1 + 0.3 * (torch.rand(len(chosen), 1, 1, 1, generator=random) - 0.5)) / 255
        yield pictures.clamp_(0, 1), Objects(boxes, scenes.objects.kinds[chosen], scenes.objects.there[chosen])


def mirrored(boxes: Tensor, axis: int) -> Tensor:
    """Mirror boxes (..., 4) xyxy along x (axis 0) or y (axis 1)."""
    made = boxes.clone()
    made[..., axis], made[..., axis + 2] = demo.SIDE - boxes[..., axis + 2], demo.SIDE - boxes[..., axis]
    return made


# Training


def train(scenes: Scenes, epochs: int, seed: int, checkpoint: Path | None) -> Detector:
    """Train a network from scratch and return it with averaged weights."""
    torch.manual_seed(seed)
    random = torch.Generator().manual_seed(seed)
    network = Detector().to(memory_format=torch.channels_last)
    average = copy.deepcopy(network).eval().requires_grad_(False)
    plain = [p for p in network.parameters() if p.ndim < 2]
    groups = [
        {"params": [p for p in network.parameters() if p.ndim >= 2], "weight_decay": DECAY},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, LEARNING_RATE)
    steps = epochs * (math.ceil(len(scenes.pictures) / BATCH) - 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, partial(rate, steps=steps))
    step, start = itertools.count(1), time.perf_counter()
    for epoch in range(epochs):
        network.train()
        losses = []
        for pictures, objects in batches(scenes, random):
            with torch.autocast("cpu", torch.bfloat16):
                loss = loss_of(network, pictures, objects)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(network.parameters(), 10.0)
            optimizer.step()
            schedule.step()
            follow(average, network, next(step))
            losses.append(loss.item())
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1}/{epochs}: loss {np.mean(losses):.3f}, {seconds:.0f} s", flush=True)
        if checkpoint is not None:
            with atomic_write(checkpoint) as temporary:
                torch.save(average.state_dict(), temporary)
    return average


def rate(step: int, steps: int) -> float:
    """Return the share of the learning rate: linear warm-up, then a cosine."""
    return min(1, (step + 1) / WARM_UP) * (0.505 + 0.495 * math.cos(math.pi * step / max(1, steps)))


@torch.no_grad()
def follow(average: nn.Module, network: nn.Module, step: int) -> None:
    """Update the moving average of weights and statistics."""
    share = max(1 / AVERAGED, 1 / (1 + step / 10)) if step < AVERAGED else 1 / AVERAGED
    for slow, fast in zip(average.state_dict().values(), network.state_dict().values()):
        if slow.is_floating_point():
            slow.lerp_(fast, share)
        else:
            slow.copy_(fast)


# The file


def export(network: Detector, path: Path) -> None:
    """Write the network as ONNX of opset 17, with the metadata of Ultralytics' exports."""
    picture = torch.zeros(1, 3, demo.SIDE, demo.SIDE)
    with atomic_write(path) as temporary:
        torch.onnx.export(
            network.eval().cpu(), (picture,), str(temporary), opset_version=17, dynamo=False,
            input_names=["images"], output_names=["output0"],
        )  # fmt: skip
        model = onnx.load(temporary)
        metadata = {
            "description": "demo of onnxq: six kinds of symbols", "license": "Apache-2.0", "task": "detect",
            "stride": str(max(STRIDES)), "batch": "1", "imgsz": str([demo.SIDE] * 2),
            "names": str(dict(enumerate(demo.CLASSES))),
        }  # fmt: skip
        for key, value in metadata.items():
            model.metadata_props.add(key=key, value=value)
        model.graph.name = "demo"
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, temporary)


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description="Train the small detector in models/demo.onnx.")
    parser.add_argument("output", nargs="?", type=Path, default=Path(__file__).parent / "demo.onnx")
    parser.add_argument("--epochs", type=int, default=25)
    parser.add_argument("--scenes", type=int, default=8000, help="number of training pictures")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="save the averaged weights after each epoch")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    scenes = paint("train", args.scenes)
    network = train(scenes, args.epochs, args.seed, args.checkpoint)
    export(network, args.output)
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
