# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Which runs a configuration means."""

import inspect
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from anomalib_fewshot import CoftAD, ImageStatistic
from anomalib_fewshot.pipelines.cli import FewShotBenchmark
from anomalib_fewshot.pipelines.plan.grid import make_jobs
from anomalib_fewshot.pipelines.plan.job import Job

METHODS: dict[str, Any] = {
    "A": {"class_path": "CoftAD", "init_args": {"pre_trained": True, "weights": "file.pth"}},
    "B": {"class_path": "Padim"},
}


class NetworkStatistic(ImageStatistic):
    """Stands for a model that takes what was trained on other categories."""

    def __init__(self, network: str | None = None, seed: int = 0) -> None:
        super().__init__("mean")
        self.network, self.seed = network, seed


class PoolStatistic(ImageStatistic):
    """Stands for a model that uses unlabeled images itself."""

    uses_unlabeled = True

    def __init__(self) -> None:
        super().__init__("mean")


@pytest.fixture
def datasets(mvtec_root: Path) -> dict[str, Any]:
    return {"parts": {"class_path": "MVTecFolder", "init_args": {"root": str(mvtec_root)}}}


def of(jobs: list[Job], method: str) -> Job:
    return next(job for job in jobs if job.method == method)


def test_every_method_on_every_category_k_and_seed(datasets: dict[str, Any]) -> None:
    jobs = make_jobs(METHODS, datasets, [1, 2], [0, 7])
    runs = {(job.method, job.category, job.k_shot, job.seed) for job in jobs}
    assert runs == {(m, c, k, s) for m in "AB" for c in ("bolt", "cloth") for k in (1, 2) for s in (0, 7)}
    assert len(jobs) == len({job.key for job in jobs}) == 16


def test_runs_on_the_same_images_follow_one_another(datasets: dict[str, Any]) -> None:
    jobs = make_jobs(METHODS, datasets, [2, 1], 2)
    assert [job.category for job in jobs] == ["bolt"] * 8 + ["cloth"] * 8
    cells = [(job.seed, job.k_shot) for job in jobs[:8]]
    assert cells == sorted(cells)  # all methods of a cell, then the next cell


def test_all_images_are_a_k_that_comes_last(datasets: dict[str, Any]) -> None:
    datasets["parts"]["categories"] = ["bolt"]
    jobs = make_jobs(METHODS, datasets, ["all", 10, 2], 1, overrides={"B": {"k_shot": "all"}})
    assert [(job.method, job.k_shot) for job in jobs] == [("A", 2), ("A", 10), ("A", "all"), ("B", "all")]
    assert str(jobs[-1]) == "B on parts bolt, k = all, seed 0"
    assert len({job.key for job in jobs}) == 4


def test_training_on_others_serves_all_images_too(datasets: dict[str, Any]) -> None:
    methods = {"A": {"class_path": "NetworkStatistic"}}
    jobs = make_jobs(methods, datasets, [1, "all"], 1, overrides={"A": {"train_on": "other_categories"}})
    assert len({job.training_key for job in jobs}) == 2  # of each target
    assert len({job.key for job in jobs}) == 4


def test_categories_may_be_named_and_a_folder_has_none(datasets: dict[str, Any], mvtec_root: Path) -> None:
    datasets["parts"]["categories"] = ["cloth"]
    datasets["folder"] = {"class_path": "Folder", "init_args": {"name": "own", "normal_dir": "good"}}
    jobs = make_jobs(METHODS, datasets, [1], 1, root=mvtec_root)
    assert {(job.dataset, job.category) for job in jobs} == {("parts", "cloth"), ("folder", "own")}
    assert {job.data["init_args"]["root"] for job in jobs} == {str(mvtec_root)}


def test_seeds_are_a_number_or_a_list(datasets: dict[str, Any]) -> None:
    assert {job.seed for job in make_jobs(METHODS, datasets, [1], 3)} == {0, 1, 2}
    assert {job.seed for job in make_jobs(METHODS, datasets, [1], [3])} == {3}


def test_seed_reaches_a_model_that_has_one_unless_it_was_given(datasets: dict[str, Any]) -> None:
    methods = METHODS | {"C": {"class_path": "CoftAD", "init_args": {"seed": 5}}}
    jobs = make_jobs(methods, datasets, [1], [3])
    seeds = {name: of(jobs, name).model["init_args"].get("seed") for name in "ABC"}
    assert seeds == {"A": 3, "B": None, "C": 5}


