# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A verdict as an additional output of an ONNX graph."""

from pathlib import Path
from typing import Any

VERDICT = "verdict"  # name of the output


def add_verdict(path: Path, settings: dict[str, Any]) -> None:
    """Add the output ``verdict`` to an ONNX file: 0 for good, 1 for review, 2 for defect, as int64, shape ``(B,)``.

    A score that is NaN counts as above a threshold, like in the label, so it cannot pass as good.

    Args:
        path (Path): ONNX file with the output ``pred_score``. The file is overwritten.
        settings (dict[str, Any]): Metadata of the post-processor. Without ``review_score``, the threshold is anomalib's
            own, and the verdict follows from the output ``pred_label``.
    """
    import onnx

    model = onnx.load(path, load_external_data=False)  # weights in a separate file stay there
    outputs = {output.name: output for output in model.graph.output}
    if "review_score" in settings:
        thresholds = [settings["review_score"], settings["defect_score"]]
        nodes = _count_exceeded("pred_score", [value for value in thresholds if value is not None])
    else:
        nodes = _twice("pred_label")
    model.graph.node.extend(nodes)
    verdict = model.graph.output.add()
    verdict.CopyFrom(outputs["pred_score"])
    verdict.name = VERDICT
    verdict.type.tensor_type.elem_type = onnx.TensorProto.INT64
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _count_exceeded(scores: str, thresholds: list[float]) -> list[Any]:
    """Return nodes that count how many thresholds each score exceeds."""
    import onnx

    nodes, counts = [], []
    for index, threshold in enumerate(thresholds):
        name = f"{VERDICT}_threshold_{index}"
        value = onnx.helper.make_tensor(name, onnx.TensorProto.FLOAT, [], [threshold])
        count = f"{name}_exceeded"
        nodes += [
            onnx.helper.make_node("Constant", [], [name], value=value),
            onnx.helper.make_node("LessOrEqual", [scores, name], [f"{name}_not_exceeded"]),
            onnx.helper.make_node("Not", [f"{name}_not_exceeded"], [f"{name}_exceeded_bool"]),
            onnx.helper.make_node("Cast", [f"{name}_exceeded_bool"], [count], to=onnx.TensorProto.INT64),
        ]
        counts.append(count)
    total = ("Identity", counts) if len(counts) == 1 else ("Add", counts)
    return [*nodes, onnx.helper.make_node(*total, [VERDICT])]


def _twice(labels: str) -> list[Any]:
    """Return nodes that compute 2 for a label that is True, and else 0."""
    import onnx

    integers = f"{VERDICT}_label"
    return [
        onnx.helper.make_node("Cast", [labels], [integers], to=onnx.TensorProto.INT64),
        onnx.helper.make_node("Add", [integers, integers], [VERDICT]),
    ]
