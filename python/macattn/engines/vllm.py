# SPDX-License-Identifier: Apache-2.0
"""An attention backend of vLLM: decoding by macattn, everything else by vLLM's FlashAttention backend.

    LLM(..., attention_backend="CUSTOM", additional_config={"macattn": {"policy": "budget", "budget": 0.01, "max_slots": 8}})

- Rows of plain causal decoding go to the library, also in batches that hold prompts; prompts, other layers (sliding windows,
  fp8, encoders, ...) and other batches (cascade, speculation) go to FlashAttention.
- The newest queries of some prompts are shown to the library (`Prompts`), with the results and the lse that FlashAttention has.
- Queries before RoPE are had back by turning those after it back (`unrotate`), for kinds of RoPE that are known.
- A request is known by its index in vLLM's RequestState and how often that index was given away: both are told by hooks on
  vLLM's model runner V2. Where the hooks are silent (dummy runs, warm-up, capture, model runner V1) rows have no slot, and are
  computed exactly. `max_slots` requests, the longest first, have one.
- In CUDA graphs only what lies at fixed addresses changes from step to step: lengths, block tables, and `Builder`'s slots.
"""
import collections
import dataclasses
import importlib.metadata

import torch
import vllm.v1.attention.backends.flash_attn as flash
from vllm.config import get_current_vllm_config_or_none
from vllm.logger import init_logger
from vllm.utils.torch_utils import canonicalize_singleton_dim_strides
from vllm.v1.attention.backend import AttentionCGSupport, AttentionType
from vllm.v1.attention.backends.flash_attn import (FlashAttentionBackend, FlashAttentionImpl,
                                                   FlashAttentionMetadataBuilder)
from vllm.v1.attention.backends.utils import split_decodes_and_prefills
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.gpu_worker import Worker

from .._arrays import view
from ..cuda import Batch
from ..sequences import Sequences
from ..serving.layers import HEAD_SIZES, ROPES, Group, by_shape, read_settings, stats as stats_of, stream, summary
from ..serving.prompts import Prompts, positions
from ..serving.rotate import unrotate

VERSIONS = ("0.26", "0.33")  # whose interfaces these are; docs/vllm.md says which of them were run on a GPU
version = importlib.metadata.version("vllm")
if ".".join(version.split(".")[:2]) not in VERSIONS:
    raise ImportError(f"macattn's backend was made for vLLM {', '.join(v + '.x' for v in VERSIONS)}; this is {version}")

logger = init_logger("vllm.macattn")
# Fields of FlashAttention's metadata that make a batch more than plain causal attention, in one version or another.
OTHER_MASKS = ("use_cascade", "mm_prefix_range_tensor", "mm_prefix_query_range_tensor", "rswa_prefix_lens")