def test_grid_makes_a_method_of_each_value(datasets: dict[str, Any]) -> None:
    methods = {"A": {"class_path": "CoftAD", "init_args": {"num_steps": {"grid": [0, 9]}, "layers": [1]}}}
    jobs = make_jobs(methods, datasets, [1], 1)
    assert {job.method: job.model["init_args"] for job in jobs} == {
        f"A num_steps={steps}": {"num_steps": steps, "layers": [1], "seed": 0} for steps in (0, 9)
    }


def test_controls_are_added_by_one_line(datasets: dict[str, Any]) -> None:
    jobs = make_jobs(METHODS, datasets, [1], 1, controls="A")
    untrained = {"pre_trained": True, "weights": "file.pth", "num_steps": 0, "seed": 0}
    assert of(jobs, "A, no fine-tuning").model["init_args"] == untrained
    assert of(jobs, "A, random weights").model["init_args"] == untrained | {"pre_trained": False, "weights": None}
    plain = {job.model["init_args"]["statistic"] for job in jobs if job.model["class_path"] == "ImageStatistic"}
    assert plain == {"mean", "std", "border"}


def test_controls_of_a_method_without_steps(datasets: dict[str, Any]) -> None:
    methods = {job.method for job in make_jobs(METHODS, datasets, [1], 1, controls="B")}
    assert methods >= {"B, random weights", "mean brightness"}
    assert "B, no fine-tuning" not in methods


def test_overrides_of_a_method(datasets: dict[str, Any]) -> None:
    own = {"k_shot": [4], "seeds": 1, "data": {"eval_batch_size": 3}, "trainer": {"max_epochs": 2}}
    jobs = make_jobs(METHODS, datasets, [1, 2], 2, overrides={"B": own})
    assert {(job.k_shot, job.seed) for job in jobs if job.method == "B"} == {(4, 0)}
    assert of(jobs, "B").trainer == {"max_epochs": 2}
    assert of(jobs, "B").data["init_args"]["eval_batch_size"] == 3
    assert "eval_batch_size" not in of(jobs, "A").data["init_args"]


def test_callbacks_of_a_method_are_checked(datasets: dict[str, Any]) -> None:
    trainer = {"callbacks": [{"class_path": "anomalib_fewshot.Adversaria"}]}
    with pytest.raises(ValueError, match=r"must name a Callback, got 'anomalib_fewshot\.Adversaria'"):
        make_jobs(METHODS, datasets, [1], 1, overrides={"B": {"trainer": trainer}})


def test_model_of_a_method_is_changed_and_checked(datasets: dict[str, Any]) -> None:
    jobs = make_jobs(METHODS, datasets, [1], 1, controls="A", overrides={"A": {"model": {"num_steps": 3, "seed": 5}}})
    assert of(jobs, "A").model["init_args"] == METHODS["A"]["init_args"] | {"num_steps": 3, "seed": 5}
    assert of(jobs, "A, no fine-tuning").model["init_args"]["seed"] == 5  # a control is of what was changed
    with pytest.raises(ValueError, match="The method 'A': .*stepz"):
        make_jobs(METHODS, datasets, [1], 1, overrides={"A": {"model": {"stepz": 1}}})


def test_learning_from_others_is_one_training_for_all_k_and_supports(datasets: dict[str, Any]) -> None:
    methods = {
        "A": {"class_path": "NetworkStatistic", "init_args": {"seed": 0}},
        "B": {"class_path": "NetworkStatistic"},
    }
    overrides = {name: {"train_on": "other_categories"} for name in methods}
    jobs = make_jobs(methods, datasets, [1, 2], 2, overrides=overrides)
    assert {job.categories for job in jobs} == {("bolt", "cloth")}
    trainings = {name: {(job.category, job.training_key) for job in jobs if job.method == name} for name in methods}
    assert len(trainings["A"]) == 2  # of each target
    assert len(trainings["B"]) == 4  # and of each seed, where the model's follows the sweep's
    assert trainings["A"] < trainings["B"]  # equal models share a training, also under two method names
    assert len({job.key for job in jobs}) == len(jobs)
    assert {job.test_categories for job in jobs} == {("bolt",), ("cloth",)}
    assert jobs[0].source("cloth")["init_args"]["category"] == "cloth"


def test_learning_from_all_is_one_run_of_all_categories(datasets: dict[str, Any]) -> None:
    jobs = make_jobs(METHODS, datasets, [1], [7], overrides={"B": {"train_on": "all_categories"}})
    assert [(job.method, job.category) for job in jobs] == [("A", "bolt"), ("A", "cloth"), ("B", "")]
    assert jobs[-1].test_categories == ("bolt", "cloth")
    assert str(jobs[-1]) == "B on parts all categories, k = 1, seed 7"


