# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Generators that need no state between steps: each is made anew from a seed and the numbers of what it is for."""

import numpy as np
import torch


def seeded_generator(seed: int, *numbers: int) -> torch.Generator:
    """Return a generator on the CPU that is decided by a seed and by numbers such as a step and a rank.

    torch takes the lower 32 bits of a seed alone, so that numbers cannot be put side by side in its 64: they are mixed.

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
