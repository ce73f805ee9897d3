# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Train on a folder of good pictures, score new ones and write the results."""

import shlex
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from rich.console import Console

from anomalib_fewshot._cli.signals import continue_after_interrupt, is_ending, set_hint
from anomalib_fewshot.errors import ArgumentError

from .ignore_mask import MASK, IgnoreMask
from .labels import read_labels
from .run_folder import Entry, RunFolder
from .session import Session
from .settings import ImagePaths, Settings, as_list, check_paths_exist, check_training_arguments, parse_thresholds
from .summary import outdated, summary_lines
from .watch import Watcher


def inspect(
    good: ImagePaths | None = None,
    new: str | Path | None = None,
    out: str | Path = "results/inspect",
    model: str | Path | None = None,
    resume: str | Path | None = None,
    marked_good: ImagePaths | None = None,
    bad: ImagePaths | None = None,
    ignore: str | Path | None = None,
    unlabeled: ImagePaths | None = None,
    pool: bool = True,
    false_alarm_rate: float | None = None,
    image_size: int | tuple[int, int] | None = None,
    thresholds: str | Mapping[str, float] | None = None,
    min_area: int | None = None,
    labels: str | Path | None = None,
    name: str | None = None,
    strict: bool = False,
    watch: bool = False,
    serve: bool = False,
    port: int = 0,
    inline: bool = False,
    progress: bool | Literal["stderr"] = True,
    on_result: Callable[[Path, Entry], object] | None = None,
) -> pd.DataFrame:
    """Train a detector on good pictures and score new ones. The results are a table and a web page.

    If there are at least eight new pictures, the model also learns from them, without labels: they are its *pool*. Most
    of them should be good. Each of them is scored without itself, so the false-alarm rate is guaranteed as before.

    Each run creates a subfolder of ``out`` (``v0``, ``v1`` and so on) with ``index.html``, ``scores.csv``,
    ``overlays``, ``model.ckpt`` and ``support.json``.

    Ctrl-C and SIGTERM end the command, with exit status 130 or 143. During the training nothing is kept, and the folder
    is removed. After it, the model and the scored pictures are kept, the table and the page show them, and the last
    line gives the command that scores the others. With ``watch`` and
    ``serve``, Ctrl-C is the usual end, with exit status 0.

    Args:
        good (ImagePaths | None): Good pictures: a folder, a file, or a list of folders and files. Must be
            omitted if ``model`` is given.
        new (str | Path | None): Folder of pictures to score, or a single picture.
        out (str | Path): Output folder. Defaults to ``"results/inspect"``.
        model (str | Path | None): Folder of an earlier run, or a checkpoint of ``anomalib fit``. Its model scores the
            pictures, and no model is trained. Defaults to ``None``.
        resume (str | Path | None): Folder of an earlier run to continue, with its settings. Defaults to ``None``.
        marked_good (ImagePaths | None): Further good pictures that were chosen by their scores, such as false alarms: a
            folder, a file, or a list of them. The model learns from them, but they do not set the thresholds, because
            unusual pictures would raise them. Defaults to ``None``.
        bad (ImagePaths | None): Pictures known to be defective: a folder, a file, or a list of them. The model does not
            learn from them. Those in ``new`` are scored. Defaults to ``None``.
        ignore (str | Path | None): Mask image. White regions are ignored. Defaults to ``None``.
        unlabeled (ImagePaths | None): Older pictures to learn from, in addition to the new ones: a folder, a file, or a
            list of folders and files. They are not scored. Defaults to ``None``.
        pool (bool): Learn from the new pictures and from ``unlabeled``. ``False``: only from the good pictures. With
            ``watch``, the model is trained again each time that the number of pictures has doubled, up to 128, and all
            pictures are scored again. Defaults to ``True``.
        false_alarm_rate (float | None): Highest share of good pictures that may be called a defect, on average over
            sets of good pictures. A higher rate finds more defects. Defaults to ``None``: 5 %, or 1 / (k + 1) with k
            good pictures if that is higher.
        image_size (int | tuple[int, int] | None): Size of the network's input, as a number or height and width. Larger
            inputs show smaller defects and take more time. Defaults to ``None``: about 320 x 320 pixels in the shape of
            the pictures.
        thresholds (str | Mapping[str, float] | None): Thresholds set by hand, such as ``"review=0.9,defect=1.2"``,
            which end the guarantee, or ``"guaranteed"`` for the calibrated ones. Defaults to ``None``: no change.
        min_area (int | None): Area of the smallest defect, in pixels of the picture. If the largest anomalous region is
            smaller, the verdict is good. Defaults to ``None``: no limit.
        labels (str | Path | None): CSV file with the columns path and label (good or bad), for the page. A model does
            not learn from labels. Defaults to ``None``.
        name (str | None): Name of the run, such as the part and the shift, for the page. Defaults to ``None``.
        strict (bool): Raise an error if a picture cannot be used, instead of skipping it. Defaults to ``False``.
        watch (bool): Keep scoring pictures that arrive in ``new`` until Ctrl-C. Defaults to ``False``.
        serve (bool): Serve the page on this computer until Ctrl-C. It then stores marks and thresholds, and trains
            again. Defaults to ``False``.
        port (int): Port of the server. Defaults to ``0``: a free one.
        inline (bool): Embed the pictures in the page, so that it is a single file. Defaults to ``False``.
        progress (bool | Literal["stderr"]): Print progress and results, on stdout or stderr. Defaults to ``True``.
        on_result (Callable[[Path, Entry], object] | None): Called with the file and the result of each picture.
            Defaults to ``None``.

    Returns:
        pd.DataFrame: Columns path, verdict, score and p_value, sorted from the highest to the lowest score.

    Raises:
        MissingDataError: If a folder or file does not exist.
        ArgumentError: If arguments exclude each other, or if there is no usable picture.
        DataValidationError: If ``strict`` is set and a picture cannot be used.

    Example:
        >>> from anomalib_fewshot import inspect
        >>> inspect("good", "new")  # doctest: +SKIP
    """
    console = Console(quiet=not progress, stderr=progress == "stderr", highlight=False, soft_wrap=True)
    manual = parse_thresholds(thresholds)
    if min_area is not None and min_area < 1:
        msg = f"`min_area` must be at least 1 pixel, got {min_area}."
        raise ArgumentError(msg)
    if serve:
        from .server import check_port

        check_port(port)
    marks = {} if labels is None else read_labels(_existing(labels))
    options: dict[str, Any] = {"strict": strict, "inline": inline, "on_result": on_result}
    if resume is not None:
        inputs = (good, new, model, marked_good, bad, ignore, unlabeled, false_alarm_rate, image_size)
        if any(value is not None for value in inputs) or not pool:
            msg = f"`resume` must be the only input, got {resume} and others. The run has stored its inputs."
            raise ArgumentError(msg)
        run = RunFolder(Path(resume))
        settings = run.settings
        settings.name = settings.name if name is None else name
        settings.min_area = settings.min_area if min_area is None else min_area
        session = Session(settings, console, **options)
        session.labels = marks
        session.resume(run, watch=watch)
    else:
        arguments = {
            "good": good,
            "new": new,
            "model": model,
            "marked_good": marked_good,
            "bad": bad,
            "ignore": ignore,
            "unlabeled": unlabeled,
            "pool": pool,
            "false_alarm_rate": false_alarm_rate,
            "image_size": image_size,
        }
        check_training_arguments(arguments)
        settings = Settings(
            str(new),
            as_list(good),
            as_list(marked_good),
            as_list(bad),
            as_list(unlabeled),
            pool,
            false_alarm_rate,
            image_size if image_size is None or isinstance(image_size, int) else list(image_size),
            min_area,
            name,
        )
        if model is not None:
            ignore = _use_model(settings, Path(model))
        own = [*settings.good, *settings.marked_good, *settings.bad, *settings.unlabeled]
        paths = own if model is None else []
        check_paths_exist([settings.new, *paths])
        if ignore is not None:
            IgnoreMask(Path(ignore))  # raises if the mask is not valid
        session = Session(settings, console, **options)
        session.labels = marks
        session.check(complete=not (watch or serve))
        session.create(Path(out), None if ignore is None else Path(ignore))
    if manual is not None:
        session.set_thresholds(manual)
    if serve:
        from .service import InspectionService

        return InspectionService(session, watch=watch, port=port).run().run.table()
    with _finalize(session, watch=watch):
        if watch:
            Watcher(session).run()
        session.score()
    return session.run.table()


