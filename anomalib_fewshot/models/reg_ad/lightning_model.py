# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""RegAD: registration of normal images of other categories, and a Gaussian at each position of the target's.

Paper: https://arxiv.org/abs/2207.07361 (ECCV 2022). The adversarial loss: https://arxiv.org/abs/2312.03005.
"""

import logging
from math import isfinite
from typing import Any

import torch
from anomalib.data import AnomalibDataModule, Batch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import nn

from anomalib_fewshot.data.support import SupportDataModule, support_dataloader, support_digest
from anomalib_fewshot.errors import ArgumentError, CheckpointMismatchError, SupportError
from anomalib_fewshot.models.components import (
    ADVERSARIAL_RAMP,
    AdversarialStep,
    BackboneMixin,
    FittedMixin,
    SupportAugmentation,
    check_at_least,
    fixed_views,
    normalization_of,
    seeded,
    seeded_generator,
    std_of_l2_normalized,
)
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores

from .density import PositionGaussian
from .loss import RegADLoss
from .network import read_network
from .sources import deepest_features, first_images, similarities
from .support_maps import MAX_BATCH, SupportMaps
from .torch_model import RegADModel

logger = logging.getLogger(__name__)

MAX_FOLDS = 8  # densities that score held-out images
NEVER = 2**31 - 1  # batches between validations: the one at the end comes from `should_stop`
MIN_FEATURE_STD = 0.1  # of the encodings; below it a warning is given


class RegAD(FittedMixin, BackboneMixin, AnomalibModule):
    """Registration network trained on normal images of other categories, then a Gaussian of the support's features.

    Trained once with ``MultiCategory``, the network takes a new category's support without training: it is given as
    ``network``, and a fit makes the density and the threshold. With any other data it trains on the target's own
    support. The default is the plain method on EfficientNet-Lite0; the paper's is ResNet-18.

    Args:
        backbone (str): Name of a convolutional timm model. Defaults to ``"tf_efficientnet_lite0"``, whose weights come
            with this package.
        layers (list[int] | None): Feature maps to warp and to score by, as indices in timm's ``feature_info``.
            Defaults to ``None``: strides 4, 8 and 16.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone's weights, in timm's naming. Defaults to ``None``: the package that
            carries them, else timm's hub and its cache.
        network (str | None): Checkpoint of a RegAD that was trained on other categories, whose network and
            pre-processing are taken. Defaults to ``None``: a backbone with new heads.
        image_size (int | tuple[int, int] | None): Size that images are resized to. Defaults to ``None``: the size of
            ``pre_processor``, which is 224 by default.
        stn_mode (str): Transforms of the spatial transformers. Defaults to ``"rotation_scale"``.
        min_similarity (float | None): With ``MultiCategory`` and a target, train on the other categories that are at
            least so like the support, on none if none is: the cosine of the deepest features of a support image and
            of the most similar of 16 others. ``None``, as published: on all. It takes a backbone with weights and no
            ``network``. Defaults to ``0.5``.
        num_supports (int): Images of a batch that each is registered with. Defaults to ``2``.
        max_epochs (int | None): Number of epochs. 0 is no training: without a ``network`` the control. Defaults to
            ``None``: 50, or 0 with a ``network``.
        learning_rate (float): Learning rate of SGD, which falls to 0 as a cosine. Defaults to ``1e-4``.
        momentum (float): Momentum of SGD. Defaults to ``0.9``.
        weight_decay (float): Weight decay of SGD. Defaults to ``0.0``.
        freeze_batch_norm (bool): Keep the backbone's batch statistics in training. The paper does not, and then other
            categories' statistics are used on the target. Defaults to ``True``.
        adversarial_weight (float): Weight of the adversarial loss between the predictions of the two branches, which
            comes in over the first tenth of the training. 0 is the plain method. Defaults to ``0.0``.
        adversarial_learning_rate (float): Learning rate of its discriminator. Defaults to ``1e-4``.
        augment_support (bool): Fit the density to 22 fixed views of each support image. Defaults to ``True``.
        regularization (float): Variance added to the covariances. Defaults to ``0.01``.
        allow_seen (bool): Take a category that was among the other categories in training. Defaults to ``False``.
        seed (int): Seed of the heads, the discriminator and the views. The global seed has no influence.
            Defaults to ``0``.
        pre_processor (nn.Module | bool): Defaults to ``True``: that of the ``network``, else resize, and normalize as
            the weights ask.
        post_processor (nn.Module | bool): Defaults to ``True``.
        evaluator (Evaluator | bool): Defaults to ``True``.
        visualizer (Visualizer | bool): Defaults to ``True``.

    Raises:
        MissingDataError: If there is no file ``network``, or no weights.
        ArgumentError: If an argument is out of its range or another than that of the ``network``, or as
            :func:`read_network`, :class:`RegADModel` and :class:`AdversarialStep` do.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_fewshot import ELPV, FewShot, RegAD
        >>> Engine().train(RegAD(), datamodule=FewShot(ELPV(), k_shot=4))  # doctest: +SKIP
    """

    score_arguments = ("backbone", "layers", "image_size", "stn_mode")

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        layers: list[int] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        network: str | None = None,
        image_size: int | tuple[int, int] | None = None,
        stn_mode: str = "rotation_scale",
        min_similarity: float | None = 0.5,
        num_supports: int = 2,
        max_epochs: int | None = None,
        learning_rate: float = 1e-4,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        freeze_batch_norm: bool = True,
        adversarial_weight: float = 0.0,
        adversarial_learning_rate: float = 1e-4,
        augment_support: bool = True,
        regularization: float = 0.01,
        allow_seen: bool = False,
        seed: int = 0,
        pre_processor: nn.Module | bool = True,
        post_processor: nn.Module | bool = True,
        evaluator: Evaluator | bool = True,
        visualizer: Visualizer | bool = True,
    ) -> None:
        trained = None if network is None else read_network(network)
        if max_epochs is None:
            max_epochs = 50 if trained is None else 0
        check_at_least(0, max_epochs=max_epochs)
        check_at_least(1, num_supports=num_supports)
        if pre_processor is True and trained is not None:
            pre_processor = trained.pre_processor
        pre_processor, size = self.match_pre_processor(pre_processor, image_size, backbone)
        super().__init__(
            pre_processor=pre_processor,
            post_processor=post_processor,
            evaluator=evaluator,
            visualizer=visualizer,
        )
        self.hparams["image_size"] = image_size or size
        self.hparams["max_epochs"] = max_epochs  # a checkpoint trains as long, without `network`
        self.min_similarity = min_similarity if network is None and (pre_trained or weights is not None) else None
        self.num_supports = num_supports
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.augment_support = augment_support
        self.allow_seen = allow_seen
        self.seed = seed
        self.loss = RegADLoss()
        self.seen_categories: list[str] = []
        self.has_sources = True  # no other category may be like the target
        self._warned = False
        if trained is not None:
            self._check_network(trained.arguments)
            self.seen_categories = trained.seen_categories
            pre_trained, weights = False, None
        with seeded(seed):
            self.model = RegADModel(
                backbone,
                layers,
                pre_trained,
                weights,
                size,
                stn_mode,
                regularization,
                freeze_batch_norm,
            )
        if trained is not None:
            self.model.load_network(trained.states)
        dim = self.model.trunk.channels[-1]
        self.adversarial = AdversarialStep(dim, adversarial_weight, adversarial_learning_rate, seed=seed)

    def setup(self, stage: str) -> None:
        """Choose the other categories to train on, before their images are read."""
        super().setup(stage)
        datamodule = self._datamodule
        self.has_sources = True
        if stage == TrainerFn.FITTING and isinstance(datamodule, SupportDataModule) and datamodule.other_categories:
            self._choose_sources(datamodule)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return SGD, with a cosine of the epochs, or nothing if there is no training."""
        if not self._trains:
            return None
        optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=self.learning_rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
        )
        scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.max_epochs)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "epoch"}}

    def on_train_start(self) -> None:
        """Refuse data that cannot be fitted to, and note which categories are seen."""
        datamodule = self._datamodule
        support_dataloader(datamodule)  # what has no support is refused now, not after the training
        self._check_category(datamodule)
        if self._trains:
            self.adversarial.ramp_steps = int(ADVERSARIAL_RAMP * self.trainer.estimated_stepping_batches)
            if isinstance(datamodule, SupportDataModule):
                self.seen_categories = sorted({*datamodule.other_categories, *self.seen_categories})

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of registering each image with others of its category."""
        del batch_idx
        if not self._trains:
            return self.zero_loss()
        images: torch.Tensor = batch.image
        if len(images) == 1:  # a single image has no other: it is registered with a view of itself
            augmentation = SupportAugmentation(*self._normalization)
            rng = seeded_generator(self.seed, self.global_step, self.global_rank)
            images = torch.cat([images, augmentation(images, rng)])
        result = self.model.register(images, self.num_supports)
        encodings, predictions = (result.query, result.support), (result.query_prediction, result.support_prediction)
        loss = self.loss(predictions, encodings)
        feature_std = std_of_l2_normalized(result.query.detach().movedim(1, -1))
        self._check_loss(float(feature_std))
        self.log("train_loss", loss.detach(), prog_bar=True)
        self.log("feature_std", feature_std, prog_bar=True)
        adversarial_loss, stats = self.adversarial(*(p.movedim(1, -1) for p in predictions), self.global_step)
        if stats is not None:
            self.log_dict({"discriminator_loss": stats.loss, "discriminator_accuracy": stats.accuracy})
        return loss + adversarial_loss

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """End the training with the last epoch, or with the first one if no other category is similar.

        Lightning validates when it is asked to stop, and then only: see ``trainer_arguments``.
        """
        super().on_train_batch_end(*args, **kwargs)
        is_last_epoch = not self._trains or self.trainer.current_epoch + 1 >= self.max_epochs
        if is_last_epoch and self.trainer.is_last_batch:
            self.trainer.should_stop = True

    def fit(self) -> CalibrationScores:
        """Fit the density to the support.

        Returns:
            CalibrationScores: Out-of-fold scores of the support set, in up to eight folds. The views of a single image
            are scored by its own density, which underestimates the scores of new images.
        """
        support = torch.cat([*self.support()])
        maps = SupportMaps(self._embed, support, self.augment_support, *self._normalization)
        maps.fit(self.model.density, torch.ones(len(support), dtype=torch.bool))
        # Validation images replace the scores.
        scores = [] if self.trainer.validating else self._score_held_out(support, maps)
        return CalibrationScores(
            CalibrationScheme.SELF_VIEWS if len(support) == 1 else CalibrationScheme.LEAVE_ONE_OUT,
            scores,
        )

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        with self.trainer.precision_plugin.forward_context():  # as the test images
            return self.model.embed(images)

    def _score_held_out(self, support: torch.Tensor, maps: SupportMaps) -> list[InferenceBatch]:
        if len(support) == 1:
            return [self._score(view, self.model.density) for view in fixed_views(support, *self._normalization)]
        scores = []
        fold = torch.arange(len(support)) % MAX_FOLDS
        density = PositionGaussian(self.model.density.regularization).to(support.device)
        for held_out in range(int(fold.max()) + 1):
            maps.fit(density, fold != held_out)
            parts = support[fold == held_out].split(MAX_BATCH)
            scores += [self._score(images, density) for images in parts]
        return scores

    def _score(self, images: torch.Tensor, density: PositionGaussian) -> InferenceBatch:
        with self.trainer.precision_plugin.forward_context():
            return self.model.score(images, density)

    def on_validation_start(self) -> None:
        """Fit at the end of a training; else score only by the support that was fitted."""
        super().on_validation_start()
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_support()

    def on_test_start(self) -> None:
        """Refuse to score without a fit, or by another support."""
        super().on_test_start()
        self._check_support()

    def on_predict_start(self) -> None:
        """Refuse to score without a fit, or by another support."""
        super().on_predict_start()
        self._check_support()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the categories of the training."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["seen_categories"] = self.seen_categories

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the categories of the training."""
        super().on_load_checkpoint(checkpoint)
        self.seen_categories = checkpoint["seen_categories"]

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length of the training in epochs, and one validation at its end."""
        return {
            "max_epochs": max(self.max_epochs, 1),
            "check_val_every_n_epoch": None,
            "val_check_interval": NEVER,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,  # MultiCategory divides its batches, which are of one category
        }

    @property
    def _datamodule(self) -> Any:  # noqa: ANN401  of a trainer, which takes any
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def _normalization(self) -> tuple[list[float], list[float]]:
        return normalization_of(self.pre_processor)  # which a checkpoint may have replaced

    def _choose_sources(self, datamodule: SupportDataModule) -> None:
        if self.min_similarity is None or self.max_epochs == 0:
            return
        given = self.hparams
        found = similarities(
            deepest_features(given["backbone"], given["pre_trained"], given["weights"], self.device),
            self.support(),
            {
                name: map(self.preprocess, first_images(datamodule.normal_images(name)))
                for name in datamodule.train_categories
            },
        )
        chosen = [name for name, similarity in found.items() if similarity >= self.min_similarity]
        datamodule.train_on(chosen)
        listed = ", ".join(f"{name} {similarity:.2f}" for name, similarity in found.items())
        if chosen:
            logger.info("Trained on what is like %s: %s (of %s).", datamodule.category, ", ".join(chosen), listed)
            return
        logger.info("No other category is like %s, and the network is not trained: %s.", datamodule.category, listed)
        self.has_sources = False

    @property
    def _trains(self) -> bool:
        return self.max_epochs > 0 and self.has_sources

    def _check_network(self, arguments: dict[str, Any]) -> None:
        for name in self._different_arguments(arguments):
            msg = f"`{name}` must be that of `network`, {arguments[name]!r}, got {self.hparams[name]!r}. Give the same."
            raise CheckpointMismatchError(msg)

    def _check_category(self, datamodule: AnomalibDataModule) -> None:
        if isinstance(datamodule, SupportDataModule) and datamodule.manifest is None:
            msg = "RegAD must have one category to score, got several. Name it: `--data.target`."
            raise ArgumentError(msg)
        if datamodule.category in self.seen_categories and not self.allow_seen:
            msg = (
                f"The category must not have been seen in training, got {datamodule.category}, one of "
                f"{self.seen_categories}. Train without it, or say that you know: `--model.allow_seen true`."
            )
            raise SupportError(msg)

    def _check_support(self) -> None:
        """Raise if the data at hand, if there are any, are of a seen category or have another support."""
        datamodule = self._datamodule
        if not isinstance(datamodule, AnomalibDataModule):
            return
        self._check_category(datamodule)
        digest = support_digest(datamodule)
        if isinstance(datamodule, SupportDataModule) and digest != self.fitted_support:
            msg = (
                f"The support must be the one that RegAD was fitted to, {self.fitted_support}, got {digest}. A test "
                "does not fit. Fit the network to this support: `RegAD(network=CKPT)` and a fit, or `anomalib train "
                "--model RegAD --model.network CKPT --data FewShot ...`."
            )
            raise CheckpointMismatchError(msg)

    def _check_loss(self, feature_std: float) -> None:
        if not isfinite(feature_std):
            msg = f"`learning_rate` must be one at which the training stays finite, got {self.learning_rate}. Lower it."
            raise ArgumentError(msg)
        if feature_std < MIN_FEATURE_STD and not self._warned:
            self._warned = True
            logger.warning(
                "The encodings have collapsed to one: their standard deviation is %.3f, where 1 is all directions. "
                "From here on, nothing is learned. Lower `learning_rate` or `max_epochs`, or train on more images.",
                feature_std,
            )
