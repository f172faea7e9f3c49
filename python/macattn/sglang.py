# SPDX-License-Identifier: Apache-2.0
"""SGLang's plug-in: `attention_backend="macattn"`. The backend itself is macattn.engines.sglang, which is imported when it is
chosen; this must neither be slow nor touch a GPU, since SGLang calls `register` in every process it starts."""

VERSIONS = ("0.5.17",)  # that this was run with
POOL = "sglang.srt.mem_cache.memory_pool.ReqToTokenPool."
SCHEDULER = "sglang.srt.managers.scheduler.Scheduler."


def register():
    """The entry point. SGLang logs what is raised here and goes on, without the name macattn among its backends."""
    import importlib.metadata
    version = importlib.metadata.version("sglang")
    if version not in VERSIONS:
        raise ImportError(f"macattn's backend was made for SGLang {', '.join(VERSIONS)}; this is {version}")
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    @register_attention_backend("macattn")
    def create(runner):
        from .engines import sglang
        return sglang.create(runner)

    if "macattn" not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices(["macattn"])
    for target, hook, kind in ((POOL + "alloc", allocated, HookType.AFTER), (POOL + "free", freed, HookType.BEFORE),
                               (POOL + "clear", cleared, HookType.AFTER),
                               (SCHEDULER + "get_internal_state", with_stats, HookType.AFTER)):
        HookRegistry.register(target, hook, kind)


# Hooks. A pool that has a backend of ours knows it as `macattn`.


def allocated(result, pool, reqs):
    places = getattr(pool, "macattn", None)
    if places is not None and result is not None:
        for req in reqs:
            tokens = len(req.origin_input_ids) + len(req.output_ids)
            places.lengths[req.rid] = tokens
            places.came(req.req_pool_idx, tokens, tokens + (req.sampling_params.max_new_tokens or 0))


def freed(pool, req):
    places = getattr(pool, "macattn", None)
    if places is not None:
        places.lengths.pop(req.rid, None)
        places.left(req.req_pool_idx)


def cleared(result, pool):
    places = getattr(pool, "macattn", None)
    if places is not None:
        places.clear()


def with_stats(result, scheduler, *request):
    places = getattr(getattr(scheduler, "req_to_token_pool", None), "macattn", None)
    if places is not None:
        result.internal_state["macattn"] = places.stats()


def stats(engine):
    """Counters of an Engine's layers, summed over its schedulers; see `macattn.Stats`. {} with another backend."""
    total = {}
    for state in engine.get_server_info()["internal_states"]:
        for name, count in state.get("macattn", {}).items():
            total[name] = total.get(name, 0) + count
    return total