class Engine:
    """What the layers of this process share. One model to a process."""

    def __init__(self):
        self.impls, self.groups = [], []
        self.made, self.max_rows, self.min_tokens = False, 0, 0
        self.given = collections.Counter()  # how often a request index was given away
        self.rows = None      # of the next step: [(request index, times given)], None: a dummy
        self.before = None    # rows that all had slots in the step before, and what slots() found for them
        self.prompts = None
        self.shown = []       # of the next step: [(row, end of its tokens in the batch, queries to be shown)]
        self.lse = None       # what FlashAttention is asked for, and then gave: [heads, tokens]

    def make(self, vllm_config, dtype):
        """Called when the weights are loaded and before vLLM measures how much memory is left for the KV cache."""
        self.made = True
        asked = (vllm_config.additional_config or {}).get("macattn", {})
        settings = read_settings(asked, vllm_config.model_config.max_model_len + 1)
        exact = {}
        if vllm_config.speculative_config is not None:
            exact["speculation"] = "lengths shrink on the device only"
        if not vllm_config.use_v2_model_runner:
            exact["model runner V1"] = "it does not tell requests apart"
        if exact:
            settings["policy"] = "exact"
        limits = vllm_config.scheduler_config, vllm_config.compilation_config
        self.max_rows = max(limits[0].max_num_seqs, limits[1].max_cudagraph_capture_size or 0)
        self.min_tokens = settings["min_tokens"]
        device = torch.device("cuda", torch.cuda.current_device())
        plain = [impl for impl in self.impls if impl.plain(dtype)]
        for shape, impls in by_shape(plain, Impl.shape).items():
            group = Group(len(impls), shape, settings, self.max_rows, dtype, device)
            group.sequences = Sequences(group.attention)
            for layer, impl in enumerate(impls):
                impl.group, impl.layer = group, layer
            self.groups.append(group)
        if any(group.reuses for group in self.groups):
            self.prompts = Prompts(settings["show_prompts"], self.min_tokens)
        logger.info("%s", summary(self.groups, len(self.impls), f"vLLM {version}", settings, exact))

    def find_ropes(self, model):
        """Tell each layer the RoPE of the module it is in."""
        found = 0
        for module in model.modules():
            rope = getattr(module, "rotary_emb", None)
            for child in module.children():
                impl = getattr(child, "impl", None)
                if isinstance(impl, Impl) and type(rope).__name__ in ROPES and rope.head_size == impl.head_size:
                    impl.rope, found = rope, found + 1
        reusing = sum(g.reuses * g.n_layers for g in self.groups)
        if found < reusing:
            logger.warning("macattn: %d of %d layers have a RoPE that is not known: they are computed exactly",
                           reusing - found, reusing)

    def idle(self):
        """No step of requests is prepared: rows are dummies."""
        self.rows, self.shown = None, []

    def begin(self, batch):
        """A step of these requests is prepared."""
        self.rows = [(int(i), self.given[int(i)]) for i in batch.idx_mapping_np]
        self.shown = []
        if self.prompts is None:
            return
        chunks = zip(batch.num_computed_tokens_np, batch.num_scheduled_tokens, batch.prefill_len_np, batch.query_start_loc_np[1:])
        for row, (start, new, length, end) in enumerate(chunks):
            n = self.prompts.queries(int(start), int(start + new), int(length)) if new > 1 else 0
            if n:
                self.shown.append((row, int(end), n))

    def slots(self, lengths, n, shown):
        """[(group, slots of the next step's rows)] of the first n, which decode, and those whose prompts are shown. `lengths`: host
        numbers, at least the true ones."""
        last = max([n, *(row + 1 for row, _, _ in shown)])
        rows = self.rows[:last] if self.rows is not None and len(self.rows) >= last else None
        if rows is not None and not shown and self.before is not None and rows == self.before[0]:
            return self.before[1]  # nobody came or went
        found = []
        for group in self.groups:
            slots = [-1] * last
            if rows is not None and group.reuses:
                wanted = [i for i in range(n) if lengths[i] >= self.min_tokens] + [row for row, _, _ in shown]
                wanted.sort(key=lambda i: -lengths[i])
                group.sequences.call = {"stream": stream()}
                for i, slot in zip(wanted, group.sequences.take([rows[i] for i in wanted])):
                    slots[i] = slot
            found.append((group, slots))
        settled = rows and not shown and all(-1 not in slots for group, slots in found if group.reuses)
        self.before = (rows, found) if settled else None
        return found

    def end(self, index):
        for group in self.groups:
            group.sequences.free((index, self.given[index]))

    def forget(self):
        """KV or weights changed under living requests."""
        for group in self.groups:
            group.sequences.call = {"stream": stream()}
            for slot in range(group.attention.settings["max_slots"]):
                group.attention.reset(slot, **group.sequences.call)


engine = Engine()


def stats():
    return {**stats_of(engine.groups), **(engine.prompts.stats() if engine.prompts else {})}


# ---------------------------------------------------------------------------------------------------------------- hooks


def hook(cls, name):
    """Replace a method by one that is given the method it replaces first; once."""
    def replace(function):
        plain = getattr(cls, name)

        def wrapper(self, *arguments, **kwargs):
            return function(plain, self, *arguments, **kwargs)
        setattr(cls, name, wrapper)
        return function
    return replace


@hook(RequestState, "add_request")
def add_request(plain, self, req_id, *arguments, **kwargs):
    plain(self, req_id, *arguments, **kwargs)
    engine.given[self.req_id_to_index[req_id]] += 1


@hook(RequestState, "remove_request")
def remove_request(plain, self, req_id):
    index = plain(self, req_id)
    if index is not None:
        engine.end(index)
    return index


@hook(GPUModelRunner, "prepare_attn")
def prepare_attn(plain, self, input_batch):
    engine.begin(input_batch)
    return plain(self, input_batch)


@hook(GPUModelRunner, "prepare_dummy_attn")
def prepare_dummy_attn(plain, self, input_batch):
    engine.idle()
    return plain(self, input_batch)


