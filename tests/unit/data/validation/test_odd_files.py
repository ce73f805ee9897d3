# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Nothing is silently wrong: a file is scored as the plain picture that it shows, or named with its fault."""

from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from anomalib.data.utils import read_image
from corpus import CORPUS, HEALTHY, HEIGHT, WIDTH, picture, saved
from hypothesis import given, settings
from hypothesis import strategies as st
from odd_files import FILES
from PIL import Image

from anomalib_fewshot import CoftAD, inspect
from anomalib_fewshot.data.validation.image_check import check_images
from anomalib_fewshot.inspection import training

KINDS = FILES | {name: make for name, (make, *_) in CORPUS.items()} | HEALTHY
# It is not the plain picture; a whole stream of too few rows, which PIL and so anomalib read as black below.
OTHERS = {"grey with a red defect", "PNG of half its rows"}


def test_odd_files_are_read_correctly_or_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All kinds in one run, each in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    arguments = {"image_size": 64, "num_steps": 1}
    monkeypatch.setattr(training, "new_model", lambda _: CoftAD(**arguments, evaluator=False, visualizer=False))
    (tmp_path / "good").mkdir()
    for seed in range(4):
        picture(seed).save(tmp_path / "good" / f"{seed}.png")
    kinds = {}
    for number, (kind, make) in enumerate(KINDS.items()):
        folder = tmp_path / "new" / f"{number:03}"
        folder.mkdir(parents=True)
        kinds[make(folder).relative_to(tmp_path / "new").as_posix()] = kind

    scores = inspect("good", "new", progress=False).set_index("path").score
    said = Path("results/inspect/v0/findings.csv").read_text(encoding="utf-8", errors="surrogateescape")
    named = {path for path in kinds if f"new/{path}" in said}
    assert {kinds[path] for path in set(kinds) - set(scores.index) - named} == set()  # lost without a word
    plain = np.asarray(picture(9), dtype=float)
    read = {path: Image.open(Path("new", path)).convert("RGB") for path in scores.index if path not in named}
    wrong = {
        kinds[path]
        for path, image in read.items()
        if np.abs(np.asarray(image.resize((WIDTH, HEIGHT)), dtype=float) - plain).mean() > 20  # of 255; noise is 13
    }
    assert wrong - OTHERS == set()
    assert (len(kinds), len(set(kinds) - set(scores.index)), len(named & set(scores.index))) == (158, 83, 17)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(["new.png", "new.jpg"]),
    changes=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=8),
    cut=st.floats(0, 1),
)
def test_broken_bytes_are_reported_or_read(name: str, changes: list[tuple[float, int]], cut: float) -> None:
    """No error is without the file's name, and what is not named can be read, all of it or its header alone."""
    with TemporaryDirectory() as folder:
        path = saved(name)(Path(folder))
        content = bytearray(path.read_bytes())
        for place, value in changes:
            content[int(place * len(content))] = value
        path.write_bytes(content[: int(max(cut, 0.5) * len(content))] if cut < 0.75 else content)
        for decode in (True, False):
            findings = check_images((), [path], decode=decode)
            assert {finding.path for finding in findings} <= {path}
            if decode and not any(finding.severity == "error" for finding in findings):
                assert read_image(path, as_tensor=True).shape[0] == 3
