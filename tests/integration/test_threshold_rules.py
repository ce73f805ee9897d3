# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The script that compares threshold rules: closed-form checks, and a run on small images."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import pytest
import torch

from anomalib_fewshot import CoftAD

SCRIPT = Path(__file__).parents[2] / "docs" / "examples" / "threshold_rules.py"


@pytest.fixture(scope="module")
def rules() -> ModuleType:
    spec = spec_from_file_location("threshold_rules", SCRIPT)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def test_threshold_of_the_best_f1(rules: ModuleType) -> None:
    threshold = rules.best_f1(np.array([1.0, 2.0, 6.0]), np.array([5.0, 7.0, 8.0]))
    assert 2 < threshold < 5  # all three defects and one normal image: F1 = 6 / 7; above 6: 4 / 5


def test_table_is_of_means_over_categories(rules: ModuleType) -> None:
    rows = [
        {"category": category, "k_shot": 2, "support": support, "rule: false alarms": alarms, "rule: recall": 0.5}
        for category, values in (("a", (0.0, 0.4)), ("b", (0.4, 0.4)))
        for support, alarms in enumerate(values)
    ]
    cell = rules.table(pd.DataFrame(rows)).loc["rule", 2]
    assert cell == "0.300 ± 0.100 (0.39) / 0.50"  # errors .2 and 0, 95 % of the supports have .38 and .4


def test_every_rule_has_its_false_alarms_and_recall(rules: ModuleType, mvtec_root: Path) -> None:
    arguments = {"backbone": "test_efficientnet", "pre_trained": False, "image_size": 64}
    model = CoftAD(**arguments, num_steps=1).eval()
    with torch.no_grad():
        category = rules.Category(mvtec_root / "bolt", model)
        assert [len(category.good), len(category.defects)] == [14, 4]
        rows = [rules.compare(category, model, 4, np.random.default_rng(3)) for _ in range(2)]
    assert rows[0] == rows[1]
    assert len(rows[0]) == 14
    assert all(0 <= value <= 1 for value in rows[0].values())
    assert rows[0]["highest training score: false alarms"] >= rows[0]["highest held-out score: false alarms"]
