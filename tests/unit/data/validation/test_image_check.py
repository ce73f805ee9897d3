# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What is found of pictures that cannot be read, and of those that anomalib reads as something else."""

import re
import shutil
from pathlib import Path

import pytest
from anomalib.data.utils import read_image
from corpus import CORPUS, HEALTHY, picture, saved, written
from PIL import Image

from anomalib_fewshot.data.validation import image as reading
from anomalib_fewshot.data.validation import image_check
from anomalib_fewshot.data.validation.image_check import check_images, find_skipped_files
from anomalib_fewshot.data.validation.issue import DataIssue, summarize


def found(issues: list[DataIssue]) -> list[tuple[str, str]]:
    return [(issue.path.name, issue.severity) for issue in issues]


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("case", CORPUS)
def test_new_image_has_one_issue(good: Path, tmp_path: Path, case: str, *, decode: bool) -> None:
    make, severity, message = CORPUS[case]
    (tmp_path / "new").mkdir()
    path = make(tmp_path / "new")
    (issue,) = check_images(good, tmp_path / "new", decode=decode)
    assert (issue.path, issue.severity) == (path, severity)
    assert re.search(message, issue.message)


@pytest.mark.parametrize("case", [name for name, (_, severity, _) in CORPUS.items() if severity == "error"])
def test_support_issue_does_not_affect_other_images(good: Path, case: str) -> None:
    path = CORPUS[case][0](good)
    assert found(check_images(good)) == [(path.name, "error")]


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("case", HEALTHY)
def test_valid_images_have_no_issue_and_are_read_by_anomalib(
    good: Path,
    tmp_path: Path,
    case: str,
    *,
    decode: bool,
) -> None:
    (tmp_path / "new").mkdir()
    path = HEALTHY[case](tmp_path / "new")
    assert check_images(good, tmp_path / "new", decode=decode) == []
    assert read_image(path, as_tensor=True).shape[0] == 3


def test_broken_files_cannot_be_read_by_anomalib(tmp_path: Path) -> None:
    """PIL is read as anomalib does, so that no fault is invented and none is passed over."""
    for make, _, message in CORPUS.values():
        if message.startswith(("is empty", "cannot be read")):
            with pytest.raises(Exception, match=r"."):
                read_image(make(tmp_path))


def test_color_among_gray_is_only_found_by_decoding(tmp_path: Path) -> None:
    """A file in colour may hold a grey picture, as those of many data sets do."""
    for name in ("good", "new"):
        (tmp_path / name).mkdir()
    for seed in range(2):
        picture(seed).convert("L").convert("RGB").save(tmp_path / "good" / f"{seed}.png")
    picture(3).convert("L").save(tmp_path / "new/grey.png")
    path = saved("colour.png")(tmp_path / "new")
    (issue,) = check_images(tmp_path / "good", tmp_path / "new")
    assert (issue.path, issue.message.partition(".")[0]) == (path, "is in color, but the support set is gray")
    assert check_images(tmp_path / "good", tmp_path / "new", decode=False) == []


def test_majority_of_the_support_set_is_the_reference(good: Path) -> None:
    picture(7).convert("L").save(good / "grey.png")
    picture(8, (30, 20)).save(good / "small.png")
    assert found(check_images(good)) == [("small.png", "warning"), ("grey.png", "warning")]


@pytest.mark.parametrize(("size", "number"), [((143, 64), 0), ((145, 64), 1), ((192, 128), 0), ((192, 129), 1)])
def test_aspect_and_area_factors(good: Path, tmp_path: Path, size: tuple[int, int], number: int) -> None:
    picture(9, size).save(tmp_path / "new.png")
    assert len(check_images(good, [tmp_path / "new.png"])) == number


def test_message_has_the_compared_sizes(good: Path, tmp_path: Path) -> None:
    """The image of median area and that of median aspect ratio differ: each message has the size that decides."""
    for number, size in enumerate([(207, 208), (160, 320), (320, 160), (140, 140)]):
        picture(number, size).save(good / f"{number}.png")
    picture(9, (100, 300)).save(tmp_path / "narrow.png")
    picture(9, (30, 30)).save(tmp_path / "small.png")
    issues = check_images(good, [tmp_path / "narrow.png", tmp_path / "small.png"])
    messages = {issue.path.name: issue.message for issue in issues}
    assert messages["narrow.png"].startswith(
        "has another aspect ratio than the support set (median 1.00, 207 x 208 pixels): 0.33, 100 x 300 pixels.",
    )
    assert messages["small.png"].startswith(
        "has another size than the support set (median 207 x 208 pixels, 43,056 in all): 30 x 30 pixels, 900 in all.",
    )


def test_size_in_a_message_has_the_median_aspect_ratio(tmp_path: Path) -> None:
    """The support image of median area, 320 x 137, has nearly the shape of the images that are warned of."""
    for number, size in enumerate([(100, 100), (200, 200), (320, 137), (220, 220), (230, 230)]):
        picture(number, size).save(tmp_path / f"{number}.png")
    picture(9, (320, 134)).save(tmp_path / "wide.png")
    issues = check_images([tmp_path / f"{number}.png" for number in range(5)], [tmp_path / "wide.png"])
    message = next(issue.message for issue in issues if issue.path.name == "wide.png")
    own, median = (tuple(map(int, pair)) for pair in reversed(re.findall(r"(\d+) x (\d+)", message)))
    assert own == (320, 134)
    assert own[0] / own[1] / (median[0] / median[1]) > image_check.ASPECT_FACTOR


