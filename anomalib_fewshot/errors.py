# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Exceptions of this package. Each one is also a ``ValueError``, ``RuntimeError`` or ``ImportError``."""


class FewShotError(Exception):
    """Base class. The command line prints its message without a traceback."""


class ArgumentError(FewShotError, ValueError):
    """An argument is out of range, or conflicts with another argument."""


class SupportError(FewShotError, ValueError):
    """The support set cannot be chosen or used."""


class DataValidationError(FewShotError, ValueError):
    """Images, masks or folders cannot be read correctly."""


class MissingDataError(DataValidationError, FileNotFoundError):
    """The file or folder of an argument does not exist."""


class NotFittedError(FewShotError, RuntimeError):
    """The model is not fitted."""


class CheckpointMismatchError(FewShotError, ValueError):
    """The checkpoint belongs to another model or to other arguments."""


class MissingDependencyError(FewShotError, ModuleNotFoundError):
    """An optional package is not installed."""
