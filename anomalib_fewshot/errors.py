# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Exceptions of this package. Each one is also a built-in ``ValueError``, ``RuntimeError`` or ``ImportError``."""


class FewShotError(Exception):
    """Base class. The command line prints its message without a traceback."""


class ArgumentError(FewShotError, ValueError):
    """An argument is out of its range, or does not fit another one."""


class SupportError(FewShotError, ValueError):
    """The support set cannot be chosen or used."""


class DataValidationError(FewShotError, ValueError):
    """Images, masks or folders cannot be read as they are meant."""


class MissingDataError(DataValidationError, FileNotFoundError):
    """A file or folder that an argument names does not exist."""


class NotFittedError(FewShotError, RuntimeError):
    """The model is not fitted, or the training ended before the fit."""


class CheckpointMismatchError(FewShotError, ValueError):
    """The checkpoint belongs to another model, or to other arguments."""


class MissingDependencyError(FewShotError, ModuleNotFoundError):
    """An optional package is not installed."""
