# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The loop of anomalib's own tests over its models. It imports anomalib alone, for it also runs on a copy of it."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from anomalib.data import MVTecAD
from anomalib.deploy import ExportType
from anomalib.engine import Engine
from anomalib.models import get_model

EXPORTS = [kind for kind in ExportType if kind != ExportType.OPENVINO or find_spec("openvino")]


def every_stage(name: str, root: Path, results: Path, **arguments: Any) -> None:  # noqa: ANN401
    """Do what anomalib's ``tests/integration/model/test_models.py`` does: a new model and engine for each stage."""

    def engine() -> Engine:
        return Engine(logger=False, default_root_dir=results, max_epochs=1, devices=1, accelerator="cpu")

    def model() -> Any:  # noqa: ANN401
        return get_model(name, **arguments)

    data = MVTecAD(root, "bolt", train_batch_size=2, num_workers=0)
    engine().fit(model(), datamodule=data)
    (path,) = results.rglob("model.ckpt")
    engine().test(model(), datamodule=data, ckpt_path=path)
    engine().train(model(), datamodule=data, ckpt_path=path)
    engine().validate(model(), datamodule=data, ckpt_path=path)
    batches = engine().predict(model(), datamodule=data, ckpt_path=path)
    assert torch.cat([batch.pred_score for batch in batches]).isfinite().all()
    for kind in EXPORTS:
        assert engine().export(model(), export_type=kind, ckpt_path=path, export_root=results / kind.value).is_file()