@hook(GPUModelRunner, "execute_model")
def execute_model(plain, self, *arguments, **kwargs):
    engine.idle()
    try:
        return plain(self, *arguments, **kwargs)
    finally:
        engine.idle()


@hook(GPUModelRunner, "initialize_kv_cache")
def initialize_kv_cache(plain, self, *arguments, **kwargs):
    engine.find_ropes(self.model)
    return plain(self, *arguments, **kwargs)


@hook(GPUModelRunner, "reload_weights")
def reload_weights(plain, self, *arguments, **kwargs):
    plain(self, *arguments, **kwargs)
    engine.forget()


@hook(Worker, "wake_up")
def wake_up(plain, self, *arguments, **kwargs):
    plain(self, *arguments, **kwargs)
    engine.forget()


def with_lse(plain):
    """FlashAttention's function, which gives the lse it has anyway to who waits for it."""
    def attend(*arguments, **kwargs):
        if engine.lse is not WANTED:
            return plain(*arguments, **kwargs)
        out, engine.lse = plain(*arguments, **kwargs, return_softmax_lse=True)
        return out
    return attend


WANTED = object()
flash.flash_attn_varlen_func = with_lse(flash.flash_attn_varlen_func)

# -------------------------------------------------------------------------------------------------------------- backend


class Step:
    """The decode rows of a step, which are the first n, what is left to FlashAttention, and whose prompts are shown: [(row, end of
    its tokens in the batch, tokens that each query sees)]."""

    def __init__(self, n, lengths, table, slots, rest, shown):
        self.n, self.rest, self.shown = n, rest, shown
        self.lengths, self.table, self.slots = lengths, table, slots
        self.batches = {}

    def batch(self, group, page_size, rows):
        """Of the first rows."""
        if (group, page_size, rows) not in self.batches:
            self.batches[group, page_size, rows] = Batch(self.lengths[:rows], slots=self.slots[group][:rows], page_size=page_size,
                                                         pages=self.table[:rows])
        return self.batches[group, page_size, rows]


class Builder(FlashAttentionMetadataBuilder):
    # A graph holds one way of computing: that of batches with one token a row.
    _cudagraph_support = AttentionCGSupport.UNIFORM_SINGLE_TOKEN_DECODE

    def __init__(self, kv_cache_spec, layer_names, vllm_config, device):
        super().__init__(kv_cache_spec, layer_names, vllm_config, device)
        self.slots = {group: torch.full((engine.max_rows,), -1, dtype=torch.int32, device=device) for group in engine.groups}
        self.written = {}  # what the first of them are, by the copies queued so far
        self.ahead = positions(device)

    def build(self, common_prefix_len, common_attn_metadata, fast_build=False):
        common = common_attn_metadata
        n, _, tokens, _ = split_decodes_and_prefills(common, decode_threshold=1)
        whole = n == common.num_reqs
        found = super().build(common_prefix_len, common, fast_build or whole)
        found.macattn = None
        shown = [s for s in engine.shown if s[0] >= n] if common.seq_lens_cpu_upper_bound is not None else []
        if (n or shown) and n == tokens and common.num_reqs <= engine.max_rows and self.is_plain(found):
            slots = self.fill_slots(common, n, shown)
            rest = None if whole else self.without_decodes(found, n)
            shown = [(row, end, common.seq_lens[row:row + 1] + self.ahead[-m:]) for row, end, m in shown]
            found.macattn = Step(n, common.seq_lens, common.block_table_tensor, slots, rest, shown)
        return found

    @staticmethod
    def is_plain(found):
        others = (getattr(found, name, None) for name in OTHER_MASKS)
        return found.causal is True and all(other is None or other is False for other in others)

    def fill_slots(self, common, n, shown):
        """Write the slots where graphs read them. Rows of padding have none."""
        lengths = common.seq_lens_cpu_upper_bound
        lengths = lengths.tolist() if lengths is not None and engine.rows is not None else []
        real = min(n, len(engine.rows or ()), len(lengths))
        for group, slots in engine.slots(lengths, real, shown):
            slots = slots + [-1] * (n - len(slots))
            if self.written.get(group) != slots:
                host = torch.tensor(slots, dtype=torch.int32, pin_memory=True)
                self.slots[group][:len(slots)].copy_(host, non_blocking=True)
                self.written[group] = slots
        return self.slots

    @staticmethod
    def without_decodes(found, n):
        """The metadata of the rows after the first n, which have one token each."""
        if n == 0:
            return found
        return dataclasses.replace(
            found, num_actual_tokens=found.num_actual_tokens - n, query_start_loc=found.query_start_loc[n:] - n,
            seq_lens=found.seq_lens[n:], block_table=found.block_table[n:], slot_mapping=found.slot_mapping[n:],
            scheduler_metadata=None)

    def use_cascade_attention(self, *arguments, **kwargs):
        return False


