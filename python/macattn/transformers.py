# SPDX-License-Identifier: Apache-2.0
"""Importing this makes attn_implementation="macattn" known to transformers. See macattn.engines.transformers."""
from .engines.transformers import settings, stats

__all__ = ["settings", "stats"]
