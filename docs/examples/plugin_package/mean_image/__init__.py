# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""A complete plug-in for anomalib: a model and a data module."""

# Importing anomalib registers the plug-ins, which in turn imports the modules of this package.
import anomalib.data  # noqa: F401
import anomalib.models  # noqa: F401
