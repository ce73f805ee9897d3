# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A corpus of pictures that cannot be read, or that anomalib reads as something else, each with its finding."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from anomalib.data.utils import read_image, read_mask
from PIL import ExifTags, Image, PngImagePlugin

from anomalib_fewshot.data import picture_check
from anomalib_fewshot.data.picture_check import Finding, check_left_out, check_masks, check_pictures, report

WIDTH, HEIGHT = 96, 64
Maker = Callable[[Path], Path]


def pixels(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """Return a colour picture, shape (H, W, 3), whose channels are far apart."""
    noise = np.random.default_rng(seed).integers(0, 40, (size[1], size[0], 1), dtype=np.uint8)
    return np.concatenate([noise + 180, noise + 90, noise], axis=-1)


def picture(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.fromarray(pixels(seed, size))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return a folder of four healthy pictures."""
    folder = tmp_path / "good"
    folder.mkdir()
    for seed in range(4):
        picture(seed).save(folder / f"{seed}.png")
    return folder


def found(findings: list[Finding]) -> list[tuple[str, str]]:
    return [(finding.path.name, finding.severity) for finding in findings]


def saved(name: str, mode: str = "RGB", **arguments) -> Maker:
    """Return a function that saves a healthy picture in a folder."""

    def make(folder: Path) -> Path:
        picture(9).convert(mode).save(folder / name, **arguments)
        return folder / name

    return make


def cut(name: str, share: float = 0.5, **arguments) -> Maker:
    """Return a function that saves the first part of a picture."""

    def make(folder: Path) -> Path:
        path = saved(name, **arguments)(folder)
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        return path

    return make


def written(name: str, content: bytes) -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def array(name: str, values: np.ndarray, **arguments) -> Maker:
    def make(folder: Path) -> Path:
        Image.fromarray(values).save(folder / name, **arguments)
        return folder / name

    return make


def turned(name: str, orientation: int) -> Maker:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return saved(name, exif=exif)


def transparent(name: str, mode: str = "RGBA") -> Maker:
    """Return a function that saves a picture whose left half is transparent."""

    def make(folder: Path) -> Path:
        image = picture(9).convert("L" if mode == "LA" else "RGB")
        alpha = Image.fromarray(np.repeat([[0] * (WIDTH // 2) + [255] * (WIDTH // 2)], HEIGHT, 0).astype(np.uint8))
        image.putalpha(alpha)
        image.save(folder / name)
        return folder / name

    return make


def palette(folder: Path) -> Path:
    """Save a palette picture in which two colours are transparent."""
    indices = np.tile(np.arange(WIDTH, dtype=np.uint8) % 4, (HEIGHT, 1))
    image = Image.fromarray(indices).convert("P")
    image.putpalette([200, 0, 0, 0, 200, 0, 0, 0, 200, 90, 90, 0])
    image.save(folder / "new.png", transparency=bytes([0, 0, 255, 255]))
    return folder / "new.png"


def pages(folder: Path) -> Path:
    picture(9).save(folder / "new.tif", save_all=True, append_images=[picture(8)])
    return folder / "new.tif"


def link(folder: Path) -> Path:
    (folder / "new.png").symlink_to(folder / "nowhere.png")
    return folder / "new.png"


def in_xmp(folder: Path) -> Path:
    info = PngImagePlugin.PngInfo()
    info.add_itxt("XML:com.adobe.xmp", '<x:xmpmeta><rdf:Description tiff:Orientation="8"/></x:xmpmeta>')
    return saved("new.png", pnginfo=info)(folder)


DEEP = np.full((HEIGHT, WIDTH), 30000)
# Each with the severity and the message of its only finding.
CORPUS: dict[str, tuple[Maker, str, str]] = {
    "empty PNG": (written("new.png", b""), "error", "is empty, 0 bytes. Replace it"),
    "empty JPEG": (written("new.jpg", b""), "error", "is empty, 0 bytes. Replace it"),
    "one byte": (written("new.png", b"x"), "error", "cannot be read"),
    "text as PNG": (written("new.png", b"no picture"), "error", r"cannot be read \(cannot identify image file it\)"),
    "page of HTML": (written("new.jpg", b"<!doctype html><html>404</html>"), "error", "cannot be read"),
    "zeros": (written("new.jpg", bytes(5000)), "error", "cannot be read"),
    "head of a PNG": (written("new.png", b"\x89PNG\r\n\x1a\n"), "error", "cannot be read"),
    "HEIC as JPEG": (written("new.jpg", b"\0\0\0\x18ftypheic" + bytes(99)), "error", "cannot be read"),
    "link to nothing": (link, "error", r"cannot be read \(No such file or directory\)"),
    "too large": (written("new.ppm", b"P6 20000 10000 255 "), "error", r"cannot be read \(Image size .*exceeds limit"),
    "PNG cut in half": (cut("new.png"), "error", "cannot be read .*Replace it, or remove it"),
    "PNG without its end": (cut("new.png", 0.9), "error", "cannot be read"),
    "JPEG cut in half": (cut("new.jpg"), "error", r"cannot be read \(image file is truncated"),
    "JPEG without its end": (cut("new.jpg", 0.9), "error", "cannot be read"),
    "JPEG's head": (cut("new.jpg", 0.1), "error", "cannot be read"),
    "progressive JPEG": (cut("new.jpeg", progressive=True), "error", "cannot be read"),
    "BMP cut in half": (cut("new.bmp"), "error", "cannot be read"),
    "TIFF cut in half": (cut("new.tif"), "error", "cannot be read"),
    "compressed TIFF cut in half": (cut("new.tiff", compression="tiff_lzw"), "error", "cannot be read"),
    "WebP cut in half": (cut("new.webp"), "error", "cannot be read"),
    "PPM cut in half": (cut("new.ppm"), "error", "cannot be read"),
    "16-bit PNG": (array("new.png", DEEP.astype(np.uint16)), "error", "8 bits a channel, got PIL's mode I;16. Convert"),
    "16-bit TIFF": (array("new.tif", DEEP.astype(np.uint16)), "error", "must have 8 bits a channel"),
    "16-bit PGM": (array("new.pgm", DEEP.astype(np.uint16)), "error", "must have 8 bits a channel"),
    "32-bit TIFF": (array("new.tif", DEEP.astype(np.int32)), "error", "got PIL's mode I. Convert"),
    "float TIFF": (array("new.tiff", DEEP.astype(np.float32)), "error", "got PIL's mode F. Convert"),
    **{
        f"EXIF {orientation}": (turned("new.jpg", orientation), "error", f"EXIF orientation {orientation} alone.*Turn")
        for orientation in range(2, 9)
    },
    "EXIF in a PNG": (turned("new.png", 6), "error", "orientation 6"),
    "EXIF in a WebP": (turned("new.webp", 3), "error", "orientation 3"),
    "orientation in XMP": (in_xmp, "error", "orientation 8"),
    "hidden colour": (transparent("new.png"), "warning", "has colours below its transparent pixels"),
    "hidden colour in a TIFF": (transparent("new.tif"), "warning", "has colours below its transparent pixels"),
    "hidden colour in a palette": (palette, "warning", "has colours below its transparent pixels"),
    "several pages": (pages, "warning", "has 2 pages, of which anomalib reads the first"),
    "grey": (saved("new.png", "L"), "warning", "is grey and the support in colour. Take all pictures in one way"),
    "grey JPEG": (saved("new.jpg", "L"), "warning", "is grey and the support in colour"),
    "black and white": (saved("new.png", "1"), "warning", "is grey and the support in colour"),
    "portrait": (
        array("new.png", pixels(9, (HEIGHT, WIDTH))),
        "warning",
        "another shape, 64 x 96 pixels, where the support has 96 x 64. Crop or turn it",
    ),
    "strip": (array("new.png", pixels(9, (200, 20))), "warning", "another shape, 200 x 20"),
    "thumbnail": (array("new.png", pixels(9, (30, 20))), "warning", "another size, 30 x 20 pixels, where the support"),
    "large": (array("new.png", pixels(9, (300, 200))), "warning", "another size, 300 x 200"),
}


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("case", CORPUS)
def test_fault_of_a_new_picture(good: Path, tmp_path: Path, case: str, *, decode: bool) -> None:
    make, severity, message = CORPUS[case]
    (tmp_path / "new").mkdir()
    path = make(tmp_path / "new")
    (finding,) = check_pictures(good, tmp_path / "new", decode=decode)
    assert (finding.path, finding.severity) == (path, severity)
    assert re.search(message, finding.message)


@pytest.mark.parametrize("case", [name for name, (_, severity, _) in CORPUS.items() if severity == "error"])
def test_fault_in_the_support_hinders_nothing_else(good: Path, case: str) -> None:
    path = CORPUS[case][0](good)
    assert found(check_pictures(good)) == [(path.name, "error")]


def _appended(path: Path) -> Path:
    path.write_bytes(path.read_bytes() + bytes(100))
    return path


def _with_defect(folder: Path) -> Path:
    image = picture(9)
    image.paste((10, 10, 10), (10, 10, 30, 30))
    image.save(folder / "new.png")
    return folder / "new.png"


HEALTHY: dict[str, Maker] = {
    "PNG": saved("new.png"),
    "JPEG": saved("new.jpg"),
    "poor JPEG": saved("new.jpg", quality=5),
    "capital suffix": saved("new.JPG"),
    "CMYK": saved("new.jpg", "CMYK"),
    "palette": saved("new.png", "P"),
    "BMP": saved("new.bmp"),
    "TIFF": saved("new.tif"),
    "compressed TIFF": saved("new.tiff", compression="tiff_deflate"),
    "lossless WebP": saved("new.webp", lossless=True),
    "PPM": saved("new.ppm"),
    "JPEG named PNG": saved("new.png", format="JPEG"),
    "opaque alpha": saved("new.png", "RGBA"),
    "EXIF 1": turned("new.jpg", 1),
    "EXIF that is none": turned("new.jpg", 9),
    "EXIF in a TIFF, which PIL applies": saved("new.tif", tiffinfo={274: 3}),
    "broken EXIF": saved("new.jpg", exif=b"Exif\0\0XX\0*rubbish"),
    "uniform colour below": array("new.png", np.concatenate([pixels(9), np.full((64, 96, 1), 255, np.uint8)], -1)),
    "bytes after the end": lambda folder: _appended(saved("new.jpg")(folder)),
    "a little smaller": array("new.png", pixels(9, (80, 60))),
    "grey with a red defect": _with_defect,
}


@pytest.mark.parametrize("decode", [True, False])
@pytest.mark.parametrize("case", HEALTHY)
def test_healthy_pictures_have_no_finding_and_are_read_by_anomalib(
    good: Path,
    tmp_path: Path,
    case: str,
    *,
    decode: bool,
) -> None:
    (tmp_path / "new").mkdir()
    path = HEALTHY[case](tmp_path / "new")
    assert check_pictures(good, tmp_path / "new", decode=decode) == []
    assert read_image(path, as_tensor=True).shape[0] == 3


def test_broken_files_are_those_that_anomalib_cannot_read(tmp_path: Path) -> None:
    """PIL is read as anomalib does, so that no fault is invented and none is passed over."""
    for make, _, message in CORPUS.values():
        if message.startswith(("is empty", "cannot be read")):
            with pytest.raises(Exception, match=r"."):
                read_image(make(tmp_path))


def test_colour_among_grey_is_seen_only_by_decoding(tmp_path: Path) -> None:
    """A file in colour may hold a grey picture, as those of many data sets do."""
    for name in ("good", "new"):
        (tmp_path / name).mkdir()
    for seed in range(2):
        picture(seed).convert("L").convert("RGB").save(tmp_path / "good" / f"{seed}.png")
    picture(3).convert("L").save(tmp_path / "new/grey.png")
    path = saved("colour.png")(tmp_path / "new")
    (finding,) = check_pictures(tmp_path / "good", tmp_path / "new")
    assert (finding.path, finding.message[:40]) == (path, "is in colour and the support grey. Take ")
    assert check_pictures(tmp_path / "good", tmp_path / "new", decode=False) == []


def test_most_of_the_support_decide_what_is_usual(good: Path) -> None:
    picture(7).convert("L").save(good / "grey.png")
    picture(8, (30, 20)).save(good / "small.png")
    assert found(check_pictures(good)) == [("grey.png", "warning"), ("small.png", "warning")]


@pytest.mark.parametrize(("size", "number"), [((143, 64), 0), ((145, 64), 1), ((192, 128), 0), ((192, 129), 1)])
def test_factors_of_aspect_and_area(good: Path, tmp_path: Path, size: tuple[int, int], number: int) -> None:
    picture(9, size).save(tmp_path / "new.png")
    assert len(check_pictures(good, [tmp_path / "new.png"])) == number


def test_copies_of_the_support(good: Path, tmp_path: Path) -> None:
    shutil.copy(good / "1.png", good / "copy.png")
    shutil.copy(good / "2.png", tmp_path / "renamed.png")
    same_length = bytearray((good / "2.png").read_bytes())
    same_length[-1] ^= 1  # of the check sum at the end, which PIL does not read
    (tmp_path / "other.png").write_bytes(same_length)
    findings = check_pictures(good, [tmp_path / "renamed.png", tmp_path / "other.png"])
    first, second = map(str, findings)
    assert first == f"{good / 'copy.png'}: is the same picture as 1.png: it adds nothing to the support. Replace it."
    assert second.startswith(f"{tmp_path / 'renamed.png'}: is the support's picture {good / '2.png'}, so its score is")


def test_files_that_differ_by_their_suffix(good: Path, tmp_path: Path) -> None:
    picture(8).save(good / "0.jpg")
    (tmp_path / "new").mkdir()
    picture(9).save(tmp_path / "new/0.png")  # in another folder
    (finding,) = check_pictures(good, tmp_path / "new")
    assert finding.path == good / "0.png"
    assert finding.message == "differs from 0.jpg by its suffix alone, so that results may mix. Rename one."


def test_files_that_are_no_pictures_are_counted(good: Path) -> None:
    for name in ("a.HEIC", "b.heic", "c.gif", "d.txt", ".DS_Store", "Thumbs.db", "._x", "._0.png", "._1.jpg"):
        (good / name).write_bytes(b"x")
    (good / "sub.HEIC").mkdir()
    notes, unknown = check_pictures(good)
    assert (notes.path, notes.severity, unknown.path, unknown.severity) == (good, "error", good, "warning")
    assert notes.message == "2 notes of macOS that anomalib would take for pictures. Delete them: ._0.png, ._1.jpg."
    assert unknown.message.startswith("4 files left out: anomalib reads .jpg, ")
    assert unknown.message.endswith(": a.HEIC, b.heic, c.gif, ....")
    assert check_left_out([good]) == [notes, unknown]
    assert check_pictures([good / "0.png", good / "._0.png"])[0].message.startswith("1 notes of macOS")


def test_folders_without_pictures(good: Path, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    findings = check_pictures([tmp_path / "none", tmp_path / "missing", good / "0.png"])
    assert found(findings) == [("none", "error"), ("missing", "error")]
    assert findings[0].message.startswith("has no pictures. Add some, of .jpg, ")


def test_subfolders_and_files_given_twice(good: Path) -> None:
    (good / "more").mkdir()
    picture(8).save(good / "more/0.png")
    assert check_pictures([good, good / "0.png", str(good)]) == []


def test_errors_come_first(good: Path) -> None:
    saved("a.png", "L")(good)
    written("z.png", b"")(good)
    assert found(check_pictures(good)) == [("z.png", "error"), ("a.png", "warning")]


def test_file_that_is_mended_is_read_again(good: Path) -> None:
    written("0.png", b"broken")(good)
    assert len(check_pictures(good)) == 1
    saved("0.png")(good)
    assert check_pictures(good) == []


def test_headers_alone_are_read_of_new_pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.png", "b.jpg", "c.bmp", "d.tif", "e.webp"):
        saved(name)(tmp_path)
    loaded = []
    describe = picture_check._describe  # noqa: SLF001

    def spy(image: Image.Image, path: Path, *arguments, decode: bool) -> object:
        loaded.extend([path] * decode)
        return describe(image, path, *arguments, decode=decode)

    monkeypatch.setattr(picture_check, "_describe", spy)
    files = sorted(tmp_path.glob("*.*"))
    assert check_pictures([], files, decode=False) == []
    assert loaded == []
    assert check_pictures([], files) == []
    assert len(set(loaded)) == 5


def test_some_pictures_with_alpha_are_decoded(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(picture_check, "NUM_TRANSPARENT", 2)
    files = []
    for number in range(4):
        image = picture(number + 10).convert("RGBA")
        image.putalpha(0)
        image.save(tmp_path / f"{number}.png")
        files.append(tmp_path / f"{number}.png")
    assert len(check_pictures(good, files, decode=False)) == 2
    assert len(check_pictures(good, files)) == 4


def square(value: int = 255, rest: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    """Return a mask with a small square."""
    mask = Image.new("L", size, rest)
    mask.paste(value, (4, 4, 14, 14))
    return mask


def with_alpha(image: Image.Image) -> Image.Image:
    white = Image.new("RGBA", image.size, "white")
    white.putalpha(image)
    return white


MASKS: dict[str, tuple[Image.Image, str, str]] = {
    "black": (Image.new("L", (WIDTH, HEIGHT)), "error", "marks nothing. Paint the defect white"),
    "inverted": (square(0, 255), "warning", "marks 98% of its picture. If it is inverted"),
    "white": (Image.new("L", (WIDTH, HEIGHT), 255), "warning", "marks 100% of its picture"),
    "in its alpha channel": (with_alpha(square()), "error", "must have no transparency"),
    "turned": (square(size=(HEIGHT, WIDTH)), "error", "has 64 x 96 pixels, its picture 96 x 64"),
    "square": (square(size=(64, 64)), "error", "has 64 x 64 pixels, its picture 96 x 64"),
}


@pytest.mark.parametrize("case", MASKS)
def test_mask_that_cannot_be_meant(good: Path, tmp_path: Path, case: str) -> None:
    mask, severity, message = MASKS[case]
    mask.save(tmp_path / "mask.png")
    (finding,) = check_pictures(good, masks={str(good / "0.png"): str(tmp_path / "mask.png")})
    assert (finding.path, finding.severity) == (tmp_path / "mask.png", severity)
    assert finding.message.startswith(message)


@pytest.mark.parametrize(
    "mask",
    [
        square(),
        square(1),
        square().convert("RGB"),
        square().convert("RGBA"),
        square().convert("1"),
        square().convert("P"),
        square(size=(48, 32)),
        square(size=(47, 32)),
        Image.fromarray(np.asarray(square()).astype(np.uint16) * 257),
    ],
)
def test_healthy_masks(good: Path, tmp_path: Path, mask: Image.Image) -> None:
    mask.save(tmp_path / "mask.png")
    assert check_masks({good / "0.png": tmp_path / "mask.png"}) == []
    assert read_mask(tmp_path / "mask.png", as_tensor=True).sum() == 100


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (written("mask.png", b""), "is empty"),
        (cut("mask.png", 0.7), "cannot be read"),
        (turned("mask.jpg", 6), "orientation 6"),
        (lambda folder: folder / "mask.png", r"does not exist, as the mask of 0\.png"),
    ],
)
def test_mask_that_cannot_be_read(good: Path, tmp_path: Path, make: Maker, message: str) -> None:
    mask = make(tmp_path)
    (finding,) = check_masks({good / "0.png": mask})
    assert (finding.path, finding.severity) == (mask, "error")
    assert re.search(message, finding.message)


def test_mask_of_a_turned_picture_is_not_blamed(tmp_path: Path) -> None:
    path = turned("new.jpg", 6)(tmp_path)
    square(size=(HEIGHT, WIDTH)).save(tmp_path / "mask.png")
    (finding,) = check_masks({path: tmp_path / "mask.png"})
    assert (finding.path, finding.severity) == (path, "error")


def test_report_names_all_errors_and_logs_warnings(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    warnings = [Finding(tmp_path / "a.png", "warning", "is grey.")]
    errors = [Finding(tmp_path / f"{number}.png", "error", "is empty.") for number in range(23)]
    report([])
    report(warnings * 2)
    report(warnings, known=warnings)
    assert caplog.messages == [f"{tmp_path / 'a.png'}: is grey."]
    with pytest.raises(ValueError, match="got 2 that are not:\n  .*/0.png: is empty.\n  .*/1.png: is empty.$"):
        report([*warnings, *errors[:2], *errors[:2]])
    with pytest.raises(ValueError, match=r"got 23 that are not:[^.](.*\n)*  \.\.\. and 3 more\.$"):
        report(errors)