def test_training_key_changes_with_all_that_a_training_depends_on() -> None:
    model, data = {"class_path": "A", "init_args": {"x": 1}}, {"class_path": "D", "init_args": {}}
    job = Job("A", "parts", "bolt", 4, 0, model, data, {}, "other_categories", ("bolt", "cloth"))
    others = [
        replace(job, category="cloth"),
        replace(job, model=model | {"init_args": {"x": 2}}),
        replace(job, data=data | {"init_args": {"root": "."}}),
        replace(job, trainer={"max_epochs": 1}),
        replace(job, categories=("bolt", "cloth", "nut")),
        replace(job, defaults={"y": None}),
    ]
    assert len({job.training_key, *(other.training_key for other in others)}) == 7
    same = replace(job, method="B", k_shot=2, seed=1)
    assert same.training_key == job.training_key


def test_override_of_a_grid_is_of_all_its_methods(datasets: dict[str, Any]) -> None:
    methods = {"A": {"class_path": "CoftAD", "init_args": {"num_steps": {"grid": [1, 2]}}}}
    overrides = {"A": {"k_shot": [2], "model": {"positive_weight": 3}}, "A num_steps=2": {"seeds": [5]}}
    jobs = make_jobs(methods, datasets, [1], 1, overrides=overrides)
    found = {(job.method, job.k_shot, job.seed, job.model["init_args"]["positive_weight"]) for job in jobs}
    assert found == {("A num_steps=1", 2, 0, 3), ("A num_steps=2", 2, 5, 3)}


def test_controls_have_the_overrides_of_their_method(datasets: dict[str, Any]) -> None:
    own = {"k_shot": [2], "trainer": {"max_epochs": 3}, "data": {"num_workers": 0}, "model": {"positive_weight": 3}}
    overrides = {"A": own, "A, random weights": {"model": {"positive_weight": 4}}}
    jobs = make_jobs({"A": METHODS["A"]}, datasets, [1], [0], controls="A", overrides=overrides)
    found = {job.method: (job.k_shot, job.trainer, job.model["init_args"].get("positive_weight")) for job in jobs}
    assert found["A"] == found["A, no fine-tuning"] == (2, {"max_epochs": 3}, 3)
    assert found["A, random weights"] == (2, {"max_epochs": 3}, 4)
    assert found["mean brightness"] == (2, {}, None)
    assert {job.data["init_args"]["num_workers"] for job in jobs} == {0}


def test_names_of_controls_are_taken(datasets: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="`methods` must have unique names, got 'A, no fine-tuning' twice"):
        make_jobs({"A": METHODS["A"], "A, no fine-tuning": METHODS["A"]}, datasets, [1], 1, controls="A")


def test_method_may_be_a_file(datasets: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(METHODS["B"]), encoding="utf-8")
    assert make_jobs({"B": tmp_path / "a.yaml"}, datasets, [1], 1) == make_jobs({"B": METHODS["B"]}, datasets, [1], 1)


def test_key_stays_what_it_was() -> None:
    """Else a new version would repeat all runs."""
    job = Job("A", "parts", "bolt", 4, 0, {"class_path": "A", "init_args": {"x": 1}}, {"class_path": "D"}, {})
    assert job.key == "8c2aa6492d571e65"


def test_key_does_not_change_with_listed_defaults_of_nested_specifications(datasets: dict[str, Any]) -> None:
    """The command line lists them, a model's file does not."""
    scale = {"mean": [0.5] * 3, "std": [0.5] * 3}
    pre_processor = {"class_path": "anomalib_fewshot.AutoSizePreProcessor", "init_args": {"image_size": 64} | scale}
    callback = {"class_path": "anomalib_fewshot.AdversarialCallback", "init_args": {"weight": 5.0}}

    def key(pre_processor: dict[str, Any], callback: dict[str, Any]) -> str:
        methods = {"A": {"class_path": "Padim", "init_args": {"pre_processor": pre_processor}}}
        (job, *_) = make_jobs(methods, datasets, 1, 1, overrides={"A": {"trainer": {"callbacks": [callback]}}})
        return job.key

    listed = pre_processor | {"init_args": {"multiple": 32, "image_size": 64} | scale}
    changed = pre_processor | {"init_args": {"multiple": 16, "image_size": 64} | scale}
    assert key(listed, callback) == key(pre_processor, callback) != key(changed, callback)
    content = {"methods": {"A": {"class_path": "Padim", "init_args": {"x": callback}}}, "datasets": {}}
    methods = FewShotBenchmark.get_parser().parse_object(content).as_dict()["methods"]
    listed_callback = methods["A"]["init_args"]["x"].as_dict()
    assert len(listed_callback["init_args"]) > 1
    assert key(pre_processor, listed_callback) == key(pre_processor, callback)


