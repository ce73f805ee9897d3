# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""
Which pictures are the support
==============================

Figures of few-shot methods depend on the few pictures. ``FewShot`` chooses them so that a choice can be repeated and
two choices can be compared.
"""

import matplotlib.pyplot as plt

from anomalib_fewshot import ELPV, FewShot


def support(k_shot, seed):
    """Return the support's files and their hashes, in the order of the choice."""
    data = FewShot(ELPV(category="poly"), k_shot=k_shot, seed=seed)
    data.setup()
    return data.manifest.images


# %%
# Nested in k
# -----------
# The picture at k = 1 is among the two at k = 2, and so on: a curve over k grows one support.

for k in (1, 2, 4):
    print(k, sorted(support(k, seed=0)))
assert set(support(1, 0)) < set(support(2, 0)) < set(support(4, 0))

# %%
# Repeatable
# ----------
# The same seed names the same pictures, on every machine. The manifest, ``support.json`` beside the results of a run,
# has their hashes, and repeats the choice by ``--data.support support.json``.

assert support(4, seed=0) == support(4, seed=0)

# %%
# Luck
# ----
# Another seed is another choice. That is why the benchmark takes several, and compares methods on the same ones.

folder = ELPV(category="poly")
folder.setup()
paths = {path.rsplit("/", 1)[-1]: path for path in folder.train_data.samples.image_path}
figure, axes = plt.subplots(3, 4, figsize=(8, 6.2), layout="constrained")
for seed, row in enumerate(axes):
    for axis, name in zip(row, support(4, seed), strict=True):
        axis.imshow(plt.imread(paths[name.rsplit("/", 1)[-1]]), cmap="gray")
        axis.axis("off")
    row[0].set_title(f"seed {seed}", loc="left", fontsize=10)
plt.show()
