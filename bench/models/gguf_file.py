# SPDX-License-Identifier: Apache-2.0
"""Fields and tensors of a GGUF. Needs numpy and gguf."""


class File:
    def __init__(self, path):
        from gguf import GGUFReader
        self.reader = GGUFReader(path)

    def field(self, name, default=None):
        found = self.reader.fields.get(name)
        return default if found is None else found.contents()

    def shapes(self):
        """Of every tensor, the outermost dimension first."""
        return {t.name: tuple(int(n) for n in reversed(t.shape)) for t in self.reader.tensors}

    def tensors(self, convert=lambda name, values: (name, values), map=map):
        """What `convert` makes of each tensor's name and values, in float32; `map` may be a pool's."""
        import numpy as np
        from gguf.quants import dequantize

        def read(t):
            values = dequantize(t.data, t.tensor_type).astype(np.float32)
            return convert(t.name, values.reshape(tuple(int(n) for n in reversed(t.shape))))
        return map(read, self.reader.tensors)
