# SPDX-License-Identifier: Apache-2.0
"""Comparing programs on a machine that does other work too: short turns (A B C A B C ...), medians, and a note of how much
of the processor each turn was denied, so that a turn that was disturbed is dropped and repeated. Nothing but arithmetic
and /proc."""
import collections
import math
import os
import pathlib
import statistics
import sys
import time

DISTURBED = 0.1  # a turn counts if other work took at most this share of the processor time it asked for
UNSTEADY = 0.3   # the middle half of equal turns may spread over this share of their median
SLACK = 0.05     # a share of the decode time is not known better than this

# Seconds: of the clock, of processor time by everybody (with what the host took away), and of that by us.
Usage = collections.namedtuple('Usage', 'clock everybody own n_cpus')
# Milliseconds a token, tokens, and the share of the processor time that other work took.
Turn = collections.namedtuple('Turn', 'ms tokens taken')


def usage(processes, proc=pathlib.Path('/proc')):
    """Of the processors that this process may use. `processes` are ours besides this one. None where there is no /proc."""
    tick = os.sysconf('SC_CLK_TCK')
    cpus = os.sched_getaffinity(0)
    clock, everybody, own = time.monotonic(), 0, sum(os.times()[:2])
    try:
        for line in (proc / 'stat').read_text().splitlines():
            name, *times = line.split()
            if name.startswith('cpu') and name[3:].isdigit() and int(name[3:]) in cpus:
                user, nice, system, _, _, irq, softirq, steal = map(int, (times + ['0'] * 8)[:8])
                everybody += (user + nice + system + irq + softirq + steal) / tick
        for process in processes:
            # The program's name, in brackets, may hold blanks.
            fields = (proc / str(process) / 'stat').read_text().rpartition(')')[2].split()
            own += (int(fields[11]) + int(fields[12])) / tick
    except OSError:
        return None
    return Usage(clock, everybody, own, len(cpus))


def taken(before, after, threads):
    """Share, in [0, 1], of the processor time `threads` threads asked for that went to others: what others used beyond the
    processors that were left to them."""
    if not before or not after or after.clock <= before.clock:
        return 0.0
    seconds = after.clock - before.clock
    others = (after.everybody - before.everybody) - (after.own - before.own)
    spare = max(0, after.n_cpus - threads) * seconds
    return min(1.0, max(0.0, others - spare) / (min(threads, after.n_cpus) * seconds))


def undisturbed(turns):
    return [turn for turn in turns if turn.taken <= DISTURBED]


def too_few(turns, rounds):
    """Whether less than half of the turns wanted were undisturbed."""
    return any(len(undisturbed(done)) < math.ceil(rounds / 2) for done in turns.values())


def in_turns(names, take, rounds, report=lambda turns: None):
    """`rounds` undisturbed turns of each name, {name: [Turn]}. Disturbed ones stay in the lists. They are repeated, at most as
    often as there are rounds, if that promises something: if half were undisturbed. `take(name)` takes one turn; `report` is
    called after each."""
    turns = {name: [] for name in names}

    def wanted(name):
        return len(undisturbed(turns[name])) < rounds and len(turns[name]) < 2 * rounds

    while any(map(wanted, names)):
        if min(map(len, turns.values())) >= rounds and too_few(turns, rounds):
            break
        for name in filter(wanted, names):
            turns[name].append(take(name))
            report(turns)
    return turns


def come(turns, rounds):
    """How far in_turns has come, in [0, 1], and how many turns were disturbed."""
    n = sum(map(len, turns.values()))
    disturbed = n - sum(len(undisturbed(done)) for done in turns.values())
    return n / (rounds * len(turns) + disturbed), disturbed


def ms(turns):
    """Median milliseconds a token of the undisturbed turns."""
    return statistics.median(turn.ms for turn in undisturbed(turns))


def spread(turns):
    """What the middle half of the undisturbed turns spreads over, as a share of their median."""
    values = [turn.ms for turn in undisturbed(turns)]
    if len(values) < 2:
        return 0.0
    low, middle, high = statistics.quantiles(values, n=4, method='inclusive')
    return (high - low) / middle


def taken_of_all(turns):
    """Share of the processor time that other work took over all turns."""
    total = sum(turn.ms * turn.tokens for turn in turns)
    return sum(turn.taken * turn.ms * turn.tokens for turn in turns) / total if total else 0.0


def too_busy(turns, rounds, steady=()):
    """Why the turns say nothing about speed, or None. `steady` names those whose turns are all the same work."""
    if too_few(turns, rounds):
        share = taken_of_all([turn for done in turns.values() for turn in done])
        return f'other work took {share:.0%} of the processor time'
    widest = max((spread(turns[name]) for name in steady), default=0)
    if widest > UNSTEADY:
        return f'the same work took times that differ by {widest:.0%}'
    return None


def attention_shares(ms_alone, ms_exact, share_exact, share_reuse):
    """Shares of the decode time spent in attention: alone, exact, reuse; None if they make no sense. llama.cpp does not say:
    what its token takes beyond the rest of the token, which is the same work in all three, is its attention."""
    alone = 1 - ms_exact * (1 - share_exact) / ms_alone
    shares = [0.0 if -SLACK <= share < 0 else share for share in (alone, share_exact, share_reuse)]
    return shares if all(0 <= share <= 1 for share in shares) else None


class Progress:
    """How far a part has come: one line that is rewritten on a terminal, elsewhere a line now and then."""

    def __init__(self, stream=None, seconds=5, clock=time.monotonic):
        self.stream, self.seconds, self.clock = stream or sys.stdout, seconds, clock
        self.terminal = self.stream.isatty()
        self.part = self.line = self.written = None  # `line` is the newest, `written` when the last was printed

    def __call__(self, part, share, detail=''):
        if part != self.part:
            self.close()
        self.line = f'{part}: {share:4.0%}{detail}'
        if self.terminal:
            self.stream.write(f'\r\x1b[K{self.line}')
        elif part != self.part or self.clock() - self.written >= self.seconds:
            self.print()
        self.part = part
        self.stream.flush()

    def print(self):
        self.stream.write(self.line + '\n')
        self.written, self.line = self.clock(), None

    def close(self):
        """The part is over."""
        if self.part is not None and self.terminal:
            self.stream.write('\n')
        elif self.line:
            self.print()
        self.part = self.line = None
        self.stream.flush()
