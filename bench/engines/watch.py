# SPDX-License-Identifier: Apache-2.0
"""What the programs for vLLM and SGLang check in every decode call, on the GPU, so in CUDA graphs as well."""
import torch


class Raw:
    """int32 device memory of the library's, for torch.as_tensor."""

    def __init__(self, pointer, shape):
        self.__cuda_array_interface__ = {"shape": shape, "typestr": "<i4", "data": (pointer, False), "version": 3, "strides": None}


class Watch:
    """Stands between a plug-in and a CudaAttention. Counts entries of rings that were reused though their request had not put
    them there since the slot became its own (stale), results that are not numbers (nans), and rows that are no longer than the
    last one that had their slot (shrunk)."""

    def __init__(self, attention):
        self.object, s = attention, attention.settings
        self.plain_decode, self.plain_reset, self.plain_capture = attention.decode, attention.reset, attention.capture
        self.captures = 0
        places = (s["n_layers"], s["max_slots"] + 1)  # the last is that of rows without a slot
        self.made = torch.zeros(places, dtype=torch.int32, device="cuda")
        self.length = torch.zeros(places, dtype=torch.int32, device="cuda")
        self.bad = torch.zeros(3, dtype=torch.int64, device="cuda")
        self.decisions = torch.as_tensor(Raw(attention.decisions(), (attention.max_rows, s["n_heads"], 4)), device="cuda")
        self.resets = True  # False: what the library must forget stays
        attention.decode, attention.reset, attention.capture = self.decode, self.reset, self.capture

    def decode(self, layer, batch, q, k, v, *, out, **more):
        n = batch.n_rows
        self.plain_decode(layer, batch, q, k, v, out=out, **more)
        lengths, slots = batch._keep[0].owner, batch._keep[1].owner
        real = (slots >= 0) & (lengths > 0)
        place = torch.where(real, slots, self.made.shape[1] - 1).long()
        entry, made = self.decisions[:n, :, 1], self.made[layer][place]
        self.bad[0] += ((entry >= made[:, None]) & (entry >= 0) & real[:, None]).sum()
        self.bad[1] += (out.isnan().any(-1) & (lengths > 0)[:, None]).sum()
        self.bad[2] += (real & (made > 0) & (lengths <= self.length[layer][place])).sum()
        self.made[layer].index_add_(0, place, real.int())
        self.length[layer].index_copy_(0, place, lengths.int())

    def capture(self, layer, batch, row, q, k, v, **more):
        """A prompt's newest queries: those behind the first tokens and the band make an entry each, as in decoding."""
        n, s = q.shape[0], self.object.settings
        self.plain_capture(layer, batch, row, q, k, v, **more)
        self.captures += 1
        length, slot = batch._keep[0].owner[row:row + 1], batch._keep[1].owner[row:row + 1]
        place = torch.where(slot >= 0, slot, self.made.shape[1] - 1).long()
        made, before = self.made[layer][place], length - n
        first = (s["fresh_tokens"] + s["band"] - before).clamp(0, n).clamp(min=n - s["ring"])
        self.bad[2] += ((slot >= 0) & (made > 0) & (before < self.length[layer][place])).sum()
        self.made[layer].index_add_(0, place, (slot >= 0).int() * (n - first).int())
        self.length[layer].index_copy_(0, place, length.int())

    def reset(self, slot, **call):
        if self.resets:
            self.plain_reset(slot, **call)
        self.made[:, slot] = 0

    def poison(self, slot, batch_of, k, v, stream):
        """Fill the slot's rings with queries that are near all others, whose results are not numbers. batch_of(tokens) makes a
        batch of one row of so many tokens, which has the slot."""
        s = self.object.settings
        n, heads = s["ring"], s["n_heads"]
        self.plain_reset(slot, stream=stream)
        zeros = torch.zeros(n, heads, s["head_dim"], dtype=torch.bfloat16, device="cuda")
        batch, nan = batch_of(n + s["band"] + 64), torch.full_like(zeros, float("nan"))
        for layer in range(s["n_layers"]):
            self.plain_capture(layer, batch, 0, zeros, k, v, q_match=zeros, out=nan, lse=torch.zeros(n, heads, device="cuda"),
                               stream=stream)

    def found(self):
        torch.cuda.synchronize()
        return dict(zip(("stale", "nans", "shrunk"), self.bad.tolist()))

    def allow_stale(self):
        """From now on the library forgets nothing, and what was found so far does not count."""
        torch.cuda.synchronize()
        self.bad.zero_()
        self.resets = False
        torch.cuda.synchronize()
