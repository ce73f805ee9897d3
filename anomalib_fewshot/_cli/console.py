# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Log format of anomalib's command line: each message once, and without line breaks in paths.

anomalib adds two handlers to the root logger, which print each message twice. One of them breaks long paths.
"""

import logging
import warnings

from rich import get_console
from rich.logging import RichHandler

from anomalib_fewshot._host import is_anomalib_command

# Loggers whose INFO messages describe the setup of the trainer.
_VERBOSE = (
    "anomalib.engine.engine",
    "anomalib.callbacks",
    "anomalib.models.components.base.anomalib_module",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
)
# Warnings of any run with few images, as regular expressions.
_EXPECTED = (
    "`LightningModule.configure_optimizers` returned `None`",
    "Total length of `list` across ranks is zero",
    r"Found \d+ module\(s\) in eval mode at the start of training",
    "The number of training batches",
    "The '.*_dataloader' does not have many workers",
    "'pin_memory' argument is set as true but no accelerator is found",
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
)


class LineHandler(logging.Handler):
    """Print a record as one line, on the console of rich's progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record. Warnings and errors start with their level."""
        prefix = f"{record.levelname.title()}: " if record.levelno >= logging.WARNING else ""
        get_console().print(prefix + record.getMessage(), soft_wrap=True, markup=False, highlight=False)


def print_messages_once() -> None:
    """Replace the log handlers of anomalib's command line with a single handler. Other programs keep their handlers.

    The models and data modules of this package call this in their constructors, so that other runs are not affected.
    """
    loggers = [logging.getLogger(name) for name in (None, "lightning.pytorch")]
    is_set_up = any(isinstance(handler, RichHandler) for handler in loggers[0].handlers)
    if not is_set_up or not is_anomalib_command():
        return
    for logger in loggers:
        for handler in list(logger.handlers):
            if isinstance(handler, RichHandler | LineHandler) or type(handler) is logging.StreamHandler:
                logger.removeHandler(handler)
        logger.addHandler(LineHandler())
    for name in _VERBOSE:
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in _EXPECTED:
        warnings.filterwarnings("ignore", message=f".*{message}")
