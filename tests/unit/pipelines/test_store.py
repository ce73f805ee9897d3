# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The folder of a sweep: nothing is lost and nothing is mixed."""

from pathlib import Path

import pandas as pd
import pytest

from anomalib_fewshot.atomic import write_atomically
from anomalib_fewshot.data.manifest import SupportManifest
from anomalib_fewshot.pipelines.jobs import Job
from anomalib_fewshot.pipelines.store import Store
from anomalib_fewshot.pipelines.worker import Outcome, failed


def make_job(seed: int = 0, steps: int = 1, k_shot: int | str = 2) -> Job:
    model, data = {"class_path": "A", "init_args": {"steps": steps}}, {"class_path": "D", "init_args": {}}
    return Job("A", "parts/all", "bolt", k_shot, seed, model, data, {})


def make_outcome(job: Job, auroc: float = 0.5) -> Outcome:
    manifest = SupportManifest("parts", "bolt", 2, job.seed, {"0.png": "aa", "1.png": "bb"})
    row = {"method": job.method, "seed": job.seed, "status": "ok", "image_AUROC": auroc, "pixel_AUROC": float("nan")}
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


def test_support_of_all_images_has_a_file_of_its_own(store: Store) -> None:
    for job in (make_job(), make_job(k_shot="all")):
        store.save(job, make_outcome(job))
    names = sorted(path.name for path in (store.folder / "supports").iterdir())
    assert names == ["parts_all-bolt-k2-seed0.json", "parts_all-bolt-kall-seed0.json"]


def test_a_failed_run_is_a_row_and_is_tried_again(store: Store) -> None:
    job = make_job()
    store.save(job, failed(job, "ValueError: no"))
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
    assert store.num_others([new]) == 1
    assert store.table([old]).image_AUROC.tolist() == [0.1]


def test_a_run_is_claimed_by_one_process_at_a_time(store: Store) -> None:
    job, other = make_job(), Store(store.folder)
    with store.claim(job) as mine:
        assert mine
        with other.claim(job) as theirs:
            assert not theirs
        with other.claim(make_job(1)) as theirs:
            assert theirs
    with other.claim(job) as theirs:
        assert theirs  # it was given back, and is not finished
    store.save(job, make_outcome(job))
    with other.claim(job) as theirs:
        assert not theirs  # another process has finished it in the meantime


def test_full_disk_leaves_what_was_there(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make_job(0), make_job(1)
    store.save(first, make_outcome(first))
    monkeypatch.setattr("os.fsync", lambda _: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(OSError, match=r"cannot be written: .*No space left.* make room, and start the same command"):
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
    with pytest.raises(ValueError, match="must be a folder of format 1, got .*sweep, which has format 2. It is left"):
        Store(store.folder)


def test_folder_of_other_things(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(ValueError, match="must be a new folder or that of a sweep, got .*, which holds other things"):
        Store(tmp_path)
    with pytest.raises(ValueError, match="holds other things"):
        Store(tmp_path / "holiday.jpg")
    assert [path.name for path in tmp_path.iterdir()] == ["holiday.jpg"]
