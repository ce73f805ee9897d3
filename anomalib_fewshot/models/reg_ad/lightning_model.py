# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""RegAD: a registration network trained on other categories, and one Gaussian per position for the target category.

Paper: https://arxiv.org/abs/2207.07361 (ECCV 2022). The adversarial loss: https://arxiv.org/abs/2312.03005.
"""

import logging
from functools import partial
from math import isfinite
from typing import Any, Literal

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
    seeded_generator,
    std_of_l2_normalized,
)
from anomalib_fewshot.post_processing import CalibrationScheme, CalibrationScores

from .category_similarity import category_similarities, feature_extractor, first_images
from .density import PositionGaussian
from .loss import RegADLoss
from .network import read_network
from .support_maps import MAX_BATCH_SIZE, SupportMaps
from .torch_model import RegADModel

logger = logging.getLogger(__name__)

MAX_FOLDS = 8  # folds of the out-of-fold scores
NEVER = 2**31 - 1  # batches between validations; `should_stop` triggers the only validation, at the end
MIN_FEATURE_STD = 0.1  # a lower standard deviation of the encodings triggers a warning


class RegAD(FittedMixin, BackboneMixin, AnomalibModule):
    """RegAD: registration network trained on other categories, and a density of support features at each position.

    A network that was trained once with ``MultiCategory`` needs no training for a new category. Pass its checkpoint as
    ``network`` and fit the model to the new support set. With any other datamodule the network is trained on the
    support set. The default backbone is EfficientNet-Lite0; the paper uses ResNet-18.

    Args:
        backbone (str): Name of a convolutional timm model. Defaults to ``"tf_efficientnet_lite0"``, whose weights are
            installed with this package.
        layers (list[int] | None): Feature maps to warp and score, as indices in timm's ``feature_info``. Defaults to
            ``None``: strides 4, 8 and 16.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone weights in timm's naming. Defaults to ``None``: the installed
            weight package, or else the timm hub and its cache.
        network (str | None): Checkpoint of a RegAD that was trained on other categories. The model uses its network
            and its pre-processor. Defaults to ``None``: a backbone with untrained heads.
        image_size (int | tuple[int, int] | str | None): Size that images are resized to, as a number or height and
            width. ``"auto"``: the aspect ratio of the support images, with about as many pixels as 224 x 224. Defaults
            to ``None``: the output size of ``pre_processor``, which is 224 by default.
        stn_mode (str): Transforms of the spatial transformers. Defaults to ``"rotation_scale"``.
        min_similarity (float | None): Minimum similarity of a training category to the support set, if
            ``MultiCategory`` has a target. The similarity is the mean cosine between the deepest features of a support
            image and of the most similar of 16 images of the category. Without a similar category there is no training.
            Requires pretrained weights and no ``network``. ``None`` trains on all other categories, as in the paper.
            Defaults to ``0.5``.
        num_supports (int): Number of images in the batch that each image is registered with. Defaults to ``2``.
        max_epochs (int | None): Number of epochs. 0 disables the training, which is the control experiment if there is
            no ``network``. Defaults to ``None``: 0 with a ``network``, otherwise 50.
        learning_rate (float): Initial learning rate of SGD with cosine annealing to 0. Defaults to ``1e-4``.
        momentum (float): Momentum of SGD. Defaults to ``0.9``.
        weight_decay (float): Weight decay of SGD. Defaults to ``0.0``.
        freeze_batch_norm (bool): Keep the batch statistics of the backbone during training. The paper updates them, so
            the target is scored with statistics of other categories. Defaults to ``True``.
        adversarial_weight (float): Weight of the adversarial loss between the predictions of the two branches. The
            weight increases linearly over the first 10 % of the training. 0 disables the loss. Defaults to ``0.0``.
        adversarial_learning_rate (float): Learning rate of the discriminator. Defaults to ``1e-4``.
        augment_support (bool): Fit the density to 22 fixed views of each support image. Defaults to ``True``.
        regularization (float): Variance added to the covariances. Defaults to ``0.01``.
        allow_seen (bool): Allow a target category that the network was trained on. Defaults to ``False``.
        seed (int): Seed of the heads, the discriminator and the views. The global seed has no effect. Defaults to
            ``0``.
        pre_processor (nn.Module | bool): Pre-processor. Defaults to ``True``: the pre-processor of ``network``, or
            else resize and the normalization of the backbone.
        post_processor (nn.Module | bool): Post-processor. Defaults to ``True``.
        evaluator (Evaluator | bool): Evaluator. Defaults to ``True``.
        visualizer (Visualizer | bool): Visualizer. Defaults to ``True``.

    Raises:
        MissingDataError: If the file ``network`` does not exist, or no source provides the backbone weights.
        ArgumentError: If an argument is out of range. See also :func:`read_network`, :class:`RegADModel` and
            :class:`AdversarialStep`.
        CheckpointMismatchError: If an argument differs from that of the ``network``.

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
        image_size: int | tuple[int, int] | Literal["auto"] | None = None,
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
        self.hparams["max_epochs"] = max_epochs  # the default depends on `network`, which a checkpoint does not store
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
        self.has_training_data = True  # False if no other category is similar to the target
        self._warned_of_collapse = False
        if trained is not None:
            self._check_network(trained.arguments)
            self.seen_categories = trained.seen_categories
            pre_trained, weights = False, None
        self.network_factory = partial(
            RegADModel,
            backbone,
            layers,
            pre_trained,
            weights,
            stn_mode=stn_mode,
            regularization=regularization,
            freeze_batch_norm=freeze_batch_norm,
        )
        self.model: RegADModel = self.create_network(size)
        if trained is not None:
            self.model.load_network(trained.states)
        dim = self.model.trunk.channels[-1]
        self.adversarial = AdversarialStep(dim, adversarial_weight, adversarial_learning_rate, seed=seed)

    def setup(self, stage: str) -> None:
        """Select the training categories before the dataloaders are created."""
        super().setup(stage)
        datamodule = self._datamodule
        self.has_training_data = True
        if stage == TrainerFn.FITTING and isinstance(datamodule, SupportDataModule) and datamodule.other_categories:
            self._select_training_categories(datamodule)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return SGD with cosine annealing over the epochs, or ``None`` without training."""
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
        """Check the data and record the training categories."""
        datamodule = self._datamodule
        support_dataloader(datamodule)  # raises an error before the training if there is no support set
        self._check_category(datamodule)
        if self._trains:
            self.adversarial.ramp_steps = int(ADVERSARIAL_RAMP * self.trainer.estimated_stepping_batches)
            if isinstance(datamodule, SupportDataModule):
                self.seen_categories = sorted({*datamodule.other_categories, *self.seen_categories})

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the registration loss between images of the same category."""
        del batch_idx
        if not self._trains:
            return self.zero_loss()
        images: torch.Tensor = batch.image  # type: ignore[assignment]
        if len(images) == 1:  # register a single image with a view of itself
            augmentation = SupportAugmentation(*self._normalization)
            rng = seeded_generator(self.seed, self.global_step, self.global_rank)
            images = torch.cat([images, augmentation(images, rng)])
        result = self.model.register(images, self.num_supports)
        predictions = result.query_prediction, result.support_prediction
        loss = self.loss(predictions, (result.query, result.support))
        feature_std = std_of_l2_normalized(result.query.detach().movedim(1, -1))
        self._check_loss(float(feature_std))
        self.log("train_loss", loss.detach(), prog_bar=True)
        self.log("feature_std", feature_std, prog_bar=True)
        first, second = (prediction.movedim(1, -1) for prediction in predictions)
        adversarial_loss, stats = self.adversarial(first, second, self.global_step)
        if stats is not None:
            self.log_dict({"discriminator_loss": stats.loss, "discriminator_accuracy": stats.accuracy})
        return loss + adversarial_loss

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:  # noqa: ANN401
        """Stop at the end of the last epoch, or of the first epoch without training.

        Setting ``should_stop`` triggers the only validation, see ``trainer_arguments``.
        """
        super().on_train_batch_end(*args, **kwargs)
        is_last_epoch = not self._trains or self.trainer.current_epoch + 1 >= self.max_epochs
        if is_last_epoch and self.trainer.is_last_batch:
            self.trainer.should_stop = True

    def fit(self) -> CalibrationScores:
        """Fit the density to the support set.

        Returns:
            CalibrationScores: Out-of-fold scores of the support set with up to eight folds. With a single image, the
            density of this image scores its views, which underestimates the scores of new images.
        """
        support = torch.cat([*self.support()])
        maps = SupportMaps(self._embed, support, self.augment_support, *self._normalization)
        maps.fit(self.model.density, torch.ones(len(support), dtype=torch.bool))
        # The scores are not needed if validation images set the threshold.
        scores = [] if self.trainer.validating else self._out_of_fold_scores(support, maps)
        return CalibrationScores(
            CalibrationScheme.SELF_VIEWS if len(support) == 1 else CalibrationScheme.LEAVE_ONE_OUT,
            scores,
        )

    def _embed(self, images: torch.Tensor) -> torch.Tensor:
        with self.trainer.precision_plugin.forward_context():  # the precision of the test
            return self.model.embed(images)

    def _out_of_fold_scores(self, support: torch.Tensor, maps: SupportMaps) -> list[InferenceBatch]:
        if len(support) == 1:
            return [self._score(view, self.model.density) for view in fixed_views(support, *self._normalization)]
        scores = []
        fold = torch.arange(len(support)) % MAX_FOLDS
        density = PositionGaussian(self.model.density.regularization).to(support.device)
        for index in range(int(fold.max()) + 1):
            maps.fit(density, fold != index)
            batches = support[fold == index].split(MAX_BATCH_SIZE)
            scores += [self._score(images, density) for images in batches]
        return scores

    def _score(self, images: torch.Tensor, density: PositionGaussian) -> InferenceBatch:
        with self.trainer.precision_plugin.forward_context():
            return self.model.score(images, density)

    def on_validation_start(self) -> None:
        """Fit at the end of the training. In other validations, check the support set."""
        super().on_validation_start()
        if self.trainer.state.fn != TrainerFn.FITTING:
            self._check_support()

    def on_test_start(self) -> None:
        """Check that the model is fitted to the support set of the data."""
        super().on_test_start()
        self._check_support()

    def on_predict_start(self) -> None:
        """Check that the model is fitted to the support set of the data."""
        super().on_predict_start()
        self._check_support()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store the training categories."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["seen_categories"] = self.seen_categories

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the training categories."""
        super().on_load_checkpoint(checkpoint)
        self.seen_categories = checkpoint["seen_categories"]

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Trainer arguments for ``max_epochs`` epochs and one validation at the end."""
        return {
            "max_epochs": max(self.max_epochs, 1),
            "check_val_every_n_epoch": None,
            "val_check_interval": NEVER,
            "num_sanity_val_steps": 0,
            "use_distributed_sampler": False,  # MultiCategory distributes its batches, each of one category
        }

    @property
    def _datamodule(self) -> Any:  # noqa: ANN401  the trainer accepts any type
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def _normalization(self) -> tuple[list[float], list[float]]:
        return normalization_of(self.pre_processor)  # not cached, because a checkpoint may replace the pre-processor

    def _select_training_categories(self, datamodule: SupportDataModule) -> None:
        if self.min_similarity is None or self.max_epochs == 0:
            return
        arguments = self.hparams
        embed = feature_extractor(arguments["backbone"], arguments["pre_trained"], arguments["weights"], self.device)
        images = {}
        for name in datamodule.train_categories:
            images[name] = map(self.preprocess, first_images(datamodule.normal_images(name)))
        similarities = category_similarities(embed, self.support(), images)
        selected = [name for name, similarity in similarities.items() if similarity >= self.min_similarity]
        datamodule.train_on(selected)
        self.has_training_data = bool(selected)
        values = ", ".join(f"{name} {similarity:.2f}" for name, similarity in similarities.items())
        if selected:
            logger.info("Training on categories similar to %s: %s.", datamodule.category, ", ".join(selected))
        else:
            logger.info("The network is not trained, because no category is similar to %s.", datamodule.category)
        logger.info("Similarities (minimum %s): %s", self.min_similarity, values)

    @property
    def _trains(self) -> bool:
        return self.max_epochs > 0 and self.has_training_data

    def _check_network(self, arguments: dict[str, Any]) -> None:
        for name in self._different_arguments(arguments):
            msg = (
                f"`{name}` must match the checkpoint `network`, {arguments[name]!r}, got {self.hparams[name]!r}. "
                "Set the value of the checkpoint."
            )
            raise CheckpointMismatchError(msg)

    def _check_category(self, datamodule: AnomalibDataModule) -> None:
        if isinstance(datamodule, SupportDataModule) and datamodule.manifest is None:
            msg = "The data of RegAD must have one target category, got several. Set `--data.target`."
            raise ArgumentError(msg)
        if datamodule.category in self.seen_categories and not self.allow_seen:
            msg = (
                f"The target category must not be a training category of the network, got {datamodule.category}, "
                f"which is one of {self.seen_categories}. Train without it, or set `--model.allow_seen true`."
            )
            raise SupportError(msg)

    def _check_support(self) -> None:
        """Check the category and the support set of the datamodule, if the trainer has one."""
        datamodule = self._datamodule
        if not isinstance(datamodule, AnomalibDataModule):
            return
        self._check_category(datamodule)
        digest = support_digest(datamodule)
        if isinstance(datamodule, SupportDataModule) and digest != self.fitted_support:
            msg = (
                f"The support set must be the one that RegAD was fitted to, {self.fitted_support}, got {digest}. Fit "
                "the network to this support set first: call `Engine.fit` with `RegAD(network=CKPT)`, or run `anomalib "
                "train --model RegAD --model.network CKPT --data FewShot ...`."
            )
            raise CheckpointMismatchError(msg)

    def _check_loss(self, feature_std: float) -> None:
        if not isfinite(feature_std):
            msg = f"The training diverged with `learning_rate` {self.learning_rate}. Lower `learning_rate`."
            raise ArgumentError(msg)
        if feature_std < MIN_FEATURE_STD and not self._warned_of_collapse:
            self._warned_of_collapse = True
            logger.warning(
                "The encodings have collapsed: their normalized standard deviation is %.3f (1 without collapse). "
                "Further training has no effect. Lower `learning_rate` or `max_epochs`, or train on more images.",
                feature_std,
            )
