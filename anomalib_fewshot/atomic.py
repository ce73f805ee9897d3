# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Atomic file writes."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_file(path: Path) -> Generator[Path]:
    """Provide a temporary path, and rename it to the target if the block ends without an error.

    If the block writes no temporary file, nothing is renamed. After an error or a signal the temporary file is deleted.

    Args:
        path (Path): The file. Its folder is created if necessary.

    Yields:
        Path: The temporary path, in the same folder.

    Example:
        >>> folder = getfixture("tmp_path")
        >>> with complete_file(folder / "model.pt") as part:
        ...     _ = part.write_bytes(b"weights")
        >>> [file.name for file in folder.iterdir()]
        ['model.pt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        yield part
        if part.exists():
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, content: str | bytes) -> None:
    """Write a file atomically: other processes, or a crash, never leave a partial file.

    Args:
        path (Path): The file. Its folder is created if necessary.
        content (str | bytes): Content. Text is encoded as UTF-8.

    Raises:
        OSError: If the file cannot be written. An existing file is not changed.
    """
    with complete_file(path) as part, part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