def _existing(path: str | Path) -> Path:
    check_paths_exist([str(path)])
    return Path(path)


def _use_model(settings: Settings, model: Path) -> Path | None:
    """Take the settings that belong to the model of an earlier run. Return its mask of the region to ignore."""
    settings.model = str(model)
    settings.pool = False
    earlier = RunFolder(model)
    if not model.is_file():  # a checkpoint does not list its good pictures
        stored = earlier.settings
        settings.good, settings.marked_good = stored.good, stored.marked_good
        settings.bad, settings.unlabeled = stored.bad, stored.unlabeled
        settings.pool, settings.image_size = stored.pool, stored.image_size
        settings.false_alarm_rate = stored.false_alarm_rate
        settings.min_area = stored.min_area if settings.min_area is None else settings.min_area
    mask = earlier.path / MASK
    return mask if mask.is_file() else None


@contextmanager
def _finalize(session: Session, *, watch: bool) -> Generator[None]:
    """Write the results at the end of the run, also after Ctrl-C.

    Args:
        session (Session): The run.
        watch (bool): Ctrl-C is the usual end.
    """
    inline = " --inline" if session.inline else ""
    command = f"anomalib inspect{inline} --resume {shlex.quote(str(session.run.path))}"
    hint = f"Scored pictures are saved. To resume: {command}"
    set_hint(hint)
    interrupted = False
    try:
        yield
    except KeyboardInterrupt:
        interrupted = True
        if not watch:
            session.write()
            if not is_ending():  # otherwise the signal handler prints the hint
                session.console.print(hint, markup=False)
            raise
        continue_after_interrupt()
    table = session.write(inline=session.inline)
    if interrupted:
        again = f" To score all pictures with the last model: {command}" if outdated(session) else ""
        session.console.print(f"Stopped. All results are saved.{again}", markup=False)
    for line in summary_lines(session, table):
        session.console.print(line, markup=False)