class Impl(FlashAttentionImpl):
    supports_dcp = False

    def __init__(self, *arguments, **kwargs):
        super().__init__(*arguments, **kwargs)
        self.group = self.layer = self.rope = None
        self._cache = None
        self._config = get_current_vllm_config_or_none()
        engine.impls.append(self)

    def plain(self, dtype):
        """Whether this layer is one that the library can decode."""
        return (self.attn_type == AttentionType.DECODER and self.alibi_slopes is None and self.sliding_window == (-1, -1) and
                self.kv_sharing_target_layer_name is None and self.kv_cache_dtype in ("auto", "float16", "bfloat16") and
                self.head_size in HEAD_SIZES and dtype in (torch.float16, torch.bfloat16) and self.dcp_world_size <= 1)

    def shape(self):
        return self.num_heads, self.num_kv_heads, self.head_size, self.scale, self.logits_soft_cap

    def process_weights_after_loading(self, act_dtype):
        super().process_weights_after_loading(act_dtype)
        if self.sinks is not None:
            self._sinks = self.sinks.float().contiguous()
        if not engine.made:
            engine.make(self._config, act_dtype)

    def forward(self, layer, query, key, value, kv_cache, attn_metadata, output, output_scale=None, output_block_scale=None):
        step = getattr(attn_metadata, "macattn", None)
        if step is None or self.group is None or output_scale is not None or output_block_scale is not None:
            return super().forward(layer, query, key, value, kv_cache, attn_metadata, output, output_scale, output_block_scale)
        n, by_head = step.n, output.view(-1, self.num_heads, self.head_size)
        if n:
            self.decode(step, query[:n], kv_cache, by_head[:n])
        if step.rest is not None:
            shows = step.shown and self.group.shown is not None and self.rope is not None and self.sinks is None
            engine.lse = WANTED if shows else None
            super().forward(layer, query[n:], key[n:], value[n:], kv_cache, step.rest, output[n:])
            lse, engine.lse = engine.lse, None
            if shows and lse is not WANTED and lse.shape == (self.num_heads, step.rest.num_actual_tokens):
                self.show(step, query, kv_cache, by_head, lse.t())
        return output

    def show(self, step, query, kv_cache, out, lse):
        """lse [tokens that are not decoded, heads]"""
        group, (k, v) = self.group, self.cache_views(kv_cache)
        rope = self.rope.cos_sin_cache, self.rope.is_neox_style
        for row, end, lengths in step.shown:
            mine = slice(end - len(lengths), end)
            group.shown.show(group.attention, self.layer, step.batch(group, kv_cache.shape[2], row + 1), row, query[mine], k, v,
                             out[mine], lse[mine.start - step.n:end - step.n], rope, lengths)

    def decode(self, step, query, kv_cache, out):
        group, match = self.group, None
        k, v = self.cache_views(kv_cache)
        batch, lengths = step.batch(group, kv_cache.shape[2], step.n), step.lengths[:step.n]
        if group.reuses and self.rope is not None:
            match = group.match[:step.n]
            unrotate(query, match, self.rope.cos_sin_cache, lengths, self.rope.is_neox_style)
        group.attention.decode(self.layer, batch, query, k, v, q_match=match, out=out, stream=stream(),
                               sinks=self._sinks if self.sinks is not None else None)

    def cache_views(self, kv_cache):
        """K and V, [pages, tokens, KV heads, dim]; the cache is the same in every call."""
        if self._cache is None or self._cache[0] != (kv_cache.data_ptr(), kv_cache.shape):
            halves = kv_cache.transpose(1, 2).split(self.head_size, dim=-1)
            views = tuple(view(canonicalize_singleton_dim_strides(half)) for half in halves)
            self._cache = (kv_cache.data_ptr(), kv_cache.shape), views
        return self._cache[1]


class Backend(FlashAttentionBackend):
    @staticmethod
    def get_name():
        return "CUSTOM"

    @staticmethod
    def get_impl_cls():
        return Impl

    @staticmethod
    def get_builder_cls():
        return Builder
