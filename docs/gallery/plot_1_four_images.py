# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""
Few-shot detection with four normal images
==========================================

CoftAD is fitted to four images of intact solar cells and scores new cells. The same four images calibrate the
threshold. No image of a defect is required.
"""

import tempfile

import matplotlib.pyplot as plt
from anomalib.engine import Engine

from anomalib_fewshot import ELPV, CoftAD, FewShot

# %%
# Data
# ----
# ``FewShot`` keeps four normal images of any data module of anomalib. The selection depends only on dataset, category
# and ``seed``. The test set has twelve intact and twelve defective cells.

data = FewShot(ELPV(category="mono", num_test=12, val_split_mode="none"), k_shot=4, seed=0)

# %%
# Fit
# ---
# The fit takes a few seconds on a CPU. It then calibrates the threshold with jackknife+ on the four images and reports
# the guaranteed false-alarm rate.

quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
engine = Engine(default_root_dir=tempfile.mkdtemp(), accelerator="cpu", **quiet)
model = CoftAD(visualizer=False)
engine.fit(model, datamodule=data)
print(model.post_processor.describe())

# %%
# Scores
# ------
# Scores are between 0 and 1, and 0.5 is the threshold. The verdict is *good*, *review* or *defect*.

batches = engine.predict(model, dataloaders=data.test_dataloader())
cells = [cell for batch in batches for cell in batch]
for label in (0, 1):
    verdicts = [cell.explanation.split(",")[0] for cell in cells if int(cell.gt_label) == label]
    counts = {verdict: verdicts.count(verdict) for verdict in ("good", "review", "defect")}
    print("defective" if label else "intact", counts)

# %%
# Anomaly maps
# ------------
# The figure shows the three lowest and the three highest scores, with anomaly maps from 0 (dark) to 0.7. The pixel
# threshold is 0.5.

cells.sort(key=lambda cell: float(cell.pred_score))
figure, axes = plt.subplots(2, 6, figsize=(12, 4.4), layout="constrained")
for (upper, lower), cell in zip(axes.T, [*cells[:3], *cells[-3:]], strict=True):
    upper.imshow(plt.imread(cell.image_path), cmap="gray")
    upper.set_title(f"{'defective' if cell.gt_label else 'intact'}\n{float(cell.pred_score):.2f}", fontsize=10)
    lower.imshow(cell.anomaly_map.squeeze(), vmin=0, vmax=0.7, cmap="inferno")
    for axis in (upper, lower):
        axis.axis("off")
plt.show()
