# SPDX-License-Identifier: Apache-2.0
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Threads that spin while others wait for a core make a busy machine's tests last many times longer.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
