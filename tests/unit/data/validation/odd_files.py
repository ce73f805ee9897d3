# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""More odd files, of one picture each: cut at many places, of rare formats, broken inside, of hard names."""

import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
from corpus import HEIGHT, WIDTH, Maker, cut, picture, pixels, saved
from PIL import ImageCms

# Adam7: first row, first column, and the steps to the next ones, of each pass.
PASSES = ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1))


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(*chunks: bytes, width: int = WIDTH, height: int = HEIGHT, interlaced: bool = False) -> bytes:
    """Return a PNG in colour of some chunks."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, interlaced)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def scan(part: np.ndarray) -> bytes:
    """Return the rows of a picture, unfiltered."""
    return b"".join(b"\0" + row.tobytes() for row in part)


def data(content: bytes) -> bytes:
    return chunk(b"IDAT", zlib.compress(content))


def file(content: bytes, name: str = "new.png") -> Maker:
    def make(folder: Path) -> Path:
        (folder / name).write_bytes(content)
        return folder / name

    return make


def opencv(name: str, kind: type, scale: float) -> Maker:
    """Return a function that saves a picture of more than 8 bits."""

    def make(folder: Path) -> Path:
        cv2.imwrite(str(folder / name), (pixels(9)[..., ::-1] * np.float64(scale)).astype(kind))
        return folder / name

    return make


def changed(name: str, place: float, value: bytes) -> Maker:
    """Return a function that writes bytes over a part of a picture."""

    def make(folder: Path) -> Path:
        path = saved(name)(folder)
        content = bytearray(path.read_bytes())
        start = int(place * len(content))
        content[start : start + len(value)] = value
        path.write_bytes(content)
        return path

    return make


def named(name: str) -> Maker:
    return saved(name, format="PNG")


def loop(folder: Path) -> Path:
    (folder / "new.png").symlink_to("new.png")
    return folder / "new.png"


def link(folder: Path) -> Path:
    (folder.parent / "hidden").mkdir(exist_ok=True)
    (folder / "new.png").symlink_to(saved("kept.png")(folder.parent / "hidden"))
    return folder / "new.png"


def lab(folder: Path) -> Path:
    profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
    ImageCms.profileToProfile(picture(9), *profiles, outputMode="LAB").save(folder / "new.tif")
    return folder / "new.tif"


def flat(folder: Path) -> Path:
    """Save a JPEG whose header says that it has no rows."""
    path = saved("new.jpg")(folder)
    head, start, rest = path.read_bytes().partition(b"\xff\xc0")
    path.write_bytes(head + start + rest[:3] + b"\0\0" + rest[5:])
    return path


def frames(name: str, form: str) -> Maker:
    return saved(name, format=form, save_all=True, append_images=[picture(8)])


NAMED = [("PNG", "new.jpg"), ("TIFF", "new.png"), ("BMP", "new.jpg"), ("WEBP", "new.png"), ("PPM", "new.bmp")]
SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
OFFSETS = (0.02, 0.1, 0.2, 0.3, 0.4, 0.6, 0.7, 0.8, 0.95, 0.99)
FILES: dict[str, Maker] = {
    **{f"PNG cut at {share}": cut("new.png", share) for share in OFFSETS},
    **{f"JPEG cut at {share}": cut("new.jpg", share) for share in OFFSETS},
    **{f"progressive JPEG cut at {share}": cut("new.jpg", share, progressive=True) for share in OFFSETS[::3]},
    **{f"BMP cut at {share}": cut("new.bmp", share) for share in OFFSETS[::3]},
    **{f"TIFF cut at {share}": cut("new.tif", share) for share in OFFSETS[::3]},
    **{f"WebP cut at {share}": cut("new.webp", share) for share in OFFSETS[::3]},
    **{f"PPM cut at {share}": cut("new.ppm", share) for share in OFFSETS[::3]},
    **{f"PNG broken at {share}": changed("new.png", share, bytes(9)) for share in OFFSETS},
    **{f"{form} named {name}": saved(name, format=form) for form, name in NAMED},
    "16-bit colour PNG": opencv("new.png", np.uint16, 257),
    "16-bit colour TIFF": opencv("new.tif", np.uint16, 257),
    "float colour TIFF": opencv("new.tif", np.float32, 1 / 255),
    "LAB TIFF": lab,
    "CMYK TIFF": saved("new.tif", "CMYK"),
    "YCbCr TIFF": saved("new.tif", "YCbCr"),
    "JPEG in TIFF": saved("new.tif", compression="jpeg"),
    "palette BMP": saved("new.bmp", "P"),
    "JPEG without subsampling": saved("new.jpg", subsampling=0, quality=100),
    "animated PNG": frames("new.png", "PNG"),
    "animated WebP": frames("new.webp", "WEBP"),
    "animated GIF named PNG": frames("new.png", "GIF"),
    "several JPEGs in one": frames("new.jpg", "MPO"),
    "PNG, one colour transparent": saved("new.png", transparency=(180, 90, 0)),
    "interlaced PNG": file(png(data(b"".join(scan(pixels(9)[r::h, c::w]) for r, c, h, w in PASSES)), interlaced=True)),
    "PNG without data": file(png()),
    "PNG of half its rows": file(png(data(scan(pixels(9)[: HEIGHT // 2])))),
    "PNG of no width": file(png(data(b""), width=0)),
    "PNG of a huge header": file(png(data(scan(pixels(9))), width=100_000, height=100_000)),
    "PNG of a wrong check sum": file(png(data(scan(pixels(9)))[:-1] + b"x")),
    "JPEG of no height": flat,
    "JPEG of a table alone": file(b"\xff\xd8\xff\xdb\0\x43" + bytes(65) + b"\xff\xd9", "new.jpg"),
    "with a profile of colour": saved("new.png", icc_profile=SRGB),
    "link to itself": loop,
    "link to a picture": link,
    "name with umlaut": named("Prüfling.png"),
    "name in Japanese": named("検査.png"),
    "name with a line break": named("new\nline.png"),
    "name with quotes": named('it\'s "new" #1 100%.png'),
    "name with spaces": named("  new  .png"),
    "name of dots": named("...png"),
    "name that is no text": named(os.fsdecode(b"\xff\xfe.png")),
    "name of 255 letters": named("n" * 251 + ".png"),
    "name like a tag": named("<b>&amp;.png"),
    "name of capitals": named("NEW.PNG"),
}
