# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Files that are there whole or not at all."""

import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def complete_file(path: Path) -> Generator[Path]:
    """Give a temporary path in the folder of a file, and move it to the file when the block ends without an error.

    Without a temporary file at the end nothing is moved. After an error or a signal the temporary file is deleted.

    Args:
        path (Path): The file. Its folder is made if it is not there.

    Yields:
        Path: Where to write.

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
    """Write a file so that it is there whole or not at all, also when the machine stops or another process writes it.

    Args:
        path (Path): The file. Its folder is made if it is not there.
        content (str | bytes): What to write, a text as UTF-8.

    Raises:
        OSError: If it cannot be written. What was there before is untouched.
    """
    with complete_file(path) as part, part.open("wb") as file:
        file.write(content.encode() if isinstance(content, str) else content)
        file.flush()
        os.fsync(file.fileno())
