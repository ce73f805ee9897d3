# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""UniAD: one transformer reconstructs frozen features of all categories, which its attention does not see.

Paper: https://arxiv.org/abs/2206.03687 (NeurIPS 2022). The adversarial loss: https://arxiv.org/abs/2312.03005.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import reduce
from itertools import islice
from math import isfinite
from operator import add
from typing import Any

import torch
from anomalib.data import ImageBatch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from lightning.pytorch import Callback
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from rich.progress import track
from torch import nn
from torch.utils.data import DataLoader

from anomalib_fewshot.data.support import SupportDataModule, ordered_dataloader, support_dataloader
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.models.components import (
    ADVERSARIAL_RAMP,
    NUM_FIXED_VIEWS,
    AdversarialStep,
    BackboneMixin,
    FittedMixin,
    Moments,
    StepProgress,
    check_at_least,
    fixed_views,
    normalization_of,
    seeded,
    seeded_generator,
)
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores

from .category_scale import CategoryScale
from .tokens import TokenCache
from .torch_model import UniADModel, adversarial_channels, adversarial_pair
from .transformer import feature_jitter

logger = logging.getLogger(__name__)

LR_MILESTONE, LR_GAMMA = 0.8, 0.1  # part of the training after which the learning rate falls, and its factor


class UniAD(FittedMixin, BackboneMixin, AnomalibModule):
    """One transformer reconstructs frozen features of all categories; what it cannot reconstruct is anomalous.

    Each position is reconstructed from learned queries, from whose attention its neighbourhood is hidden, so that a
    feature cannot just be copied. With ``MultiCategory`` one model is trained on a few images of every category, with
    any other datamodule on its training images. The default is the plain method on EfficientNet-Lite0; the paper's is
    EfficientNet-B4.

    Args:
        backbone (str): Name of a convolutional timm model. Defaults to ``"tf_efficientnet_lite0"``, whose weights come
            with this package.
        layers (list[int] | None): Feature maps to reconstruct, as indices in timm's ``feature_info``. Defaults to
            ``None``: strides 2, 4, 8 and 16.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone's weights, in timm's naming. Defaults to ``None``: the package that
            carries them, else timm's hub and its cache.
        image_size (int | tuple[int, int] | None): Size that images are resized to. Defaults to ``None``: the size of
            ``pre_processor``, which is 224 by default.
        norm_power (float): The features of each depth are divided by their length to this power, between 0 and 1: by
            0.5, the length counts half, on a logarithmic scale. Defaults to ``0.5``; the paper's is 0.
        neighbor_size (int): Side of the window around a position that is hidden from its attention. Defaults to ``7``.
        jitter_scale (float): Noise of the tokens in training, see :func:`feature_jitter`. Defaults to ``5.0``; the
            paper's is 20.
        dim (int): Length of the transformer's embeddings. Defaults to ``192``; the paper's is 256.
        num_heads (int): Heads of each attention. Defaults to ``8``.
        num_layers (int): Encoder layers, and decoder layers. Defaults to ``1``; the paper's is 4.
        feedforward_dim (int): Width of the network at each position. Defaults to ``512``; the paper's is 1024.
        dropout (float): Dropout of the transformer. Defaults to ``0.0``; the paper's is 0.1.
        standardize (bool): Scale the channels of the tokens to one variance. The paper does not: the few with a large
            one are then learned first. Defaults to ``True``.
        pool_size (int): Side in pixels of the mean whose highest value is the image's score. Defaults to
            ``32``; the paper's is 16.
        category_scale (bool): With several categories, divide the scores of an image by what is usual for the category
            that it looks like, see :class:`CategoryScale`, so that one threshold serves all. Defaults to ``True``; the
            paper's is ``False``.
        num_steps (int): Number of optimiser steps, after 80 % of which the rate falls to a tenth. 0 is no training, a
            control. Defaults to ``600``, a minute or two on two cores; the paper takes 454000.
        warmup_steps (int): Steps over which the rate rises to its value. Defaults to ``50``; the paper has none.
        batch_size (int): Views in a step, drawn from the images of the datamodule's batch. Defaults to ``8``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``2e-3``; the paper's is 1e-4.
        weight_decay (float): Weight decay of AdamW. Defaults to ``1e-4``.
        gradient_clip_val (float): Highest norm of the gradient, that of the discriminator apart. Defaults to ``0.1``.
        adversarial_weight (float): Weight of the adversarial loss, which comes in over the first tenth of the
            training. 0 is the plain method. Defaults to ``0.0``.
        adversarial_pair (str): Features that it makes alike: ``"decoder"``, the decoder's input and output;
            ``"layers"``, those of each of its layers; ``"reconstruction"``, tokens and reconstruction.
            Defaults to ``"decoder"``.
        adversarial_learning_rate (float): Learning rate of its discriminator. Defaults to ``1e-4``.
        augment_support (bool): Train on 22 fixed views of each training image. Defaults to ``True``.
        cache_tokens (bool): Precompute the tokens of all views. Random augmentations of the user's need ``False``.
            Defaults to ``True``.
        cache_limit (float): GiB of tokens to keep in memory. Above, they are in a memory-mapped temporary file.
            Defaults to ``4.0``.
        seed (int): Seed of the transformer, its dropout, the batches and their noise. The global seed has no influence.
            Defaults to ``0``.
        pre_processor (nn.Module | bool): Defaults to ``True``: resize, and normalize as the weights ask.
        post_processor (nn.Module | bool): Defaults to ``True``.
        evaluator (Evaluator | bool): Defaults to ``True``.
        visualizer (Visualizer | bool): Defaults to ``True``.

    Raises:
        ArgumentError: If an argument is out of its range, or as :class:`UniADModel` and :class:`AdversarialStep` do. In
            a training, if ``pre_processor`` makes images of another size.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_fewshot import ELPV, MultiCategory, UniAD
        >>> datamodule = MultiCategory([ELPV("mono"), ELPV("poly")], k_shot=4)
        >>> Engine().train(UniAD(), datamodule=datamodule)  # doctest: +SKIP
    """

    score_arguments = (
        "backbone",
        "layers",
        "image_size",
        "norm_power",
        "neighbor_size",
        "dim",
        "num_heads",
        "num_layers",
        "feedforward_dim",
        "pool_size",
    )

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        layers: list[int] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        norm_power: float = 0.5,
        neighbor_size: int = 7,
        jitter_scale: float = 5.0,
        dim: int = 192,
        num_heads: int = 8,
        num_layers: int = 1,
        feedforward_dim: int = 512,
        dropout: float = 0.0,
        standardize: bool = True,
        pool_size: int = 32,
        category_scale: bool = True,
        num_steps: int = 600,
        warmup_steps: int = 50,
        batch_size: int = 8,
        learning_rate: float = 2e-3,
        weight_decay: float = 1e-4,
        gradient_clip_val: float = 0.1,
        adversarial_weight: float = 0.0,
        adversarial_pair: str = "decoder",
        adversarial_learning_rate: float = 1e-4,
        augment_support: bool = True,
        cache_tokens: bool = True,
        cache_limit: float = 4.0,
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        check_at_least(0, jitter_scale=jitter_scale, num_steps=num_steps, warmup_steps=warmup_steps)
        check_at_least(0, gradient_clip_val=gradient_clip_val, cache_limit=cache_limit)
        check_at_least(1, dim=dim, num_heads=num_heads, num_layers=num_layers, feedforward_dim=feedforward_dim)
        check_at_least(1, pool_size=pool_size, batch_size=batch_size)
        if not 0 <= norm_power <= 1:
            msg = f"`norm_power` must be between 0 and 1, got {norm_power}."
            raise ArgumentError(msg)
        pre_processor, size = self.match_pre_processor(pre_processor, image_size, backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.hparams["image_size"] = image_size or size
        self.jitter_scale = jitter_scale
        self.standardize = standardize
        self.category_scale = category_scale
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.gradient_clip_val = gradient_clip_val
        self.adversarial_pair = adversarial_pair
        self.augment_support = augment_support
        self.num_views = NUM_FIXED_VIEWS if augment_support else 1
        self.cache_tokens = cache_tokens
        self.token_cache = TokenCache(cache_limit)
        self.seed = seed
        self.loss = nn.MSELoss()
        with seeded(seed):
            self.model = UniADModel(
                backbone,
                layers,
                pre_trained,
                weights,
                size,
                norm_power=norm_power,
                neighbor_size=neighbor_size,
                dim=dim,
                num_heads=num_heads,
                num_layers=num_layers,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
                pool_size=pool_size,
            )
        self.adversarial = AdversarialStep(
            adversarial_channels(adversarial_pair, self.model.channels, dim, num_layers),
            adversarial_weight,
            adversarial_learning_rate,
            ramp_steps=int(ADVERSARIAL_RAMP * num_steps),
            seed=seed,
            clip_norm=gradient_clip_val,
        )

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return anomalib's callbacks, a progress bar's that counts steps, and the cache, which empties itself."""
        callbacks = super().configure_callbacks()
        callbacks = callbacks if isinstance(callbacks, Sequence) else [callbacks]
        return [*callbacks, StepProgress(), self.token_cache]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW of the transformer with its schedule, or nothing if there is no training."""
        if self.num_steps == 0:
            return None
        optimizer = torch.optim.AdamW(
            self.model.transformer.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._lr_factor)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Precompute the tokens of all training images, and standardize by their moments."""
        super().on_fit_start()
        if self.trainer.ckpt_path is not None and self.is_fitted:  # resumed from the end of a training
            return
        loader = ordered_dataloader(self.trainer.datamodule)  # type: ignore[attr-defined]
        if self.cache_tokens:
            num_images = len(loader.dataset)
            logger.info("Computing the tokens of %d views of %d images.", self.num_views, num_images)
            self.token_cache.precompute(self._token_batches(loader), num_images, self.num_views)
        if self.standardize:
            batches = self.token_cache.tokens
            if batches is None:
                batches = (tokens for _, views in self._token_batches(loader) for tokens in views)
            self.model.fit_tokens(reduce(add, (Moments.of(tokens.to(self.device)) for tokens in batches)))

    def training_step(self, batch: ImageBatch, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of reconstructing the tokens of views that are drawn from the batch's images."""
        del batch_idx
        if self.num_steps == 0:
            return self.zero_loss()
        rng = seeded_generator(self.seed, self.global_step, self.global_rank)
        tokens = self.model.standardize(self._draw_tokens(batch.image_path, batch.image, rng).to(self.device))  # type: ignore[arg-type]
        noisy = feature_jitter(tokens, self.jitter_scale, rng)
        with seeded(rng, self.device):  # dropout draws from the global generators
            reconstruction = self.model.transformer(noisy)
        loss = self.loss(reconstruction.tokens.float(), tokens)
        self._check_loss(float(loss.detach()))
        self.log("train_loss", loss.detach(), prog_bar=True)
        pair = adversarial_pair(self.adversarial_pair, tokens, reconstruction)
        adversarial_loss, stats = self.adversarial(*pair, self.global_step)
        if stats is not None:
            self.log_dict({"discriminator_loss": stats.loss, "discriminator_accuracy": stats.accuracy})
        return loss + adversarial_loss

    def fit(self) -> CalibrationScores:
        """Bring the scores of several categories to one scale, and return those of the support.

        Returns:
            CalibrationScores: Scores of the support, which the training has seen.
        """
        self.model.category_scale = CategoryScale().to(self.device)
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.category_scale and isinstance(datamodule, SupportDataModule) and datamodule.category_by_path:
            self._fit_category_scale(datamodule.category_by_path)
        return CalibrationScores(
            CalibrationScheme.TRAINING if self.num_steps > 0 else CalibrationScheme.LEAVE_ONE_OUT,
            self._score_support(),
        )

    def _fit_category_scale(self, category_by_path: Mapping[str, str]) -> None:
        embeddings, scores, categories = [], [], []
        for batch in support_dataloader(self.trainer.datamodule):  # type: ignore[attr-defined]
            tokens = self._embed(self.preprocess(batch.image, batch.image_path))
            with self.trainer.precision_plugin.forward_context():  # as the test images
                scores.append(self.model.score(tokens).pred_score)
            embeddings.append(self.model.summarize(tokens))
            categories += [category_by_path[path] for path in batch.image_path]
        self.model.category_scale.fit(torch.cat(embeddings), torch.cat(scores), categories)

    def _score_support(self) -> Iterator[InferenceBatch]:
        for images in self.support():
            with self.trainer.precision_plugin.forward_context():  # as the test images
                yield self.model(images)

    @property
    def calibrates_out_of_fold(self) -> bool:
        """A training has seen all images."""
        return self.num_steps == 0

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length of the training in optimiser steps, whatever the number of images, and one validation at its end."""
        arguments: dict[str, Any] = {
            "num_sanity_val_steps": 0,
            "accumulate_grad_batches": 1,
            "use_distributed_sampler": False,  # each process draws views of its own; all score all images
        }
        if self.num_steps == 0:
            return arguments | {
                "max_epochs": 1,
                "val_check_interval": 1.0,
                "check_val_every_n_epoch": 1,
            }
        return arguments | {
            "max_epochs": self.num_steps,  # an epoch has a step or more
            "max_steps": self.num_steps,
            "val_check_interval": self.num_steps,
            "check_val_every_n_epoch": None,
            "gradient_clip_val": self.gradient_clip_val,
        }

    def _token_batches(self, loader: DataLoader) -> Iterator[tuple[list[str], Iterator[torch.Tensor]]]:
        """Yield the paths of each batch of images, and the tokens of each view of them, and show the progress."""
        shown = self.trainer.progress_bar_callback is not None and self.trainer.is_global_zero
        for batch in track(loader, "Computing tokens", disable=not shown):
            images = self.preprocess(batch.image, batch.image_path)
            yield batch.image_path, (self._embed(view) for view in self._views(images))

    def _draw_tokens(self, paths: list[str], images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Return the tokens of ``batch_size`` pairs of an image and a view, drawn with replacement."""
        order = sorted(range(len(paths)), key=paths.__getitem__)  # the loader's shuffling has no influence
        drawn = torch.randint(len(order) * self.num_views, (self.batch_size,), generator=rng).tolist()
        pairs = [(order[index // self.num_views], index % self.num_views) for index in drawn]
        if self.token_cache.tokens is not None:
            return self.token_cache.get([paths[image] for image, _ in pairs], [view for _, view in pairs])
        with torch.autocast(self.device.type, enabled=False):  # as the cached views
            views = [next(islice(self._views(images[[image]]), view, None)) for image, view in pairs]
        return self._embed(torch.cat(views))

    def _views(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Return the views of pre-processed images, a batch of each view."""
        if (size := (*images.shape[-2:],)) != self.model.image_size:
            msg = f"`image_size` must be the size of pre-processed images, {size}, got {self.model.image_size}."
            raise ArgumentError(msg)
        return fixed_views(images, *normalization_of(self.pre_processor)) if self.augment_support else iter([images])

    @torch.no_grad()
    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        with self.trainer.precision_plugin.forward_context():  # as the test images
            return self.model.embed(images).float()

    def _lr_factor(self, step: int) -> float:
        """Return the factor of the learning rate at a step."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warmup * (LR_GAMMA if step >= int(LR_MILESTONE * self.num_steps) else 1.0)

    def _check_loss(self, loss: float) -> None:
        if not isfinite(loss):
            msg = (
                f"The loss is not finite any more. Lower `learning_rate`, which is {self.learning_rate}, or "
                f"`jitter_scale`, which is {self.jitter_scale}, or train in a higher precision."
            )
            raise ArgumentError(msg)
