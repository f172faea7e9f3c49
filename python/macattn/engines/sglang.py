# SPDX-License-Identifier: Apache-2.0
"""An attention backend of SGLang: decoding by macattn, everything else by SGLang's Triton backend.

    sgl.Engine(..., attention_backend="macattn",
               json_model_override_args='{"macattn": {"policy": "budget", "max_slots": 8}}')

- Plain causal decoding goes to the library; prompts, speculation and other layers (sliding windows, fp8, encoders, ...) go to
  the Triton backend, whose subclass this is. The settings travel in the model's configuration, which reaches every process.
- The newest queries of some prompts are shown to the library (`Prompts`), with the results and the lse of the Triton backend.
- K and V are read where SGLang's pool has them: its table of token slots is a page table with pages of one token.
- A request is known by its index in ReqToTokenPool, whose generation counts how often the index was given away; hooks on the
  pool tell how long it is. `Places` decides on the host who of them has a slot; which rows of a batch they are, a graph finds
  out itself, on the device, in a table from indices to slots. Row 0 is padding's and has none.
- That table and the slots change in the forward stream's order, right before a step.
"""
import logging

import torch
from sglang.srt.layers.attention.triton_backend import TritonAttnBackend
from sglang.srt.layers.radix_attention import AttentionType, RadixAttention
from sglang.srt.mem_cache.memory_pool import KVWriteLoc, MHATokenToKVPool, ReqToTokenPool
from sglang.srt.plugins.hook_registry import HookRegistry

from .. import sglang as plugin
from .._arrays import view
from ..cuda import Batch
from ..serving.layers import HEAD_SIZES, ROPES, Group, by_shape, read_settings, stats, stream, summary
from ..serving.prompts import Prompts, positions
from ..serving.rotate import unrotate

logger = logging.getLogger("sglang.macattn")


def create(runner):
    """The registered factory."""
    if runner.is_draft_worker:
        return TritonAttnBackend(runner)
    check(runner)
    return Backend(runner)


def check(runner):
    """Refuse what would go wrong in silence. A hook that SGLang could not apply was only logged."""
    args = runner.server_args
    missing = [name for name in ("alloc", "free", "clear") if plugin.POOL + name not in HookRegistry._patched]
    if missing:
        raise RuntimeError(f"macattn: the hooks on ReqToTokenPool.{', '.join(missing)} are missing: SGLang's log has the reason")
    pool = type(runner.req_to_token_pool)
    if any(getattr(pool, name) is not getattr(ReqToTokenPool, name) for name in ("alloc", "free", "clear")):
        raise RuntimeError(f"macattn: {pool.__name__} gives requests away on its own; their slots could not be followed")
    if runner.use_mla_backend:
        raise ValueError("macattn: MLA models are not supported")
    for name in ("enable_two_batch_overlap", "enable_pdmux"):
        if getattr(args, name, False):
            raise ValueError(f"macattn: {name} runs two batches at once, which share work memory here")
    if runner.req_to_token_pool.req_to_token.numel() >= 2**31:
        raise ValueError("macattn: max_running_requests times the context's length must be below 2^31")


class Places:
    """Whose slot is whose. Slots go to the longest requests that may become as long as `min_tokens`; who has one keeps it
    unless a request comes that is longer from the start. Changes wait for `flush`."""

    def __init__(self, groups, generation, min_tokens, device, prompts):
        self.groups, self.generation, self.min_tokens = groups, generation, min_tokens
        self.prompts, self.lengths = prompts, {}  # of prompts, by request's name
        self.reusing = [group for group in groups if group.reuses]
        self.free = list(range(self.reusing[0].attention.settings["max_slots"]))[::-1] if self.reusing else []
        self.slots, self.waiting = {}, {}  # by index: slot; tokens of who has none
        self.tokens = {}                   # of those with slots
        self.changed = {}                  # index: slot or -1, not yet on the device
        self.seen = generation.clone()
        self.table = torch.full((len(generation),), -1, dtype=torch.int32, device=device)

    def came(self, index, tokens, at_most):
        """An index was given to a request, or it goes on with it (a further chunk of a prompt)."""
        if not self.reusing or self.generation[index] == self.seen[index]:
            return
        self.left(index)
        self.seen[index] = self.generation[index]
        if at_most >= self.min_tokens:
            if not self.free:
                shortest = min(self.tokens, key=self.tokens.get)
                if self.tokens[shortest] < tokens:
                    self.waiting[shortest] = self.tokens[shortest]
                    self._take_away(shortest)
            self.waiting[index] = tokens
            self._give()

    def left(self, index):
        self.waiting.pop(index, None)
        if index in self.slots:
            self._take_away(index)
            self._give()

    def clear(self):
        """The pool was emptied; its generations begin anew."""
        for index in [*self.slots]:
            self._take_away(index)
        self.waiting.clear()
        self.lengths.clear()
        self.seen.copy_(self.generation)

    def _take_away(self, index):
        self.free.append(self.slots.pop(index))
        del self.tokens[index]
        self.changed[index] = -1

    def _give(self):
        while self.free and self.waiting:
            index = max(self.waiting, key=self.waiting.get)
            self.tokens[index] = self.waiting.pop(index)
            self.slots[index] = self.changed[index] = self.free.pop()

    def flush(self):
        """In the forward stream's order: empty the slots that have new owners, and tell the device."""
        if not self.changed:
            return
        call = {"stream": stream()}
        for slot in sorted(self.changed.values()):
            for group in self.reusing if slot >= 0 else ():
                group.attention.reset(slot, **call)
        pairs = torch.tensor([[*self.changed], [*self.changed.values()]], pin_memory=self.table.is_cuda)
        pairs = pairs.to(self.table.device, non_blocking=True)
        self.table.index_copy_(0, pairs[0], pairs[1].int())
        self.changed = {}

    def stats(self):
        return {**stats(self.groups), **self.prompts.stats()}


