# SPDX-License-Identifier: Apache-2.0
"""What stands in for the library's own objects where a plug-in is tested without a GPU."""
import types


class CudaAttention:
    """Notes what it is asked to do."""

    def __init__(self, device=None, max_rows=None, out_dtype=None, run_tokens=None, **settings):
        self.settings, self.calls, self.resets, self.max_rows, self.captures = settings, [], [], max_rows, []

    def reset(self, slot, stream):
        self.resets.append(slot)

    def decode(self, layer, batch, q, k, v, **more):
        self.calls.append((layer, batch, q, k, v, more))

    def capture(self, layer, batch, row, q, k, v, *, q_match, out, lse, stream):
        """Only what is remembered of q_match and lse is written: its newest queries."""
        self.captures.append(types.SimpleNamespace(
            layer=layer, row=row, q=q, k=k, out=out, match=q_match.clone(), lse=lse.clone(), stream=stream,
            page=batch.struct.page_size, slot=batch._keep[1].owner[row].item(), length=batch._keep[0].owner[row].item(),
            rows=batch.n_rows))
