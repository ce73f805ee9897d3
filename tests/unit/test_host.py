# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""One test for each use of something that a host does not guarantee: the test that fails names what has changed."""

import os
import subprocess
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from types import ModuleType, SimpleNamespace

import anomalib.data
import anomalib.models
import pytest
import timm
import torch
from anomalib.callbacks import ModelCheckpoint as AnomalibCheckpoint
from anomalib.cli import pipelines
from anomalib.cli.cli import AnomalibCLI
from anomalib.data import ImageBatch, InferenceBatch, MVTecAD
from anomalib.deploy import CompressionType
from anomalib.engine import Engine
from anomalib.models import Padim, Patchcore
from anomalib.models.components.base.export_mixin import mixin as export_mixin
from anomalib.pre_processing import PreProcessor
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from timm.models import get_pretrained_cfg
from torch import nn
from torchvision.transforms.v2 import Compose, Normalize, Resize

from anomalib_fewshot import _autoload, _host
from anomalib_fewshot._host import registry
from anomalib_fewshot._host.post_processing import OpenPostProcessor
from anomalib_fewshot._host.progress import StepProgressBar, count_steps
from anomalib_fewshot._host.timm_models import register_backbone

PARTS = {"pre_processor": False, "post_processor": False, "evaluator": False, "visualizer": False}
ROOT = Path(_host.__file__).parents[2]
QUIET = {"accelerator": "cpu", "logger": False, "enable_model_summary": False, "num_sanity_val_steps": 0}


def trainer(folder: Path, **arguments) -> Trainer:
    settings = {"enable_progress_bar": False, "enable_checkpointing": False, "limit_train_batches": 1}
    settings |= {"limit_val_batches": 0, "default_root_dir": folder}
    return Trainer(**(QUIET | settings | arguments))


def padim(seed: int = 0) -> Padim:
    torch.manual_seed(seed)
    return Padim("resnet18", layers=["layer1"], pre_trained=False, n_features=8, **PARTS)


class OwnModel:
    """A model of a package."""


class OwnPipeline:
    """A pipeline of a package.

    With a longer description.
    """


# --- the start-up hook and anomalib's tables


