# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Healthy pictures."""

from pathlib import Path

import pytest
from corpus import picture


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """Return a folder of four healthy pictures."""
    folder = tmp_path / "good"
    folder.mkdir()
    for seed in range(4):
        picture(seed).save(folder / f"{seed}.png")
    return folder