class Backend(TritonAttnBackend):
    def __init__(self, runner):
        super().__init__(runner)
        asked = getattr(runner.model_config.hf_config, "macattn", None) or {}
        settings = read_settings(asked, runner.model_config.context_len + 8, show_prompts=0)  # has not run on a GPU here
        exact = {}
        if not runner.spec_algorithm.is_none():
            exact["speculation"] = "its steps are not plain decoding"
        if exact:
            settings["policy"] = "exact"
        device, self.max_rows = torch.device("cuda", runner.gpu_id), runner.req_to_token_pool.size + 1
        attention = {m.layer_id: m for m in runner.model.modules() if isinstance(m, RadixAttention)}
        layers = [attention[i] for i in sorted(attention)]
        pool = runner.token_to_kv_pool
        direct = (type(pool) is MHATokenToKVPool and pool.dtype == pool.store_dtype == runner.dtype and self.dcp_size == 1 and
                  not getattr(pool, "use_hnd", False) and self._translate_kv_loc is None)
        plain = [layer for layer in layers if direct and self.plain(layer, runner.dtype)]
        self.groups, self.of = [], {}  # layer_id: (group, number in it, K, V, RoPE's table or None, neox)
        ropes = self.find_ropes(runner)
        for shape, found in by_shape(plain, self.shape).items():
            group = Group(len(found), shape, settings, self.max_rows, runner.dtype, device)
            self.groups.append(group)
            for i, layer in enumerate(found):
                views = (view(buffer.unsqueeze(1)) for buffer in (pool.get_key_buffer(layer.layer_id),
                                                                  pool.get_value_buffer(layer.layer_id)))
                self.of[layer.layer_id] = (group, i, *views, *ropes.get(layer.layer_id, (None, True)))
        self.whole = len(plain) == len(layers)  # the Triton backend has nothing to prepare for decoding
        unknown = [i for i, place in self.of.items() if place[0].reuses and place[4] is None]
        if unknown:
            exact[f"{len(unknown)} layers' RoPE"] = "it is not known"
        ints = dict(dtype=torch.int32, device=device)
        self.lengths, self.row_slots = torch.zeros(self.max_rows, **ints), torch.full((self.max_rows,), -1, **ints)
        self.starts = torch.zeros(self.max_rows + 1, **ints)
        self.long_starts = torch.zeros(self.max_rows, dtype=torch.int64, device=device)
        self.pages = self.req_to_token.view(-1)
        self.batch = None
        prompts = Prompts(settings["show_prompts"] if any(g.reuses for g in self.groups) else 0, settings["min_tokens"])
        self.places = Places(self.groups, self.req_to_token_pool.req_generation, settings["min_tokens"], device, prompts)
        self.shown, self.ahead = [], positions(device)  # of a step with prompts: [(row, its tokens in the batch, what each query sees)]
        self.lse = None                                 # [tokens, heads], wanted of the Triton backend's next call
        self.extend_attention_fwd = self.with_lse(self.extend_attention_fwd)
        self.req_to_token_pool.macattn = self.places
        logger.info(summary(self.groups, len(layers), f"SGLang {plugin.VERSIONS[0]}", settings, exact))

    @staticmethod
    def plain(layer, dtype):
        """Whether this layer is one that the library can decode."""
        return (layer.attn_type == AttentionType.DECODER and not layer.is_cross_attention and layer.sliding_window_size == -1 and
                layer.head_dim == layer.v_head_dim and layer.head_dim in HEAD_SIZES and layer.k_scale is None and
                layer.xai_temperature_len <= 0 and not layer.use_irope and layer.pos_encoding_mode == "NONE" and
                dtype in (torch.float16, torch.bfloat16))

    @staticmethod
    def shape(layer):
        return layer.tp_q_head_num, layer.tp_k_head_num, layer.head_dim, layer.scaling, layer.logit_cap or 0.0

    @staticmethod
    def find_ropes(runner):
        """{layer_id: (table of cos and sin, neox)}. A table is made long enough now: later SGLang would replace it by a longer one."""
        found = {}
        for module in runner.model.modules():
            rope = getattr(module, "rotary_emb", None)
            for child in module.children():
                if isinstance(child, RadixAttention) and type(rope).__name__ in ROPES and rope.head_size == child.head_dim:
                    if rope.cos_sin_cache.shape[0] <= runner.model_config.context_len + 8:
                        rope._ensure_cos_sin_cache_length(runner.model_config.context_len + 8)
                    found[child.layer_id] = rope.cos_sin_cache, rope.is_neox_style
        return found

    # ----------------------------------------------------------------------------------------------------- prompts

    def with_lse(self, plain):
        """The Triton backend's function, which gives the lse as well to who has memory for it."""
        def extend(*arguments, **more):
            if self.lse is not None:
                more["lse_extend"], self.lse = self.lse, None
            return plain(*arguments, **more)
        return extend

    def choose_prompts(self, forward_batch):
        """Whose prompts are shown in a step; right before it, in its stream's order."""
        self.shown, found, end = [], [], 0
        names, new, before = (getattr(forward_batch, name, None)
                              for name in ("rids", "extend_seq_lens_cpu", "extend_prefix_lens_cpu"))
        if self.decodes(forward_batch) or forward_batch.spec_info is not None or not names or new is None or before is None:
            return
        for row, (name, tokens, start) in enumerate(zip(names, new, before)):
            end += tokens
            length = self.places.lengths.get(name, 0)
            n = self.places.prompts.queries(start, start + tokens, length) if tokens > 1 else 0
            if n:
                found.append((row, slice(end - n, end)))
        if found:
            self.places.flush()
            self.begin(forward_batch)
            self.shown = [(row, mine, self.lengths[row:row + 1] + self.ahead[mine.start - mine.stop:]) for row, mine in found]

    def forward_extend(self, q, k, v, layer, forward_batch, save_kv_cache=True, sinks=None, **more):
        place, lse = self.of.get(layer.layer_id), None
        if self.shown and place is not None and place[0].shown is not None and place[4] is not None and sinks is None and not more:
            lse = self.lse = torch.empty(q.shape[0], layer.tp_q_head_num, dtype=torch.float32, device=q.device)
        out = super().forward_extend(q, k, v, layer, forward_batch, save_kv_cache, sinks, **more)
        given, self.lse = self.lse is None, None
        if lse is not None and given:
            group, number, keys, values, *rope = place
            by_head = (-1, layer.tp_q_head_num, layer.head_dim)
            for row, mine, lengths in self.shown:
                group.shown.show(group.attention, number, self.batch, row, q.view(by_head)[mine], keys, values,
                                 out.view(by_head)[mine], lse[mine], rope, lengths)
        return out

    # ------------------------------------------------------------------------------------------------------- steps

    @staticmethod
    def decodes(forward_batch):
        return forward_batch.forward_mode.is_decode() and forward_batch.spec_info is None

    def init_forward_metadata(self, forward_batch):
        if not (self.decodes(forward_batch) and self.whole):
            super().init_forward_metadata(forward_batch)
        self.choose_prompts(forward_batch)
        if self.decodes(forward_batch):
            self.places.flush()
            self.begin(forward_batch)

    def init_forward_metadata_out_graph(self, forward_batch, in_capture=False):
        self.shown = []
        if not (self.decodes(forward_batch) and self.whole):
            super().init_forward_metadata_out_graph(forward_batch, in_capture)
        if self.decodes(forward_batch):
            self.places.flush()

    def init_forward_metadata_in_graph(self, forward_batch):
        if self.decodes(forward_batch):
            self.begin(forward_batch)

    def begin(self, forward_batch):
        """The step's lengths, slots and pages, at addresses that stay; recorded in graphs. The kernels read the pool's own table,
        also when SGLang already writes the next step's tokens into it, behind those that this step reads."""
        n, indices = forward_batch.batch_size, forward_batch.req_pool_indices
        self.lengths[:n].copy_(forward_batch.seq_lens)
        torch.index_select(self.places.table, 0, indices, out=self.row_slots[:n])
        torch.mul(indices, self.req_to_token.stride(0), out=self.long_starts[:n])
        self.starts[:n].copy_(self.long_starts[:n])
        self.batch = Batch(self.lengths[:n], slots=self.row_slots[:n], page_size=1, pages=self.pages,
                           page_indptr=self.starts[:n + 1])

    def forward_decode(self, q, k, v, layer, forward_batch, save_kv_cache=True, sinks=None, **more):
        place = self.of.get(layer.layer_id)
        if place is None or more or not self.decodes(forward_batch):
            return super().forward_decode(q, k, v, layer, forward_batch, save_kv_cache, sinks, **more)
        group, number, keys, values, table, neox = place
        if save_kv_cache:
            self.token_to_kv_pool.set_kv_buffer(layer, KVWriteLoc(forward_batch.out_cache_loc, None), k, v)
        q = q.view(-1, layer.tp_q_head_num, layer.head_dim)
        out, match, n = torch.empty_like(q), None, self.batch.n_rows
        if group.reuses and table is not None:
            match = group.match[:n]
            unrotate(q, match, table, self.lengths[:n], neox)
        group.attention.decode(number, self.batch, q, keys, values, q_match=match, out=out, stream=stream(),
                               sinks=None if sinks is None else sinks.float())
        return out.view(-1, layer.tp_q_head_num * layer.head_dim)
