# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""MVTecFolder: any data set in the layout of MVTec AD, with or without masks."""

import os
from pathlib import Path

from anomalib.data import Folder
from anomalib.data.utils import TestSplitMode, ValSplitMode
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms.v2 import Transform

from anomalib_fewshot.errors import DataValidationError, MissingDataError

from .source import check_ascii, check_category
from .support import add_run_callbacks
from .validation.issue import DataIssue, report
from .validation.layout_check import check_label_classes, check_layout
from .validation.mask_check import check_masks


class MVTecFolder(Folder):
    """A category in the layout of MVTec AD. Images may have any suffix that anomalib reads.

    The folders are ``<category>/train/good``, ``<category>/test/good``, and ``<category>/test/<defect>`` for each kind
    of defect. The mask of ``test/<defect>/000.jpg`` is ``ground_truth/<defect>/000_mask.png``, with any suffix and with
    or without ``_mask``. Either all anomalous images have a mask, or none. Without masks there are no pixel metrics.

    Args:
        root (str | Path): Folder that contains the categories. Its name is the name of the data set.
        category (str): Folder in ``root``. Defaults to ``""``: to be set later.
        train_batch_size (int): Defaults to ``32``.
        eval_batch_size (int): Defaults to ``32``.
        num_workers (int): Defaults to ``8``.
        train_augmentations (Transform | None): Defaults to ``None``.
        val_augmentations (Transform | None): Defaults to ``None``.
        test_augmentations (Transform | None): Defaults to ``None``.
        augmentations (Transform | None): Augmentations for stages without their own. Defaults to ``None``.
        test_split_mode (TestSplitMode | str): Defaults to the images in ``test``.
        test_split_ratio (float): Fraction of the training images to test on if there are no normal test images.
            Defaults to ``0.2``.
        val_split_mode (ValSplitMode | str): Defaults to the test images, as in ``MVTecAD``.
        val_split_ratio (float): Defaults to ``0.5``.
        seed (int | None): Seed of the splits. Defaults to ``None``.

    Raises:
        DataValidationError: During ``setup``, if a folder or a mask is missing, if a folder of normal images would be
            tested as a defect, or if a mask is empty or has the wrong shape.

    Example:
        >>> from anomalib_fewshot import FewShot
        >>> datamodule = FewShot(MVTecFolder("datasets/mine", "screw"), k_shot=4)
        >>> datamodule.name, datamodule.category
        ('mine', 'screw')
    """

    def __init__(
        self,
        root: str | Path,
        category: str = "",
        train_batch_size: int = 32,
        eval_batch_size: int = 32,
        num_workers: int = 8,
        train_augmentations: Transform | None = None,
        val_augmentations: Transform | None = None,
        test_augmentations: Transform | None = None,
        augmentations: Transform | None = None,
        test_split_mode: TestSplitMode | str = TestSplitMode.FROM_DIR,
        test_split_ratio: float = 0.2,
        val_split_mode: ValSplitMode | str = ValSplitMode.SAME_AS_TEST,
        val_split_ratio: float = 0.5,
        seed: int | None = None,
    ) -> None:
        super().__init__(
            name=Path(os.path.abspath(root)).name,  # noqa: PTH100  `resolve` would follow a link to another name
            normal_dir="",
            root=root,
            train_batch_size=train_batch_size,
            eval_batch_size=eval_batch_size,
            num_workers=num_workers,
            train_augmentations=train_augmentations,
            val_augmentations=val_augmentations,
            test_augmentations=test_augmentations,
            augmentations=augmentations,
            test_split_mode=test_split_mode,
            test_split_ratio=test_split_ratio,
            val_split_mode=val_split_mode,
            val_split_ratio=val_split_ratio,
            seed=seed,
        )
        self.root: str | Path = root
        self.category = category
        self.data_issues: list[DataIssue] = []  # issues of the folders and masks

    def prepare_data(self) -> None:
        """Check the folders of the category.

        Raises:
            DataValidationError: If a folder is missing.
        """
        self._find_folders()

    def setup(self, stage: str | None = None) -> None:
        """Set up the datasets. Warn if the test images are of one class only."""
        add_run_callbacks(self.trainer)
        super().setup(stage)
        if len(self.test_data):
            folder = (Path(self.root) / self.category).resolve()
            self._report(check_label_classes(self.test_data.samples.label_index, folder))

    def _setup(self, _stage: str | None = None) -> None:
        masks = self._find_folders()
        self._report(check_masks(masks))
        super()._setup(_stage)
        for data in (self.train_data, self.test_data):
            data.samples["mask_path"] = [masks.get(path, "") for path in data.samples.image_path]
            data.samples.attrs["task"] = "segmentation" if masks else "classification"

    def _report(self, issues: list[DataIssue]) -> None:
        """Report issues, each one once: Lightning calls ``setup`` for each stage."""
        report(issues, self.data_issues)
        self.data_issues = [*dict.fromkeys([*self.data_issues, *issues])]

    def _find_folders(self) -> dict[str, str]:
        """Set the folders of the category. Return the path of the mask of each anomalous image, empty without masks."""
        if not Path(self.root).is_dir():
            msg = f"`root` must be a folder, got {self.root}, which does not exist."
            raise MissingDataError(msg)
        check_category(self)
        folder = Path(self.root) / self.category
        self._report(check_layout(folder))
        normal = (folder / "train" / "good").resolve()
        if not _images(normal):
            msg = f"`category` must have images in train/good, got {folder}, which has none."
            raise DataValidationError(msg)
        tested = [path for path in sorted(folder.glob("test/*")) if _images(path)]
        if not tested and self.test_split_mode == TestSplitMode.FROM_DIR:
            msg = (
                f"`category` must have images in test/good or test/<defect>, got {folder}, which has none. "
                "If there are only normal images, set `val_split_mode` and `test_split_mode` to `none`."
            )
            raise DataValidationError(msg)
        for path in (normal, *tested):
            check_ascii(path.resolve())
        self.normal_dir = normal
        self.normal_test_dir = [path.resolve() for path in tested if path.name == "good"]
        self.abnormal_dir = [path.resolve() for path in tested if path.name != "good"]
        return _find_masks(folder, [path.name for path in tested if path.name != "good"])


def _find_masks(folder: Path, defects: list[str]) -> dict[str, str]:
    """Return the path of the mask of each anomalous image. Empty if there are no masks."""
    images, masks = [], {}
    for defect in defects:
        image_folder, mask_folder = (folder / "test" / defect).resolve(), folder / "ground_truth" / defect
        images += _images(image_folder)
        for path in _images(mask_folder):
            image = image_folder / path.relative_to(mask_folder).with_name(path.stem.removesuffix("_mask"))
            masks[image] = str(path)
    if masks:
        _check_stems(images)
    without = [image for image in images if image.with_suffix("") not in masks]
    if masks and without:
        msg = (
            f"`root` must have masks for all anomalous images or for none, got {len(without)} images without a mask. "
            f"Add ground_truth/<defect>/<name>_mask.png, or remove `ground_truth`. The first image is {without[0]}"
        )
        raise DataValidationError(msg)
    return {str(image): masks[image.with_suffix("")] for image in images} if masks else {}


def _check_stems(images: list[Path]) -> None:
    """Raise an error if two images would share a mask."""
    by_stem: dict[Path, Path] = {}
    for image in images:
        other = by_stem.setdefault(image.with_suffix(""), image)
        if other != image:
            msg = f"Images with masks must differ in more than their suffix, got {other} and {image}. Rename one."
            raise DataValidationError(msg)


def _images(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMG_EXTENSIONS and path.is_file())
