# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""RegAD: registration of normal images of other categories, and a Gaussian at each position of the target's.

Paper: https://arxiv.org/abs/2207.07361 (ECCV 2022). The adversarial loss: https://arxiv.org/abs/2312.03005.
"""

import logging
from collections.abc import Iterator
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from anomalib.data import Batch, ImageBatch, InferenceBatch
from anomalib.metrics import Evaluator
from anomalib.models.components import AnomalibModule
from anomalib.pre_processing import PreProcessor
from anomalib.visualization import Visualizer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT, OptimizerLRScheduler
from torch import distributed, nn

from anomalib_fewshot.models.components import (
    ADVERSARIAL_RAMP,
    NUM_FIXED_VIEWS,
    AdversarialLoss,
    BackboneMixin,
    SupportAugmentation,
    fixed_views,
    height_and_width,
    normal_batch,
    normalization_of,
    seeded,
    seeded_generator,
    spread,
    warn_of_single_image,
)

from .loss import RegADLoss
from .torch_model import RegADModel

logger = logging.getLogger(__name__)

MAX_FOLDS = 8  # densities that a threshold without validation images takes
COLLAPSED = 0.1  # spread of the encodings below which a warning is given; 1 is all directions


class RegAD(BackboneMixin, AnomalibModule):
    """Registration network trained on normal images of other categories, then a Gaussian of the support's features.

    Trained once with ``MultiCategory``, it takes a new category's support without training: at a test with another
    support than the fitted one, only the density and the threshold are made anew. With ``FewShot`` it trains on the
    target's own support. The default is the plain method on EfficientNet-Lite0; the paper's is ResNet-18.

    Args:
        backbone (str): Name of a convolutional timm model. Defaults to ``"tf_efficientnet_lite0"``, whose weights come
            with this package.
        layers (list[int] | None): Feature maps to warp and to score by, as indices in timm's ``feature_info``.
            Defaults to ``None``: strides 4, 8 and 16.
        pre_trained (bool): Load pretrained weights. Defaults to ``True``.
        weights (str | None): File with the backbone's weights, in timm's naming. Defaults to ``None``: the package that
            carries them, else timm's hub and its cache.
        image_size (int | tuple[int, int]): Size that images are resized to. Defaults to ``224``.
        stn_mode (str): Transforms of the spatial transformers. Defaults to ``"rotation_scale"``.
        num_supports (int): Images of a batch that each is registered with. Defaults to ``2``.
        max_epochs (int): Number of epochs. 0 is no training, the control. Defaults to ``50``.
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
        allow_seen (bool): Test on a category that was among the other categories in training. Defaults to ``False``.
        seed (int): Seed of the heads, the discriminator and the views. The global seed has no influence.
            Defaults to ``0``.
        pre_processor (nn.Module | bool): Defaults to ``True``: resize, and normalise as the weights ask.
        post_processor (nn.Module | bool): Defaults to ``True``.
        evaluator (Evaluator | bool): Defaults to ``True``.
        visualizer (Visualizer | bool): Defaults to ``True``.

    Raises:
        ValueError: If an argument is out of its range, or as :class:`RegADModel` and :class:`AdversarialLoss` do.

    Example:
        >>> from anomalib.engine import Engine
        >>> from anomalib_fewshot import ELPV, FewShot, RegAD
        >>> Engine().train(RegAD(), datamodule=FewShot(ELPV(), k_shot=4))  # doctest: +SKIP
    """

    def __init__(
        self,
        backbone: str = "tf_efficientnet_lite0",
        layers: list[int] | None = None,
        pre_trained: bool = True,
        weights: str | None = None,
        image_size: int | tuple[int, int] = 224,
        stn_mode: str = "rotation_scale",
        num_supports: int = 2,
        max_epochs: int = 50,
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
        for name, value, least in (("num_supports", num_supports, 1), ("max_epochs", max_epochs, 0)):
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
        self.num_supports = num_supports
        self.max_epochs = max_epochs
        self.learning_rate = learning_rate
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.freeze_batch_norm = freeze_batch_norm
        self.augment_support = augment_support
        self.allow_seen = allow_seen
        self.seed = seed
        self.loss = RegADLoss()
        with seeded(seed):
            self.model = RegADModel(
                backbone,
                layers,
                pre_trained,
                weights,
                size,
                stn_mode,
                regularization,
            )
        dim = self.model.trunk.channels[-1]
        self.adversarial = AdversarialLoss(dim, adversarial_weight, adversarial_learning_rate, seed=seed)
        self.seen_categories: list[str] = []
        self.fitted_support: str | None = None  # digest of the support that the density was fitted to
        self._warned = False

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return SGD, with a cosine of the epochs, or nothing if there is no training."""
        if self.max_epochs == 0:
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
        """Forget the density of an earlier fit, and note which categories are seen."""
        datamodule = self._datamodule()
        self.model.density.reset()
        self.fitted_support = None
        if self.max_epochs > 0:
            others = set(datamodule.train_categories) - {datamodule.category}
            self.model.trunk.freeze_batch_norm = self.freeze_batch_norm
            self.model.trunk.train(self.model.training)
            self.seen_categories = sorted(others | set(self.seen_categories))
            self.adversarial.ramp_steps = int(ADVERSARIAL_RAMP * self.trainer.estimated_stepping_batches)

    def training_step(self, batch: Batch, batch_idx: int) -> STEP_OUTPUT:
        """Return the loss of registering each image with others of its category."""
        del batch_idx
        if self.max_epochs == 0:
            return self.no_loss()
        images: torch.Tensor = batch.image
        if len(images) == 1:  # a single image has no other: it is registered with a view of itself
            augmentation = SupportAugmentation("mild", *normalization_of(self.pre_processor))
            generator = seeded_generator(self.seed, self.global_step, self.global_rank)
            images = torch.cat([images, augmentation(images, generator)])
        result = self.model.register(images, self.num_supports)
        encodings, predictions = (result.query, result.support), (result.query_prediction, result.support_prediction)
        loss = self.loss(predictions, encodings)
        width = spread(result.query.detach().movedim(1, -1))
        self._check_health(float(width))
        self.log("train_loss", loss.detach(), prog_bar=True)
        self.log("spread", width, prog_bar=True)
        fooling, health = self.adversarial(*(p.movedim(1, -1) for p in predictions), self.global_step)
        if health is not None:
            self.log_dict({"discriminator_loss": health.loss, "discriminator_accuracy": health.accuracy})
        return loss + fooling

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the density to the support."""
        training = self.model.training
        self.model.eval()
        self._share_batch_statistics()
        self._fit(self._support())
        self.fitted_support = self._datamodule().manifest.digest
        self.model.train(training)

    def _fit(self, support: torch.Tensor) -> None:
        views = fixed_views(support, *normalization_of(self.pre_processor)) if self.augment_support else iter([support])
        with self.trainer.precision_plugin.forward_context():  # as the test images
            self.model.fit(views, len(support) * (NUM_FIXED_VIEWS if self.augment_support else 1))

    @torch.no_grad()
    def _calibrate(self) -> None:
        """Fit the threshold to the validation images, as a training does."""
        training = self.model.training
        self.model.eval()
        self.fit_threshold(self._scored())
        self.model.train(training)

    def _scored(self) -> Iterator[ImageBatch]:
        """Yield the scores of the validation images.

        If there are none, the support is scored: each image is left out of the density in turn (of more than eight, an
        eighth of them) and scored by that of the others. A single image has no others: its views are scored by its own
        density, which is too kind.
        """
        batch: ImageBatch | None = None
        for batch in self._datamodule().val_dataloader():
            yield self._score(batch)
        if batch is not None:
            return
        support = self._support()
        if len(support) == 1:
            warn_of_single_image()
            for view in fixed_views(support, *normalization_of(self.pre_processor)):
                yield normal_batch(self._scores(view))
            return
        fold = torch.arange(len(support)) % MAX_FOLDS
        for left_out in range(int(fold.max()) + 1):
            self._fit(support[fold != left_out])
            yield normal_batch(self._scores(support[fold == left_out]))
        self._fit(support)

    def _score(self, batch: ImageBatch) -> ImageBatch:
        """Do what Lightning and anomalib do to the batches of a validation."""
        batch = self.trainer.strategy.batch_to_device(batch, self.device)
        if isinstance(self.pre_processor, PreProcessor):
            self.pre_processor.on_validation_batch_start(self.trainer, self, batch, 0)
        return batch.update(**self._scores(batch.image)._asdict())

    def _scores(self, images: torch.Tensor) -> InferenceBatch:
        with self.trainer.precision_plugin.forward_context():
            return self.model(images)

    def _support(self) -> torch.Tensor:
        return torch.cat([self.preprocess(batch.image) for batch in self._datamodule().support_dataloader()])

    def _share_batch_statistics(self) -> None:
        """Give all processes those of the first: each has seen other batches since the last exchange."""
        if self.trainer.world_size > 1:
            for buffer in self.model.trunk.buffers():
                distributed.broadcast(buffer, 0)

    def on_validation_start(self) -> None:
        """Fit the density before it is validated."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            self.fit()
        else:
            self._prepare()

    def on_train_end(self) -> None:
        """Do what is else done at the validation, if there was none: fit, set the threshold, keep a checkpoint."""
        if self.is_fitted:
            return
        self.fit()
        self._calibrate()
        self.keep_checkpoint()

    def on_test_start(self) -> None:
        """Make sure that the density is of the support at hand."""
        self._prepare()

    def on_predict_start(self) -> None:
        """Make sure that the density is of the support at hand, if there is one."""
        self._prepare()

    def _prepare(self) -> None:
        self.check_fitted()
        if not hasattr(getattr(self.trainer, "datamodule", None), "support_dataloader"):  # scored by what was fitted
            return
        datamodule = self._datamodule()
        if datamodule.category in self.seen_categories and not self.allow_seen:
            msg = (
                f"The category must not have been seen in training, got {datamodule.category}, one of "
                f"{self.seen_categories}. Train without it, or say that you know: `--model.allow_seen true`."
            )
            raise RuntimeError(msg)
        if datamodule.manifest.digest != self.fitted_support:
            logger.info("The support is another than in training: the density and the threshold are made of it.")
            self.fit()
            self._calibrate()
            if self.trainer.is_global_zero:
                datamodule.manifest.write(Path(self.trainer.default_root_dir) / "test_support.json")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Note what was seen and fitted."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["reg_ad"] = {"seen_categories": self.seen_categories, "fitted_support": self.fitted_support}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what was seen and fitted."""
        super().on_load_checkpoint(checkpoint)
        if "reg_ad" not in checkpoint:
            msg = "The checkpoint must be one of RegAD. Name its model by `--model`, or give another `ckpt_path`."
            raise ValueError(msg)
        self.seen_categories = checkpoint["reg_ad"]["seen_categories"]
        self.fitted_support = checkpoint["reg_ad"]["fitted_support"]

    @property
    def is_fitted(self) -> bool:  # type: ignore[override]
        """Whether there is a density of a support."""
        return self.model.density.is_fitted

    @property
    def trainer_arguments(self) -> dict[str, Any]:
        """Length of the training in epochs, and one validation at its end."""
        epochs = max(self.max_epochs, 1)
        return {
            "max_epochs": epochs,
            "check_val_every_n_epoch": epochs,
            "val_check_interval": 1.0,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 1,
            "use_distributed_sampler": False,  # batches of one category are divided by MultiCategory
        }

    def _datamodule(self) -> Any:  # noqa: ANN401  FewShot or MultiCategory
        datamodule: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(datamodule, "support_dataloader"):
            name = type(datamodule).__name__
            msg = (
                f"RegAD must have data of FewShot or MultiCategory, got {name}. Use `--data FewShot --data.source ...`."
            )
            raise TypeError(msg)
        if datamodule.manifest is None:
            msg = "RegAD must have one category to score, got several. Name it: `--data.target`."
            raise ValueError(msg)
        return datamodule

    def _check_health(self, width: float) -> None:
        if not isfinite(width):
            msg = f"`learning_rate` must be one at which the training stays finite, got {self.learning_rate}. Lower it."
            raise RuntimeError(msg)
        if width < COLLAPSED and not self._warned:
            self._warned = True
            logger.warning(
                "The encodings have collapsed to one: their spread is %.3f, where 1 is all directions. From here on, "
                "nothing is learnt. Lower `learning_rate` or `max_epochs`, or train on more images.",
                width,
            )