def test_key_changes_with_a_default_of_the_model(datasets: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a new version with other defaults would take the old one's runs for its own."""
    (old,) = make_jobs({"A": METHODS["A"]}, datasets, [1], 1)[:1]
    assert isinstance(old.defaults["num_steps"], int)
    signature = inspect.signature(CoftAD)
    parameters = [p.replace(default=999) if p.name == "num_steps" else p for p in signature.parameters.values()]
    monkeypatch.setattr(CoftAD, "__signature__", signature.replace(parameters=parameters), raising=False)
    (new,) = make_jobs({"A": METHODS["A"]}, datasets, [1], 1)[:1]
    assert new.defaults == old.defaults | {"num_steps": 999}
    assert new.key != old.key


def test_key_changes_with_all_that_a_result_depends_on() -> None:
    model, data = {"class_path": "A", "init_args": {"x": 1}}, {"class_path": "D", "init_args": {}}
    job = Job("A", "parts", "bolt", 4, 0, model, data, {})
    others = [
        replace(job, k_shot=2),
        replace(job, seed=1),
        replace(job, category="cloth"),
        replace(job, model=model | {"init_args": {"x": 2}}),
        replace(job, data=data | {"init_args": {"root": "."}}),
        replace(job, trainer={"max_epochs": 1}),
        replace(job, train_on="other_categories"),
        replace(job, categories=("bolt", "cloth")),
        replace(job, defaults={"y": None}),
    ]
    assert len({job.key, *(other.key for other in others)}) == 10
    assert replace(job, model={"init_args": {"x": 1}, "class_path": "A"}).key == job.key  # the order is nothing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": {}}, "`methods` must name at least one method"),
        ({"methods": {"A": "no_such.yaml"}}, "or the path of a YAML file, got 'no_such.yaml'"),
        ({"methods": {"A": {"init_args": {}}}}, "must have a `class_path`"),
        ({"methods": {"A": {"class_path": "CoftADD"}}}, "The method 'A': .* got 'CoftADD'. Similar names: .'CoftAD'"),
        ({"methods": {"A": {"class_path": "MVTecAD"}}}, "must name an AnomalibModule, got 'MVTecAD'"),
        (
            {"methods": {"A": {"class_path": "anomalib.data.MVTecAD"}}},
            "got 'anomalib.data.MVTecAD', which is not a subclass",
        ),
        ({"methods": {"A": {"class_path": "CoftAD", "init_args": {"stepz": 1}}}}, "The method 'A': .*stepz"),
        ({"datasets": {"X": {"class_path": "MVTec_AD"}}}, "The dataset 'X': .*'MVTecAD'"),
        ({"k_shot": [0]}, r"`k_shot` must be integers of at least 1 or 'all', got \[0\]"),
        ({"k_shot": []}, r"`k_shot` must be integers of at least 1 or 'all', got \[\]"),
        ({"k_shot": [1, "every"]}, r"`k_shot` must be integers of at least 1 or 'all', got \[1, 'every'\]"),
        ({"overrides": {"A": {"k_shot": None}}}, "`k_shot` must be integers of at least 1 or 'all', got None"),
        ({"overrides": {"A": {"seeds": ["all"]}}}, r"`seeds` must be integers of at least 0, got \['all'\]"),
        ({"seeds": 0}, "`seeds` must be at least 1, got 0"),
        ({"controls": "Z"}, "`controls` must be the name of a method, got 'Z'. Choose one of .'A', 'B'"),
        ({"overrides": {"Z": {}}}, "`overrides` must .* got 'Z'"),
        ({"overrides": {"A": {"epochs": 1}}}, "must be one of .*'k_shot'.*got .'epochs'. for 'A'"),
        ({"overrides": {"A": {"train_on": "x"}}}, "`train_on` must be one of ..*'other_categories'.* got 'x' for 'A'"),
        ({"root": "no_such_folder"}, "The dataset 'parts' must have `categories`, or a `root`.*no_such_folder"),
    ],
)
def test_wrong_configuration(datasets: dict[str, Any], change: dict[str, Any], message: str) -> None:
    arguments = {"methods": METHODS, "datasets": datasets, "k_shot": [1], "seeds": 1} | change
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        make_jobs(**arguments)


