# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""UniAD: one transformer that reconstructs frozen features of all categories with neighbor-masked attention.

Paper: https://arxiv.org/abs/2206.03687 (NeurIPS 2022). The adversarial loss: https://arxiv.org/abs/2312.03005.
"""

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from math import isfinite
from typing import Any, Literal

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

LR_MILESTONE, LR_GAMMA = 0.8, 0.1  # fraction of the training before the learning rate decay, and the decay factor


class UniAD(FittedMixin, BackboneMixin, AnomalibModule):
    """UniAD: one transformer that reconstructs frozen features of all categories. A high error is anomalous.

    Learned queries reconstruct each position. The neighborhood of the position is masked in all attention, so the
    transformer cannot copy its input. With ``MultiCategory`` one model is trained on a few images of every category.
    With any other datamodule it is trained on the training images. The default backbone is EfficientNet-Lite0; the
    paper uses EfficientNet-B4.

    Args:
        backbone (str): Name of a convolutional timm model. Defaults to ``"tf_efficientnet_lite0"``, whose weights are
            installed with this package.
        layers (list[int] | None): Feature maps to reconstruct, as indices in timm's ``feature_info``. Defaults to
            ``None``: strides 2, 4, 8 and 16.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone weights in timm's naming. Defaults to ``None``: the installed
            weight package, or else the timm hub and its cache.
        image_size (int | tuple[int, int] | str | None): Size that images are resized to, as a number or height and
            width. ``"auto"``: the aspect ratio of the support images, with about as many pixels as 224 x 224. Defaults
            to ``None``: the output size of ``pre_processor``, which is 224 by default.
        norm_power (float): Exponent between 0 and 1. The features of each layer are divided by their norm to this
            power, see :func:`scale_by_norm`. Defaults to ``0.5``; the paper uses 0.
        neighbor_size (int): Side of the masked window around each position. Defaults to ``7``.
        jitter_scale (float): Scale of the token noise in training, see :func:`feature_jitter`. Defaults to ``5.0``;
            the paper uses 20.
        dim (int): Embedding dimension of the transformer. Defaults to ``192``; the paper uses 256.
        num_heads (int): Number of attention heads. Defaults to ``8``.
        num_layers (int): Number of encoder layers and of decoder layers. Defaults to ``1``; the paper uses 4.
        feedforward_dim (int): Hidden dimension of the feed-forward networks. Defaults to ``512``; the paper uses 1024.
        dropout (float): Dropout of the transformer. Defaults to ``0.0``; the paper uses 0.1.
        standardize (bool): Scale the channels of the tokens to unit variance. Otherwise channels with a large variance
            dominate the loss. Defaults to ``True``; the paper does not standardize.
        pool_size (int): Side of the average pooling window in pixels. The maximum of the pooled anomaly map is the
            score. Defaults to ``32``; the paper uses 16.
        category_scale (bool): With several categories, divide the scores of an image by the mean score of the nearest
            category, see :class:`CategoryScale`. One threshold then fits all categories. Defaults to ``True``; the
            paper does not rescale.
        num_steps (int): Number of optimizer steps. The learning rate is divided by 10 after 80 % of them. 0 disables
            the training, which is a control experiment. Defaults to ``600``, which takes one to two minutes on two CPU
            cores; the paper uses 454000.
        warmup_steps (int): Number of steps of linear learning rate warmup. Defaults to ``50``; the paper has no warmup.
        batch_size (int): Number of views per step, sampled from the images of a datamodule batch. Defaults to ``8``.
        learning_rate (float): Learning rate of AdamW. Defaults to ``2e-3``; the paper uses 1e-4.
        weight_decay (float): Weight decay of AdamW. Defaults to ``1e-4``.
        gradient_clip_val (float): Maximum gradient norm. The gradient of the discriminator is clipped separately, to
            the same value. Defaults to ``0.1``.
        adversarial_weight (float): Weight of the adversarial loss. The weight increases linearly over the first 10 % of
            the training. 0 disables the loss. Defaults to ``0.0``.
        adversarial_pair (str): Features of the adversarial loss. ``"decoder"``: input and output of the decoder;
            ``"layers"``: inputs and outputs of all decoder layers; ``"reconstruction"``: tokens and reconstruction.
            Defaults to ``"decoder"``.
        adversarial_learning_rate (float): Learning rate of the discriminator. Defaults to ``1e-4``.
        augment_support (bool): Train on 22 fixed views of each training image. Defaults to ``True``.
        cache_tokens (bool): Precompute the tokens of all views. Set it to ``False`` if the datamodule has random
            augmentations. Defaults to ``True``.
        cache_limit (float): Maximum size of the tokens in memory, in GiB. Larger caches use a memory-mapped temporary
            file. Defaults to ``4.0``.
        seed (int): Seed of the transformer weights, the dropout, the batches and the noise. The global seed has no
            effect. Defaults to ``0``.
        pre_processor (nn.Module | bool): Pre-processor. Defaults to ``True``: resize and the normalization of the
            backbone.
        post_processor (nn.Module | bool): Post-processor. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer. Defaults to ``True``.

    Raises:
        ArgumentError: If an argument is out of range, or if the output size of ``pre_processor`` differs from
            ``image_size`` during training. See also :class:`UniADModel` and :class:`AdversarialStep`.

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
        image_size: int | tuple[int, int] | Literal["auto"] | None = None,
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
        self.network_factory = partial(
            UniADModel,
            backbone,
            layers,
            pre_trained,
            weights,
            norm_power=norm_power,
            neighbor_size=neighbor_size,
            dim=dim,
            num_heads=num_heads,
            num_layers=num_layers,
            feedforward_dim=feedforward_dim,
            dropout=dropout,
            pool_size=pool_size,
        )
        self.model: UniADModel = self.create_network(size)
        self.adversarial = AdversarialStep(
            adversarial_channels(adversarial_pair, self.model.channels, dim, num_layers),
            adversarial_weight,
            adversarial_learning_rate,
            ramp_steps=int(ADVERSARIAL_RAMP * num_steps),
            seed=seed,
            clip_norm=gradient_clip_val,
        )

    def configure_callbacks(self) -> Sequence[Callback]:
        """Return the default callbacks, the step counter of the progress bar and the token cache."""
        callbacks = super().configure_callbacks()
        callbacks = callbacks if isinstance(callbacks, Sequence) else [callbacks]
        return [*callbacks, StepProgress(), self.token_cache]

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return AdamW with its learning rate schedule, or ``None`` without training."""
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
        """Precompute the tokens of all training images and fit the standardization."""
        super().on_fit_start()
        if self.trainer.ckpt_path is not None and self.is_fitted:  # the resumed training is already finished
            return
        loader = ordered_dataloader(self.trainer.datamodule)  # type: ignore[attr-defined]
        if self.cache_tokens:
            dataset: Any = loader.dataset
            num_images = len(dataset)
            logger.info("Computing the tokens of %d views of %d images.", self.num_views, num_images)
            self.token_cache.precompute(self._token_batches(loader), num_images, self.num_views)
        if self.standardize:
            self.model.fit_standardization(self._token_moments(loader))

    def training_step(self, batch: ImageBatch, batch_idx: int) -> STEP_OUTPUT:
        """Return the reconstruction loss for views sampled from the images of the batch."""
        del batch_idx
        if self.num_steps == 0:
            return self.zero_loss()
        rng = seeded_generator(self.seed, self.global_step, self.global_rank)
        tokens = self._sample_tokens(batch.image_path, batch.image, rng).to(self.device)  # type: ignore[arg-type]
        tokens = self.model.standardize(tokens)
        noisy = feature_jitter(tokens, self.jitter_scale, rng)
        with seeded(rng, self.device):  # dropout uses the global generators
            reconstruction = self.model.transformer(noisy)
        loss = self.loss(reconstruction.tokens.float(), tokens)
        self._check_loss(float(loss.detach()))
        self.log("train_loss", loss.detach(), prog_bar=True)
        first, second = adversarial_pair(self.adversarial_pair, tokens, reconstruction)
        adversarial_loss, stats = self.adversarial(first, second, self.global_step)
        if stats is not None:
            self.log_dict({"discriminator_loss": stats.loss, "discriminator_accuracy": stats.accuracy})
        return loss + adversarial_loss

    def fit(self) -> CalibrationScores:
        """Fit the category scale if there are several categories, and score the support set.

        Returns:
            CalibrationScores: Scores of the support set, which was part of the training data.
        """
        self.model.category_scale = CategoryScale().to(self.device)
        datamodule = self.trainer.datamodule  # type: ignore[attr-defined]
        if self.category_scale and isinstance(datamodule, SupportDataModule) and datamodule.category_by_path:
            self._fit_category_scale(datamodule.category_by_path)
        # The scores are not needed if validation images set the threshold.
        scores = [] if self.trainer.validating else self._score_support()
        return CalibrationScores(
            CalibrationScheme.TRAINING if self.num_steps > 0 else CalibrationScheme.LEAVE_ONE_OUT,
            scores,
        )

    def _fit_category_scale(self, category_by_path: Mapping[str, str]) -> None:
        embeddings, categories = [], []
        scores: list[torch.Tensor] = []
        for batch in support_dataloader(self.trainer.datamodule):  # type: ignore[attr-defined]
            tokens = self._embed(self.preprocess(batch.image, batch.image_path))
            with self.trainer.precision_plugin.forward_context():  # the precision of the test
                scores.append(self.model.score(tokens).pred_score)  # type: ignore[arg-type]
            embeddings.append(self.model.summarize(tokens))
            categories += [category_by_path[path] for path in batch.image_path]
        self.model.category_scale.fit(torch.cat(embeddings), torch.cat(scores), categories)

    def _score_support(self) -> list[InferenceBatch]:
        scores = []
        for images in self.support():
            with self.trainer.precision_plugin.forward_context():  # the precision of the test
                scores.append(self.model(images))
        return scores

    @property
    def calibrates_out_of_fold(self) -> bool:
        """Whether the calibration scores are out-of-fold, which is the case only without training."""
        return self.num_steps == 0

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments for ``num_steps`` optimizer steps and one validation at the end."""
        arguments: dict[str, Any] = {
            "num_sanity_val_steps": 0,
            "accumulate_grad_batches": 1,
            "use_distributed_sampler": False,  # each process samples different views of all images
        }
        if self.num_steps == 0:
            return arguments | {
                "max_epochs": 1,
                "val_check_interval": 1.0,
                "check_val_every_n_epoch": 1,
            }
        return arguments | {
            "max_epochs": self.num_steps,  # an epoch has at least one step
            "max_steps": self.num_steps,
            "val_check_interval": self.num_steps,
            "check_val_every_n_epoch": None,
            "gradient_clip_val": self.gradient_clip_val,
        }

    def _token_batches(self, loader: DataLoader) -> Iterator[tuple[list[str], Iterator[torch.Tensor]]]:
        """Yield the paths and the tokens of each batch, one tensor per view, and show a progress bar."""
        is_shown = self.trainer.progress_bar_callback is not None and self.trainer.is_global_zero
        for batch in track(loader, "Computing tokens", disable=not is_shown):
            images = self.preprocess(batch.image, batch.image_path)
            yield batch.image_path, map(self._embed, self._views(images))

    def _token_moments(self, loader: DataLoader) -> Moments:
        """Return the moments of all tokens, from the cache if it is filled."""
        if self.token_cache.tokens is not None:
            return _sum_of_moments(tokens.to(self.device) for tokens in self.token_cache.tokens)
        return _sum_of_moments(chain.from_iterable(views for _, views in self._token_batches(loader)))

    def _sample_tokens(self, paths: list[str], images: torch.Tensor, rng: torch.Generator) -> torch.Tensor:
        """Sample ``batch_size`` pairs of an image and a view with replacement, and return their tokens."""
        order = sorted(range(len(paths)), key=paths.__getitem__)  # the order of the dataloader has no effect
        samples = torch.randint(len(order) * self.num_views, (self.batch_size,), generator=rng)
        image_indices = [order[sample // self.num_views] for sample in samples.tolist()]
        view_indices = (samples % self.num_views).tolist()
        if self.token_cache.tokens is not None:
            return self.token_cache.get([paths[index] for index in image_indices], view_indices)
        views = []
        with torch.autocast(self.device.type, enabled=False):  # the precision of cached views
            for image_index, view_index in zip(image_indices, view_indices, strict=True):
                for number, view in enumerate(self._views(images[[image_index]])):
                    if number == view_index:
                        views.append(view)
                        break
        return self._embed(torch.cat(views))

    def _views(self, images: torch.Tensor) -> Iterator[torch.Tensor]:
        """Return the views of pre-processed images, one batch per view."""
        size = tuple(images.shape[-2:])
        if size != self.model.image_size:
            msg = f"`image_size` must be the size of the pre-processed images, {size}, got {self.model.image_size}."
            raise ArgumentError(msg)
        return fixed_views(images, *normalization_of(self.pre_processor)) if self.augment_support else iter([images])

    @torch.no_grad()
    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        with self.trainer.precision_plugin.forward_context():  # the precision of the test
            return self.model.embed(images).float()

    def _lr_factor(self, step: int) -> float:
        """Return the learning rate factor of a step."""
        warmup = min(1.0, (step + 1) / max(1, self.warmup_steps))
        return warmup * (LR_GAMMA if step >= int(LR_MILESTONE * self.num_steps) else 1.0)

    def _check_loss(self, loss: float) -> None:
        if not isfinite(loss):
            msg = (
                f"The training diverged with `learning_rate` {self.learning_rate} and `jitter_scale` "
                f"{self.jitter_scale}. Lower one of them or train with a higher `precision`."
            )
            raise ArgumentError(msg)


def _sum_of_moments(batches: Iterable[torch.Tensor]) -> Moments:
    batches = iter(batches)
    total = Moments.of(next(batches))
    for tokens in batches:
        total += Moments.of(tokens)
    return total
