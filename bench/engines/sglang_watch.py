# SPDX-License-Identifier: Apache-2.0
"""A plug-in of SGLang's for sglang_check.py: the backend `macattn_watched`, which is macattn's with a Watch inside. What it found
is in the scheduler's internal state, under "watch". Environment: MACATTN_POISON (1: slots that change hands hold poison),
MACATTN_ALLOW_STALE (a file; once it is there, the library forgets nothing)."""
import functools
import os

STALE = "MACATTN_ALLOW_STALE"


def register():
    from sglang.srt.layers.attention.attention_registry import register_attention_backend
    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from sglang.srt.server_args import ATTENTION_BACKEND_CHOICES, add_attention_backend_choices

    @register_attention_backend("macattn_watched")
    def create(runner):
        from macattn.engines import sglang as plugin
        backend = plugin.create(runner)
        backend.places.watch = watch_of(plugin, backend, os.environ.get("MACATTN_POISON") == "1")
        return backend

    if "macattn_watched" not in ATTENTION_BACKEND_CHOICES:
        add_attention_backend_choices(["macattn_watched"])
    HookRegistry.register("sglang.srt.managers.scheduler.Scheduler.get_internal_state", with_watch, HookType.AFTER)
    HookRegistry.register("sglang.srt.managers.schedule_batch.ScheduleBatch.retract_decode", retracted, HookType.AFTER)


retractions = []


def retracted(result, batch, *arguments):
    retractions.append(len(result[0]))


def with_watch(result, scheduler, *request):
    watch = getattr(getattr(scheduler.req_to_token_pool, "macattn", None), "watch", None)
    if watch is not None:
        result.internal_state["watch"] = {**watch.found(), "retracted": sum(retractions), "slots_given": watch.given,
                                          "captures": watch.captures}
        if watch.resets and os.path.exists(os.environ.get(STALE, "")):
            watch.allow_stale()


def watch_of(plugin, backend, poisons):
    """The watch of the only object. Slots are emptied where a step begins, in its stream's order; right before, who is to get one
    finds poison in it."""
    import torch
    from watch import Watch
    places, watch = backend.places, Watch(backend.groups[0].attention)
    plain_flush, watch.given = places.flush, 0
    _, _, k, v, *_ = next(iter(backend.of.values()))
    ints = dict(dtype=torch.int32, device="cuda")

    def batch_of(slot, tokens):
        return plugin.Batch(torch.tensor([tokens], **ints), slots=torch.tensor([slot], **ints), page_size=1,
                            pages=torch.zeros(tokens, **ints), page_indptr=torch.tensor([0, tokens], **ints))

    def flush():
        given = [slot for slot in places.changed.values() if slot >= 0]
        watch.given += len(given)
        for slot in given if poisons else ():
            watch.poison(slot, functools.partial(batch_of, slot), k, v, plugin.stream())
        plain_flush()
    places.flush = flush
    return watch