@pytest.mark.parametrize("train_on", ["other_categories", "all_categories"])
def test_learning_from_several_needs_several(datasets: dict[str, Any], train_on: str) -> None:
    datasets["parts"]["categories"] = ["bolt"]
    with pytest.raises(ValueError, match=r"'parts' must have at least two categories, got \['bolt'\].*'A'"):
        make_jobs(METHODS, datasets, [1], 1, overrides={"A": {"train_on": train_on}})


def test_learning_from_others_needs_a_model_that_takes_a_network(datasets: dict[str, Any]) -> None:
    message = "with a model that has an argument `network`.*, got Padim for 'B'"
    with pytest.raises(ValueError, match=message):
        make_jobs(METHODS, datasets, [1], 1, overrides={"B": {"train_on": "other_categories"}})


def test_data_of_an_override_are_marked_and_are_no_part_of_the_key(datasets: dict[str, Any]) -> None:
    jobs = make_jobs(METHODS, datasets, [1], 1, overrides={"B": {"data": {"seed": 3}}})
    assert {(job.method, job.has_own_data) for job in jobs} == {("A", False), ("B", True)}
    assert of(jobs, "A").data_key != of(jobs, "B").data_key
    assert replace(of(jobs, "B"), has_own_data=False).key == of(jobs, "B").key


def test_wrong_category(datasets: dict[str, Any]) -> None:
    datasets["parts"]["categories"] = ["bolt", "nut"]
    with pytest.raises(ValueError, match=r"got 'nut'. Available: \['bolt', 'cloth'\]"):
        make_jobs(METHODS, datasets, [1], 1)


POOL_METHODS: dict[str, Any] = {
    "own": {"class_path": f"{__name__}.PoolStatistic"},
    "bank": {"class_path": "Padim"},
    "plain": {"class_path": "ImageStatistic"},
}


def pool_runs(jobs: list[Job]) -> set[tuple[str, int, float, bool]]:
    return {(job.method, job.unlabeled, job.contamination, job.append_unlabeled) for job in jobs}


def test_unlabeled_images_go_to_the_methods_that_can_use_them(datasets: dict[str, Any]) -> None:
    jobs = make_jobs(POOL_METHODS, datasets, [1], 1, unlabeled=[60, 0], contamination=[0.1, 0])
    assert pool_runs(jobs) == {
        *((name, 0, 0.0, False) for name in POOL_METHODS),
        *(("own", 60, share, False) for share in (0.0, 0.1)),
        *(("bank", 60, share, True) for share in (0.0, 0.1)),
    }
    assert len({job.key for job in jobs}) == len(jobs) == 2 * (3 + 2 + 2)
    assert str(jobs[-1]) == "bank on parts cloth, k = 1, seed 0, 60 unlabeled images, 10 % of them anomalous"
    pools = [(job.unlabeled, job.contamination) for job in jobs if job.category == "bolt"]
    assert pools == sorted(pools)


def test_all_images_and_all_categories_leave_no_unlabeled_images(datasets: dict[str, Any]) -> None:
    overrides = {"own": {"train_on": "all_categories"}}
    jobs = make_jobs(POOL_METHODS, datasets, [1, "all"], 1, unlabeled=[0, 60], overrides=overrides)
    assert {(job.method, job.k_shot) for job in jobs if job.unlabeled} == {("bank", 1)}


def test_runs_without_unlabeled_images_keep_their_hash(datasets: dict[str, Any]) -> None:
    """Stored runs of earlier versions stay valid, and a training on other categories is shared by all pools."""
    job = of(make_jobs(POOL_METHODS, datasets, [1], 1), "bank")
    settings = job._settings()  # noqa: SLF001
    assert set(settings) == {
        *("method", "dataset", "category", "k_shot", "seed", "model", "data", "trainer"),
        *("train_on", "categories", "defaults"),
    }
    pool = replace(job, unlabeled=60, contamination=0.1)
    assert pool.key != job.key
    assert pool.training_key == job.training_key


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"unlabeled": -1}, "`unlabeled` must be integers of at least 0, got -1"),
        ({"unlabeled": [60], "contamination": [0, 1.0]}, "`contamination` must be numbers of at least 0 and below 1"),
        ({"contamination": 0.1}, "`contamination` must be used with `unlabeled` above 0, got 0.1"),
        ({"unlabeled": 60}, "`unlabeled` must contain 0, because 'plain' cannot be run with unlabeled images"),
    ],
)
def test_invalid_unlabeled_images(datasets: dict[str, Any], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_jobs(POOL_METHODS, datasets, [1], 1, **arguments)