def test_images_of_another_shape_are_one_line(good: Path, tmp_path: Path) -> None:
    (tmp_path / "new").mkdir()
    for number in range(57):
        picture(number, (90, 30)).save(tmp_path / "new" / f"{number:02}.png")
    for number in range(57, 60):
        picture(number).save(tmp_path / "new" / f"{number:02}.png")
    (line,) = summarize(check_images(good, tmp_path / "new"))
    names = ", ".join(f"0{number}.png (3.00, 90 x 30 pixels)" for number in range(3))
    num_images = 60 + len(list(good.glob("*.png")))
    rule = "images have another aspect ratio than the support set (median 1.50, 96 x 64 pixels). Crop or rotate them"
    assert line == f"57 of {num_images} {rule}: {names}, ..., in {tmp_path / 'new'}"


def test_copies_of_the_support(good: Path, tmp_path: Path) -> None:
    shutil.copy(good / "1.png", good / "copy.png")
    shutil.copy(good / "2.png", tmp_path / "renamed.png")
    same_length = bytearray((good / "2.png").read_bytes())
    same_length[-1] ^= 1  # of the check sum at the end, which PIL does not read
    (tmp_path / "other.png").write_bytes(same_length)
    issues = check_images(good, [tmp_path / "renamed.png", tmp_path / "other.png"])
    first, second = map(str, issues)
    assert first == f"{good / 'copy.png'}: is a copy of 1.png, which is also in the support set. Replace it."
    assert second.startswith(
        f"{tmp_path / 'renamed.png'}: is a copy of the support image {good / '2.png'}, so its score is",
    )


def test_files_that_differ_by_their_suffix(good: Path, tmp_path: Path) -> None:
    picture(8).save(good / "0.jpg")
    (tmp_path / "new").mkdir()
    picture(9).save(tmp_path / "new/0.png")  # in another folder
    (issue,) = check_images(good, tmp_path / "new")
    assert issue.path == good / "0.png"
    assert issue.message.startswith("differs from 0.jpg only by its suffix")


def test_skipped_files_are_listed(good: Path) -> None:
    for name in ("a.HEIC", "b.heic", "c.gif", "d.txt", ".DS_Store", "Thumbs.db", "._x", "._0.png", "._1.jpg"):
        (good / name).write_bytes(b"x")
    (good / "sub.HEIC").mkdir()
    notes, unknown = check_images(good)
    assert (notes.path, notes.severity, unknown.path, unknown.severity) == (good, "error", good, "warning")
    assert "macOS metadata" in notes.message
    assert "._0.png, ._1.jpg" in notes.message
    assert "a.HEIC, b.heic, c.gif and 1 more" in unknown.message
    assert find_skipped_files([good]) == [notes, unknown]
    assert check_images([good / "0.png", good / "._0.png"])[0].message.startswith("has macOS metadata files")


def test_folders_without_images(good: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    issues = check_images([tmp_path / "none", tmp_path / "missing", good / "0.png"])
    assert found(issues) == [("none", "error"), ("missing", "error")]
    assert issues[0].message.startswith("has no images. Add some (.jpg, ")


def test_subfolders_and_files_given_twice(good: Path) -> None:
    (good / "more").mkdir()
    picture(8).save(good / "more/0.png")
    assert check_images([good, good / "0.png", str(good)]) == []


def test_errors_come_first(good: Path) -> None:
    saved("a.png", "L")(good)
    written("z.png", b"")(good)
    assert found(check_images(good)) == [("z.png", "error"), ("a.png", "warning")]


def test_repaired_file_is_read_again(good: Path) -> None:
    written("0.png", b"broken")(good)
    assert len(check_images(good)) == 1
    saved("0.png")(good)
    assert check_images(good) == []


def test_only_headers_of_new_images_are_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.jpg", "c.bmp", "d.tif", "e.webp"):
        saved(name)(tmp_path)
    loaded = []
    describe = reading._describe  # noqa: SLF001

    def spy(image: Image.Image, path: Path, *arguments, decode: bool) -> object:
        loaded.extend([path] * decode)
        return describe(image, path, *arguments, decode=decode)

    monkeypatch.setattr(reading, "_describe", spy)
    files = sorted(tmp_path.glob("*.*"))
    assert check_images([], files, decode=False) == []
    assert loaded == []
    assert check_images([], files) == []
    assert len(set(loaded)) == 5


def test_some_images_with_alpha_are_decoded(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_check, "NUM_TRANSPARENT", 2)
    files = []
    for number in range(4):
        image = picture(number + 10).convert("RGBA")
        image.putalpha(0)
        image.save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    assert len(check_images(good, files, decode=False)) == 2
    assert len(check_images(good, files)) == 4
