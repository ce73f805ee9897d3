# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Reproducible random numbers that do not depend on the global random state."""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng


def seeded_generator(seed: int, *numbers: int) -> torch.Generator:
    """Return a CPU generator for a seed and a stream, such as a step and a rank.

    A new generator per step needs no stored state. torch uses only the lower 32 bits of a seed, so the numbers are
    hashed and not concatenated.

    Args:
        seed (int): Seed.
        *numbers (int): Non-negative numbers that identify the stream.

    Example:
        >>> [torch.rand((), generator=seeded_generator(seed, step)).item() for seed in (0, 1) for step in (0, 1)]
        [0.5488..., 0.9449..., 0.9617..., 0.2142...]

    Reference:
        NumPy's ``SeedSequence``, https://numpy.org/doc/stable/reference/random/parallel.html.
    """
    (mixed,) = np.random.SeedSequence(seed % 2**64, spawn_key=numbers).generate_state(1)
    return torch.Generator().manual_seed(int(mixed))


@contextmanager
def seeded(seed: int | torch.Generator, device: torch.device | None = None) -> Generator[None]:
    """Seed torch's global generators inside the context and restore their states afterwards.

    Args:
        seed (int | torch.Generator): Seed, or a CPU generator from which the seed is drawn.
        device (torch.device | None): Device whose generator is seeded in addition to the CPU. Defaults to ``None``.

    Example:
        >>> before = torch.get_rng_state()
        >>> with seeded(0):
        ...     print(torch.rand(()))
        tensor(0.4963)
        >>> torch.equal(torch.get_rng_state(), before)
        True
    """
    if isinstance(seed, torch.Generator):
        seed = int(torch.randint(2**31, (), generator=seed))
    with torch.random.fork_rng([]):
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` would also seed devices that are not restored
        if device is None or device.type == "cpu":
            yield
            return
        with torch.random.fork_rng([device], device_type=device.type):
            state = torch.Generator(device).manual_seed(seed).get_state()
            getattr(torch, device.type).set_rng_state(state, device)
            yield


@contextmanager
def isolated_seed(seed: int) -> Generator[None]:
    """Seed the global generators of torch, NumPy and Python inside the context and restore their states afterwards.

    Use it for third-party code with global random state, such as the coreset selection of anomalib's ``Patchcore``.

    Args:
        seed (int): Seed.
    """
    with isolate_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  third-party code uses the global generator
        random.seed(seed)
        yield
