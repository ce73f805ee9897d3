# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Conformance checks for few-shot models. Each check is a function that can be run separately."""

import socket
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from anomalib.models import AnomalibModule

from .trial import Outputs, Trial, suppress_output

TOLERANCE = 1e-5  # for scores that are computed in the same way
BATCH_TOLERANCE = 1e-4  # rounding depends on the batch size
EXPORT_TOLERANCE = 1e-3


def check_scores_are_finite(trial: Trial) -> None:
    """Check that scores and anomaly maps contain neither NaN nor infinity."""
    outputs = trial.outputs
    for name, values in (("score", outputs.scores), ("anomaly map", outputs.maps)):
        if values is not None and not values.isfinite().all():
            count = int((~values.isfinite()).flatten(1 if values.ndim > 1 else 0).sum())
            _fail(trial, f"return a finite {name}, got {count} non-finite values", "Regularize the fit")


def check_anomaly_map_has_the_size_of_the_image(trial: Trial) -> None:
    """Check that anomaly maps, if there are any, have the size of the images."""
    outputs = trial.outputs
    if outputs.maps is not None and tuple(outputs.maps.shape[-2:]) != outputs.image_size:
        rule = f"return anomaly maps of the image size {outputs.image_size}, got {tuple(outputs.maps.shape[-2:])}"
        _fail(trial, rule, "Upsample the maps to `images.shape[-2:]`")


def check_same_seed_gives_the_same_scores(trial: Trial) -> None:
    """Check that training is reproducible."""
    again = trial.predict(trial.train().model)
    _compare(trial, again, "in two trainings with the same seeds", "Use a generator with a fixed seed")


def check_global_seed_has_no_influence(trial: Trial) -> None:
    """Check that the model does not use the global random state."""
    other = trial.predict(trial.train(global_seed=1).model)
    remedy = "Use a generator seeded with an argument `seed`, also for the initial weights"
    _compare(trial, other, "for each seed of `seed_everything`", remedy)


def check_order_of_files_has_no_influence(trial: Trial) -> None:
    """Check that the order of support images and of predicted images does not change the scores."""
    outputs = trial.predict(trial.trained.model, reverse=True)
    _compare(trial, outputs, "for each order of the predicted images", "Keep no state between images")
    names = trial.support_names()
    forward = trial.predict(trial.train(support=names).model)
    reverse = trial.predict(trial.train(support=names[::-1]).model)
    remedy = "Read the support set with `support_dataloader`"
    _compare(trial, reverse, "for each order of the support set", remedy, forward)


def check_test_and_predict_change_no_weights(trial: Trial) -> None:
    """Check that testing and prediction change no weights or buffers."""
    model, engine, data = trial.trained
    before = deepcopy(model.state_dict())
    for method in ("test", "predict"):
        with suppress_output():
            getattr(engine, method)(model, datamodule=data)
        after = model.state_dict()
        changed = [name for name, value in before.items() if not _equal(value, after.get(name))]
        changed += [name for name in after if name not in before]
        if changed:
            rule = f"not change weights or buffers in `{method}`, got a changed {changed[0]!r}"
            _fail(trial, rule, "Fit only at the end of training")


def check_checkpoint_gives_equal_scores(trial: Trial) -> None:
    """Check that a loaded checkpoint gives the same scores."""
    path = trial.trained.engine.best_model_path
    if not path:
        _fail(trial, "save a checkpoint, got none", "Run a validation at the end of training, or save one in the model")
    loaded = trial.predict(trial.new_model(), checkpoint=path)
    remedy = "Register fitted tensors as buffers, and resize them on loading"
    _compare(trial, loaded, "after its checkpoint is loaded", remedy)


def check_batch_size_has_no_influence(trial: Trial) -> None:
    """Check that the score of an image does not depend on the other images in its batch."""
    for batch_size in (1, 3):
        outputs = trial.predict(trial.trained.model, batch_size=batch_size)
        remedy = "Compute the score of an image independently of its batch"
        _compare(trial, outputs, f"with batch size {batch_size}", remedy, tolerance=BATCH_TOLERANCE)


