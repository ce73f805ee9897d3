# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Manifest of a support set: the images that a model was fitted to, so that a run can be repeated."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.errors import MissingDataError, SupportError

VERSION = 1


@dataclass(frozen=True)
class SupportManifest:
    """The images of a support set.

    Args:
        dataset (str): Name of the dataset.
        category (str): Name of the category.
        k_shot (int): Number of images.
        seed (int | None): Seed of the random choice. ``None`` if the user named the images.
        images (dict[str, str]): SHA-256 of each file, keyed by its path relative to the folder of the normal images.
    """

    dataset: str
    category: str
    k_shot: int
    seed: int | None
    images: dict[str, str]

    @property
    def digest(self) -> str:
        """Eight hexadecimal digits that identify the images."""
        images = json.dumps(self.images, sort_keys=True)
        return hashlib.sha256(images.encode()).hexdigest()[:8]

    def write(self, path: Path) -> None:
        """Write the manifest as JSON. An existing file is replaced atomically."""
        write_atomically(path, json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n")

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
    """Return the SHA-256 of a file as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
