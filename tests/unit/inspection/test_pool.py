# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Runs that learn from unlabeled pictures: the new ones, and older ones."""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import ExifTags, Image
from weave import HEIGHT, WIDTH, draw, small_model

from anomalib_fewshot import inspect
from anomalib_fewshot.inspection import pool, session, training
from anomalib_fewshot.inspection.cli import Inspect
from anomalib_fewshot.inspection.ignore_mask import IgnoreMask
from anomalib_fewshot.inspection.run_folder import RunFolder
from anomalib_fewshot.inspection.scoring import Scorer
from anomalib_fewshot.inspection.training import load
from anomalib_fewshot.models.coft_ad import lightning_model
from anomalib_fewshot.models.coft_ad.features import Features

ROTATED = {"6.png": 6, "7.jpg": 8}
NAMES = [*(f"{number}.png" for number in range(4)), "4.jpg", "5.jpg", *ROTATED, "hole.png"]
RUN = Path("results/inspect/v0")


def draw_rotated(path: Path, seed: int, orientation: int) -> None:
    """Draw a portrait image that its EXIF orientation turns to landscape."""
    draw(path, seed)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    with Image.open(path) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
    turned.save(path, exif=exif)


@pytest.fixture(scope="session")
def source(part: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with four good images, nine new ones of several formats, and a mask."""
    root = tmp_path_factory.mktemp("source")
    shutil.copytree(part / "good", root / "good")
    for seed, name in enumerate(NAMES, start=100):
        if name in ROTATED:
            draw_rotated(root / "new" / name, seed, ROTATED[name])
        else:
            draw(root / "new" / name, seed, hole=name == "hole.png")
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.uint8)
    mask[:10, :10] = 255
    Image.fromarray(mask).save(root / "mask.png")
    return root


@pytest.fixture(scope="session")
def pooled(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a finished run whose new images are its pool."""
    root = tmp_path_factory.mktemp("pooled")
    with mock.patch.object(training, "new_model", small_model):
        inspect(source / "good", source / "new", out=root, ignore=source / "mask.png", progress=False)
    return root / "v0"


@pytest.fixture
def folder(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with copies of the good and new images."""
    shutil.copytree(source, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "new_model", small_model)
    return tmp_path


@pytest.fixture
def small_pools(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pools of 2 to 8 images."""
    for module in (pool, lightning_model):
        monkeypatch.setattr(module, "MIN_POOL_SIZE", 2)
        monkeypatch.setattr(module, "MAX_POOL_SIZE", 8)


def settings_of(run: Path) -> dict:
    return json.loads((run / "run.json").read_text(encoding="utf-8"))


def pool_of(run: Path) -> set[str]:
    manifest = json.loads((run / "support.json").read_text(encoding="utf-8"))
    return {Path(path).name for path in manifest.get("unlabeled", {})}


def assert_same(table: pd.DataFrame, expected: pd.DataFrame) -> None:
    pd.testing.assert_frame_equal(table, expected, check_exact=False, atol=1e-6)


# --- New pictures


def test_new_pictures_are_the_pool(pooled: Path) -> None:
    assert pool_of(pooled) == set(NAMES)
    settings = settings_of(pooled)
    assert settings["pool"] is True
    assert (settings["unlabeled_used"], settings["unlabeled_found"]) == (9, 9)
    assert load(pooled).model.scorer.memory_bank.pool_size == 9
    assert '"9 unlabeled pictures used."' in (pooled / "index.html").read_text()
    table = pd.read_csv(pooled / "scores.csv")
    assert set(table.path) == set(NAMES)
    assert (table.path[0], table.verdict[0]) == ("hole.png", "defect")


@torch.inference_mode()
def test_scored_pictures_are_found_in_the_pool(pooled: Path, source: Path) -> None:
    """Pixels are read alike for training and scoring: JPEG, EXIF orientation and mask."""
    model = load(pooled).eval()
    paths = sorted((source / "new").iterdir())
    seen = []
    score_features = model.model.score_features

    def record(features: Features) -> object:
        seen.append(model.model.scorer.memory_bank.find_own(features.bank))
        return score_features(features)

    with mock.patch.object(model.model, "score_features", record):
        scored = list(Scorer(model, IgnoreMask(source / "mask.png"))(paths))
    found = torch.cat(seen)[:, 4:]  # after four good ones
    assert [each.path for each in scored] == paths
    assert torch.equal(found.sum(0), torch.ones(9))
    assert torch.equal(found.sum(1), torch.ones(9))


def test_without_a_pool_scores_are_as_before(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    new = [folder / "new" / name for name in NAMES]
    with_pool = inspect("good", "new", progress=False)
    table = inspect("good", "new", pool=False)
    run = folder / "results/inspect/v1"
    assert "unlabeled" not in capsys.readouterr().out
    assert 'id="pool"' not in (run / "index.html").read_text(encoding="utf-8")
    assert not pool_of(run)
    assert settings_of(run)["pool"] is False
    assert settings_of(run)["unlabeled_used"] == 0
    assert not np.allclose(table.sort_values("path").score, with_pool.sort_values("path").score)
    for path in new[3:]:
        path.unlink()
    few = inspect("good", "new", progress=False)  # trained without a pool, too
    expected = table[table.path.isin(few.path)].reset_index(drop=True)
    assert_same(few, expected)


def test_too_few_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES[:2]:
        (folder / "new" / name).unlink()
    inspect("good", "new")
    text = "7 new pictures are too few to learn from (8 needed)."
    assert text in capsys.readouterr().out
    assert text in (folder / RUN / "index.html").read_text(encoding="utf-8")
    assert settings_of(folder / RUN)["unlabeled_used"] == 0


@pytest.mark.usefixtures("small_pools")
def test_of_many_pictures_some_are_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = (folder / "new/0.png").read_bytes()
    middle = len(whole) // 2
    (folder / "new/broken.png").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    inspect("good", "new")
    said = capsys.readouterr().out
    assert re.search(r"Training on 4 good and 8 unlabeled pictures .* 100%", said)
    assert "8 of 9 unlabeled pictures used." in said
    assert len(pool_of(RUN)) == 8
    assert pool_of(RUN) < set(NAMES)


@pytest.mark.usefixtures("small_pools")
def test_unreadable_pictures_are_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One is broken in the middle: only decoding finds it. Good pictures are left out, too."""
    for path in (folder / "new").iterdir():
        if path.name not in {"0.png", "1.png", "2.png"}:
            path.unlink()
    whole = (folder / "new/0.png").read_bytes()
    middle = len(whole) // 2
    (folder / "new/0.png").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    (folder / "new/link.png").symlink_to(folder / "good/0.png")
    draw(folder / "old/a.png", 70)
    (folder / "old/broken.png").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    (folder / "old/empty.png").touch()
    table = inspect("good", "new", unlabeled="old")
    said = capsys.readouterr().out
    for name in ("new/0.png", "old/broken.png", "old/empty.png"):
        assert re.search(rf"{name}: .*Skipped", said)
    assert "2 new pictures" in said
    assert "1 skipped" in said
    assert pool_of(RUN) == {"1.png", "2.png", "a.png"}
    assert sorted(table.path) == ["1.png", "2.png"]
    with pytest.raises(ValueError, match=r"^1 files? or folders?(.|\n)*old/empty\.png"):
        inspect("good", "new", unlabeled="old", strict=True, progress=False)


# --- Older pictures


@pytest.mark.usefixtures("small_pools")
def test_older_pictures_are_not_scored(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (folder / "new").iterdir():
        if path.name not in {"0.png", "1.png"}:
            path.unlink()
    for number in range(2):
        draw(folder / f"old/sub/{number}.png", 80 + number)
    draw(folder / "more.jpg", 90)
    command = ["--good", "good", "--new", "new", "--unlabeled", "old", "more.jpg", "new/0.png", "good"]
    Inspect().run(Inspect.get_parser().parse_args(command))
    said = capsys.readouterr().out
    assert "Training on 4 good and 5 unlabeled pictures" in said
    assert "5 unlabeled pictures used." in said
    assert settings_of(RUN)["unlabeled"] == ["old", "more.jpg", "new/0.png", "good"]
    assert sorted(pd.read_csv(RUN / "scores.csv").path) == ["0.png", "1.png"]
    unlabeled = json.loads((RUN / "support.json").read_text(encoding="utf-8"))["unlabeled"]
    assert set(unlabeled) == {"new/0.png", "new/1.png", "old/sub/0.png", "old/sub/1.png", "more.jpg"}
    assert '"unlabeled":["old","more.jpg","new/0.png","good"],"pool":true' in (RUN / "index.html").read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unlabeled": "old", "pool": False}, "`unlabeled` must be omitted with `--no-pool`, got old."),
        ({"unlabeled": ["odl"]}, "must exist, got odl"),
        ({"unlabeled": "empty"}, "`unlabeled` must contain usable pictures besides the good ones, got none in empty"),
        ({"unlabeled": "good"}, "`unlabeled` must contain usable pictures besides the good ones, got none in good"),
        ({"good": None, "model": "m", "unlabeled": "old"}, "must be omitted with `model`, because no model is trained"),
        ({"good": None, "new": None, "resume": "m", "unlabeled": "old"}, "`resume` must be the only input"),
        ({"good": None, "new": None, "resume": "m", "pool": False}, "`resume` must be the only input"),
    ],
)
def test_errors(folder: Path, arguments: dict, message: str) -> None:
    (folder / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=re.escape(message)) as error:
        inspect(**{"good": "good", "new": "new", "progress": False} | arguments)
    assert "\n" not in str(error.value)
    assert not (folder / "results").exists()


# --- Later runs


def test_resumed_run_has_the_same_scores(pooled: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = session.write_images

    def interrupt(scored: object, run: Path, name: str) -> None:
        if name == "4.jpg":
            raise KeyboardInterrupt
        write(scored, run, name)

    with monkeypatch.context() as context:
        context.setattr(session, "write_images", interrupt)
        with pytest.raises(KeyboardInterrupt):
            inspect("good", "new", ignore="mask.png", progress=False)
    assert len(RunFolder(RUN).entries) == 4
    draw(folder / "new/later.png", 60)  # the model is not trained again
    table = inspect(resume=RUN, progress=False)
    assert "later.png" in set(table.path)
    assert_same(table[table.path != "later.png"].reset_index(drop=True), pd.read_csv(pooled / "scores.csv"))
    assert settings_of(RUN)["unlabeled_used"] == 9


def test_model_of_a_run_with_a_pool(pooled: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No model is trained, and pictures of its pool are still scored without themselves."""
    shutil.copytree(pooled, folder / "run")
    with mock.patch.object(session, "fit_model", side_effect=AssertionError):
        table = inspect(new="new", model="run")
    assert_same(table, pd.read_csv(pooled / "scores.csv"))
    assert "unlabeled" not in capsys.readouterr().out
    assert settings_of(RUN)["unlabeled_used"] == 9


# --- With `watch`


class Watch:
    """Run `inspect` with `watch`, and call one action per scan, until there is none left."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, scans_per_action: int = 5) -> None:
        self.monkeypatch = monkeypatch
        self.scans_per_action = scans_per_action

    def __call__(self, actions: list, **arguments: object) -> pd.DataFrame:
        """Return the table after all actions."""
        scans = self._scans(actions)
        self.monkeypatch.setattr("time.sleep", lambda _: next(scans))
        return inspect(watch=True, **arguments)

    def _scans(self, actions: list) -> Iterator[None]:
        for action in actions:
            action()
            for _ in range(self.scans_per_action):
                yield
        raise KeyboardInterrupt


@pytest.fixture
def watch(monkeypatch: pytest.MonkeyPatch) -> Watch:
    return Watch(monkeypatch)


@pytest.fixture
def arrive(folder: Path) -> object:
    """Return a function that returns an action: move pictures to the folder of new ones."""
    (folder / "new").rename(folder / "later")
    (folder / "new").mkdir()

    def arrive(*names: str) -> object:
        return lambda: [(folder / "later" / name).rename(folder / "new" / name) for name in names]

    return arrive


@pytest.mark.usefixtures("small_pools")
def test_pool_grows(arrive, watch: Watch, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ANN001
    """At 2, 4 and 8 pictures. The scores are those of a run with eight pictures from the start."""
    (folder / "new/broken.png").write_bytes(b"no image")
    table = watch(
        [
            arrive("0.png"),
            arrive("1.png"),
            arrive("2.png"),
            arrive("3.png"),
            arrive(*sorted(NAMES)[4:8]),
            arrive(sorted(NAMES)[8]),
        ],
        good="good",
        new="new",
    )
    said = capsys.readouterr().out
    sizes = re.findall(r"Trained again with (\d+) unlabeled pictures. All pictures are scored again.", said)
    assert sizes == ["2", "4", "8"]
    assert "8 of 9 unlabeled pictures used." in said
    assert "1 skipped" in said
    assert "Stopped. All results are saved.\n" in said
    assert (settings_of(RUN)["unlabeled_used"], settings_of(RUN)["unlabeled_found"]) == (8, 9)
    assert {entry.num_unlabeled for entry in RunFolder(RUN).entries.values()} == {8}
    assert load(RUN).model.scorer.memory_bank.pool_size == 8
    assert not list(RUN.rglob("*.part"))
    ninth = sorted(NAMES)[8]  # arrived after the last training
    for name in ("broken.png", ninth):
        (folder / "new" / name).unlink()
    expected = inspect("good", "new", progress=False)
    assert_same(table[table.path != ninth].reset_index(drop=True), expected)


@pytest.mark.slow
@pytest.mark.usefixtures("small_pools")
def test_interrupted_growth(arrive, watch: Watch, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ANN001
    """In the training: the earlier model is kept. In the scoring: it is completed by `resume`, which grows further."""
    train = session.fit_model

    def interrupt(*arguments: object) -> object:
        if len(arguments[4]) == 4:
            raise KeyboardInterrupt
        return train(*arguments)

    with mock.patch.object(session, "fit_model", interrupt):
        before = watch([arrive("0.png", "1.png"), arrive("2.png", "3.png")], good="good", new="new")
    assert load(RUN).model.scorer.memory_bank.pool_size == 2
    assert len(before) == 4
    assert "2 of 4 unlabeled pictures used.\n" in capsys.readouterr().out

    write, again = session.write_images, []

    def interrupt_scoring(scored: object, run: Path, name: str) -> None:
        again.append(name)
        if len(again) == 3:
            raise KeyboardInterrupt
        write(scored, run, name)

    with mock.patch.object(session, "write_images", interrupt_scoring):
        watch([lambda: None, lambda: None], resume=RUN)
    said = capsys.readouterr().out
    assert "Trained again with 4 unlabeled pictures." in said
    text = "4 unlabeled pictures used. 2 pictures still have their scores of an earlier model with fewer unlabeled"
    assert text in said
    assert text in (RUN / "index.html").read_text(encoding="utf-8")
    assert f"To score all pictures with the last model: anomalib inspect --resume {RUN}" in said
    table = inspect(resume=RUN)
    assert "still" not in capsys.readouterr().out
    assert sorted(table.path) == ["0.png", "1.png", "2.png", "3.png"]
    shutil.rmtree(folder / "later")
    assert_same(table, inspect("good", "new", progress=False))


@pytest.mark.usefixtures("small_pools")
def test_pictures_that_vanish(arrive, watch: Watch, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:  # noqa: ANN001
    """Between two trainings, and during a training."""
    train, failed = session.fit_model, []

    def remove_one(*arguments: object) -> object:
        if len(arguments[4]) >= 4 and not failed:
            failed.append((folder / "new/1.png").unlink())
        return train(*arguments)

    names = sorted(NAMES)
    with mock.patch.object(session, "fit_model", remove_one):
        table = watch(
            [
                arrive("0.png", "1.png"),
                (folder / "new/0.png").unlink,
                arrive(*names[2:5]),
                arrive(names[5]),
            ],
            good="good",
            new="new",
        )
    said = capsys.readouterr().out
    assert "The training failed, and the earlier model is kept: " in said
    assert "Trained again with 4 unlabeled pictures." in said
    assert "2 pictures no longer exist, so they keep the scores of an earlier model: 0.png, 1.png" in said
    assert sorted(table.path) == names[:6]
    assert "no longer exists" in (RUN / "findings.csv").read_text(encoding="utf-8")


@pytest.mark.usefixtures("small_pools")
@pytest.mark.parametrize("arguments", [{"pool": False}, {"model": True}])
def test_pool_that_does_not_grow(arrive, watch: Watch, trained: Path, arguments: dict) -> None:  # noqa: ANN001
    start = {"model": trained} if "model" in arguments else {"good": "good", **arguments}
    table = watch([arrive("0.png", "1.png"), arrive("2.png")], new="new", progress=False, **start)
    assert len(table) == 3
    assert load(RUN).model.scorer.memory_bank.pool_size == 0
