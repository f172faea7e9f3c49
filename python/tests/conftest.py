# SPDX-License-Identifier: Apache-2.0
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