def test_hook_acts_once_a_module_was_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "host_module.py").write_text("value = 1", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    seen = []
    monkeypatch.setattr(_autoload, "_GROUPS", {"host_module": "group"})
    monkeypatch.setattr(_autoload, "_act", lambda name: seen.append((name, sys.modules[name].value)))
    monkeypatch.setattr(sys, "meta_path", [_autoload._PluginFinder, *sys.meta_path])  # noqa: SLF001
    module = __import__("host_module")
    del sys.modules["host_module"]
    assert seen == [("host_module", 1)]
    assert "exec_module" not in vars(module.__loader__)  # the loader is left as it was


def test_command_line_executes_the_modules_that_the_hook_waits_for() -> None:
    assert {*_autoload._GROUPS, _autoload._CLI} <= set(sys.modules)  # noqa: SLF001


@pytest.mark.parametrize(
    ("arguments", "original", "expected"),
    [
        (["/bin/anomalib", "train"], [], True),
        (["C:/anomalib.exe"], [], True),
        (["/lib/anomalib/cli/cli.py"], [], True),
        (["-m", "inspect"], ["python", "-W", "ignore", "-m", "anomalib.cli.cli", "inspect"], True),
        (["-m", "inspect"], ["python", "-m", "other", "inspect"], False),
        (["train.py", "inspect"], [], False),
        (["-c"], [], False),
        ([], [], False),
    ],
)
def test_command_line_is_recognized(
    arguments: list[str],
    original: list[str],
    *,
    expected: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "argv", arguments)
    monkeypatch.setattr(sys, "orig_argv", original)
    assert _host.is_anomalib_command() is expected


def test_models_and_data_modules_are_looked_up_as_attributes_and_in_all(monkeypatch: pytest.MonkeyPatch) -> None:
    for host, add in ((anomalib.models, registry.add_model), (anomalib.data, registry.add_data)):
        monkeypatch.setattr(host, "__all__", list(host.__all__))
        monkeypatch.setattr(host, "OwnModel", None, raising=False)  # which forgets it after the test
        add(host, "OwnModel", OwnModel)
        assert host.OwnModel is OwnModel
        assert host.__all__.count("OwnModel") == 1
    assert isinstance(anomalib.models.get_model({"class_path": "OwnModel"}), OwnModel)
    allowed = {f"{OwnModel.__module__}.OwnModel"}
    assert isinstance(anomalib.models.get_model({"class_path": allowed.pop()}), OwnModel)


def test_subcommands_are_those_of_the_registry(capsys: pytest.CaptureFixture) -> None:
    assert registry.has_pipelines(pipelines)
    assert registry.pipeline_tables(pipelines) == [pipelines.PIPELINE_REGISTRY]
    with pytest.raises(SystemExit, match="0"):
        AnomalibCLI(["--help"])
    listed = capsys.readouterr().out
    assert all(f" {name} " in listed for name in ("benchmark", "inspect", "fewshot"))


def lazy_host(name: str, **values: object) -> ModuleType:
    """Return a module that imports its parts when they are first used, as anomalib plans to."""
    host = ModuleType(name)
    made = {"Padim": type("Padim", (), {}), "PIPELINE_REGISTRY": {"benchmark": type("Benchmark", (), {})}}

    def __getattr__(attribute: str) -> object:  # noqa: N807
        if attribute not in vars(host).get("_LAZY_IMPORTS", {}):
            raise AttributeError(attribute)
        vars(host)[attribute] = made[attribute]
        return made[attribute]

    vars(host).update(values, __getattr__=__getattr__)
    return host


@pytest.mark.parametrize("names", [["Padim"], ("Padim",)])
def test_lazy_module_of_models(names: list[str] | tuple[str]) -> None:
    host = lazy_host("models", _LAZY_IMPORTS={"Padim": ".image"}, __all__=names, ALLOWED_MODULES=frozenset({"models"}))
    registry.add_model(host, "OwnModel", OwnModel)
    assert host.OwnModel is OwnModel
    assert host.__all__ == type(names)(["Padim", "OwnModel"])
    assert {"models", OwnModel.__module__} <= host.ALLOWED_MODULES
    assert host.Padim.__name__ == "Padim"


def test_lazy_module_of_subcommands_with_a_static_table() -> None:
    """The command line lists the subcommands from the descriptions, and imports the class of the one that is run."""
    described = {"benchmark": "Run a benchmark."}
    host = lazy_host("pipelines", _LAZY_IMPORTS={"PIPELINE_REGISTRY": ""}, _PIPELINE_DESCRIPTIONS=described)
    registry.add_pipeline(host, "own", OwnPipeline)
    assert described == {"benchmark": "Run a benchmark.", "own": "A pipeline of a package."}
    assert host.PIPELINE_REGISTRY["own"] is OwnPipeline
    assert registry.find_pipeline(host, "own") is OwnPipeline


def test_empty_and_missing_tables_of_subcommands() -> None:
    empty = lazy_host("pipelines", PIPELINE_REGISTRY={})
    registry.add_pipeline(empty, "own", OwnPipeline)
    assert {"own": OwnPipeline} == empty.PIPELINE_REGISTRY
    assert not registry.has_pipelines(lazy_host("pipelines", PIPELINE_REGISTRY=None))
    with pytest.raises(LookupError, match="new_pipelines"):
        registry.add_pipeline(lazy_host("new_pipelines"), "own", OwnPipeline)


LAZY_ANOMALIB = {
    "anomalib/__init__.py": "",
    "anomalib/models/__init__.py": """
from importlib import import_module
_LAZY_IMPORTS = {"Padim": ".image"}
__all__ = [*_LAZY_IMPORTS]
def __getattr__(name):
    if name not in _LAZY_IMPORTS:
        raise AttributeError(name)
    return getattr(import_module(_LAZY_IMPORTS[name], __name__), name)
""",
    "anomalib/models/image.py": "print('imported'); Padim = 'Padim'",
    "anomalib/cli/__init__.py": "",
    "anomalib/cli/pipelines.py": """
_PIPELINE_DESCRIPTIONS = {"benchmark": "Run a benchmark."}
_registry = None
def __getattr__(name):
    global _registry
    if name != "PIPELINE_REGISTRY":
        raise AttributeError(name)
    if _registry is None:
        _registry = {"benchmark": type("Benchmark", (), {})}
    return _registry
""",
    "anomalib/cli/cli.py": """
from anomalib.cli import pipelines
def main():
    print(pipelines._PIPELINE_DESCRIPTIONS, *pipelines.PIPELINE_REGISTRY)
    import anomalib.models
    print(*anomalib.models.__all__, anomalib.models.OwnModel.__module__)
""",
    "own_package.py": "class OwnModel: ...\nclass OwnPipeline:\n    'Run it.'",
    "anomalib_fewshot-1.dist-info/METADATA": "Name: anomalib-fewshot\nVersion: 1\n",  # hides the installed one
    "anomalib_fewshot-1.dist-info/entry_points.txt": (
        "[anomalib.models]\nOwnModel = own_package:OwnModel\n[anomalib.pipelines]\nown = own_package:OwnPipeline\n"
    ),
}


def test_hook_registers_with_an_anomalib_that_imports_lazily(tmp_path: Path) -> None:
    for name, text in LAZY_ANOMALIB.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    code = "from anomalib_fewshot._autoload import install; install(); from anomalib.cli.cli import main; main()"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    command = [sys.executable, "-c", code]
    finished = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, cwd=tmp_path)
    assert finished.stdout.splitlines() == [
        "{'benchmark': 'Run a benchmark.', 'own': 'Run it.'} benchmark own",
        "Padim OwnModel own_package",
    ]
    assert not finished.stderr


