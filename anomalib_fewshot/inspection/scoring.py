# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Scoring of pictures. They are read in small batches to limit memory use, and rotated to their EXIF orientation."""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from PIL import Image
from torchvision.transforms.v2 import Resize, Transform
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_fewshot.data.validation.image import read_upright
from anomalib_fewshot.models import CoftAD
from anomalib_fewshot.post_processing import SupportPostProcessor

from .ignore_mask import IgnoreMask
from .nearest import MAX_IMAGES
from .reference import GoodReference

BATCH_SIZE = 4  # up to two batches are in memory
NUM_THREADS = 2


@dataclass
class ScoredImage:
    """Picture with its score.

    Args:
        path (Path): The file.
        photo (Image.Image | None): The upright image, or ``None`` if the file cannot be read.
        error (str): Message if the file cannot be read, otherwise empty.
        verdict (str): ``"good"``, ``"review"`` or ``"defect"``.
        score (float): Distance relative to that of the most unusual held-out good picture, which has 1.
        p_value (float): p-value, or NaN if the model provides none.
        heat (np.ndarray | None): Anomaly map between 0 and 1 with threshold 0.5, shape ``(H, W)``.
        nearest (list[float] | None): Most similar region of a good picture, see :class:`.GoodReference`.
    """

    path: Path
    photo: Image.Image | None = None
    error: str = ""
    verdict: str = ""
    score: float = float("nan")
    p_value: float = float("nan")
    heat: np.ndarray | None = None
    nearest: list[float] | None = None


class Scorer:
    """Score pictures with a model.

    Args:
        model (CoftAD): A fitted model.
        ignored (IgnoreMask | None): Region to ignore. Defaults to ``None``.
        good (Sequence[Path]): Good pictures, which new ones are compared with. Defaults to none.

    Attributes:
        reference (GoodReference | None): Comparison with the good pictures. ``None`` if there are none.
    """

    def __init__(self, model: CoftAD, ignored: IgnoreMask | None = None, good: Sequence[Path] = ()) -> None:
        self.model = model
        self.transform: Transform = model.pre_processor.transform  # type: ignore[union-attr]
        (self.resize,) = extract_transforms_by_type(self.transform, Resize)
        self.ignored = ignored
        self.pool = ThreadPoolExecutor(NUM_THREADS)
        self.reference = self._read_reference(good[:MAX_IMAGES])

    def _read_reference(self, paths: Sequence[Path]) -> GoodReference | None:
        pictures = [self._read(path) for path in paths]
        if not pictures or any(scored.error for scored, _ in pictures):  # a picture has been replaced
            return None
        sizes = [scored.photo.size for scored, _ in pictures if scored.photo is not None]
        inputs = torch.stack([image for _, image in pictures]).to(self.model.device)
        return GoodReference(self.model, [str(path) for path in paths], sizes, inputs)

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the network's input, in pixels."""
        return self.resize.size[0], self.resize.size[1]

    @property
    def post_processor(self) -> SupportPostProcessor:
        """Post-processor of the model, which holds the thresholds."""
        return self.model.post_processor  # type: ignore[return-value]

    def __call__(self, paths: Iterable[Path]) -> Iterator[ScoredImage]:
        """Yield the scored pictures in order. The next batch is read while the current one is scored."""
        paths = iter(paths)
        ahead = self._read_ahead(paths)
        while ahead:
            batch = [future.result() for future in ahead]
            ahead = self._read_ahead(paths)
            self._score([(scored, image) for scored, image in batch if not scored.error])
            for scored, _ in batch:
                yield scored

    def _read_ahead(self, paths: Iterator[Path]) -> list[Future]:
        return [self.pool.submit(self._read, path) for path in islice(paths, BATCH_SIZE)]

    def _read(self, path: Path) -> tuple[ScoredImage, torch.Tensor]:
        """Read and pre-process a picture like anomalib, but apply the EXIF orientation."""
        try:
            photo = read_upright(path)
        except Exception as error:  # noqa: BLE001  PIL raises OSError, SyntaxError, ValueError and others
            message = f"cannot be read ({error}). Replace or remove it."
            return ScoredImage(path, error=message), torch.empty(0)
        image = self.resize(to_dtype(to_image(photo), torch.float32, scale=True))
        if self.ignored is not None:
            image = self.ignored.apply(image)
        return ScoredImage(path, photo), self.transform(image[None])[0]

    @torch.inference_mode()
    def _score(self, batch: list[tuple[ScoredImage, torch.Tensor]]) -> None:
        """Fill in verdict, score, p-value and anomaly map."""
        if not batch:
            return
        images = torch.stack([image for _, image in batch]).to(self.model.device)
        features = self.model.model.features(images)
        result = self.post_processor(self.model.model.score_features(features))
        scores = result.pred_score.flatten().cpu()
        verdicts = self.post_processor.verdicts(scores)
        p_values = self.post_processor.p_value(scores).tolist()
        heats = result.anomaly_map[:, 0].float().cpu().numpy()
        for index, (scored, _) in enumerate(batch):
            scored.verdict = verdicts[index]
            scored.score = float(scores[index])
            scored.p_value = p_values[index]
            scored.heat = heats[index] if self.ignored is None else self.ignored.clear(heats[index])
            if self.reference is not None and scored.photo is not None:
                own = slice(index, index + 1)
                scored.nearest = self.reference.nearest(features[own], scored.heat, scored.photo.size)
                self.reference.compare(str(scored.path), images[own], features[own])
