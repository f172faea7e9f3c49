# SPDX-License-Identifier: Apache-2.0
"""What the plug-ins for serving engines on GPUs share. Needs PyTorch and Triton."""
