# SPDX-License-Identifier: Apache-2.0
"""macattn inside inference engines, one module each. None is imported unless asked for."""
