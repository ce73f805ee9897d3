# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""UniAD: one transformer reconstructs frozen features of all categories, which its attention does not see.

Paper: https://arxiv.org/abs/2206.03687 (NeurIPS 2022). The adversarial loss: https://arxiv.org/abs/2312.03005.
"""

import logging
from collections.abc import Iterable, Iterator
from functools import reduce
from math import isfinite
from typing import Any

import torch
from anomalib.data import Batch, ImageBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import nn
from torch.utils.data import Subset

from anomalib_fewshot.models.components import (
    ADVERSARIAL_RAMP,
    NUM_FIXED_VIEWS,
    AdversarialLoss,
    BackboneMixin,
    Moments,
    fixed_views,
    height_and_width,
    normal_batch,
    normalization_of,
    seeded,
    seeded_generator,
)

from .tokens import TrainingTokens
from .torch_model import UniADModel, adversarial_channels, adversarial_pair
from .transformer import feature_jitter

logger = logging.getLogger(__name__)

DROP_AT, DROP_BY = 0.8, 0.1  # part of the training after which the learning rate falls, and its factor


class UniAD(BackboneMixin, AnomalibModule):
    """One transformer reconstructs frozen features of all categories; what it cannot reconstruct is anomalous.

    Each position is reconstructed from learnt queries whose attention does not see its neighbourhood, so that a feature
    cannot just be copied. With ``MultiCategory`` one model learns from a few images of every category, with any other
    datamodule from its training images. The default is the plain method on EfficientNet-Lite0; the paper's is
    EfficientNet-B4.

    Args:
        backbone (str): Name of a convolutional timm model. Defaults to ``"tf_efficientnet_lite0"``, whose weights come
            with this package.
        layers (list[int] | None): Feature maps to reconstruct, as indices in timm's ``feature_info``. Defaults to
            ``None``: strides 2, 4, 8 and 16.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone's weights, in timm's naming. Defaults to ``None``: the package that
            carries them, else timm's hub and its cache.
        image_size (int | tuple[int, int]): Size that images are resized to. Defaults to ``224``.
        neighbor_size (int): Side of the window round a position that its attention does not see. Defaults to ``7``.
        jitter_scale (float): Noise of the tokens in training, see :func:`feature_jitter`. Defaults to ``5.0``; the
            paper's is 20.
        dim (int): Length of the transformer's embeddings. Defaults to ``192``; the paper's is 256.
        num_heads (int): Heads of each attention. Defaults to ``8``.
        num_layers (int): Encoder layers, and decoder layers. Defaults to ``1``; the paper's is 4.
        feedforward_dim (int): Width of the network at each position. Defaults to ``512``; the paper's is 1024.
        dropout (float): Dropout of the transformer. Defaults to ``0.0``; the paper's is 0.1.
        standardize (bool): Bring the channels of the tokens to one variance. The paper does not: the few with a large
            one are then learnt first. Defaults to ``True``.
        pool_size (int): Side in pixels of the mean whose highest value is the image's score. Defaults to ``16``.
        num_steps (int): Number of optimiser steps, after 80 % of which the rate falls to a tenth. 0 is no training, a
            control. Defaults to ``600``, a minute or two on two cores; the paper takes 454000.
        warmup_steps (int): Steps over which the rate rises to its value. Defaults to ``50``; the paper has none.
        batch_size (int): Images, or views of them, in a step. The datamodule's is that of reading them.
            Defaults to ``8``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``2e-3``; the paper's is 1e-4.
        weight_decay (float): Weight decay of AdamW. Defaults to ``1e-4``.
        gradient_clip_val (float): Highest norm of the gradient, that of the discriminator apart. Defaults to ``0.1``.
        adversarial_weight (float): Weight of the adversarial loss, which comes in over the first tenth of the
            training. 0 is the plain method. Defaults to ``0.0``.
        adversarial_pair (str): What it makes alike: ``"decoder"``, the decoder's input and output; ``"layers"``, those
            of each of its layers; ``"reconstruction"``, tokens and reconstruction. Defaults to ``"decoder"``.
        adversarial_learning_rate (float): Learning rate of its discriminator. Defaults to ``1e-4``.
        augment_support (bool): Learn from 22 fixed views of each training image. Defaults to ``True``.
        cache_tokens (bool): Compute the tokens of all views once. Random augmentations of the user's need ``False``.
            Defaults to ``True``.
        cache_limit (float): GiB of tokens to keep in memory. Above, they are in a memory-mapped temporary file.
            Defaults to ``4.0``.
        seed (int): Seed of the transformer, its dropout, the batches and their noise. The global seed has no influence.
            Defaults to ``0``.
        pre_processor (nn.Module | bool): Defaults to ``True``: resize, and normalise as the weights ask.
        post_processor (nn.Module | bool): Defaults to ``True``.
        evaluator (Evaluator | bool): Defaults to ``True``.
        visualizer (Visualizer | bool): Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of its range, or as :class:`UniADModel` and :class:`AdversarialLoss` do. In
            a training, if ``pre_processor`` makes images of another size.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_fewshot import ELPV, MultiCategory, UniAD
        >>> datamodule = MultiCategory([ELPV("mono"), ELPV("poly")], k_shot=4)
        >>> Engine().train(UniAD(), datamodule=datamodule)  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        layers: list[int] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: int | tuple[int, int] = 224,
        neighbor_size: int = 7,
        jitter_scale: float = 5.0,
        dim: int = 192,
        num_heads: int = 8,
        num_layers: int = 1,
        feedforward_dim: int = 512,
        dropout: float = 0.0,
        standardize: bool = True,
        pool_size: int = 16,
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
        for name, value, least in (
            ("jitter_scale", jitter_scale, 0),
            ("dim", dim, 1),
            ("num_heads", num_heads, 1),
            ("num_layers", num_layers, 1),
            ("feedforward_dim", feedforward_dim, 1),
            ("pool_size", pool_size, 1),
            ("num_steps", num_steps, 0),
            ("warmup_steps", warmup_steps, 0),
            ("batch_size", batch_size, 1),
            ("gradient_clip_val", gradient_clip_val, 0),
            ("cache_limit", cache_limit, 0),
        ):
            if value < least:
                msg = f"`{name}` must be at least {least}, got {value}."
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
        self.jitter_scale = jitter_scale
        self.standardize = standardize
        self.num_steps = num_steps
        self.warmup_steps = warmup_steps
        self.batch_size = batch_size
        self.learning_rate = learning_rate
        self.weight_decay = weight_decay
        self.gradient_clip_val = gradient_clip_val
        self.adversarial_pair = adversarial_pair
        self.augment_support = augment_support
        self.cache_tokens = cache_tokens
        self.cache_limit = cache_limit
        self.seed = seed
        self.loss = nn.MSELoss()
        with seeded(seed):
            self.model = UniADModel(
                backbone,
                layers,
                pre_trained,
                weights,
                size,
                neighbor_size=neighbor_size,
                dim=dim,
                num_heads=num_heads,
                num_layers=num_layers,
                feedforward_dim=feedforward_dim,
                dropout=dropout,
                pool_size=pool_size,
            )
        self.adversarial = AdversarialLoss(
            adversarial_channels(adversarial_pair, self.model.channels, dim, num_layers),
            adversarial_weight,
            adversarial_learning_rate,
            ramp_steps=int(ADVERSARIAL_RAMP * num_steps),
            seed=seed,
            clip_norm=gradient_clip_val,
        )
        self.register_buffer("is_fitted", torch.tensor(data=False))
        self._tokens: TrainingTokens | None = None  # while it trains

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW of the transformer, whose rate rises, and falls once."""
        optimizer = torch.optim.AdamW(
            self.model.transformer.parameters(),
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self._rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @torch.no_grad()
    def on_fit_start(self) -> None:
        """Compute the tokens of the training images, and let Lightning's loop count steps instead of reading images."""
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "train_data"):
            msg = f"UniAD must have an anomalib datamodule, got {type(datamodule).__name__}. Give it as `datamodule`."
            raise TypeError(msg)
        if self.trainer.ckpt_path is not None and self.is_fitted:  # goes on from the end of a training: no step is left
            return
        self.is_fitted.fill_(value=False)
        rank, world_size, count = self.global_rank, self.trainer.world_size, len(datamodule.train_data)
        share = list(range(rank, count, world_size)) or [rank % count]
        num_views = NUM_FIXED_VIEWS if self.augment_support else 1
        self._tokens = TrainingTokens(Subset(datamodule.train_data, share), self._views, num_views, self._embed)
        if self.cache_tokens:
            logger.info("Computing the tokens of %d views of %d images.", num_views, len(share))
            shown = self.trainer.progress_bar_callback is not None and self.trainer.is_global_zero
            self._tokens.keep(datamodule.train_batch_size, datamodule.num_workers, self.cache_limit, shown)
        if self.standardize:
            batches = (self._tokens.take(views) for views in torch.arange(len(self._tokens)).split(self.batch_size))
            moments = reduce(Moments.plus, (Moments.of(tokens.to(self.device)) for tokens in batches))
            self.model.fit_tokens(self.sum_over_processes(moments))

        def steps() -> _Steps:
            del datamodule.train_dataloader  # gives it its own back, as soon as the loop has this one
            return _Steps(max(1, self.num_steps), self.model.image_size)

        datamodule.train_dataloader = steps

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of reconstructing tokens, which are drawn here and not from the batch."""
        del batch
        if self._tokens is None:
            msg = "UniAD must be trained by a trainer, which calls `on_fit_start` first."
            raise RuntimeError(msg)
        generator = seeded_generator(self.seed, batch_idx, self.global_rank)
        indices = torch.randint(len(self._tokens), (self.batch_size,), generator=generator)
        tokens = self.model.standardize(self._tokens.take(indices).to(self.device))
        noisy = feature_jitter(tokens, self.jitter_scale, generator)
        with seeded(generator, self.device):  # dropout draws from the global generators
            reconstruction = self.model.transformer(noisy)
        loss = self.loss(reconstruction.tokens.float(), tokens)
        self._check_health(float(loss.detach()))
        self.log("train_loss", loss.detach(), prog_bar=True)
        pair = adversarial_pair(self.adversarial_pair, tokens, reconstruction)
        fooling, health = self.adversarial(*pair, self.global_step)
        if health is not None:
            self.log_dict({"discriminator_loss": health.loss, "discriminator_accuracy": health.accuracy})
        return loss + fooling

    def on_validation_start(self) -> None:
        """Let a model score at the end of its training, and refuse to without one."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.is_fitted.fill_(value=True)
        self.check_fitted()

    @torch.no_grad()
    def on_train_epoch_end(self) -> None:
        """Take the highest score of the training images as threshold before the checkpoint is written.

        That is where no validation gives one. The model has seen them: it is too low.
        """
        if self._tokens is None or any(self.trainer.num_val_batches):
            return
        self.is_fitted.fill_(value=True)
        logger.warning(
            "The threshold is the highest score of the training images, which the model has seen: expect most new ones "
            "above it. Give pictures to validate by.",
        )
        self.model.eval()
        self.fit_threshold(self._scored(self._tokens))
        self.model.train()

    def on_train_end(self) -> None:
        """Let go of the tokens."""
        self._tokens = None

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """One epoch of all steps, and one validation at its end."""
        return {
            "max_epochs": 1,
            "max_steps": -1,
            "accumulate_grad_batches": 1,
            "val_check_interval": 1.0,
            "check_val_every_n_epoch": 1,
            "gradient_clip_val": self.gradient_clip_val,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,  # each process draws batches of its own; all score all images
        }

    def _scored(self, tokens: TrainingTokens) -> Iterator[ImageBatch]:
        """Yield the scores of the training images."""
        for images in torch.arange(len(tokens))[:: tokens.num_views].split(self.batch_size):
            with self.trainer.precision_plugin.forward_context():
                scores = self.model.score(tokens.take(images).to(self.device))
            yield normal_batch(scores)

    def _views(self, images: torch.Tensor) -> Iterable[torch.Tensor]:
        """Return the pre-processed views of images, a batch of each view."""
        images = self.preprocess(images)
        if (size := (*images.shape[-2:],)) != self.model.image_size:
            msg = f"`image_size` must be the size of pre-processed images, {size}, got {self.model.image_size}."
            raise ValueError(msg)
        return fixed_views(images, *normalization_of(self.pre_processor)) if self.augment_support else [images]

    @torch.no_grad()
    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        with self.trainer.precision_plugin.forward_context():  # as the test images
            return self.model.embed(images).float().cpu()

    def _rate(self, step: int) -> float:
        """Return the factor of the learning rate at a step. That of the one step of no training is 0."""
        if self.num_steps == 0:
            return 0.0
        warm = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warm * (DROP_BY if step >= int(DROP_AT * self.num_steps) else 1.0)

    def _check_health(self, loss: float) -> None:
        if not isfinite(loss):
            msg = (
                f"The loss is not finite any more. Lower `learning_rate`, which is {self.learning_rate}, or "
                f"`jitter_scale`, which is {self.jitter_scale}, or train in a higher precision."
            )
            raise RuntimeError(msg)


class _Steps:
    """What Lightning's loop goes through where the model draws its batches itself: an empty image for each step."""

    def __init__(self, num_steps: int, image_size: tuple[int, int]) -> None:
        self.num_steps = num_steps
        self.image_size = image_size

    def __len__(self) -> int:
        return self.num_steps

    def __iter__(self) -> Iterator[ImageBatch]:
        for _ in range(self.num_steps):
            yield ImageBatch(image=torch.zeros(1, 3, *self.image_size))  # a pre-processor will transform it
