# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Random numbers that a seed alone decides."""

import random
from collections.abc import Generator
from contextlib import contextmanager

import numpy as np
import torch
from lightning.pytorch.utilities.seed import isolate_rng


def seeded_generator(seed: int, *numbers: int) -> torch.Generator:
    """Return a generator on the CPU that is decided by a seed and by numbers such as a step and a rank.

    A new one for each step needs no state between steps. torch takes the lower 32 bits of a seed alone, so
    that numbers cannot be put side by side in its 64: they are mixed.

    Args:
        seed (int): Seed.
        *numbers (int): Numbers from 0, which tell the streams of a seed apart.

    Example:
        >>> [torch.rand((), generator=seeded_generator(seed, step)).item() for seed in (0, 1) for step in (0, 1)]
        [0.5488..., 0.9449..., 0.9617..., 0.2142...]

    Reference:
        O'Neill's seed sequence as numpy has it, https://numpy.org/doc/stable/reference/random/parallel.html.
    """
    (mixed,) = np.random.SeedSequence(seed % 2**64, spawn_key=numbers).generate_state(1)
    return torch.Generator().manual_seed(int(mixed))


@contextmanager
def seeded(seed: int | torch.Generator, device: torch.device | None = None) -> Generator[None]:
    """Let what draws from torch's global generators draw what a seed decides, and leave them as they were.

    Args:
        seed (int | torch.Generator): Seed, or a generator on the CPU that it is drawn from.
        device (torch.device | None): Device whose generator is seeded beside that of the CPU. Defaults to ``None``.

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
        torch.default_generator.manual_seed(seed)  # `torch.manual_seed` seeds all devices, and they would stay so
        if device is None or device.type == "cpu":
            yield
            return
        with torch.random.fork_rng([device], device_type=device.type):
            state = torch.Generator(device).manual_seed(seed).get_state()
            getattr(torch, device.type).set_rng_state(state, device)
            yield


@contextmanager
def isolated_seed(seed: int) -> Generator[None]:
    """Seed the global generators of torch, NumPy and Python, and restore their states at the end.

    For code of other packages that draws from them, such as the coreset of anomalib's ``Patchcore``.

    Args:
        seed (int): Seed.
    """
    with isolate_rng():
        torch.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002  the global generator is what they draw from
        random.seed(seed)
        yield