# --- Lightning's trainer


class LastEpochs(Callback):
    """Records which epochs are the last, and ends the training in one of them."""

    def __init__(self, stop_at: int | None = None) -> None:
        self.stop_at = stop_at
        self.answers: list[bool] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the answer."""
        del pl_module
        if trainer.current_epoch == self.stop_at:
            trainer.should_stop = True
        self.answers.append(_host.is_last_epoch(trainer))


@pytest.mark.parametrize(
    ("arguments", "stop_at"),
    [({"max_epochs": 2}, None), ({"max_steps": 2}, None), ({"max_epochs": 9}, 1)],
)
def test_is_last_epoch(arguments: dict, stop_at: int | None, tmp_path: Path) -> None:
    callback = LastEpochs(stop_at)
    trainer(tmp_path, callbacks=[callback], **arguments).fit(BoringModel())
    assert callback.answers == [False, True]


@pytest.mark.parametrize("save_top_k", [1, 0])
def test_save_checkpoint(save_top_k: int, tmp_path: Path) -> None:
    class Save(Callback):
        def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            del pl_module
            _host.save_checkpoint(trainer)

    checkpoint = ModelCheckpoint(tmp_path, "model-{step}", save_top_k=save_top_k, save_on_train_epoch_end=False)
    fitted = trainer(tmp_path, enable_checkpointing=True, max_epochs=1, callbacks=[checkpoint, Save()])
    fitted.fit(BoringModel())
    path = tmp_path / "model-step=1.ckpt"
    assert path.exists() == bool(save_top_k)
    assert checkpoint.best_model_path == (str(path) if save_top_k else "")
    assert not path.exists() or torch.load(path, weights_only=True)["global_step"] == 1


class Hooks(Callback):
    """Records the hooks of a run."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def setup(self, *_: object, **__: object) -> None:
        """Record the hook."""
        self.seen.append("setup")

    def on_fit_start(self, *_: object) -> None:
        """Record the hook."""
        self.seen.append("fit")

    def teardown(self, *_: object, **__: object) -> None:
        """Record the hook."""
        self.seen.append("teardown")


