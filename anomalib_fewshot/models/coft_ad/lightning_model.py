# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""CoftAD: contrastive fine-tuning of a pretrained backbone on a few normal images.

Paper: https://arxiv.org/abs/2402.18998 (IEEE TIP 33, 2024). There is no public code: this follows the published
description, and settings that the description does not give are this package's.
"""

import logging
from collections.abc import Iterator, Sequence
from functools import reduce
from itertools import islice
from typing import Any, NamedTuple

import torch
from anomalib.data import Batch, ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import nn

from anomalib_fewshot.models.components import (
    BackboneMixin,
    Moments,
    SupportAugmentation,
    cut_paste,
    height_and_width,
    normal_batch,
    normalization_of,
    seeded,
    seeded_generator,
    spread,
    warn_of_single_image,
)

from .anomaly_synthesis import checked_kinds, synthesize_anomalies
from .left_out import LeftOut, add, moments_by_fold, show, subtract
from .loss import AdaptationLoss, CoftADLoss, mean_log_energy
from .step_progress import StepProgress
from .torch_model import CoftADModel

logger = logging.getLogger(__name__)

FINE_TUNINGS = ("adaptation", "backbone")
MAX_LEFT_OUT = 64  # images that are left out; of more, the first
VIEWS_OF_ONE = 8  # of an image that is the only one; of others, the image and a view are left out
MAPS_AT_ONCE = 8
POSITIONS = 1024  # of normal and of anomalous cells in a step


class CoftAD(BackboneMixin, AnomalibModule):
    """Contrastive fine-tuning on a few normal images, then Gaussians of their embeddings.

    What is fine-tuned is one of two. ``"adaptation"``, the default and this package's: the metric of the Gaussians of
    positions, in which images that a Gaussian has not seen (cross-instance positive pairs) are drawn to it, and
    synthesised anomalies (negative pairs) pushed away. The backbone stays as it is. ``"backbone"``, as published: all
    of the backbone, by views of an image, of two images, and of an image with an anomaly made of it.

    A Mahalanobis distance is the score. With a single image there is no other to learn from: the adaptation stays none.

    Args:
        backbone (str): Name of a timm model, convolutional or ViT. Defaults to ``"tf_efficientnet_lite0"``, whose
            weights come with this package.
        layers (list[int] | None): Feature maps that the anomaly map is made of, beside the last, as indices in timm's
            ``feature_info``. Defaults to ``None``: strides 8 and 16, or the blocks at two thirds and at the end of a
            ViT.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone's weights, in timm's naming. Defaults to ``None``: the package that
            carries them, else timm's hub and its cache.
        image_size (int | tuple[int, int]): Size that images are resized to. Defaults to ``224``.
        fine_tuning (str): ``"adaptation"`` or ``"backbone"``. Defaults to ``"adaptation"``.
        num_steps (int): Number of optimiser steps. 0 is no fine-tuning. Defaults to ``40``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``1e-3``, which is for the adaptation.
        weight_decay (float): Weight decay of AdamW. Defaults to ``0.0``.
        positive_weight (float): Weight of the cross-instance positive pairs. Defaults to ``1.0``.
        negative_weight (float): Weight of the negative pairs. Defaults to ``1.0``.
        anchor_weight (float): Weight of how far the adaptation moves the metric. Defaults to ``20.0``.
        augmentation (str): Views that count as normal: ``"none"``, ``"mild"`` or ``"strong"``. Defaults to ``"mild"``.
        num_views (int): Views of each image that the densities are fitted to, the image itself among them.
            Defaults to ``8``.
        num_anomalies (int): Anomalies of each kind that are made of an image. Defaults to ``4``.
        anomaly_kinds (list[str] | None): Some of ``"cut_paste"``, ``"scar"``, ``"patches"``, ``"stain"``, ``"blur"``
            and ``"crack"``: leave out what is normal on the part. Defaults to ``None``: all.
        image_score (str): ``"embedding"``, the published score, or ``"map"``, the highest 1 % of the anomaly map.
            Defaults to ``"map"``, which sees defects that are small in the image.
        seed (int): Seed of the heads and of all views. The global seed has no influence. Defaults to ``0``.
        pre_processor (nn.Module | bool): Defaults to ``True``: resize, and normalise as the weights ask.
        post_processor (nn.Module | bool): Defaults to ``True``.
        evaluator (Evaluator | bool): Defaults to ``True``.
        visualizer (Visualizer | bool): Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of its range, or as :class:`CoftADModel` does.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_fewshot import ELPV, CoftAD, FewShot
        >>> Engine().train(CoftAD(), datamodule=FewShot(ELPV(), k_shot=4))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        layers: list[int] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: int | tuple[int, int] = 224,
        fine_tuning: str = "adaptation",
        num_steps: int = 40,
        learning_rate: float = 1e-3,
        weight_decay: float = 0.0,
        positive_weight: float = 1.0,
        negative_weight: float = 1.0,
        anchor_weight: float = 20.0,
        augmentation: str = "mild",
        num_views: int = 8,
        num_anomalies: int = 4,
        anomaly_kinds: list[str] | None = None,
        image_score: str = "map",
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        for name, value, least in (
            ("num_steps", num_steps, 0),
            ("num_views", num_views, 1),
            ("num_anomalies", num_anomalies, 1),
        ):
            if value < least:
                msg = f"`{name}` must be at least {least}, got {value}."
                raise ValueError(msg)
        if fine_tuning not in FINE_TUNINGS:
            msg = f"`fine_tuning` must be one of {FINE_TUNINGS}, got {fine_tuning!r}."
            raise ValueError(msg)
        size = height_and_width(image_size)
        if pre_processor is True:
            pre_processor = self.configure_pre_processor(size, backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.fine_tuning = fine_tuning
        self.num_steps = num_steps
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.num_views = num_views
        self.num_anomalies = num_anomalies
        self.anomaly_kinds = checked_kinds(anomaly_kinds)
        self.seed = seed
        self.colours = normalization_of(self.pre_processor)
        self.augmentation = SupportAugmentation(augmentation, *self.colours)
        self.loss = CoftADLoss(positive_weight, negative_weight)
        self.adaptation_loss = AdaptationLoss(positive_weight, negative_weight, anchor_weight)
        with seeded(seed):
            self.model = CoftADModel(backbone, layers, pre_trained, weights, size, image_score)
        self.model.requires_grad_(not self._adapts)
        self.model.densities.requires_grad_(self._adapts)
        self.thresholds = nn.ParameterList(torch.zeros(()) for _ in self.model.densities).requires_grad_(self._adapts)
        self.register_buffer("is_fitted", torch.tensor(data=False))
        self._seen: _Seen | None = None  # while it trains

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return anomalib's callbacks, and one that makes the progress bar count steps."""
        callbacks = super().configure_callbacks()
        return [*(callbacks if isinstance(callbacks, Sequence) else [callbacks]), StepProgress()]

    def configure_optimizers(self) -> torch.optim.Optimizer | None:
        """Return AdamW of what is fine-tuned, or nothing if there is no fine-tuning."""
        if self.num_steps == 0:
            return None
        parameters = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)

    def on_train_start(self) -> None:
        """Forget an earlier fit, and compute what the adaptation learns from: the backbone stays as it is."""
        self.is_fitted.fill_(value=False)
        self._seen = None
        goes_on = self.trainer.ckpt_path is not None
        if not goes_on:
            for density in self.model.densities:
                density.adaptation.data.zero_()
        if self._adapts and self.num_steps > 0:
            self._seen = self._see(self.num_anomalies)
            for threshold, *pair in zip(self.thresholds, *self._seen.left_out[1:], strict=True):
                if not goes_on:
                    energies = torch.stack([mean_log_energy(rows).mean() for rows in pair])
                    threshold.data.copy_(energies.nan_to_num().mean())  # nan: of no anomaly

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the contrastive loss."""
        del batch_idx
        if self.num_steps == 0:
            return self.no_loss()
        generator = seeded_generator(self.seed, 0, self.global_step, self.global_rank)
        if self._adapts and self._seen is not None:
            loss = self._adapt(self._seen, generator)
        else:
            loss = self._contrast(batch, generator)
        self.log("train_loss", loss, prog_bar=True)
        return loss

    def _adapt(self, seen: "_Seen", generator: torch.Generator) -> torch.Tensor:
        """Return the loss of positions of left-out images and of synthesised anomalies."""
        loss = self.no_loss()
        for density, threshold, *pair in zip(self.model.densities, self.thresholds, *seen.left_out[1:], strict=True):
            if seen.alone or any(len(rows) == 0 for rows in pair):
                continue
            near, far = (density.adapted(_draw(rows.flatten(0, -2), generator)) for rows in pair)
            loss = loss + self.adaptation_loss(near, far, threshold, density.adaptation)
        return loss

    def _contrast(self, batch: Batch, generator: torch.Generator) -> torch.Tensor:
        """Return the loss of two views of each image."""
        embeddings = [self.model.embed(self.augmentation(batch.image, generator)) for _ in range(2)]
        (first, first_prediction), (second, second_prediction) = (self.model.project(e) for e in embeddings)
        clean = anomalous = None
        if self.loss.negative_weight > 0:
            clean = self.model.embed(batch.image)
            anomalous = self.model.embed(cut_paste(batch.image, generator)[0])
        self.log("spread", spread(torch.cat(embeddings).detach()), prog_bar=True)
        return self.loss((first_prediction, second_prediction), (first, second), clean, anomalous)

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the densities to augmented views of the training images."""
        logger.info("Fitting the densities to %d views of each training image.", self.num_views)
        if self._seen is None:
            self._seen = self._see(num_anomalies=0)
        seen = self._seen
        self.model.image_density.fit(seen.moments[0])
        for density, moments, normal in zip(self.model.densities, seen.moments[1:], seen.left_out.normal, strict=True):
            distances = torch.linalg.vector_norm(density.adapted(normal), dim=-1)
            density.fit(moments, self.sum_over_processes(Moments.of(distances.flatten()[:, None])))
        self.is_fitted.fill_(value=True)

    def _images(self) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Yield the paths and the pre-processed training images, a batch at a time."""
        for batch in self.trainer.train_dataloader or []:
            yield batch.image_path, self.preprocess(batch.image)

    def _views(self, generator: torch.Generator) -> Iterator[tuple[list[str], torch.Tensor]]:
        """Yield each batch of training images, and then its augmented views."""
        for paths, images in self._images():
            yield paths, images
            for _ in range(self.num_views - 1):
                yield paths, self.augmentation(images, generator)

    @torch.inference_mode(mode=False)  # it is learnt from
    @torch.no_grad()
    def _see(self, num_anomalies: int) -> "_Seen":
        """Embed the training images, and show each to the densities of the others.

        Each image in turn is left out (of more than eight, an eighth of them), and shown with a view of it. A single
        image has no others: views of it that its density has not seen are shown.

        Args:
            num_anomalies (int): Anomalies of each kind that are made of an image and shown too.
        """
        training = self.model.training
        self.model.eval()
        # streams of their own: the views are the same with anomalies and without, and after any number of steps
        of_density, of_left_out, of_anomalies = (
            seeded_generator(self.seed, stream, self.global_rank) for stream in (1, 2, 3)
        )
        folds, moments = moments_by_fold(self._embeddings, self._views(of_density))
        total = [self.sum_over_processes(part) for part in reduce(add, moments.values())]
        alone = bool(total[0].count <= self.num_views)
        others = {fold: total if alone else subtract(total, own) for fold, own in moments.items()}
        left_out = []
        for path, image in islice(self._each_image(), MAX_LEFT_OUT):
            views = self.augmentation(image.expand(VIEWS_OF_ONE if alone else 1, -1, -1, -1), of_left_out)
            views = views if alone else torch.cat([image[None], views])
            anomalies = self._anomalies(image, num_anomalies, of_anomalies) if num_anomalies > 0 else None
            left_out.append(show(self._embeddings, self.model.densities, others[folds[path]], views, anomalies))
        self.model.train(training)
        return _Seen(total, alone, LeftOut.cat(left_out))

    def _embeddings(self, images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
        with self.trainer.precision_plugin.forward_context():  # as the test images
            return self.model.embeddings(images)

    def _each_image(self) -> Iterator[tuple[str, torch.Tensor]]:
        for paths, images in self._images():
            yield from zip(paths, images, strict=True)

    def _anomalies(
        self,
        image: torch.Tensor,
        per_kind: int,
        generator: torch.Generator,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return normalised anomalies made of a normalised image, and their masks."""
        mean, std = (torch.tensor(values).to(image).view(3, 1, 1) for values in self.colours)
        image = (image * std + mean).clamp(0, 1)
        images, masks = synthesize_anomalies(image[None], generator, per_kind, self.anomaly_kinds)
        return (images - mean) / std, masks

    @torch.no_grad()
    def _scored(self, left_out: LeftOut) -> Iterator[ImageBatch]:
        """Yield the scores of left-out normal images."""
        pairs = list(zip(self.model.densities, left_out.normal, strict=True))
        for rows in torch.arange(len(left_out.images)).split(MAPS_AT_ONCE):
            distances = [torch.linalg.vector_norm(density.adapted(part[rows]), dim=-1) for density, part in pairs]
            yield normal_batch(self.model.score(left_out.images[rows], distances, self.model.image_size))

    def on_validation_start(self) -> None:
        """Fit the density before it is validated."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.fit()
        self.check_fitted()

    def on_train_end(self) -> None:
        """Do what is else done at the validation, if there was none: fit, set the threshold, keep a checkpoint."""
        if not self.is_fitted:
            self.fit()
            if self._seen is not None:
                if self._seen.alone:
                    warn_of_single_image()
                self.fit_threshold(self._scored(self._seen.left_out))
            self.keep_checkpoint()
        self._seen = None

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length of the training in optimiser steps, whatever the number of images, and one validation at its end."""
        arguments: dict[str, Any] = {"num_sanity_val_steps": 0, "log_every_n_steps": 1, "accumulate_grad_batches": 1}
        if self._adapts:
            arguments["devices"] = 1  # each image is left out of all others, which a share of them are not
        if self.num_steps == 0:
            return arguments | {"max_epochs": 1}
        return arguments | {
            "max_epochs": self.num_steps,  # an epoch has a step or more
            "max_steps": self.num_steps,
            "val_check_interval": self.num_steps,
            "check_val_every_n_epoch": None,
        }

    @property
    def _adapts(self) -> bool:
        return self.fine_tuning == "adaptation"


class _Seen(NamedTuple):
    """What is known of the training images: their moments, whether there is but one, and how they look from outside."""

    moments: list[Moments]
    alone: bool
    left_out: LeftOut


def _draw(rows: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return rows at random, with repetition."""
    return rows[torch.randint(len(rows), (POSITIONS,), generator=generator).to(rows.device)]
