# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""timm's table of models."""

import sys
from collections.abc import Callable
from typing import Any

from timm.models import register_model
from torch import nn

ModelFunction = Callable[..., nn.Module]


def register_backbone(**config: Any) -> Callable[[ModelFunction], ModelFunction]:  # noqa: ANN401
    """Return a decorator that registers a function with ``timm.create_model`` under its name.

    Undocumented: ``register_model`` reads the configuration from a module attribute ``default_cfgs``.

    Args:
        **config: Entries of timm's ``PretrainedCfg``, such as ``mean`` and ``std``.
    """

    def register(function: ModelFunction) -> ModelFunction:
        module: Any = sys.modules[function.__module__]
        module.default_cfgs = {**getattr(module, "default_cfgs", {}), function.__name__: config}
        return register_model(function)

    return register
