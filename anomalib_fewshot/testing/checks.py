# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What a few-shot model must keep, each a function that can be run by itself."""

import socket
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, NoReturn
from unittest.mock import patch

import torch
from anomalib.models import AnomalibModule

from .trial import Outputs, Trial, quietly

TOLERANCE = 1e-5  # of scores that are made in the same way
BATCH_TOLERANCE = 1e-4  # sums of other batches round otherwise
EXPORT_TOLERANCE = 1e-3


def check_scores_are_finite(trial: Trial) -> None:
    """Check that every score and map is a number."""
    outputs = trial.outputs
    for name, values in (("score", outputs.scores), ("anomaly map", outputs.maps)):
        if values is not None and not values.isfinite().all():
            count = int((~values.isfinite()).flatten(1 if values.ndim > 1 else 0).sum())
            _fail(trial, f"give finite values in each {name}, got {count} that are not", "Regularize what is fitted")


def check_anomaly_map_has_the_size_of_the_image(trial: Trial) -> None:
    """Check the size of the anomaly maps, if there are any."""
    outputs = trial.outputs
    if outputs.maps is not None and tuple(outputs.maps.shape[-2:]) != outputs.image_size:
        rule = f"give maps of the image's size {outputs.image_size}, got {tuple(outputs.maps.shape[-2:])}"
        _fail(trial, rule, "Upsample the map to `images.shape[-2:]`")


def check_same_seed_gives_the_same_scores(trial: Trial) -> None:
    """Check that a training can be repeated."""
    again = trial.predict(trial.train().model)
    _compare(trial, again, "in two trainings with the same seeds", "Draw from a generator that a seed decides")


def check_global_seed_has_no_influence(trial: Trial) -> None:
    """Check that the model draws from generators of its own."""
    other = trial.predict(trial.train(global_seed=1).model)
    remedy = "Draw from a generator of an argument `seed`, initial weights too"
    _compare(trial, other, "whatever `seed_everything` was called with", remedy)


def check_order_of_files_has_no_influence(trial: Trial) -> None:
    """Check that the support may be named, and pictures predicted, in any order."""
    outputs = trial.predict(trial.trained.model, backwards=True)
    _compare(trial, outputs, "in whatever order pictures are predicted", "Keep nothing of one picture for the next")
    names = trial.support_names()
    one, two = (trial.predict(trial.train(support=order).model) for order in (names, names[::-1]))
    _compare(trial, two, "in whatever order the support is named", "Read it by `support_dataloader`", one)


def check_test_and_predict_change_no_weights(trial: Trial) -> None:
    """Check that a trained model stays as it is."""
    model, engine, data = trial.trained
    before = deepcopy(model.state_dict())
    for verb in ("test", "predict"):
        with quietly():
            getattr(engine, verb)(model, datamodule=data)
        after = model.state_dict()
        changed = [name for name, value in before.items() if not _same(value, after.get(name))]
        changed += [name for name in after if name not in before]
        if changed:
            rule = f"leave weights and buffers as they are in `{verb}`, but {changed[0]!r} has changed"
            _fail(trial, rule, "Fit at the end of the training alone")


def check_checkpoint_gives_equal_scores(trial: Trial) -> None:
    """Check that the checkpoint of a training holds all that a score needs."""
    path = trial.trained.engine.best_model_path
    if not path:
        _fail(trial, "leave a checkpoint, got none", "End the training with a validation, or save one")
    loaded = trial.predict(trial.new_model(), checkpoint=path)
    remedy = "Register what is fitted as a buffer, of a shape that loading brings about"
    _compare(trial, loaded, "after its checkpoint is loaded", remedy)


def check_batch_size_has_no_influence(trial: Trial) -> None:
    """Check that a picture's score is its own."""
    for batch_size in (1, 3):
        outputs = trial.predict(trial.trained.model, batch_size=batch_size)
        words = f"in batches of {batch_size} and of all pictures"
        _compare(trial, outputs, words, "Let no picture see others of its batch", tolerance=BATCH_TOLERANCE)


def check_torch_export_agrees_with_predict(trial: Trial) -> None:
    """Check the model that is exported for PyTorch."""
    with quietly():
        path = trial.trained.model.to_torch(trial.folder)
        model = torch.load(path, weights_only=False)["model"].eval()
        with torch.no_grad():
            scores = model(trial.pictures()).pred_score.flatten()
    remedy = "Do all that makes a score within `forward`"
    _compare(trial, Outputs(scores, None, (0, 0)), "after `export_type=torch`", remedy, tolerance=EXPORT_TOLERANCE)


def check_onnx_export_agrees_with_predict(trial: Trial) -> None:
    """Check the model that is exported to ONNX. It takes the extra ``onnx``."""
    import onnxruntime

    with quietly():
        path = trial.trained.model.to_onnx(trial.folder)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    index = [output.name for output in session.get_outputs()].index("pred_score")
    run = [session.run(None, {"input": picture[None].numpy()})[index] for picture in trial.pictures()]
    scores = torch.cat([torch.from_numpy(score).flatten() for score in run])
    remedy = "Resize by `ExportablePreProcessor`, and take no branch that depends on values"
    _compare(trial, Outputs(scores, None, (0, 0)), "after `export_type=onnx`", remedy, tolerance=EXPORT_TOLERANCE)


