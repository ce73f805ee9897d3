# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Log lines of anomalib's command line: each message once, and paths unbroken.

anomalib adds two handlers to the root logger, which print every message twice, and one of them breaks long paths.
"""

import logging
import warnings

from rich import get_console
from rich.logging import RichHandler

from anomalib_fewshot._host import is_anomalib_command

# Loggers whose information is about the trainer's set-up.
_VERBOSE = (
    "anomalib.engine.engine",
    "anomalib.callbacks",
    "anomalib.models.components.base.anomalib_module",
    "lightning.pytorch.trainer.connectors.signal_connector",
    "lightning.pytorch.utilities.rank_zero",
    "lightning_fabric.utilities.rank_zero",
)
# Warnings of a normal run with few images, as regular expressions.
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
    """Print a record as one line on the console of rich's progress bars."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print a record. Warnings and errors start with their level."""
        prefix = f"{record.levelname.title()}: " if record.levelno >= logging.WARNING else ""
        get_console().print(prefix + record.getMessage(), soft_wrap=True, markup=False, highlight=False)


def print_messages_once() -> None:
    """Replace the handlers of anomalib's command line by one. Other programs keep theirs.

    A model or data module of this package calls it when it is made, so that other runs stay as they are.
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
