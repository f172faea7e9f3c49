# SPDX-License-Identifier: Apache-2.0
"""Requests and slots."""
import random

import macattn
import numpy as np


class Slots:
    """Stands in for an object: notes of which request a slot remembers something."""

    def __init__(self, n):
        self.settings = {"max_slots": n}
        self.memory = [None] * n

    def reset(self, slot):
        self.memory[slot] = None

    def truncate(self, slot, n_tokens):
        pass

    def fork(self, source, target):
        self.memory[target] = self.memory[source]


def test_the_slot_of_the_oldest_is_taken_but_never_within_a_step():
    s = macattn.Sequences(Slots(2))
    assert sorted(s.take(["a", "b"])) == [0, 1]
    a, b = s.slot("a"), s.slot("b")
    assert s.take(["b", "a", "c"]) == [b, a, -1]
    s.take(["a"])
    assert s.take(["c", "a"]) == [b, a] and "b" not in s
    s.free("a")
    s.free("never seen")
    assert s.slot("a") == -1 and len(s) == 1
    assert s.fork("c", "d") and not s.fork("c", "e") and not s.fork("a", "f")


def test_what_raises_leaves_no_request_with_a_strangers_slot():
    slots = Slots(2)
    s = macattn.Sequences(slots)
    s.take(["a", "gone"])
    slots.memory[s.slot("gone")] = "gone"
    s.free("gone")

    def refuse(*_):
        raise macattn.OutOfMemoryError(-3, "no memory")
    slots.fork = slots.reset = refuse
    for call in (lambda: s.fork("a", "child"), lambda: s.take(["child"])):
        try:
            call()
        except macattn.OutOfMemoryError:
            assert s.slot("child") == -1 and len(s) == 1
        else:
            raise AssertionError("it did not raise")
    del slots.fork, slots.reset
    assert s.take(["child"]) != s.take(["a"]) and slots.memory[s.slot("child")] is None


def test_no_request_ever_meets_anothers_memory():
    pick = random.Random(3)
    slots = Slots(5)
    s = macattn.Sequences(slots)
    alive, born = [], 0
    for _ in range(20000):
        what = pick.random()
        if what < 0.2 or not alive:
            alive.append(born)
            born += 1
        elif what < 0.35:
            s.free(alive.pop(pick.randrange(len(alive))))
        elif what < 0.4:
            s.forget(pick.choice(alive))
        elif what < 0.45:
            parent = pick.choice(alive)
            if s.fork(parent, born):
                slots.memory[s.slot(born)] = born  # what it remembers is now its own
            alive.append(born)
            born += 1
        else:
            step = pick.sample(alive, pick.randint(1, min(4, len(alive))))
            taken = s.take(step)
            assert len({t for t in taken if t >= 0}) == sum(t >= 0 for t in taken)
            for request, slot in zip(step, taken):
                if slot >= 0:
                    assert slots.memory[slot] in (None, request)
                    slots.memory[slot] = request
            assert -1 not in taken
    assert born > 1000


def test_with_an_object():
    q = np.ones((1, 4, 32), np.float32)
    k = np.zeros((1, 200, 4, 32), np.float16)
    with macattn.Attention(n_layers=1, n_heads=4, n_kv_heads=4, head_dim=32, policy="paper", min_tokens=0, band=8,
                           max_slots=2, n_threads=1) as m:
        s = macattn.Sequences(m)

        def step(request, n):
            before = m.stats().hits
            m.plan([n], slots=s.take([request]))
            m.decode(0, q, k, k, q_match=q)
            return m.stats().hits - before

        assert step("a", 100) == 0 and step("a", 101) == 4
        s.truncate("a", 101)
        assert step("a", 102) == 4
        s.truncate("a", 50)
        assert step("a", 100) == 0
        assert s.fork("a", "b") and step("b", 101) == 4
        s.forget("a")
        assert step("a", 120) == 0
        assert step("c", 150) == 0 and "b" not in s