def check_needs_no_network(trial: Trial) -> None:
    """Check that training and prediction reach for no other machine."""
    asked: list[object] = []

    def refuse(*arguments: object, **_: object) -> NoReturn:
        asked.append(next((part for part in arguments if isinstance(part, str | tuple)), arguments))
        msg = "There is no network in this check."
        raise OSError(msg)

    error = None
    with patch.object(socket.socket, "connect", refuse), patch.object(socket, "getaddrinfo", refuse):
        try:
            trial.predict(trial.train().model)
        except Exception as caught:  # noqa: BLE001  whatever a model makes of it
            error = caught
    if asked:
        rule = f"need no network in training and prediction, but asked for {asked[0]}"
        _fail(trial, rule, "Take weights from a file, or load them when the model is made", error)
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
    """A check of a model with k good pictures, which is run by a call.

    Args:
        check (Callable): One of the functions above.
        trial (Trial): The model.
        __name__ (str): Name, which pytest shows.
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
    """Return all checks of a model, for ``pytest.mark.parametrize``: those of exports for the last number alone.

    Args:
        model (type[AnomalibModule]): Class of the model.
        k_shots (Sequence[int]): Numbers of good pictures. Defaults to ``(1, 2, 4)``.
        **arguments (Any): Arguments of the model, such as a small backbone without pretrained weights.

    Example:
        >>> from anomalib_fewshot import CoftAD
        >>> checks = fewshot_checks(CoftAD, k_shots=[2], backbone="resnet10t", pre_trained=False)
        >>> checks[0].__name__
        'scores_are_finite-k2'
    """
    exports = [check for check in EXPORTS if check is not check_onnx_export_agrees_with_predict or _has_onnx()]
    found = []
    for number, k_shot in enumerate(k_shots, start=1):
        trial = Trial(model, k_shot, **arguments)
        wanted = [*CHECKS, *(exports if number == len(k_shots) else [])]
        found += [FewShotCheck(check, trial, f"{check.__name__.removeprefix('check_')}-k{k_shot}") for check in wanted]
    return found


def check_fewshot_model(
    model: type[AnomalibModule],
    *,
    k_shots: Sequence[int] = (1, 2, 4),
    expected_failures: Mapping[str, str] | None = None,
    **arguments: Any,  # noqa: ANN401
) -> None:
    """Train a model on tiny generated pictures, and check what users of a few-shot model rely on.

    Args:
        model (type[AnomalibModule]): Class of the model.
        k_shots (Sequence[int]): Numbers of good pictures. Defaults to ``(1, 2, 4)``.
        expected_failures (Mapping[str, str] | None): Reasons by the name of a check that is left out, such as
            ``check_global_seed_has_no_influence``. Defaults to ``None``.
        **arguments (Any): Arguments of the model, such as a small backbone without pretrained weights.

    Raises:
        AssertionError: With a sentence for each check that fails.
        ValueError: If ``expected_failures`` names no check.

    Example:
        >>> from anomalib_fewshot import CoftAD
        >>> check_fewshot_model(CoftAD, backbone="resnet10t", pre_trained=False)  # doctest: +SKIP
    """
    left_out = expected_failures or {}
    unknown = sorted(set(left_out) - {check.__name__ for check in (*CHECKS, *EXPORTS)})
    if unknown:
        msg = f"`expected_failures` must name checks, got {unknown}. See `anomalib_fewshot.testing.checks`."
        raise ValueError(msg)
    failures = []
    for check in fewshot_checks(model, k_shots=k_shots, **arguments):
        if check.check.__name__ not in left_out:
            try:
                check()
            except Exception as error:  # noqa: BLE001  a model may fail in any way
                is_finding = isinstance(error, AssertionError)
                failures.append(str(error) if is_finding else f"{check.__name__}: {type(error).__name__}: {error}")
    if failures:
        raise AssertionError("\n".join(failures))


def _has_onnx() -> bool:
    return all(find_spec(name) for name in ("onnx", "onnxruntime", "onnxscript"))


def _compare(
    trial: Trial,
    outputs: Outputs,
    when: str,
    remedy: str,
    expected: Outputs | None = None,
    *,
    tolerance: float = TOLERANCE,
) -> None:
    """Fail unless scores and maps are those of the trained model, or others that are expected."""
    expected = trial.outputs if expected is None else expected
    for name, one, two in zip(("scores", "anomaly maps"), outputs[:2], expected[:2], strict=True):
        if isinstance(one, torch.Tensor) and isinstance(two, torch.Tensor):
            difference = float((one - two).abs().max()) if one.shape == two.shape else float("inf")
            if not difference <= tolerance:
                _fail(trial, f"give the same {name} {when}, got a difference of {difference:.2g}", remedy)


def _same(one: Any, two: Any) -> bool:  # noqa: ANN401  an entry of a state may be anything
    if not isinstance(one, torch.Tensor) or not isinstance(two, torch.Tensor):
        return one == two
    return one.shape == two.shape and torch.allclose(one, two, 0, 0, equal_nan=True)


def _fail(trial: Trial, rule: str, remedy: str, cause: Exception | None = None) -> NoReturn:
    msg = f"{trial.name} must {rule} (k = {trial.k_shot}). {remedy}."
    raise AssertionError(msg) from cause