def test_add_callbacks_in_the_setup_of_a_data_module(tmp_path: Path) -> None:
    new, own = Hooks(), LastEpochs()

    class Data(BoringDataModule):
        def setup(self, stage: str) -> None:
            super().setup(stage)
            _host.add_callbacks(self.trainer, [new, LastEpochs()])

    run = trainer(tmp_path, max_epochs=1, callbacks=[own])
    run.fit(BoringModel(), datamodule=Data())
    assert new.seen == ["setup", "fit", "teardown"]
    assert run.callbacks[:2] == [new, own]  # the trainer has one of the other type
    run.test(BoringModel(), datamodule=Data(), verbose=False)
    assert run.callbacks.count(new) == 1


@pytest.mark.parametrize(
    ("arguments", "word"),
    [({"enable_checkpointing": False}, "enable_checkpointing"), ({"callbacks": [ModelCheckpoint()]}, "callbacks")],
)
def test_explain_checkpoint_error(arguments: dict, word: str, mvtec_root: Path, tmp_path: Path) -> None:
    """If this test fails because there is no error, anomalib's engine has learned it: remove the function."""
    engine = Engine(default_root_dir=tmp_path, **(QUIET | arguments))
    with pytest.raises((MisconfigurationException, RuntimeError)) as error:
        engine.fit(padim(), datamodule=MVTecAD(mvtec_root, "bolt", num_workers=0))
    assert f"`{word}`" in _host.explain_checkpoint_error(error.value)
    assert _host.explain_checkpoint_error(RuntimeError("ModelCheckpoint")) is None


def test_explain_missing_checkpoint(mvtec_root: Path, tmp_path: Path) -> None:
    """A run that failed has moved `latest`."""

    def message(path: Path) -> str | None:
        engine = Engine(default_root_dir=tmp_path, **QUIET)
        with pytest.raises(FileNotFoundError) as error:
            engine.test(padim(), datamodule=MVTecAD(mvtec_root, "bolt", num_workers=0), ckpt_path=path)
        return _host.explain_checkpoint_error(error.value)

    file = "weights/lightning/model.ckpt"
    missing, earlier = tmp_path / "part/v1" / file, tmp_path / "part/v0" / file
    start = f"`ckpt_path` must exist, got {missing}. The run may have failed. "
    assert message(missing) == f"{start}Train a model first."
    earlier.parent.mkdir(parents=True)
    earlier.touch()
    missing.parent.mkdir(parents=True)
    (tmp_path / "part/latest").symlink_to(tmp_path / "part/v1")
    assert message(tmp_path / "part/latest" / file) == f"{start}The newest checkpoint is {earlier}"


def test_checkpoint_callback_of_anomalib_s_class_replaces_the_engine_s(mvtec_root: Path, tmp_path: Path) -> None:
    settings = QUIET | {"enable_progress_bar": False, "default_root_dir": tmp_path}
    engine = Engine(callbacks=[AnomalibCheckpoint(save_top_k=0)], **settings)
    engine.fit(padim(), datamodule=MVTecAD(mvtec_root, "bolt", num_workers=0))
    assert not list(tmp_path.rglob("*.ckpt"))


def test_replaces_sampler(tmp_path: Path) -> None:
    assert _host.replaces_sampler(trainer(tmp_path))
    assert not _host.replaces_sampler(trainer(tmp_path, use_distributed_sampler=False))


