# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Options of a run: thresholds set by hand, the input size, the smallest defect, labels, and actions on results."""

import json
import shutil
import sys
from pathlib import Path

import onnxruntime
import pandas as pd
import pytest
import torch
from anomalib.data import InferenceBatch
from jsonargparse import Namespace
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from weave import HEIGHT, WIDTH, draw

from anomalib_fewshot import SupportPostProcessor, inspect
from anomalib_fewshot._cli import early_check
from anomalib_fewshot.errors import ArgumentError, DataValidationError
from anomalib_fewshot.inspection import training
from anomalib_fewshot.inspection.cli import FOUND, Inspect
from anomalib_fewshot.inspection.labels import describe_missed, format_labels, read_labels
from anomalib_fewshot.inspection.run_folder import RunFolder
from anomalib_fewshot.inspection.settings import Settings, parse_thresholds
from anomalib_fewshot.inspection.summary import describe_sensitivity
from anomalib_fewshot.inspection.training import load
from anomalib_fewshot.post_processing import VERDICTS, CalibrationScheme, CalibrationScores

HOLE = "hole ä#1 'x'.png"


def verdicts(run: Path) -> dict[str, str]:
    table = pd.read_csv(run / "scores.csv")
    return dict(zip(table.path, table.verdict, strict=True))


# --- Thresholds