def check_torch_export_agrees_with_predict(trial: Trial) -> None:
    """Check that the PyTorch export gives the same scores."""
    with suppress_output():
        path = trial.trained.model.to_torch(trial.folder)
        model = torch.load(path, weights_only=False)["model"].eval()
        with torch.no_grad():
            scores = model(trial.images()).pred_score.flatten()
    remedy = "Compute the whole score in `forward`"
    _compare(trial, Outputs(scores, None, (0, 0)), "after `export_type=torch`", remedy, tolerance=EXPORT_TOLERANCE)


def check_onnx_export_agrees_with_predict(trial: Trial) -> None:
    """Check that the ONNX export gives the same scores. Requires the extra ``onnx``."""
    import onnxruntime

    with suppress_output():
        path = trial.trained.model.to_onnx(trial.folder)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    index = [output.name for output in session.get_outputs()].index("pred_score")
    scores = []
    for image in trial.images():
        values = session.run(None, {"input": image[None].numpy()})
        scores.append(torch.from_numpy(values[index]).flatten())
    outputs = Outputs(torch.cat(scores), None, (0, 0))
    remedy = "Resize with `ExportablePreProcessor`, and avoid branches that depend on tensor values"
    _compare(trial, outputs, "after `export_type=onnx`", remedy, tolerance=EXPORT_TOLERANCE)


def check_needs_no_network(trial: Trial) -> None:
    """Check that training and prediction contact no other machine."""
    addresses: list[object] = []

    def refuse(*arguments: object, **_: object) -> NoReturn:
        named = [part for part in arguments if isinstance(part, str | tuple)]
        addresses.append(named[0] if named else arguments)
        msg = "The network is blocked during this check."
        raise OSError(msg)

    error = None
    with patch.object(socket.socket, "connect", refuse), patch.object(socket, "getaddrinfo", refuse):
        try:
            trial.predict(trial.train().model)
        except Exception as caught:  # noqa: BLE001  a model may wrap the OSError in any exception
            error = caught
    if addresses:
        rule = f"run training and prediction offline, got a connection to {addresses[0]}"
        _fail(trial, rule, "Load weights from a file, or download them in `__init__`", error)
    if error is not None:
        raise error


CHECKS: tuple[Callable[[Trial], None], ...] = (
    check_scores_are_finite,
    check_anomaly_map_has_the_size_of_the_image,
    check_same_seed_gives_the_same_scores,
    check_global_seed_has_no_influence,
    check_order_of_files_has_no_influence,
    check_test_and_predict_change_no_weights,
    check_checkpoint_gives_equal_scores,
    check_batch_size_has_no_influence,
    check_needs_no_network,
)
EXPORTS: tuple[Callable[[Trial], None], ...] = (
    check_torch_export_agrees_with_predict,
    check_onnx_export_agrees_with_predict,
)


@dataclass(frozen=True)
class FewShotCheck:
    """Check of one model with k normal images. Call it to run it.

    Args:
        check (Callable): Check function.
        trial (Trial): The model and its data.
        __name__ (str): Name that pytest shows.
    """

    check: Callable[[Trial], None]
    trial: Trial
    __name__: str

    def __call__(self) -> None:
        """Run the check."""
        self.check(self.trial)