def test_count_steps(tmp_path: Path) -> None:
    shown = []

    class Count(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            del pl_module
            count_steps(trainer)

        def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
            task = trainer.progress_bar_callback.train_progress_bar
            shown.append((task.description.split("]")[-1].strip(), task.completed, task.total))

    bar = RichProgressBar(leave=True)
    trainer(tmp_path, max_steps=2, callbacks=[bar, Count()], enable_progress_bar=True).fit(BoringModel())
    assert type(bar) is StepProgressBar
    assert shown == [("Step", 1, 2), ("Step", 2, 2)]


# --- anomalib's models, data modules, post-processor and export


def test_is_memory_bank() -> None:
    assert _host.is_memory_bank(padim())
    assert _host.is_memory_bank(Patchcore("resnet18", layers=["layer1"], pre_trained=False, **PARTS))
    assert not _host.is_memory_bank(BoringModel())
    assert _host.is_memory_bank_class(Patchcore)
    assert not _host.is_memory_bank_class(BoringModel)


def test_fit_memory_bank_is_as_in_lightning_s_loop(tmp_path: Path) -> None:
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    looped, direct = padim(), padim()
    batches = [ImageBatch(image=part) for part in images.split(2)]
    run = trainer(tmp_path, max_epochs=1, limit_train_batches=1.0)
    run.fit(looped, torch.utils.data.DataLoader(batches, batch_size=None))
    _host.fit_memory_bank(direct, images.split(2))
    scores = [model.model.eval()(images).pred_score for model in (looped, direct)]
    assert torch.equal(*scores)
    assert scores[0].isfinite().all()


def test_patchcore_embedding() -> None:
    model = Patchcore("resnet18", layers=["layer1"], pre_trained=False, **PARTS).model.train()
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        embedding = _host.patchcore_embedding(model, images)
        model(images)
    (stored,) = model.embedding_store
    torch.testing.assert_close(embedding.flatten(2).transpose(1, 2).flatten(0, 1), stored)


def test_pre_processor_settings() -> None:
    checkpoint = {"hyper_parameters": {}}
    steps = Compose([Resize((32, 48)), Normalize([0.1] * 3, [0.2] * 3)])
    model = padim()
    model.pre_processor = PreProcessor(steps)
    model.on_save_checkpoint(checkpoint)
    loaded = PreProcessor()
    loaded.load_checkpoint_config(_host.pre_processor_settings(checkpoint))
    resize, normalize = loaded.transform.transforms
    assert (list(resize.size), list(normalize.mean)) == ([32, 48], [0.1] * 3)


def test_forget_validation_data(mvtec_root: Path) -> None:
    datamodule = MVTecAD(mvtec_root, "bolt", num_workers=0)
    datamodule.setup()
    assert hasattr(datamodule, "val_data")
    _host.forget_validation_data(datamodule)
    assert not hasattr(datamodule, "val_data")


def test_update_augmentations(mvtec_root: Path) -> None:
    datamodule = MVTecAD(mvtec_root, "bolt", num_workers=0)
    datamodule.setup()
    pre_processor = PreProcessor(Compose([Resize((24, 24))]))
    datamodule.trainer = SimpleNamespace(model=SimpleNamespace(pre_processor=pre_processor))
    _host.update_augmentations(datamodule)
    assert datamodule.train_data[0].image.shape == (3, 24, 24)


def test_second_setup_for_a_stage_keeps_the_datasets(mvtec_root: Path) -> None:
    """A benchmark keeps the decoded images of a source, see ``pipelines/run/sources.py``."""
    datamodule = MVTecAD(mvtec_root, "bolt", num_workers=0)
    datamodule.setup(TrainerFn.FITTING)
    data = datamodule.test_data
    datamodule.setup(TrainerFn.TESTING)
    assert datamodule.test_data is data


class DoubledScores(OpenPostProcessor):
    """Doubles normalized scores, and calls none anomalous."""

    checkpoint_keys = ("note",)
    note = "kept"

    def normalize_scores(self, *args: torch.Tensor) -> torch.Tensor | None:
        """Double the scores."""
        scores = super().normalize_scores(*args)
        return None if scores is None else 2 * scores

    def threshold_scores(self, preds: torch.Tensor | None, threshold: torch.Tensor) -> torch.Tensor | None:
        """Call none anomalous."""
        above = super().threshold_scores(preds, threshold)
        return None if above is None else above & False


def test_steps_of_the_post_processor() -> None:
    plain, doubled = OpenPostProcessor(), DoubledScores()
    for post_processor in (plain, doubled):
        post_processor.set_threshold("image", torch.tensor(3.0))
        post_processor.image_min.fill_(1.0)
        post_processor.image_max.fill_(5.0)
    assert plain.image_threshold == 3
    scores = torch.tensor([2.0, 4.0])
    forward = [each(InferenceBatch(pred_score=scores)) for each in (plain, doubled)]
    batches = [ImageBatch(image=torch.zeros(2, 3, 4, 4), pred_score=scores.clone()) for _ in range(2)]
    for post_processor, batch in zip((plain, doubled), batches, strict=True):
        post_processor.post_process_batch(batch)
    for one, two in (forward, batches):
        assert torch.equal(2 * one.pred_score, two.pred_score)
        assert one.pred_label.tolist() == [False, True]
        assert two.pred_label.tolist() == [False, False]
    loaded = DoubledScores()
    loaded.note = ""
    loaded.load_checkpoint_config(doubled.checkpoint_config())
    assert loaded.note == "kept"


def test_openvino_compression(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model(_host.QuantizationHook, Padim):
        @staticmethod
        def quantize_openvino(model: str, datamodule: str | None) -> str:
            return f"{model} with {datamodule}"

    monkeypatch.setitem(sys.modules, "nncf", ModuleType("nncf"))
    monkeypatch.setattr(export_mixin, "module_available", lambda _: True)
    model = Model("resnet18", layers=["layer1"], pre_trained=False, n_features=8, **PARTS)
    assert _host.compress_openvino(model, "graph", CompressionType.INT8_PTQ, "data") == "graph with data"


# --- timm and the standard library


def test_register_backbone() -> None:
    @register_backbone(mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 1.0))
    def host_test_backbone(**_: object) -> nn.Module:
        return nn.Identity()

    assert isinstance(timm.create_model("host_test_backbone"), nn.Identity)
    assert get_pretrained_cfg("host_test_backbone").mean == (0.1, 0.2, 0.3)


def test_is_starting_process(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        "import multiprocessing\n"
        "from anomalib_fewshot._host.processes import is_starting_process\n"
        "print(is_starting_process(), flush=True)\n"
        "if not is_starting_process():\n"
        "    process = multiprocessing.get_context('spawn').Process(target=print)\n"
        "    process.start()\n"
        "    process.join()\n",
        encoding="utf-8",
    )
    printed = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True).stdout
    assert printed.split() == ["False", "True"]


def test_kill_processes() -> None:
    pool = ProcessPoolExecutor(1, mp_context=get_context("spawn"))
    future = pool.submit(time.sleep, 600)
    _host.kill_processes(pool)
    with pytest.raises(BrokenProcessPool):
        future.result(timeout=60)
    pool.shutdown()


def test_light_modules_import_no_other_package() -> None:
    modules = ["_host", "_cli.own_command", "_cli.signals"]
    code = f"import sys, {', '.join(f'anomalib_fewshot.{name}' for name in modules)}; print(*sys.modules)"
    command = [sys.executable, "-S", "-c", code]
    environment = {"PYTHONPATH": str(ROOT)}
    loaded = subprocess.run(command, capture_output=True, text=True, check=True, env=environment).stdout.split()
    packages = {name.partition(".")[0] for name in loaded}
    assert packages - {"anomalib_fewshot", "__main__", "__mp_main__"} <= set(sys.stdlib_module_names)