def test_thresholds_are_part_of_the_run(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = verdicts(run)
    scores = RunFolder(run).table().score
    review, defect = scores[2:].mean(), scores[1:3].mean()  # of four pictures
    table = inspect(resume=run, thresholds={"review": review, "defect": defect})
    assert list(table.verdict) == ["defect", "defect", "review", "good"]
    assert list(verdicts(run).values()) == list(table.verdict)
    assert "The false-alarm rate is no longer guaranteed" in capsys.readouterr().out
    later = inspect(new="new", model=run, out="later", progress=False)  # the checkpoint keeps them
    assert list(later.verdict) == list(table.verdict)
    inspect(resume=run, thresholds="guaranteed", progress=False)
    assert verdicts(run) == before
    assert load(run).post_processor.guaranteed_fpr == pytest.approx(0.2)


@pytest.mark.slow
def test_exported_model_has_the_thresholds(run: Path, tmp_path: Path) -> None:
    scores = RunFolder(run).table().score
    inspect(resume=run, thresholds=f"review={scores[3] - 0.1},defect={scores[1:3].mean()}", progress=False)
    path = load(run).eval().to_onnx(tmp_path / "export")
    metadata = json.loads(next((tmp_path / "export").rglob("metadata.json")).read_text(encoding="utf-8"))["postprocess"]
    assert metadata["manual_thresholds"] is True
    session = onnxruntime.InferenceSession(str(path))
    for name, verdict in verdicts(run).items():
        with Image.open(Path("new") / name) as image:
            pixels = pil_to_tensor(image.convert("RGB"))[None].numpy() / 255
        score, label = session.run(["pred_score", "pred_label"], {"input": pixels.astype("float32")})
        num_above = sum(float(score.squeeze()) > metadata[f"{kind}_score"] for kind in ("review", "defect"))
        assert verdict == VERDICTS[num_above]
        assert bool(label.squeeze()) is (verdict == "defect")


def test_thresholds_of_a_changed_checkpoint_apply_to_all_pictures(run: Path) -> None:
    """A command that was killed between the checkpoint and the table leaves no mixed verdicts."""
    other = Path(shutil.copytree(run, "other"))
    inspect(resume=other, thresholds="review=0,defect=0", progress=False)
    shutil.copy(other / "model.ckpt", run / "model.ckpt")
    assert set(inspect(resume=run, progress=False).verdict) == {"defect"}


@pytest.mark.parametrize(
    ("text", "thresholds"),
    [("review=0.9,defect=1.2", {"review": 0.9, "defect": 1.2}), ("defect=2", {"defect": 2.0}), ("guaranteed", {})],
)
def test_parse_thresholds(text: str, thresholds: dict[str, float]) -> None:
    assert parse_thresholds(text) == thresholds
    assert parse_thresholds(thresholds) == thresholds


@pytest.mark.parametrize("text", ["0.9", "review", "review=x", "good=1", "review=1;defect=2"])
def test_invalid_thresholds(text: str) -> None:
    with pytest.raises(ArgumentError, match="must be such as review=0.9,defect=1.2"):
        parse_thresholds(text)


def test_thresholds_in_the_wrong_order(run: Path) -> None:
    before = (run / "model.ckpt").read_bytes()
    with pytest.raises(ArgumentError, match="not higher than `defect`"):
        inspect(resume=run, thresholds="review=3,defect=2", progress=False)
    assert (run / "model.ckpt").read_bytes() == before


# --- Training


def test_image_size_is_that_of_the_network() -> None:
    sizes = {448: (448, 448), (320, 640): (320, 640), None: (320, 320)}
    for image_size, expected in sizes.items():
        model = training.new_model(Settings("new", image_size=image_size))
        assert tuple(model.pre_processor.transform.transforms[0].size) == expected


def test_hint_about_large_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inspect(resume=run)
    assert "--image_size" not in capsys.readouterr().out  # 96 x 64 pixels, and a network of 64 x 64
    for path in Path("new").rglob("*.png"):
        with Image.open(path) as image:
            image.resize((960, 640)).save(path)
    inspect(resume=run)
    said = capsys.readouterr().out
    assert "The pictures have 960 x 640 pixels, and the model sees 64 x 64" in said
    assert "try --image_size 96" in said


@pytest.mark.parametrize(("count", "words"), [(1, ""), (4, "marked for review"), (8, "--false_alarm_rate 0.33")])
def test_hint_about_the_sensitivity(count: int, words: str) -> None:
    post_processor = SupportPostProcessor()
    batch = InferenceBatch(pred_score=torch.arange(1.0, 1.0 + count))
    post_processor.fit_normal(CalibrationScores(CalibrationScheme.JACKKNIFE_PLUS, [batch]))
    text = describe_sensitivity(post_processor)
    assert words in text
    assert ("More good images mean fewer false alarms, not more defects found." in text) is (count > 1)
    if count > 1:
        post_processor.set_verdict_thresholds((0.5, 2.0))
        assert not describe_sensitivity(post_processor)


@pytest.mark.usefixtures("small", "run")
def test_bad_pictures_are_scored_but_not_learned_from() -> None:
    for seed in range(9):
        draw(Path(f"new/{seed}.png"), 300 + seed)
    table = inspect("good", "new", bad=["new/0.png", f"new/{HOLE}"], progress=False)
    assert {"0.png", HOLE} <= set(table.path)
    manifest = json.loads(Path("results/inspect/v0/support.json").read_text(encoding="utf-8"))
    assert len(manifest["unlabeled"]) == len(table) - 2
    assert not [path for path in manifest["unlabeled"] if path.endswith(("/0.png", HOLE)) and "/new/0" in path]


def test_many_defects_in_the_pool_are_reported(run: Path, capsys: pytest.CaptureFixture[str], small: object) -> None:
    del run, small
    for seed in range(4):
        draw(Path(f"new/{seed}.png"), 300 + seed)
    inspect("good", "new", thresholds="review=0,defect=0")
    assert "8 of 8 new pictures look defective. If they are" in capsys.readouterr().out
    inspect(resume="results/inspect/v0", thresholds="review=90,defect=90")
    assert "look defective" not in capsys.readouterr().out


# --- Results


def test_smallest_defect(run: Path) -> None:
    (area,) = [entry.region[-1] for entry in RunFolder(run).entries.values() if entry.path == HOLE]
    assert 0 < area <= WIDTH * HEIGHT
    assert inspect(resume=run, min_area=area, progress=False).verdict[0] == "defect"
    assert inspect(resume=run, min_area=area + 1, progress=False).verdict[0] == "good"
    assert RunFolder(run).settings.min_area == area + 1  # the run keeps it
    with pytest.raises(ArgumentError, match="`min_area` must be at least 1 pixel"):
        inspect(resume=run, min_area=0, progress=False)


def test_name_and_date_are_in_the_title(run: Path) -> None:
    inspect(resume=run, name="Line 3, shift <A>", progress=False)
    html = (run / "index.html").read_text(encoding="utf-8")
    assert "<title>Line 3, shift &lt;A&gt;: 4 new pictures in" in html
    assert f'"date":"{RunFolder(run).settings.started[:10]}"' in html


def test_labels_are_imported(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("labels.csv").write_text("label,path\nbad,a/0.png\nbad,\"hole ä#1 'x'.png\"\n", encoding="utf-8-sig")
    inspect(resume=run, labels="labels.csv")
    assert "Of 2 pictures marked bad, 1 is called good (50 %)." in capsys.readouterr().out
    assert read_labels(run / "labels.csv") == {"a/0.png": "bad", HOLE: "bad"}
    inspect(resume=run)
    assert "1 is called good (50 %)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [("path\na.png\n", "must have the columns path and label"), ("path,label\na.png,ok\n", "got 'ok' in line 2")],
)
def test_invalid_labels(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labels.csv").write_text(text, encoding="utf-8")
    with pytest.raises(DataValidationError, match=message):
        read_labels(tmp_path / "labels.csv")


def test_labels_with_any_name_survive(tmp_path: Path) -> None:
    labels = {'a "b", c.png': "good", "ä\n.png": "bad"}
    (tmp_path / "labels.csv").write_text(format_labels(labels), encoding="utf-8")
    assert read_labels(tmp_path / "labels.csv") == labels
    assert not describe_missed(labels, {})


# --- Actions on results


def command(*arguments: str) -> Namespace:
    return Inspect.get_parser().parse_args(list(arguments))


def test_json_lines(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Inspect().run(command("--model", str(run), "--new", "new", "--out", "out", "--json"))
    printed = capsys.readouterr()
    results = [json.loads(line) for line in printed.out.splitlines()]
    table = pd.read_csv("out/v0/scores.csv").set_index("path")
    assert {result["path"] for result in results} == set(table.index)
    for result in results:
        assert result["file"] == f"new/{result['path']}"
        assert result["verdict"] == table.verdict[result["path"]]
        assert result["score"] == pytest.approx(table.score[result["path"]])
    (hole,) = [result for result in results if result["path"] == HOLE]
    assert hole["region"].keys() == {"x", "y", "width", "height", "area"}
    assert "4 new pictures: " in printed.err


def test_command_on_defect(run: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = Path("act.py")
    script.write_text("import sys; open('acted', 'a').write('|'.join(sys.argv[1:]) + '\\n')", encoding="utf-8")
    action = f"{sys.executable} {script} line3"
    Inspect().run(command("--model", str(run), "--new", "new", "--on_defect", action))
    calls = Path("acted").read_text(encoding="utf-8").splitlines()
    table = pd.read_csv("results/inspect/v0/scores.csv")
    assert len(calls) == (table.verdict == "defect").sum()
    assert any(call.startswith(f"line3|new/{HOLE}|") for call in calls)
    script.write_text("raise SystemExit(7)", encoding="utf-8")
    Inspect().run(command("--model", str(run), "--new", "new", "--on_defect", action))
    assert "`on_defect` ended with exit status 7" in capfd.readouterr().err
    with pytest.raises(SystemExit, match="must be a command on the PATH"):
        Inspect().run(command("--model", str(run), "--new", "new", "--on_defect", "no-such-command"))


@pytest.mark.parametrize(
    ("fail_on", "picture", "status"),
    [("defect", "a", None), ("review", ".", FOUND), ("defect", ".", FOUND)],
)
def test_exit_status(run: Path, fail_on: str, picture: str, status: int | None) -> None:
    arguments = command("--model", str(run), "--new", f"new/{picture}", "--fail_on", fail_on)
    if status is None:
        Inspect().run(arguments)
    else:
        with pytest.raises(SystemExit) as error:
            Inspect().run(arguments)
        assert error.value.code == status


# --- Early check


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--good", "good", "--new", "nwe"], "got nwe"),
        (["--good", "good", "a.png", "--new", "new"], "got a.png"),
        (["--good=goood", "--new", "new"], "got goood"),
        (["--good", "good"], "must be given"),
        (["--resume", "v9"], "got v9"),
        (["--good", "good", "--new", "new", "--strict"], None),
        (["--good", '["good","more"]', "--new", "new"], None),
        (["--help"], None),
        (["-c", "any.yaml"], None),
        (["--resume", "runs/v0", "--serve"], None),
    ],
)
def test_arguments_are_checked_before_the_imports(run: Path, arguments: list[str], message: str | None) -> None:
    del run
    error = early_check.find_error(arguments)
    assert error is None if message is None else message in error


# --- Comparison with the good pictures


@pytest.mark.usefixtures("small", "run")
def test_most_similar_region_of_a_good_picture() -> None:
    inspect("good", "new", pool=False, progress=False)
    for entry in RunFolder(Path("results/inspect/v0")).entries.values():
        index, x, y, side, own_x, own_y = entry.nearest
        assert index in range(4)
        assert all(0 < value < WIDTH for value in (x, own_x))
        assert all(0 < value < HEIGHT for value in (y, own_y))
        assert 0 < side <= 5 * WIDTH / 8  # five patches of a grid of 8 x 8


@pytest.mark.usefixtures("small", "run")
def test_unusual_good_pictures_are_reported(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy("good/0.png", "good/copy.png")
    inspect("good", "new", pool=False)
    warning = "and good/copy.png are nearly identical. They count as one picture"  # so are the others, but for noise
    assert warning in capsys.readouterr().out
    later = Path("results/inspect/v0")
    assert warning in (later / "index.html").read_text(encoding="utf-8")
    inspect(resume=later)  # nothing is scored
    assert warning in capsys.readouterr().out


def test_run_whose_good_pictures_have_been_removed(run: Path) -> None:
    shutil.rmtree("good")
    draw(Path("new/later.png"), 70)
    assert len(inspect(resume=run, progress=False)) == 5
    assert RunFolder(run).entries["later.png"].nearest is None
