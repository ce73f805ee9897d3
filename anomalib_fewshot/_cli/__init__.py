# Copyright (C) 2026 anomalib-fewshot contributors
# SPDX-License-Identifier: Apache-2.0

"""What this package adds to anomalib's command line: subcommands, log lines, one-line errors and Ctrl-C."""
