# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The folder of a benchmark: nothing is lost, nothing is mixed, and nothing is read twice."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.pipelines.plan.job import Job
from anomalib_fewshot.pipelines.results.outcome import Outcome, failed_outcome
from anomalib_fewshot.pipelines.results.row import Row
from anomalib_fewshot.pipelines.results.store import Store, Trainings


def make_job(seed: int = 0, steps: int = 1, k_shot: int | str = 2) -> Job:
    model, data = {"class_path": "A", "init_args": {"steps": steps}}, {"class_path": "D", "init_args": {}}
    return Job("A", "parts/all", "bolt", k_shot, seed, model, data, {})


def make_outcome(job: Job, auroc: float = 0.5) -> Outcome:
    manifest = SupportManifest("parts", "bolt", 2, job.seed, {"0.png": "aa", "1.png": "bb"})
    row = Row.from_job(job, "bolt", image_AUROC=auroc, support=manifest.digest)
    return Outcome([row], [manifest], {"test/0.png": [False, 1.5]}, {("bolt", "hit"): b"\xff\xd8"})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "sweep")


def test_a_finished_run_is_there_for_another_process(store: Store) -> None:
    job = make_job()
    assert not store.is_finished(job)
    store.save(job, make_outcome(job))
    again = Store(store.folder)
    assert again.is_finished(job)
    assert again.write_table([job, make_job(1)]).image_AUROC.tolist() == [0.5]
    row = pd.read_csv(store.folder / "results.csv").iloc[0]
    assert (row.image_AUROC, row.status) == (0.5, "ok")
    assert pd.isna(row.pixel_AUROC)
    manifest = SupportManifest.read(store.folder / "supports" / "parts_all-bolt-k2-seed0.json")
    assert manifest.images == {"0.png": "aa", "1.png": "bb"}
    assert (store.folder / "examples" / job.key / "bolt" / "hit.jpg").read_bytes() == b"\xff\xd8"
    assert again.examples(job.key, "bolt") == {"hit": b"\xff\xd8"}
    assert again.has_examples(job.key)
    assert not again.has_examples(make_job(1).key)
    assert again.scores(job) == {"test/0.png": [False, 1.5]}


def test_support_of_all_images_has_a_file_of_its_own(store: Store) -> None:
    for job in (make_job(), make_job(k_shot="all")):
        store.save(job, make_outcome(job))
    names = sorted(path.name for path in (store.folder / "supports").iterdir())
    assert names == ["parts_all-bolt-k2-seed0.json", "parts_all-bolt-kall-seed0.json"]


def test_a_failed_run_is_a_row_and_is_tried_again(store: Store) -> None:
    job = make_job()
    store.save(job, failed_outcome(job, "ValueError: no"))
    assert store.table([job]).error.tolist() == ["ValueError: no"]
    assert not store.is_finished(job)
    store.save(job, make_outcome(job))
    assert store.table([job]).status.tolist() == ["ok"]


def test_runs_of_another_configuration_are_left_out_and_kept(store: Store) -> None:
    old, new = make_job(steps=1), make_job(steps=2)
    store.save(old, make_outcome(old, 0.1))
    assert not store.is_finished(new)
    store.save(new, make_outcome(new, 0.9))
    assert store.table([new]).image_AUROC.tolist() == [0.9]
    assert store.num_other_runs([new]) == 1
    assert store.table([old]).image_AUROC.tolist() == [0.1]


def test_a_run_is_claimed_by_one_process_at_a_time(store: Store) -> None:
    job, other = make_job(), Store(store.folder)
    claim = store.claim(job)
    assert claim is not None
    with claim:
        assert other.claim(job) is None
        assert other.claim(make_job(1)) is not None
    again = other.claim(job)
    assert again is not None  # it was released, and is not finished
    with again:
        store.save(job, make_outcome(job))
    assert other.claim(job) is None  # another process has finished it in the meantime


