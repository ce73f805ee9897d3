# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Checks of images, masks and folders before a model uses them, and the issues that they report."""
