# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Folders whose names would make good pictures defects, and test images of one kind."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

from anomalib_fewshot import FewShot, MVTecFolder
from anomalib_fewshot.data.validation.layout_check import check_label_classes, check_layout


@pytest.fixture
def bolt(mvtec_root: Path, tmp_path: Path) -> Path:
    """Return a copy of a category that a test may change."""
    return shutil.copytree(mvtec_root / "bolt", tmp_path / "mine" / "bolt")


def source(bolt: Path, **arguments) -> MVTecFolder:
    return MVTecFolder(bolt.parent, "bolt", num_workers=0, seed=0, **arguments)


def test_valid_layout_has_no_issue(bolt: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert check_layout(bolt) == []
    datamodule = FewShot(source(bolt))
    datamodule.setup()
    assert datamodule.data_issues == datamodule.source.data_issues == caplog.messages == []
    shutil.rmtree(bolt / "test")
    assert check_layout(bolt) == []  # good images alone


@pytest.mark.parametrize("name", ["Good", "GOOD", "ok", "OK", "normal", "pass"])
@pytest.mark.parametrize("beside", [False, True])
def test_normal_images_in_a_misnamed_folder_are_an_error(bolt: Path, name: str, *, beside: bool) -> None:
    shutil.copytree(bolt / "test/good", bolt / "test/copy")
    (bolt / "test/copy").rename(bolt / "test" / name)
    if not beside:
        shutil.rmtree(bolt / "test/good")
    for prepare in (source(bolt).prepare_data, source(bolt).setup, FewShot(source(bolt)).setup):
        with pytest.raises(ValueError, match=rf"test/{name}: would be tested as a defect"):
            prepare()


@pytest.mark.parametrize("name", ["hole", "not_good", "okra", "bad"])
def test_names_of_defects(bolt: Path, name: str) -> None:
    (bolt / "test/hole").rename(bolt / "test" / name)
    assert check_layout(bolt) == []


def test_too_few_normal_test_images(bolt: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(bolt / "test/good")
    no_folder = f"{bolt / 'test'}: has no folder `good`, so few or no normal images are tested. Add it."
    no_kind = f"{bolt}: has 4 anomalous and no normal test images, but AUROC and F1 need both. Add some."
    for lines in ([no_folder], [no_folder, no_kind]):
        caplog.clear()
        datamodule = FewShot(source(bolt), k_shot=2)
        for _ in range(2):
            datamodule.prepare_data()
            datamodule.setup()
        assert [text for text in caplog.messages if text.startswith(str(bolt))] == lines
        assert [*map(str, datamodule.data_issues)] == lines
        for number in range(4, 10):  # a fifth of ten is two, of four none
            (bolt / f"train/good/00{number}.png").unlink(missing_ok=True)


def test_untested_images_are_reported(bolt: Path) -> None:
    Image.new("RGB", (64, 64)).save(bolt / "test/loose.png")
    (bolt / "test/dent").mkdir()
    (bolt / "test/dent/000.HEIC").write_bytes(b"x")
    (bolt / "train/good/000.heic").write_bytes(b"x")
    assert [(issue.path, issue.severity, issue.message.partition(".")[0]) for issue in check_layout(bolt)] == [
        (bolt / "test/dent", "warning", "has no images and is not tested"),
        (bolt / "test", "warning", "has 1 images outside its subfolders, which are not tested"),
        (bolt / "train/good", "warning", "has files that anomalib skips: 000"),
        (bolt / "test/dent", "warning", "has files that anomalib skips: 000"),
    ]


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (Image.new("L", (64, 64)), "is empty: no pixel"),
        (Image.new("RGBA", (64, 64), (255, 255, 255, 0)), "must not be transparent"),
        (Image.new("L", (64, 32), 255), "has 64 x 32 pixels, but its image has 64 x 64"),
    ],
)
def test_invalid_masks_are_errors(bolt: Path, mask: Image.Image, message: str) -> None:
    for number in (1, 3):
        mask.save(bolt / f"ground_truth/hole/00{number}_mask.png")
    with pytest.raises(ValueError, match=rf"^2 files or folders .*:\n.*001_mask.png: {message}.*\n.*003_mask.png: "):
        source(bolt).setup()


def test_inverted_mask_is_a_warning(bolt: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = bolt / "ground_truth/hole/002_mask.png"
    Image.eval(Image.open(path), lambda value: 255 - value).save(path)
    FewShot(source(bolt)).setup()
    (message,) = caplog.messages
    assert message.endswith("002_mask.png: marks 94% of its image. If it is inverted, paint the defect white.")


@pytest.mark.parametrize("folder", ["test/Öl", "test/отказ", "test/e\u0301"])
def test_folder_name_is_not_ascii(bolt: Path, folder: str) -> None:
    shutil.move(bolt / "test/hole", bolt / folder)
    shutil.rmtree(bolt / "ground_truth")
    with pytest.raises(ValueError, match=f"must be printable ASCII, .* got '{Path(folder).name}'"):
        source(bolt).setup()


def test_link_to_a_folder_name_that_is_not_ascii(bolt: Path) -> None:
    real = bolt.parent.rename(bolt.parent.with_name("grün"))
    bolt.parent.symlink_to(real)
    with pytest.raises(ValueError, match="got 'grün'"):
        FewShot(source(bolt)).setup()


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], None),
        ([0, 1, 0], None),
        ([0, 0], "has 2 normal and no anomalous test images"),
        ([1, 1, 1], "has 3 anomalous and no normal test images"),
    ],
)
def test_classes_of_test_images(labels: list[int], message: str | None) -> None:
    issues = [str(issue) for issue in check_label_classes(labels, "bolt")]
    assert [text.startswith(f"bolt: {message}") for text in issues] == [True] * (message is not None)