def test_finished_runs_are_appended_to_the_table(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """No run file is read: the cost of a run does not grow with those before it."""
    jobs = [make_job(seed) for seed in range(3)]
    store.save(jobs[0], make_outcome(jobs[0], 0.1))
    monkeypatch.setattr(json, "loads", None)
    store.save(jobs[1], make_outcome(jobs[1], 0.2))
    store.save(jobs[2], failed_outcome(jobs[2], "ValueError: a, b\nc"))
    appended = (store.folder / "results.csv").read_text(encoding="utf-8")
    table = pd.read_csv(store.folder / "results.csv")
    assert table.image_AUROC.tolist()[:2] == [0.1, 0.2]
    assert table.error.tolist()[2] == "ValueError: a, b\nc"
    store.write_table(jobs)
    assert (store.folder / "results.csv").read_text(encoding="utf-8") == appended


def test_table_holds_what_other_processes_have_written(store: Store) -> None:
    mine, theirs, retried = (make_job(seed) for seed in range(3))
    other = Store(store.folder)
    store.save(retried, failed_outcome(retried, "ValueError: no"))
    store.save(mine, make_outcome(mine, 0.1))
    other.save(theirs, make_outcome(theirs, 0.2))
    other.save(retried, make_outcome(retried, 0.3))
    assert store.write_table([mine, theirs, retried]).image_AUROC.tolist() == [0.1, 0.2, 0.3]
    (store.folder / "results.csv").unlink()
    store.save(mine, make_outcome(mine, 0.4))
    assert pd.read_csv(store.folder / "results.csv").image_AUROC.tolist() == [0.4]


def test_runs_of_an_earlier_version_are_read(store: Store) -> None:
    """They have no NaN and may lack columns."""
    job = make_job()
    rows = [{"method": "A", "category": "bolt", "k_shot": 2, "status": "ok", "image_AUROC": 0.5, "pixel_AUROC": None}]
    path = store.folder / "runs" / f"{job.key}.json"
    path.write_text(json.dumps({"rows": rows, "scores": {}}), encoding="utf-8")
    assert store.table([job])[["unlabeled", "contamination"]].to_numpy().tolist() == [[0, 0]]
    assert store.is_finished(job)
    (row,) = store.table([job]).itertuples()
    assert (row.image_AUROC, row.k_shot) == (0.5, 2)
    assert math.isnan(row.pixel_AUROC)
    assert math.isnan(row.training_seconds)


def test_supports_of_data_of_an_override_are_not_mixed_with_the_others(store: Store) -> None:
    plain = make_job()
    own = replace(plain, method="B", data={"class_path": "D", "init_args": {"seed": 1}}, has_own_data=True)
    other = make_outcome(own)
    other.manifests = [replace(other.manifests[0], images={"9.png": "cc", "8.png": "dd"})]
    other.rows[0].support = other.manifests[0].digest
    stale = replace(plain, method="C", data={"class_path": "D", "init_args": {"seed": 2}}, has_own_data=True)
    for job, outcome in ((plain, make_outcome(plain)), (own, other), (stale, make_outcome(stale))):
        store.save(job, outcome)
    names = sorted(path.name for path in (store.folder / "supports").iterdir())
    assert len(names) == 3
    assert names[0].startswith("parts_all-bolt-k2-seed0-data")
    assert names[2] == "parts_all-bolt-k2-seed0.json"
    found = list(store.supports(store.table([plain, own])))
    assert {k for k, _ in found} == {"2"}
    assert {"9.png", "8.png"} in [set(manifest.images) for _, manifest in found]
    (store.folder / "supports" / names[2]).write_text("{", encoding="utf-8")
    assert len(list(store.supports(store.table([own])))) == 1  # one that cannot be read is left out


def test_supports_with_unlabeled_images_have_files_of_their_own(store: Store) -> None:
    plain = make_job()
    clean, mixed = replace(plain, unlabeled=9), replace(plain, unlabeled=9, contamination=0.1)
    for job in (plain, clean, mixed):
        outcome = make_outcome(job)
        pool = {f"{job.contamination}.png": "ee"} if job.unlabeled else {}
        outcome.manifests = [replace(outcome.manifests[0], unlabeled=pool, contamination=job.contamination)]
        outcome.rows[0].support = outcome.manifests[0].digest
        store.save(job, outcome)
    names = sorted(path.stem for path in (store.folder / "supports").iterdir())
    name = "parts_all-bolt-k2-seed0"
    assert names == [name, f"{name}-unlabeled9", f"{name}-unlabeled9-contamination0.1"]
    found = [manifest for _, manifest in store.supports(store.table([plain, clean, mixed]))]
    assert [list(manifest.unlabeled) for manifest in found] == [[], ["0.0.png"], ["0.1.png"]]
    table = pd.read_csv(store.folder / "results.csv")
    assert table.unlabeled.tolist() == [0, 9, 9]
    assert table.contamination.tolist() == [0, 0, 0.1]


def test_a_training_is_carried_out_once_and_whole(tmp_path: Path) -> None:
    trainings, calls = Trainings(tmp_path / "trainings"), []

    def train(checkpoint: Path) -> tuple[float, int]:
        calls.append(checkpoint)
        checkpoint.write_bytes(b"weights")
        if len(calls) == 1:
            raise KeyboardInterrupt
        return 2.5, 30

    with pytest.raises(KeyboardInterrupt):
        trainings.get("key", train)
    assert [path.name for path in trainings.folder.iterdir()] == ["key.lock"]  # nothing of the half
    first, again = trainings.get("key", train), trainings.get("key", train)
    assert first == again
    assert len(calls) == 2
    assert (first.seconds, first.steps, first.checkpoint.read_bytes()) == (2.5, 30, b"weights")
    assert first.checkpoint == tmp_path / "trainings" / "key" / "model.ckpt"


def test_full_disk_leaves_what_was_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_job(0), make_job(1)
    store.save(first, make_outcome(first))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot be written: .*No space left.* Free some disk space"):
        store.save(second, make_outcome(second))
    monkeypatch.undo()
    assert not store.is_finished(second)
    assert store.table([first, second]).seed.tolist() == [0]
    assert not list(store.folder.rglob("*.part"))


def test_a_file_is_whole_or_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")
    path.with_name(".file.1.part").write_text("half of a ne")  # what a killed process leaves
    assert path.read_text() == "old"
    write_atomically(path, b"new")
    assert path.read_text() == "new"


def test_folder_of_another_format(store: Store) -> None:
    (store.folder / "runs" / "FORMAT").write_text("2\n")
    with pytest.raises(ValueError, match="`results` must be a folder with format 1, got format 2.*sweep"):
        Store(store.folder)


def test_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match="`results` must be a new folder or .*, got one with other files"):
        Store(tmp_path)
    with pytest.raises(ValueError, match="other files"):
        Store(tmp_path / "holiday.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