def fewshot_checks(
    model: type[AnomalibModule],
    *,
    k_shots: Sequence[int] = (1, 2, 4),
    **arguments: Any,  # noqa: ANN401
) -> list[FewShotCheck]:
    """Return all checks of a model, for ``pytest.mark.parametrize``. Exports are checked for the last k only.

    Args:
        model (type[AnomalibModule]): Class of the model.
        k_shots (Sequence[int]): Numbers of normal images. Defaults to ``(1, 2, 4)``.
        **arguments (Any): Arguments of the model. Use a small backbone without pretrained weights.

    Example:
        >>> from anomalib_fewshot import CoftAD
        >>> checks = fewshot_checks(CoftAD, k_shots=[2], backbone="resnet10t", pre_trained=False)
        >>> checks[0].__name__
        'scores_are_finite-k2'
    """
    exports = list(EXPORTS)
    if not _has_onnx():
        exports.remove(check_onnx_export_agrees_with_predict)
    result = []
    for index, k_shot in enumerate(k_shots):
        trial = Trial(model, k_shot, **arguments)
        is_last = index == len(k_shots) - 1
        for check in [*CHECKS, *exports] if is_last else CHECKS:
            name = check.__name__.removeprefix("check_")
            result.append(FewShotCheck(check, trial, f"{name}-k{k_shot}"))
    return result


def check_fewshot_model(
    model: type[AnomalibModule],
    *,
    k_shots: Sequence[int] = (1, 2, 4),
    expected_failures: Mapping[str, str] | None = None,
    **arguments: Any,  # noqa: ANN401
) -> None:
    """Train a model on small synthetic images and run all conformance checks.

    Args:
        model (type[AnomalibModule]): Class of the model.
        k_shots (Sequence[int]): Numbers of normal images. Defaults to ``(1, 2, 4)``.
        expected_failures (Mapping[str, str] | None): Checks to skip, as a reason by name, such as
            ``{"check_global_seed_has_no_influence": "samples channels"}``. Defaults to ``None``.
        **arguments (Any): Arguments of the model. Use a small backbone without pretrained weights.

    Raises:
        AssertionError: If a check fails. The message has one line per failed check.
        ValueError: If ``expected_failures`` contains an unknown name.

    Example:
        >>> from anomalib_fewshot import CoftAD
        >>> check_fewshot_model(CoftAD, backbone="resnet10t", pre_trained=False)  # doctest: +SKIP
    """
    skipped = expected_failures or {}
    unknown = sorted(set(skipped) - {check.__name__ for check in (*CHECKS, *EXPORTS)})
    if unknown:
        msg = f"`expected_failures` must name checks, got {unknown}. See `anomalib_fewshot.testing.checks`."
        raise ValueError(msg)
    failures = []
    for check in fewshot_checks(model, k_shots=k_shots, **arguments):
        if check.check.__name__ not in skipped:
            try:
                check()
            except Exception as error:  # noqa: BLE001  a model may raise any exception
                is_failed_check = isinstance(error, AssertionError)
                failures.append(str(error) if is_failed_check else f"{check.__name__}: {type(error).__name__}: {error}")
    if failures:
        raise AssertionError("\n".join(failures))


def _has_onnx() -> bool:
    return all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


def _compare(
    trial: Trial,
    outputs: Outputs,
    condition: str,
    remedy: str,
    expected: Outputs | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Fail unless scores and maps equal the expected ones, by default those of the trained model."""
    expected = trial.outputs if expected is None else expected
    pairs = {"scores": (outputs.scores, expected.scores), "anomaly maps": (outputs.maps, expected.maps)}
    for name, (actual, target) in pairs.items():
        if actual is not None and target is not None:
            difference = float((actual - target).abs().max()) if actual.shape == target.shape else float("inf")
            if not difference <= tolerance:  # also true for NaN
                _fail(trial, f"return the same {name} {condition}, got a difference of {difference:.2g}", remedy)


def _equal(first: Any, second: Any) -> bool:  # noqa: ANN401  a state may contain any type
    if not isinstance(first, torch.Tensor) or not isinstance(second, torch.Tensor):
        return first == second
    return first.shape == second.shape and torch.allclose(first, second, 0, 0, equal_nan=True)


def _fail(trial: Trial, rule: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    msg = f"{trial.name} must {rule} (k = {trial.k_shot}). {remedy}."
    raise AssertionError(msg) from cause
