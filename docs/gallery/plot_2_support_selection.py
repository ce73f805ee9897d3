# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""
Selection of the support set
============================

Results of few-shot methods depend on the few images that they are fitted to. ``FewShot`` selects them reproducibly.
"""

import matplotlib.pyplot as plt

from anomalib_fewshot import ELPV, FewShot


def support(k_shot, seed):
    """Return the files of the support set with their hashes, in the order of selection."""
    data = FewShot(ELPV(category="poly"), k_shot=k_shot, seed=seed)
    data.setup()
    return data.manifest.images


# %%
# Nested in k
# -----------
# The image at k = 1 is also in the support set at k = 2, and so on. A curve over k therefore extends one support set.

for k in (1, 2, 4):
    print(k, sorted(support(k, seed=0)))
assert set(support(1, 0)) < set(support(2, 0)) < set(support(4, 0))

# %%
# Reproducible
# ------------
# Equal seeds select equal images on every machine. The manifest, ``support.json`` in the results of a run, contains
# their hashes. ``--data.support support.json`` repeats the selection.

assert support(4, seed=0) == support(4, seed=0)

# %%
# Variance
# --------
# Another seed selects other images. The benchmark therefore uses several seeds, and compares methods on equal ones.

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
