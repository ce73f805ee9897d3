# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Rates of the warnings about good pictures, right and wrong ones, on folders in MVTec AD's layout.

python support_check.py ROOT [ROOT ...] [--k_shot 4 8] [--supports 30]

Each folder of a ROOT has `train/good`, `test/good` and a folder of defects in `test`. Warnings in the cases `good`,
`new good`, `new 1/4 defects` and `new all defects` are wrong, except for near-duplicates in the folder itself. In all
other cases, a warning is right. Pictures of another kind are those of the next folder.
"""

import argparse
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageEnhance
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_fewshot import CoftAD
from anomalib_fewshot.inspection.nearest import extract_features
from anomalib_fewshot.inspection.support_check import SupportCheck
from anomalib_fewshot.models.coft_ad.features import Features
from anomalib_fewshot.models.components import choose_image_size

NUM_COPIED, NUM_NEW, NUM_OTHERS = 16, 20, 12  # pictures that are changed, new ones, and of another kind
NUM_CHOSEN = 12  # new pictures of each trial
Change = Callable[[Image.Image], Image.Image]


@dataclass
class Pictures:
    """Network inputs, ``(N, 3, H, W)``, and features of pictures."""

    names: list[str]
    images: torch.Tensor
    features: Features

    def __getitem__(self, chosen: Sequence[int]) -> "Pictures":
        """Return some of the pictures."""
        embeddings, bank = self.features.embeddings[chosen], self.features.bank[chosen]
        return Pictures([self.names[index] for index in chosen], self.images[chosen], Features(embeddings, [], bank))

    def __add__(self, other: "Pictures") -> "Pictures":
        """Return the pictures of both."""
        features = Features.cat([self.features, other.features])
        return Pictures(self.names + other.names, torch.cat([self.images, other.images]), features)


def read(model: CoftAD, paths: Sequence[Path], change: Change = lambda image: image) -> Pictures:
    """Return pictures, each changed before it is resized."""
    inputs = []
    for path in paths:
        with Image.open(path) as file:
            image = to_dtype(to_image(change(file.convert("RGB"))), torch.float32, scale=True)
        inputs.append(model.pre_processor.transform(image[None]))
    features = extract_features(model, inputs, max_images=len(inputs))
    return Pictures([path.name for path in paths], torch.cat(inputs), features)


def noisy(image: Image.Image, std: float) -> Image.Image:
    """Return an image with Gaussian noise of a standard deviation in gray levels of 255."""
    noise = np.random.default_rng(0).normal(0, std, (image.height, image.width, 3))
    return Image.fromarray((np.asarray(image) + noise).clip(0, 255).astype(np.uint8))


def shifted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return an image shifted by about a pixel of the network's input, down and to the right."""
    down, right = max(1, round(image.height / size[0])), max(1, round(image.width / size[1]))
    padded = np.pad(np.asarray(image), ((down, 0), (right, 0), (0, 0)), mode="edge")
    return Image.fromarray(padded[: image.height, : image.width])


