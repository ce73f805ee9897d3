# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A corpus of pictures: those that cannot be read, those that anomalib reads as something else, and healthy ones."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, PngImagePlugin

WIDTH, HEIGHT = 96, 64
Maker = Callable[[Path], Path]


def pixels(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> np.ndarray:
    """Return a colour picture, shape (H, W, 3), whose channels are far apart."""
    noise = np.random.default_rng(seed).integers(0, 40, (size[1], size[0], 1), dtype=np.uint8)
    return np.concatenate([noise + 180, noise + 90, noise], axis=-1)


def picture(seed: int = 0, size: tuple[int, int] = (WIDTH, HEIGHT)) -> Image.Image:
    return Image.fromarray(pixels(seed, size))


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


def rotated(name: str, orientation: int) -> Maker:
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
    "empty PNG": (written("new.png", b""), "error", "is empty, 0 bytes. Replace or remove it"),
    "empty JPEG": (written("new.jpg", b""), "error", "is empty, 0 bytes. Replace or remove it"),
    "one byte": (written("new.png", b"x"), "error", "cannot be read"),
    "text as PNG": (written("new.png", b"no picture"), "error", r"cannot be read \(cannot identify image file it\)"),
    "page of HTML": (written("new.jpg", b"<!doctype html><html>404</html>"), "error", "cannot be read"),
    "zeros": (written("new.jpg", bytes(5000)), "error", "cannot be read"),
    "head of a PNG": (written("new.png", b"\x89PNG\r\n\x1a\n"), "error", "cannot be read"),
    "HEIC as JPEG": (written("new.jpg", b"\0\0\0\x18ftypheic" + bytes(99)), "error", "cannot be read"),
    "link to nothing": (link, "error", r"cannot be read \(No such file or directory\)"),
    "too large": (written("new.ppm", b"P6 20000 10000 255 "), "error", r"cannot be read \(Image size .*exceeds limit"),
    "PNG cut in half": (cut("new.png"), "error", "cannot be read .*Replace or remove it"),
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
    "16-bit PNG": (array("new.png", DEEP.astype(np.uint16)), "error", "8 bits per channel, got PIL mode I;16. Convert"),
    "16-bit TIFF": (array("new.tif", DEEP.astype(np.uint16)), "error", "must have 8 bits per channel"),
    "16-bit PGM": (array("new.pgm", DEEP.astype(np.uint16)), "error", "must have 8 bits per channel"),
    "32-bit TIFF": (array("new.tif", DEEP.astype(np.int32)), "error", "got PIL mode I. Convert"),
    "float TIFF": (array("new.tiff", DEEP.astype(np.float32)), "error", "got PIL mode F. Convert"),
    **{
        f"EXIF {orientation}": (
            rotated("new.jpg", orientation),
            "error",
            f"EXIF orientation {orientation}, which.*Rotate",
        )
        for orientation in range(2, 9)
    },
    "EXIF in a PNG": (rotated("new.png", 6), "error", "orientation 6"),
    "EXIF in a WebP": (rotated("new.webp", 3), "error", "orientation 3"),
    "orientation in XMP": (in_xmp, "error", "orientation 8"),
    "hidden colour": (transparent("new.png"), "warning", "has different colors in transparent pixels"),
    "hidden colour in a TIFF": (transparent("new.tif"), "warning", "has different colors in transparent pixels"),
    "hidden colour in a palette": (palette, "warning", "has different colors in transparent pixels"),
    "several pages": (pages, "warning", "has 2 pages, but anomalib reads only the first"),
    "grey": (saved("new.png", "L"), "warning", "is gray, but the support set is in color"),
    "grey JPEG": (saved("new.jpg", "L"), "warning", "is gray, but the support set is in color"),
    "black and white": (saved("new.png", "1"), "warning", "is gray, but the support set is in color"),
    "portrait": (
        array("new.png", pixels(9, (HEIGHT, WIDTH))),
        "warning",
        r"another aspect ratio .* \(median 1.50, 96 x 64 pixels\): 0.67, 64 x 96 pixels. Crop or rotate it",
    ),
    "strip": (array("new.png", pixels(9, (200, 20))), "warning", "another aspect ratio .*: 10.00, 200 x 20 pixels"),
    "thumbnail": (
        array("new.png", pixels(9, (30, 20))),
        "warning",
        r"another size .* \(median 96 x 64 pixels, 6,144 in all\): 30 x 20 pixels, 600 in all",
    ),
    "large": (array("new.png", pixels(9, (300, 200))), "warning", "another size .*: 300 x 200 pixels, 60,000"),
}


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
    "EXIF 1": rotated("new.jpg", 1),
    "EXIF that is none": rotated("new.jpg", 9),
    "EXIF in a TIFF, which PIL applies": saved("new.tif", tiffinfo={274: 3}),
    "broken EXIF": saved("new.jpg", exif=b"Exif\0\0XX\0*rubbish"),
    "uniform colour below": array("new.png", np.concatenate([pixels(9), np.full((64, 96, 1), 255, np.uint8)], -1)),
    "bytes after the end": lambda folder: _appended(saved("new.jpg")(folder)),
    "a little smaller": array("new.png", pixels(9, (80, 60))),
    "grey with a red defect": _with_defect,
}
