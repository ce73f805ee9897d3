# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""The picture of features as a subcommand of anomalib."""

import pandas as pd
from rich.console import Console
from rich.table import Table

from anomalib_fewshot.pipelines.cli import Command

from .features import compare_features


class FewShotFeatures(Command):
    """Draw test images as models see them, before and after a training: t-SNE or PCA, a picture and a page."""

    name = "fewshot_features"
    function = staticmethod(compare_features)

    def show(self, result: pd.DataFrame) -> None:
        """Print the table."""
        table = Table("method", *result)
        for method, values in result.iterrows():
            table.add_row(str(method), *(f"{value:.3g}" for value in values))
        Console().print(table)
