# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Manifest of a support set: the images that a model was fitted to, so that a run can be repeated."""

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.errors import MissingDataError, SupportError

VERSION = 1
CHUNK = 2**20  # bytes that are hashed at once


@dataclass(frozen=True)
class SupportManifest:
    """The images of a support set.

    Args:
        dataset (str): Name of the dataset.
        category (str): Name of the category.
        k_shot (int): Number of images.
        seed (int | None): Seed of the random choice. ``None`` if the user named the images.
        images (dict[str, str]): SHA-256 of each file, keyed by its path relative to the folder of the normal images.
        unlabeled (dict[str, str]): SHA-256 of each file of the unlabeled pool, in the order of the pool. The keys are
            relative to the folder of the pool, or to the folder of the normal images if the pool was drawn from the
            data module. Defaults to no pool.
        contamination (float): Share of the pool that was drawn from the anomalous test images. Defaults to ``0.0``.
    """

    dataset: str
    category: str
    k_shot: int
    seed: int | None
    images: dict[str, str]
    unlabeled: dict[str, str] = field(default_factory=dict)
    contamination: float = 0.0

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify the images, including the unlabeled ones if there are any."""
        content = [self.images, self.unlabeled] if self.unlabeled else self.images
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:8]

    def write(self, path: Path) -> None:
        """Write the manifest as JSON. An existing file is replaced atomically."""
        content = {"version": VERSION, **asdict(self)}
        if not self.unlabeled:
            del content["unlabeled"], content["contamination"]
        write_atomically(path, json.dumps(content, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> "SupportManifest":
        """Read a manifest.

        Raises:
            MissingDataError: If the file does not exist.
            SupportError: If the file is not a manifest, or has another version.
        """
        if not path.is_file():
            msg = f"`support` must be a manifest or a list of file names, got {str(path)!r}, which does not exist."
            raise MissingDataError(msg)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("version")
            if version != VERSION:
                msg = f"`support` must be a manifest of version {VERSION}, got version {version!r}: {path}"
                raise SupportError(msg)
            return cls(**content)
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            msg = f"`support` must be a `support.json` file written by a fit, got an invalid file ({error}): {path}"
            raise SupportError(msg) from error


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits. The file is read in chunks."""
    digest = hashlib.sha256()
    with Path(path).open("rb") as file:
        while chunk := file.read(CHUNK):
            digest.update(chunk)
    return digest.hexdigest()
