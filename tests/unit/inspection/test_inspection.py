# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Runs: their outputs, their end after Ctrl-C, and how they are resumed."""

import json
import logging
import re
import shlex
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from anomalib.engine import Engine
from PIL import Image
from weave import HEIGHT, WIDTH, draw, small_model

from anomalib_fewshot import CoftAD, inspect
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.inspection import session, watch
from anomalib_fewshot.inspection.cli import Inspect
from anomalib_fewshot.inspection.run_folder import RunFolder
from anomalib_fewshot.inspection.scoring import Scorer
from anomalib_fewshot.inspection.training import load

NAMES = ["a/0.png", "b/0.jpg", "b/0.png", "hole ä#1 'x'.png"]


@pytest.fixture
def parts(part: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the working directory, with copies of the good and new images."""
    for name in ("good", "new"):
        shutil.copytree(part / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_outputs_of_a_run(trained: Path) -> None:
    table = pd.read_csv(trained / "scores.csv")
    assert list(table.columns) == ["path", "verdict", "score", "p_value"]
    assert sorted(table.path) == NAMES
    assert table.score.is_monotonic_decreasing
    assert (table.path[0], table.verdict[0], table.p_value[0]) == (NAMES[-1], "defect", 0.2)  # of k = 4
    for name in NAMES:
        with Image.open(trained / "overlays" / f"{name}.jpg") as overlay:
            assert overlay.size == (WIDTH, HEIGHT)
        for folder, suffix in (("thumbnails", "jpg"), ("photos", "jpg"), ("heat", "png")):
            assert (trained / "page" / folder / f"{name}.{suffix}").is_file()
    assert len(json.loads((trained / "support.json").read_text(encoding="utf-8"))["images"]) == 4
    assert not list(trained.rglob("*.part"))


def test_scores_equal_predict(
    trained: Path,
    part: Path,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """This includes the command that `anomalib predict` suggests, which loads a checkpoint."""
    for number, name in enumerate(NAMES):  # anomalib refuses the names and the folder of the run
        (tmp_path / "new").mkdir(exist_ok=True)
        shutil.copy(part / "new" / name, tmp_path / "new" / f"{number}{Path(name).suffix}")
    shutil.copy(trained / "model.ckpt", tmp_path)
    table = inspect(new=tmp_path / "new", model=trained, out=tmp_path, progress=False).set_index("path")
    engine = Engine(default_root_dir=tmp_path, logger=False, enable_progress_bar=False)
    checkpoint = tmp_path / "model.ckpt"
    caplog.set_level(logging.INFO)
    batches = engine.predict(small_model(), data_path=tmp_path / "new", ckpt_path=checkpoint)
    hint = re.findall(r"anomalib (inspect --model .*)", caplog.text)[0]
    command = Inspect.get_parser().parse_args([*shlex.split(hint)[1:], "--out", str(tmp_path / "by_hint")])
    Inspect().run(command)
    again = pd.read_csv(tmp_path / "by_hint/v0/scores.csv").set_index("path")
    pd.testing.assert_frame_equal(again, table, check_exact=False, atol=1e-5)
    for batch in batches:
        for path, score, words in zip(batch.image_path, batch.pred_score.tolist(), batch.explanation, strict=True):
            assert table.score[Path(path).name] == pytest.approx(score, abs=1e-5)
            assert words.startswith(table.verdict[Path(path).name])


def test_each_run_has_its_own_folder(trained: Path, parts: Path) -> None:
    draw(parts / "more" / "c.png", 30)
    before = (trained / "scores.csv").read_bytes()
    for number in range(2):
        table = inspect(new="more", model=trained, progress=False)
        assert list(table.path) == ["c.png"]
        assert (parts / "results" / "inspect" / f"v{number}" / "index.html").is_file()
    assert (trained / "scores.csv").read_bytes() == before
    again = inspect(
        new="more/c.png",
        model="results/inspect/v1",
        progress=False,
    )  # the model of a run without training; one image
    pd.testing.assert_frame_equal(again, table)


def test_broken_files_are_reported_and_skipped(
    trained: Path,
    parts: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    shutil.rmtree(parts / "new" / "b")
    whole = (parts / "new" / "a" / "0.png").read_bytes()
    (parts / "new" / "cut.png").write_bytes(whole[: len(whole) // 2])
    (parts / "new" / "empty.png").touch()
    (parts / "new" / "phone.HEIC").touch()
    middle = len(whole) // 2  # broken in the middle: only decoding finds it
    (parts / "new" / "middle.png").write_bytes(whole[:middle] + bytes(64) + whole[middle + 64 :])
    table = inspect(new="new", model=trained)
    assert sorted(table.path) == ["a/0.png", NAMES[-1]]
    issues = pd.read_csv("results/inspect/v0/findings.csv").set_index("path")
    assert set(issues.index[issues.severity == "error"]) == {"new/cut.png", "new/empty.png", "new/middle.png"}
    said = capsys.readouterr().out
    for name in ("cut.png", "empty.png", "middle.png", "phone.HEIC", "3 skipped"):
        assert name in said
    with pytest.raises(ValueError, match=r"^2 files or folders(.|\n)*cut\.png(.|\n)*empty\.png"):
        inspect(new="new", model=trained, strict=True, progress=False)


@pytest.mark.usefixtures("small", "parts")
def test_broken_good_images_are_skipped(parts: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (parts / "good" / "1.png").write_bytes(b"")
    inspect("good", "new")
    assert re.search(r"Training on 3 good pictures .* 100%", capsys.readouterr().out)  # the steps of the fit
    assert set(json.loads(Path("results/inspect/v0/support.json").read_text(encoding="utf-8"))["images"]) == {
        "0.png",
        "2.png",
        "3.png",
    }
    for path in (parts / "good").iterdir():
        path.write_bytes(b"")
    with pytest.raises(ValueError, match=r"`good` must contain usable pictures, got none(.|\n)*is empty"):
        inspect("good", "new", progress=False)
    assert not Path("results/inspect/v1").exists()


@pytest.mark.usefixtures("small", "parts")
def test_one_good_image_gives_no_defect(capsys: pytest.CaptureFixture[str]) -> None:
    table = inspect("good/0.png", "new")
    assert set(table.verdict) <= {"good", "review"}
    assert table.verdict[table.path == NAMES[-1]].item() == "review"
    assert table.p_value.isna().all()
    assert "no image is called a defect" in capsys.readouterr().out.replace("\n", " ")
    assert '"defect":null' in Path("results/inspect/v0/index.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("small")
def test_false_alarm_rate(parts: Path) -> None:
    """Four good pictures can guarantee 20 %, and 60 % with the second most unusual one as the threshold."""
    arguments = {"new": parts / "new", "out": parts / "rate", "progress": False}
    inspect(parts / "good", **arguments, false_alarm_rate=0.6)
    model = load(parts / "rate" / "v0")
    assert model.post_processor.guaranteed_fpr == pytest.approx(0.6)
    assert json.loads((parts / "rate/v0/run.json").read_text())["false_alarm_rate"] == pytest.approx(0.6)
    with pytest.raises(ArgumentError, match=r"must be at least 0.2 with 4 good pictures, got 0.05. Provide 19 good"):
        inspect(parts / "good", **arguments, false_alarm_rate=0.05)


@pytest.mark.usefixtures("small", "parts")
def test_support_images_are_not_scored() -> None:
    table = inspect(["good", "new/a/0.png"], "new", progress=False)
    assert sorted(table.path) == [name for name in NAMES if name != "a/0.png"]
    assert len(json.loads(Path("results/inspect/v0/support.json").read_text(encoding="utf-8"))["images"]) == 5
    table = inspect(new=".", model="results/inspect/v0", progress=False)  # ignores the outputs of runs
    assert sorted(table.path) == [f"new/{name}" for name in NAMES if name != "a/0.png"]
    with pytest.raises(ValueError, match="`new` must contain usable pictures, got none in good"):
        inspect("good", "good", progress=False)


@pytest.mark.parametrize("killed", [False, True])
def test_resumes(trained: Path, parts: Path, monkeypatch: pytest.MonkeyPatch, killed: bool) -> None:
    write = session.write_images

    def interrupt(scored: object, folder: Path, name: str) -> None:
        if name == NAMES[2]:
            raise SystemError if killed else KeyboardInterrupt
        write(scored, folder, name)

    monkeypatch.setattr(session, "write_images", interrupt)
    with pytest.raises((KeyboardInterrupt, SystemError)):
        inspect(new="new", model=trained, progress=False)
    run = Path("results/inspect/v0")
    assert (run / "scores.csv").exists() is not killed
    done = list(RunFolder(run).entries)
    assert done == NAMES[:2]
    if killed:  # in the middle of a line
        with (run / "scored.jsonl").open("a") as file:
            file.write('{"path": "b/0.p')
    scored = []
    monkeypatch.setattr(session, "write_images", lambda *args: scored.append(args[2]) or write(*args))
    table = inspect(resume=run, progress=False)
    assert scored == NAMES[2:]
    assert sorted(table.path) == NAMES
    whole = pd.read_csv(trained / "scores.csv")
    pd.testing.assert_frame_equal(table, whole, check_exact=False, atol=1e-6)
    draw(parts / "new" / "a" / "0.png", 50, hole=True)  # changed after scoring, so it is scored again
    table = inspect(resume=run, progress=False)
    assert scored == [*NAMES[2:], "a/0.png"]
    assert table.verdict[table.path == "a/0.png"].item() == "defect"


def test_watch_scores_new_files(trained: Path, parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.rmtree(parts / "new")
    (parts / "new").mkdir()
    seen = []

    def sleep(_: float) -> None:
        path = Path("results/inspect/v0/scores.csv")
        seen.append(len(pd.read_csv(path)) if path.exists() else 0)
        if len(seen) == 1:
            draw(parts / "new" / "0.png", 1)
            whole = (parts / "new" / "0.png").read_bytes()
            (parts / "new" / "1.png").write_bytes(whole[:500])  # still being written
        elif len(seen) == 4:
            draw(parts / "new" / "1.png", 2, hole=True)
        elif len(seen) == 8:
            raise KeyboardInterrupt

    monkeypatch.setattr(watch.time, "sleep", sleep)
    table = inspect(new="new", model=trained, watch=True, progress=False)
    assert list(table.path) == ["1.png", "0.png"]
    assert seen[0] == 0
    assert seen[3] == 1  # one complete image and one incomplete file
    assert "cannot be read" not in Path("results/inspect/v0/index.html").read_text(encoding="utf-8")


@pytest.mark.usefixtures("parts")
class _Attack:
    """Run code when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def test_loading_a_model_runs_no_code(trained: Path, tmp_path: Path) -> None:
    folder, marker = shutil.copytree(trained, tmp_path / "run"), tmp_path / "code_has_run"
    checkpoint = torch.load(folder / "model.ckpt", weights_only=False)
    torch.save(checkpoint | {"attack": _Attack(marker)}, folder / "model.ckpt")
    with pytest.raises(ValueError, match="`model` must be a checkpoint that contains only weights"):
        inspect(new=folder / "overlays", model=folder, out=tmp_path, progress=False)
    assert not marker.exists()


def test_model_without_calibrated_thresholds(trained: Path, parts: Path) -> None:
    checkpoint = torch.load(trained / "model.ckpt", weights_only=False)
    checkpoint["state_dict"]["is_fitted"].fill_(value=False)
    torch.save(checkpoint, parts / "other.ckpt")
    with pytest.raises(ValueError, match=r"`model` must have thresholds (.|\n)*other\.ckpt"):
        inspect(new="new", model="other.ckpt", progress=False)
    assert not Path("results").exists()


def test_interrupted_training_leaves_no_folder(parts: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(session, "fit_model", interrupt)
    with pytest.raises(KeyboardInterrupt):
        inspect("good", "new", progress=False)
    assert not list((parts / "results" / "inspect").iterdir())


def test_memory_is_bounded(trained: Path, tmp_path: Path) -> None:
    """At most three batches are read before the first score."""
    paths = [tmp_path / f"{number}.png" for number in range(40)]
    for number, path in enumerate(paths):
        draw(path, number)
    opened = []

    def iterate() -> object:
        for path in paths:
            opened.append(path)
            yield path

    model = CoftAD.load_from_checkpoint(trained / "model.ckpt", map_location="cpu").eval()
    scored = Scorer(model)(iterate())
    assert next(scored).path == paths[0]
    assert len(opened) <= 12
    assert [each.path for each in scored] == paths[1:]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_memory_does_not_grow_with_the_number_of_images(
    trained: Path,
    parts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    draw(parts / "many" / "0000.png", 60)
    for number in range(1, 2000):
        (parts / "many" / f"{number:04}.png").hardlink_to(parts / "many" / "0000.png")
    used = []  # pages of 4 kB

    def measure(*_: object) -> None:
        used.append(int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]))

    monkeypatch.setattr(session, "write_images", measure)
    assert len(inspect(new="many", model=trained, progress=False)) == 2000
    assert max(used[1500:]) - max(used[400:500]) < 4 * 256  # 4 MB for more than 1000 pictures


def test_resume_requires_the_same_working_directory(
    trained: Path,
    parts: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    inspect(new="new", model=trained, progress=False)
    monkeypatch.chdir(parts / "good")
    with pytest.raises(FileNotFoundError, match="`resume` must .*, got new"):
        inspect(resume=parts / "results/inspect/v0", progress=False)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"new": "new"}, "`new` and one of `good` and `model` must be given"),
        ({"good": "good"}, "`new` and one of `good` and `model` must be given"),
        ({"good": "goood", "new": "new"}, "must exist, got goood"),
        ({"good": "good", "new": "nwe"}, "must exist, got nwe"),
        ({"good": "good", "new": "empty"}, "`new` must contain usable pictures, got none in empty"),
        ({"good": "empty", "new": "new"}, "`good` must contain usable pictures, got none in empty"),
        ({"model": "empty", "new": "new"}, "must contain an earlier run, got empty"),
        ({"resume": "empty"}, "must contain an earlier run, got empty"),
        ({"resume": "empty", "new": "new"}, "`resume` must be the only input"),
        (
            {"good": "good", "new": "new", "ignore": "good/x.png"},
            "`ignore` must be a readable mask image, got good/x.png",
        ),
    ],
)
def test_errors(parts: Path, arguments: dict, message: str) -> None:
    (parts / "empty").mkdir()
    with pytest.raises((FileNotFoundError, ValueError), match=message):
        inspect(**arguments, progress=False)
    assert not Path("results").exists()


@pytest.mark.usefixtures("parts")
def test_command(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = Inspect.get_parser().parse_args(["--model", str(trained), "--new", "new", "--out", "runs"])
    Inspect().run(arguments)
    said = capsys.readouterr().out
    for words in (
        "4 new pictures: ",
        " defect, ",
        "runs/v0/index.html",
        "anomalib inspect --model runs/v0 --new FOLDER",
    ):
        assert words in said
    assert len(said.splitlines()) <= 14
    arguments = Inspect.get_parser().parse_args(["--good", "a", "b.png", "--new", "new"])
    with pytest.raises(SystemExit, match="anomalib inspect: .* must exist, got a"):
        Inspect().run(arguments)
