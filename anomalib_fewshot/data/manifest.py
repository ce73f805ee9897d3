# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The manifest of a support: which images a detector was made from, so that a run can be repeated."""

import hashlib
import json
from dataclasses import asdict, dataclass
from pathlib import Path

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.errors import MissingDataError, SupportError

VERSION = 1


@dataclass(frozen=True)
class SupportManifest:
    """The images of a support.

    Args:
        dataset (str): Name of the dataset.
        category (str): Name of the category.
        k_shot (int): Number of images.
        seed (int | None): Seed of the choice. ``None`` if the images were named by the user.
        images (dict[str, str]): SHA-256 of each file by its path, relative to the folder of all normal training images.
    """

    dataset: str
    category: str
    k_shot: int
    seed: int | None
    images: dict[str, str]

    @property
    def digest(self) -> str:
        """Eight digits that are equal for equal images."""
        images = json.dumps(self.images, sort_keys=True)
        return hashlib.sha256(images.encode()).hexdigest()[:8]

    def write(self, path: Path) -> None:
        """Write the manifest as JSON. A file that is there is replaced in one step."""
        write_atomically(path, json.dumps({"version": VERSION, **asdict(self)}, indent=2) + "\n")

    @classmethod
    def read(cls, path: Path) -> "SupportManifest":
        """Read a manifest.

        Raises:
            MissingDataError: If there is no such file.
            SupportError: If the file is not a manifest, or one of another version.
        """
        if not path.is_file():
            msg = f"`support` must be a manifest or a list of file names, got {str(path)!r}, which is not a file."
            raise MissingDataError(msg)
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("version")
            if version != VERSION:
                msg = f"`support` must be a manifest of version {VERSION}, got version {version!r} in {path}."
                raise SupportError(msg)
            return cls(**content)
        except (AttributeError, KeyError, TypeError, UnicodeDecodeError, json.JSONDecodeError) as error:
            msg = f"`support` must be a manifest as written beside the results, got {path}, which is none ({error})."
            raise SupportError(msg) from error


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file as hexadecimal digits."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()
