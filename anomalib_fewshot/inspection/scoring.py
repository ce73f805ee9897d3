# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Scores of pictures, which are read upright by their EXIF orientation, a few at a time to bound the memory."""

from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from anomalib.data.transforms.utils import extract_transforms_by_type
from PIL import Image
from torchvision.transforms.v2 import Resize
from torchvision.transforms.v2.functional import to_dtype, to_image

from anomalib_fewshot.data.validation.image import read_upright
from anomalib_fewshot.models import CoftAD
from anomalib_fewshot.post_processing import SupportPostProcessor

from .ignore_mask import IgnoreMask

BATCH_SIZE = 4  # two batches of photos are in memory
NUM_THREADS = 2


@dataclass
class Scored:
    """A picture and what a model says of it.

    Args:
        path (Path): The file.
        photo (Image.Image | None): Its pixels. ``None`` if it cannot be read.
        fault (str): Why it cannot be read, or nothing.
        verdict (str): ``"good"``, ``"review"`` or ``"defect"``.
        score (float): Score between 0 and 1.
        p_value (float): Its p-value, NaN if there is none.
        heat (np.ndarray): Anomaly map between 0 and 1, 0.5 at its threshold, shape ``(H, W)``.
    """

    path: Path
    photo: Image.Image | None = None
    fault: str = ""
    verdict: str = ""
    score: float = float("nan")
    p_value: float = float("nan")
    heat: np.ndarray | None = None


class Scorer:
    """Score pictures by a model.

    Args:
        model (CoftAD): A fitted model.
        ignored (IgnoreMask | None): Region that does not count. Defaults to ``None``.
    """

    def __init__(self, model: CoftAD, ignored: IgnoreMask | None = None) -> None:
        self.model = model
        self.transform = model.pre_processor.transform  # type: ignore[union-attr]
        (self.resize,) = extract_transforms_by_type(self.transform, Resize)
        self.ignored = ignored
        self.pool = ThreadPoolExecutor(NUM_THREADS)

    @property
    def post_processor(self) -> SupportPostProcessor:
        """The post-processor of the model, which has the thresholds."""
        return self.model.post_processor  # type: ignore[return-value]

    def __call__(self, paths: Iterable[Path]) -> Iterator[Scored]:
        """Yield the pictures in their order. The next ones are read while a batch is scored."""
        paths = iter(paths)
        ahead = self._read_ahead(paths)
        while ahead:
            parts = [future.result() for future in ahead]
            ahead = self._read_ahead(paths)
            self._score([part for part in parts if not part[0].fault])
            yield from (scored for scored, _ in parts)

    def _read_ahead(self, paths: Iterator[Path]) -> list[Future]:
        return [self.pool.submit(self._read, path) for path in islice(paths, BATCH_SIZE)]

    def _read(self, path: Path) -> tuple[Scored, torch.Tensor]:
        """Read a picture upright, otherwise as anomalib's ``read_image`` does, and pre-process it."""
        try:
            photo = read_upright(path)
        except Exception as error:  # noqa: BLE001  PIL raises OSError, SyntaxError, ValueError and others
            return Scored(path, fault=f"cannot be read ({error}). Replace or remove it."), torch.empty(0)
        image = self.resize(to_dtype(to_image(photo), torch.float32, scale=True))
        if self.ignored is not None:
            image = self.ignored.apply(image)
        return Scored(path, photo), self.transform(image[None])[0]  # type: ignore[misc]

    @torch.inference_mode()
    def _score(self, parts: list[tuple[Scored, torch.Tensor]]) -> None:
        if not parts:
            return
        images = torch.stack([image for _, image in parts]).to(self.model.device)
        result = self.post_processor(self.model.score_images(images))
        scores = result.pred_score.flatten().cpu()  # type: ignore[union-attr]
        verdicts, p_values = self.post_processor.verdicts(scores), self.post_processor.p_value(scores).tolist()
        heats = result.anomaly_map[:, 0].float().cpu().numpy()  # type: ignore[index]
        for (scored, _), verdict, score, p_value, heat in zip(
            parts,
            verdicts,
            scores.tolist(),
            p_values,
            heats,
            strict=True,
        ):
            scored.verdict, scored.score, scored.p_value = verdict, score, p_value
            scored.heat = heat if self.ignored is None else self.ignored.clear(heat)
