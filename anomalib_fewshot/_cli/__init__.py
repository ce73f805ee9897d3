# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""Extensions of anomalib's command line: subcommands, log format, one-line errors and signal handling.

This file imports nothing, because the start-up hook imports modules of this package.
"""
