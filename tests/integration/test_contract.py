# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The contract of every model and every file in configs/, through anomalib's own command line."""

import inspect
import json
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
import yaml
from anomalib.cli import AnomalibCLI
from anomalib.data.utils import read_image
from anomalib.engine import Engine
from anomalib.models import AnomalibModule, get_model, list_models
from anomalib.utils.path import convert_to_snake_case
from small_models import MODELS, SMALL

from anomalib_fewshot.pipelines.plan.spec import find_class

CONFIGS = Path(__file__).parents[2] / "configs"
MODEL_FILES = sorted(CONFIGS.glob("model/*.yaml"))
DEFAULTS = {"coft_ad", "patchcore_lite0", "reg_ad", "uni_ad"}  # files that are trained in every run of the suite
FOUND = 0.8  # image AUROC of a model that finds the dark squares of `conftest.draw`


@pytest.mark.parametrize("name", ["coft_ad", "reg_ad", "uni_ad"])
def test_file_of_the_defaults_has_the_defaults(name: str) -> None:
    spec = yaml.safe_load((CONFIGS / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    parameters = inspect.signature(find_class(spec, AnomalibModule)).parameters
    given = spec["init_args"]
    defaults = {key: parameters[key].default for key in given}
    if defaults["image_size"] is None:
        defaults["image_size"] = list(find_class(spec, AnomalibModule).default_image_size)
    assert given == defaults


@dataclass
class Trained:
    """What `anomalib train` leaves."""

    model: AnomalibModule
    engine: Engine
    folder: Path
    flags: list[str]

    @property
    def checkpoint(self) -> Path:
        """The file that Lightning leaves."""
        return self.folder / "weights" / "lightning" / "model.ckpt"


def few_shot(root: Path, k_shot: int = 2) -> list[str]:
    source = {"root": root, "category": "bolt", "num_workers": 0}
    return [
        *("--data", "FewShot", "--data.source", "MVTecAD", "--data.k_shot", str(k_shot)),
        *(part for key, value in source.items() for part in (f"--data.source.{key}", str(value))),
    ]


def model_flags(name: str) -> list[str]:
    flags = (part for key, value in SMALL[name].items() for part in (f"--model.{key}", str(value)))
    return ["--model", name, *flags]


def anomalib(command: str, *flags: str, results: Path) -> AnomalibCLI:
    trainer = ["--trainer.enable_progress_bar", "false", "--trainer.accelerator", "cpu"]
    return AnomalibCLI([command, *flags, *trainer, "--default_root_dir", str(results)])


def metrics(cli: AnomalibCLI) -> dict[str, float]:
    return {key: float(value) for key, value in cli.engine.trainer.callback_metrics.items()}


@pytest.fixture(scope="module", params=MODELS)
def trained(request: pytest.FixtureRequest, mvtec_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """Train each model by its short name."""
    flags = model_flags(request.param)
    cli = anomalib("train", *flags, *few_shot(mvtec_root), results=tmp_path_factory.mktemp("results"))
    return Trained(cli.model, cli.engine, Path(cli.engine.trainer.default_root_dir), flags)


def outputs(model: AnomalibModule, images: torch.Tensor) -> dict[str, np.ndarray]:
    with torch.no_grad():
        result = model.eval()(images)._asdict()
    assert len(result["pred_score"].unique()) > len(images) // 2
    return {key: value.numpy() for key, value in result.items() if value is not None}


def metric_names(model: AnomalibModule, root: Path) -> set[str]:
    """Return the metrics to expect: those of pixels too if the model has an anomaly map."""
    levels = ("image", "pixel") if "anomaly_map" in outputs(model, images(root)) else ("image",)
    return {f"{level}_{metric}" for level in levels for metric in ("AUROC", "F1Score")}


def images(root: Path) -> torch.Tensor:
    """Return test images, for random ones are so anomalous that every score is cut off at 1."""
    paths = sorted(root.glob("bolt/test/*/*.png"))
    return torch.stack([read_image(path, as_tensor=True) for path in paths])


@pytest.mark.parametrize("name", MODELS)
def test_found_by_every_name(name: str) -> None:
    snake = convert_to_snake_case(name)
    assert snake in list_models()
    entry = next(entry for entry in entry_points(group="anomalib.models") if entry.name == name)
    for known_as in (snake, {"class_path": name}, {"class_path": entry.value.replace(":", ".")}):
        assert type(get_model(known_as, **SMALL[name])) is entry.load()


def test_results_are_where_anomalib_puts_them(trained: Trained) -> None:
    assert trained.folder.parent.parent.name == "MVTecAD"
    assert trained.folder.parent.name == "bolt"
    assert trained.checkpoint.is_file()
    assert len(list((trained.folder / "images").rglob("*.png"))) == 8
    support = json.loads((trained.folder / "support.json").read_text(encoding="utf-8"))
    assert (support["k_shot"], len(support["images"])) == (2, 2)


def test_every_metric_is_there_and_finite(trained: Trained, mvtec_root: Path) -> None:
    values = {key: float(value) for key, value in trained.engine.trainer.callback_metrics.items()}
    assert metric_names(trained.model, mvtec_root) <= set(values)
    assert all(np.isfinite(value) for value in values.values())


def test_test_from_checkpoint_gives_the_same_metrics(trained: Trained, mvtec_root: Path, tmp_path: Path) -> None:
    flags = [*trained.flags, *few_shot(mvtec_root), "--ckpt_path", str(trained.checkpoint)]
    again = metrics(anomalib("test", *flags, results=tmp_path))
    for name in metric_names(trained.model, mvtec_root):
        assert again[name] == pytest.approx(float(trained.engine.trainer.callback_metrics[name]))


def test_checkpoint_gives_equal_outputs(trained: Trained, mvtec_root: Path) -> None:
    loaded = type(trained.model).load_from_checkpoint(trained.checkpoint)
    expected = outputs(trained.model, images(mvtec_root))
    for key, value in outputs(loaded, images(mvtec_root)).items():
        np.testing.assert_array_equal(value, expected[key])


def test_going_on_from_the_end_of_a_training_changes_nothing(
    trained: Trained,
    mvtec_root: Path,
    tmp_path: Path,
) -> None:
    flags = [*trained.flags, *few_shot(mvtec_root), "--ckpt_path", str(trained.checkpoint)]
    again = anomalib("fit", *flags, results=tmp_path).model
    expected = outputs(trained.model, images(mvtec_root))
    for key, value in outputs(again, images(mvtec_root)).items():
        np.testing.assert_array_equal(value, expected[key])


def test_predict_writes_a_picture_of_each_image(trained: Trained, mvtec_root: Path, tmp_path: Path) -> None:
    data = ["--data", str(mvtec_root / "bolt/test/hole"), "--ckpt_path", str(trained.checkpoint)]
    anomalib("predict", *trained.flags, *data, results=tmp_path)
    assert len(list(tmp_path.rglob("*.png"))) == 4


@pytest.mark.parametrize("input_size", [None, pytest.param("[64,64]", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "trained",
    # An export of CoftAD is compared in test_export.py and test_deployment.py.
    [pytest.param(name, marks=pytest.mark.slow if name == "CoftAD" else ()) for name in MODELS],
    indirect=True,
)
def test_exported_onnx_is_equal(trained: Trained, mvtec_root: Path, tmp_path: Path, input_size: str | None) -> None:
    flags = [*trained.flags, "--export_type", "onnx", "--ckpt_path", str(trained.checkpoint)]
    flags += ["--input_size", input_size] if input_size else []
    anomalib("export", *flags, "--export_root", str(tmp_path), results=tmp_path)
    (path,) = tmp_path.rglob("*.onnx")
    weights = [tensor.name for tensor in onnx.load(path).graph.initializer]
    parts_of_training = ("model.encoder", "model.predictor", "model.prediction_head", "adversarial")
    assert not [name for name in weights if name.startswith(parts_of_training)]
    session = onnxruntime.InferenceSession(path)
    expected = outputs(trained.model, images(mvtec_root))
    names = [name for name in expected if name in {"pred_score", "anomaly_map"}]  # labels are cut at an image's score
    for index, image in enumerate(images(mvtec_root)):
        for name, value in zip(names, session.run(names, {"input": image[None].numpy()}), strict=True):
            np.testing.assert_allclose(value[0], expected[name][index], rtol=1e-3, atol=1e-4)


def test_exported_torch_is_equal(trained: Trained, mvtec_root: Path, tmp_path: Path) -> None:
    path = trained.model.to_torch(tmp_path)
    loaded = torch.load(path, weights_only=False)["model"]
    expected = outputs(trained.model, images(mvtec_root))
    for key, value in outputs(loaded, images(mvtec_root)).items():
        np.testing.assert_array_equal(value, expected[key])


@pytest.mark.parametrize("name", MODELS)
def test_half_precision_finds_the_defects(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    flags = [*model_flags(name), *few_shot(mvtec_root), "--trainer.precision", "bf16-mixed"]
    flags += ["--model.augment_support", "true"] if "augment_support" in SMALL[name] else []
    assert metrics(anomalib("train", *flags, results=tmp_path))["image_AUROC"] > FOUND


def test_optimizer_follows_the_arguments(mvtec_root: Path, tmp_path: Path) -> None:
    """`--optimizer` of anomalib 2.7 fails for every model with lightning-utilities 0.15.3, so arguments do it."""
    optimised = [name for name in MODELS if get_model(name, **SMALL[name]).configure_optimizers() is not None]
    assert optimised
    for name in optimised:
        flags = ["--model.learning_rate", "0.125", "--model.weight_decay", "0.5"]
        cli = anomalib("fit", *model_flags(name), *few_shot(mvtec_root), *flags, results=tmp_path)
        (group,) = cli.engine.trainer.optimizers[0].param_groups
        assert (group.get("initial_lr", group["lr"]), group["weight_decay"]) == (0.125, 0.5)  # without its schedule


def has_random_weights(path: Path) -> bool:
    """Return whether the weights of a file's backbone are not in a package: there is no network."""
    return any(name in path.read_text(encoding="utf-8") for name in ("resnet", "_b4"))


def flags_of(path: Path, root: Path) -> list[str]:
    random_weights = ["--model.pre_trained", "false"] if has_random_weights(path) else []
    return ["--model", str(path), *few_shot(root), *random_weights]


@pytest.mark.parametrize(
    "path",
    [path for path in MODEL_FILES if path.stem not in DEFAULTS],
    ids=lambda path: path.stem,
)
def test_model_file_is_understood(path: Path, mvtec_root: Path) -> None:
    """The model and the data are made, and nothing is trained."""
    cli = AnomalibCLI(["train", *flags_of(path, mvtec_root)], run=False)
    assert type(cli.model) is find_class(yaml.safe_load(path.read_text(encoding="utf-8")), AnomalibModule)


def trained_files() -> list[object]:
    """Return the files. Those of the defaults are trained in every run of the suite, all of them every night."""
    marks = {path: () if path.stem in DEFAULTS else pytest.mark.slow for path in MODEL_FILES}
    return [pytest.param(path, id=path.stem, marks=mark) for path, mark in marks.items()]


@pytest.mark.parametrize("path", trained_files())
def test_model_file(path: Path, mvtec_root: Path, tmp_path: Path) -> None:
    flags, random_weights = flags_of(path, mvtec_root), has_random_weights(path)
    arguments = yaml.safe_load(path.read_text(encoding="utf-8"))["init_args"]
    if path.stem.startswith(("coft_ad", "uni_ad")) and arguments.get("num_steps", 1) > 0:
        flags += ["--model.num_steps", "2"]
    if "reg_ad" in path.stem:
        flags += ["--model.max_epochs", "1"]
    found = metrics(anomalib("train", *flags, results=tmp_path))["image_AUROC"]
    assert 0 <= found <= 1 if random_weights else found > FOUND


@pytest.mark.parametrize("name", ["few_shot_mvtec", "few_shot_mvtec_folder", "few_shot_folder"])
def test_data_file(name: str, mvtec_root: Path, tmp_path: Path) -> None:
    source: dict[str, Any] = {"root": mvtec_root, "category": "bolt"}
    if name == "few_shot_folder":
        folders = {"normal_dir": "train/good", "normal_test_dir": "test/good", "abnormal_dir": "test/hole"}
        source = {"root": mvtec_root / "bolt", **folders}
    source["num_workers"] = 0
    overrides = [part for key, value in source.items() for part in (f"--data.source.{key}", str(value))]
    flags = [*model_flags("UniAD"), "--data", str(CONFIGS / "data" / f"{name}.yaml"), *overrides]
    assert metrics(anomalib("train", *flags, results=tmp_path))["image_AUROC"] > FOUND


@pytest.mark.parametrize("target", [None, "cloth"])
def test_several_categories(target: str | None, mvtec_root: Path, tmp_path: Path) -> None:
    flags = [*model_flags("UniAD"), "--data", str(CONFIGS / "data" / "multi_category.yaml")]
    flags += ["--data.source.root", str(mvtec_root), "--data.source.num_workers", "0"]
    cli = anomalib("train", *flags, *(["--data.target", target] if target else []), results=tmp_path)
    values, folder = metrics(cli), Path(cli.engine.trainer.default_root_dir)
    supports = {path.relative_to(folder).as_posix() for path in folder.rglob("*.json")}
    if target:
        assert (folder.parent.name, supports) == ("cloth", {"support.json"})
        assert not any("/" in name for name in values)
        return
    assert supports == {"supports/bolt.json", "supports/cloth.json"}
    for name in ("image_AUROC", "image_F1Score", "pixel_AUROC", "pixel_F1Score"):
        assert values[name] == pytest.approx((values[f"bolt/{name}"] + values[f"cloth/{name}"]) / 2)


def test_dagm(dagm_root: Path, tmp_path: Path) -> None:
    flags = ["--data", str(CONFIGS / "data" / "dagm.yaml"), "--data.source.root", str(dagm_root), "--data.k_shot", "2"]
    values = metrics(
        anomalib("train", *model_flags("UniAD"), *flags, "--data.source.num_workers", "0", results=tmp_path),
    )
    for name in ("image_AUROC", "pixel_AUROC"):
        assert values[name] == pytest.approx((values[f"Class1/{name}"] + values[f"Class10/{name}"]) / 2)


def test_adversarial_loss_in_a_model_of_anomalib(tmp_path: Path) -> None:
    small = ["--data.source.num_test", "4", "--trainer.max_epochs", "1"]
    values = metrics(anomalib("fit", "--config", str(CONFIGS / "adversarial_stfpm.yaml"), *small, results=tmp_path))
    assert np.isfinite([values[f"discriminator_loss_{level}"] for level in range(3)]).all()


def test_every_file_is_tested() -> None:
    tested = {
        *MODEL_FILES,
        CONFIGS / "quickstart.yaml",
        CONFIGS / "adversarial_stfpm.yaml",
        CONFIGS / "data/dagm.yaml",
        *(CONFIGS / f"data/few_shot_{n}.yaml" for n in ("mvtec", "mvtec_folder", "folder")),
        CONFIGS / "data/multi_category.yaml",
        *CONFIGS.glob("benchmark/*.yaml"),  # planned in test_benchmark.py, or read in test_cost.py, test_parity.py
    }
    assert set(CONFIGS.rglob("*.yaml")) == tested


def test_quickstart(tmp_path: Path) -> None:
    """The real data and the real weights, with fewer steps and images."""
    small = ["--model.num_steps", "2", "--data.source.num_test", "20"]
    cli = anomalib("train", "--config", str(CONFIGS / "quickstart.yaml"), *small, results=tmp_path)
    assert metrics(cli)["image_AUROC"] > 0.6


def test_benchmark_of_anomalib(mvtec_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its grid reaches into the nested source, and every job gets its own category."""
    source = {"class_path": "MVTecAD", "init_args": {"root": str(mvtec_root), "num_workers": 0}}
    source["init_args"]["category"] = {"grid": ["bolt", "cloth"]}
    config = {
        "accelerator": "cpu",
        "benchmark": {
            "seed": 0,
            "model": {"class_path": "CoftAD", "init_args": SMALL["CoftAD"] | {"visualizer": False}},
            "data": {"class_path": "FewShot", "init_args": {"k_shot": 2, "source": source}},
        },
    }
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    AnomalibCLI(["benchmark", "--config", "grid.yaml"])
    (table,) = tmp_path.glob("runs/benchmark/*/results.csv")
    rows = table.read_text(encoding="utf-8").splitlines()
    assert len(rows) == 3
    assert "image_AUROC" in rows[0]
