# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The output `verdict` of an ONNX graph counts the exceeded thresholds."""

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from anomalib.post_processing import PostProcessor

from anomalib_fewshot import ImageStatistic, SupportPostProcessor
from anomalib_fewshot.errors import ArgumentError
from anomalib_fewshot.models.components.onnx_verdict import add_verdict

REVIEW, DEFECT = 0.1, 0.7  # not representable in binary
SCORES = np.array([-1, 0.1, np.nextafter(np.float32(0.1), np.float32(1)), 0.7, 0.71, np.nan, np.inf], np.float32)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """Return a graph that returns its scores, and the label of scores above 0.5."""
    scores = onnx.helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["batch"])
    half = onnx.helper.make_tensor("half", onnx.TensorProto.FLOAT, [], [0.5])
    nodes = [
        onnx.helper.make_node("Identity", ["input"], ["pred_score"]),
        onnx.helper.make_node("Greater", ["input", "half"], ["pred_label"]),
    ]
    outputs = [
        onnx.helper.make_tensor_value_info("pred_score", onnx.TensorProto.FLOAT, ["batch"]),
        onnx.helper.make_tensor_value_info("pred_label", onnx.TensorProto.BOOL, ["batch"]),
    ]
    opset = [onnx.helper.make_opsetid("", 18)]
    built = onnx.helper.make_graph(nodes, "scores", [scores], outputs, [half])
    path = tmp_path / "model.onnx"
    onnx.save(onnx.helper.make_model(built, opset_imports=opset, ir_version=10), path)
    return path


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"review_score": REVIEW, "defect_score": DEFECT}, [0, 0, 1, 1, 2, 2, 2]),
        ({"review_score": REVIEW, "defect_score": REVIEW}, [0, 0, 2, 2, 2, 2, 2]),
        ({"review_score": REVIEW, "defect_score": None}, [0, 0, 1, 1, 1, 1, 1]),
        ({}, [0, 0, 0, 2, 2, 0, 2]),  # of the label
    ],
)
def test_verdict_counts_exceeded_thresholds(
    graph: Path,
    settings: dict[str, float | None],
    expected: list[int],
) -> None:
    add_verdict(graph, settings)
    session = onnxruntime.InferenceSession(graph)
    assert [output.name for output in session.get_outputs()] == ["pred_score", "pred_label", "verdict"]
    scores, _, verdicts = session.run(None, {"input": SCORES})
    np.testing.assert_array_equal(scores, SCORES)
    assert verdicts.dtype == np.int64
    assert verdicts.tolist() == expected


@pytest.mark.parametrize("post_processor", [SupportPostProcessor(enable_thresholding=False), PostProcessor(), False])
def test_verdict_without_thresholds_is_refused(post_processor: PostProcessor | bool, tmp_path: Path) -> None:
    model = ImageStatistic(image_size=32, post_processor=post_processor)
    model.is_fitted.fill_(value=True)
    with pytest.raises(ArgumentError, match="`verdict` requires thresholds"):
        model.to_onnx(tmp_path, verdict=True)
    assert not list(tmp_path.iterdir())
