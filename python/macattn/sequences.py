# SPDX-License-Identifier: Apache-2.0
"""Whose slot is whose: an engine names its requests as it likes, and each gets a slot of an object while it lives.

A slot holds what was remembered of one sequence. There are `max_slots` of them, and there may be more requests: who comes
when all are taken gets the slot of the one that was not used for the longest time, whose summaries are forgotten (it is
computed exactly until it gets a slot again). A new owner never sees what the old one remembered.
"""
import collections


class Sequences:
    """Requests of any hashable name, mapped to the slots of an `Attention` or a `CudaAttention`.

    `call` is handed to the object's slot methods: {"stream": s} for a GPU.
    """

    def __init__(self, attention, **call):
        self._attention, self.call = attention, call
        self._free = list(range(attention.settings["max_slots"]))[::-1]
        self._slots = collections.OrderedDict()  # request: slot, the one not used for the longest time first

    def __len__(self):
        return len(self._slots)

    def __contains__(self, request):
        return request in self._slots

    def slot(self, request) -> int:
        """The request's slot, or -1."""
        return self._slots.get(request, -1)

    def take(self, requests) -> list[int]:
        """A slot for each request of one step, -1 where there is none: slots of the others in the step are not taken away."""
        for request in requests:
            if request in self._slots:
                self._slots.move_to_end(request)
        step = set(requests)
        for request in requests:
            if request not in self._slots:
                self._take(request, step)
        return [self.slot(request) for request in requests]

    def _take(self, request, step):
        if not self._free:
            oldest = next(iter(self._slots), None)
            if oldest is None or oldest in step:
                return
            self.free(oldest)
        slot = self._free[-1]
        self._attention.reset(slot, **self.call)  # if this raises, the slot stays free
        self._slots[request] = self._free.pop()

    def free(self, request):
        """The request has ended. Unknown ones are ignored."""
        slot = self._slots.pop(request, None)
        if slot is not None:
            self._free.append(slot)

    def forget(self, request):
        """The request goes on, but its tokens moved or changed."""
        slot = self.slot(request)
        if slot >= 0:
            self._attention.reset(slot, **self.call)

    def truncate(self, request, n_tokens):
        """The request's tokens behind the first `n_tokens` were taken back."""
        slot = self.slot(request)
        if slot >= 0:
            length = getattr(self._attention, "length", None)  # a GPU's lengths are on the GPU
            if length is None or length(slot) > n_tokens:
                self._attention.truncate(slot, n_tokens, **self.call)

    def fork(self, request, child):
        """`child` begins with all of `request`'s tokens; it takes no slot from anyone. Returns whether it got one."""
        slot = self.slot(request)
        if slot < 0 or not self._free or child in self._slots:
            return False
        self._attention.fork(slot, self._free[-1], **self.call)  # if this raises, the slot stays free
        self._slots[child] = self._free.pop()
        return True