def compressed(image: Image.Image) -> Image.Image:
    """Return an image after JPEG compression with quality 75."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    return Image.open(buffer).convert("RGB")


def zoomed(image: Image.Image, factor: float = 1.2) -> Image.Image:
    """Return the center of an image, enlarged."""
    x, y = image.width * (1 - 1 / factor) / 2, image.height * (1 - 1 / factor) / 2
    return image.resize(image.size, Image.Resampling.BILINEAR, (x, y, image.width - x, image.height - y))


def check_support(good: Pictures) -> SupportCheck:
    """Return the check of a support set."""
    return SupportCheck(good.names, good.images, good.features)


def find_warnings(check: SupportCheck, new: Pictures | None = None) -> set[str]:
    """Return which warnings there are: `duplicate`, `outlier`, `different`, `brightness`."""
    texts = check.warnings()
    if new is not None:
        texts = check.new_warnings(check.compare(new.names, new.images, new.features))
    parts = {"identical": "duplicate", "than they": "outlier", "than these": "different", "setting": "brightness"}
    return {kind for part, kind in parts.items() for text in texts if part in text}


def measure(root: Path, other: Path, arguments: argparse.Namespace) -> list[dict]:
    """Return the figures of a folder."""
    train = sorted((root / "train" / "good").iterdir())
    good = sorted((root / "test" / "good").iterdir())[:NUM_NEW]
    defects = [path for path in sorted((root / "test").glob("*/*")) if path.parent.name != "good"][:NUM_NEW]
    shapes = []
    for path in train:
        with Image.open(path) as file:
            shapes.append((file.height, file.width))
    size = choose_image_size(shapes, prod(CoftAD.default_image_size), 32)
    model = CoftAD(image_size=size, evaluator=False, visualizer=False).eval()
    normal, bad = read(model, train), read(model, defects)
    others = read(model, sorted((other / "train" / "good").iterdir())[:NUM_OTHERS])
    copies: dict[str, Change] = {
        "noise 1": lambda image: noisy(image, 1),
        "noise 3": lambda image: noisy(image, 3),
        "shift": lambda image: shifted(image, size),
        "jpeg": compressed,
        "burst": lambda image: ImageEnhance.Brightness(noisy(shifted(image, size), 1)).enhance(1.02),
    }
    copied = {name: read(model, train[:NUM_COPIED], change) for name, change in copies.items()}
    changes: dict[str, Change] = {
        "new good": lambda image: image,
        "bright 1.3": lambda image: ImageEnhance.Brightness(image).enhance(1.3),
        "bright 0.7": lambda image: ImageEnhance.Brightness(image).enhance(0.7),
        "contrast 0.7": lambda image: ImageEnhance.Contrast(image).enhance(0.7),
        "zoom 1.2": zoomed,
    }
    new = {name: read(model, good, change) for name, change in changes.items()}
    new["new 1/4 defects"] = new["new good"][range(12)] + bad[range(4)]
    new |= {"new all defects": bad, "new other": others}
    rows = []
    for k_shot in arguments.k_shot:
        generator = np.random.default_rng(0)
        for _ in range(arguments.supports):
            order = generator.permutation(len(train)).tolist()
            one = next(index for index in order if index < NUM_COPIED)  # the picture that has a copy
            support, rest = normal[order[:k_shot]], normal[order[: k_shot - 1]]
            others_of_copy = normal[[index for index in order if index != one][: k_shot - 2]]
            check = check_support(support)
            cases = {"good": find_warnings(check)}
            for name, part in copied.items():
                cases[name] = find_warnings(check_support(others_of_copy + normal[[one]] + part[[one]]))
            defect, other_kind = int(generator.integers(len(bad.names))), int(generator.integers(NUM_OTHERS))
            cases["one defect"] = find_warnings(check_support(rest + bad[[defect]]))
            cases["one other"] = find_warnings(check_support(rest + others[[other_kind]]))
            for name, part in new.items():
                chosen = generator.permutation(len(part.names))[:NUM_CHOSEN].tolist()
                cases[name] = find_warnings(check, part[chosen])
            for name, kinds in cases.items():
                rows += [{"set": root.name, "k": k_shot, "case": name, "kind": kind, "rate": 1.0} for kind in kinds]
                rows.append({"set": root.name, "k": k_shot, "case": name, "kind": "none", "rate": float(not kinds)})
    return rows


def main() -> None:
    """Print the rate of each warning in each case, and write it for each folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("roots", nargs="+", type=Path)
    parser.add_argument("--k_shot", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--supports", type=int, default=30)
    parser.add_argument("--results", type=Path, default=Path("support_check.csv"))
    arguments = parser.parse_args()
    folders = sorted(path.parent for parent in arguments.roots for path in parent.glob("*/train"))
    rows: list[dict] = []
    for number, root in enumerate(folders):
        rows += measure(root, folders[(number + 1) % len(folders)], arguments)
        print(root.name, flush=True)
    columns = {"index": ["k", "case", "kind"], "columns": "set", "values": "rate", "sort": False}
    rates = pd.DataFrame(rows).pivot_table(aggfunc="sum", fill_value=0, **columns) / arguments.supports
    rates["mean"] = rates.mean(axis=1)
    rates.round(3).to_csv(arguments.results)
    print(rates.round(2).to_string())


if __name__ == "__main__":
    torch.set_num_threads(1)
    with torch.inference_mode():
        main()
