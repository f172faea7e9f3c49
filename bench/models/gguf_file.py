# SPDX-License-Identifier: Apache-2.0
"""Fields and tensors of a GGUF. Needs numpy and gguf."""


def shape_of(tensor):
    """The outermost dimension first."""
    return tuple(int(n) for n in reversed(tensor.shape))


class File:
    def __init__(self, path):
        from gguf import GGUFReader
        self.reader = GGUFReader(path)

    def field(self, name, default=None):
        found = self.reader.fields.get(name)
        return default if found is None else found.contents()

    def shapes(self):
        return {t.name: shape_of(t) for t in self.reader.tensors}

    def tensors(self, convert=lambda name, values: (name, values), map=map):
        """What `convert` makes of each tensor's name and values, in float32; `map` may be a pool's."""
        import numpy as np
        from gguf.quants import dequantize

        def read(t):
            values = dequantize(t.data, t.tensor_type).astype(np.float32)
            return convert(t.name, values.reshape(shape_of(t)))
        return map(read, self.reader.tensors)
