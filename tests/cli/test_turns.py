#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of ./run: what a turn was denied, which turns count, and what is said on a machine too busy to measure.

usage: test_turns.py FOLDER   (bench/llama)"""
import contextlib
import io
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time
import unittest

FOLDER = sys.argv.pop(1)
sys.path.insert(0, FOLDER)
import demo  # noqa: E402
import llama  # noqa: E402
import turns  # noqa: E402

NAMES = llama.CONFIGURATIONS


def usage(clock, everybody, own, n_cpus=2):
    return turns.Usage(clock, everybody, own, n_cpus)


def turn(ms, taken=0.0, tokens=50):
    return turns.Turn(ms, tokens, taken)


class Taken(unittest.TestCase):
    def taken(self, seconds, others, own, n_cpus=2, threads=2):
        return turns.taken(usage(5, 100, 30, n_cpus), usage(5 + seconds, 100 + others + own, 30 + own, n_cpus), threads)

    def test_share_of_what_was_asked_for(self):
        self.assertAlmostEqual(self.taken(2, 0, 4), 0)
        self.assertAlmostEqual(self.taken(2, 1, 3), 0.25)
        self.assertAlmostEqual(self.taken(2, 4, 0), 1)

    def test_processors_that_were_left_over_do_not_count(self):
        self.assertAlmostEqual(self.taken(2, 2, 2, threads=1), 0)
        self.assertAlmostEqual(self.taken(2, 3, 1, threads=1), 0.5)
        self.assertAlmostEqual(self.taken(2, 2, 2, threads=8), 0.5)

    def test_stays_in_0_to_1(self):
        self.assertEqual(self.taken(2, -0.02, 4), 0)  # clocks tick
        self.assertEqual(self.taken(2, 9, 4), 1)
        self.assertEqual(self.taken(0, 1, 1), 0)
        self.assertEqual(turns.taken(None, usage(1, 1, 1), 2), 0)
        self.assertEqual(turns.taken(usage(1, 1, 1), None, 2), 0)

    def test_usage_reads_proc(self):
        tick = os.sysconf('SC_CLK_TCK')
        cpu = min(os.sched_getaffinity(0))
        with tempfile.TemporaryDirectory() as folder:
            proc = pathlib.Path(folder)
            self.assertIsNone(turns.usage([], proc))
            lines = ['cpu  9 9 9 9 9 9 9 9 9 9'] + [f'cpu{i} {tick} {2 * tick} {3 * tick} 999 999 {tick} {tick} {4 * tick} 7 7'
                                                   for i in (cpu, 100000)]  # there is no processor of that number
            (proc / 'stat').write_text('\n'.join(lines) + '\nintr 1\n')
            (proc / '12').mkdir()
            (proc / '12' / 'stat').write_text(f'12 (a (b) c) S 1 1 1 0 -1 0 0 0 0 0 {5 * tick} {6 * tick} 0 0 20 0\n')
            alone, both = turns.usage([], proc), turns.usage([12], proc)
            self.assertAlmostEqual(both.everybody, 12)
            self.assertAlmostEqual(both.own - alone.own, 11, delta=0.5)
            self.assertIsNone(turns.usage([13], proc))

    @unittest.skipUnless(os.access('/proc/stat', os.R_OK), 'no /proc')
    def test_a_busy_neighbour_is_seen(self):
        n = len(os.sched_getaffinity(0))
        loops = [subprocess.Popen([sys.executable, '-c', 'while True: pass']) for _ in range(n)]
        try:
            time.sleep(0.3)
            before = turns.usage([])
            time.sleep(1)
            taken = turns.taken(before, turns.usage([]), n)
        finally:
            for loop in loops:
                loop.kill()
                loop.wait()
        self.assertGreater(taken, turns.DISTURBED)


class InTurns(unittest.TestCase):
    def take(self, disturbed):
        """`disturbed(name, i)`: whether the i-th turn of that name is. Returns the order and the turns."""
        order, count = [], {}

        def one(name):
            i = count[name] = count.get(name, -1) + 1
            order.append(name)
            return turn(10 + i, 0.5 if disturbed(name, i) else 0.01)
        return order, turns.in_turns('abc', one, 4)

    def test_one_after_the_other(self):
        order, done = self.take(lambda name, i: False)
        self.assertEqual(''.join(order), 'abc' * 4)
        self.assertEqual(turns.come(done, 4), (1, 0))
        self.assertIsNone(turns.too_busy(done, 4))

    def test_disturbed_turns_are_repeated_and_do_not_count(self):
        order, done = self.take(lambda name, i: (name, i) in (('b', 0), ('b', 4), ('c', 2)))
        self.assertEqual(''.join(order), 'abc' * 4 + 'bc' + 'b')
        self.assertEqual([t.ms for t in turns.undisturbed(done['b'])], [11, 12, 13, 15])
        self.assertEqual(turns.ms(done['b']), 12.5)
        self.assertEqual(turns.come(done, 4), (1, 3))
        self.assertIsNone(turns.too_busy(done, 4))

    def test_gives_up_where_nothing_is_undisturbed(self):
        order, done = self.take(lambda name, i: name != 'a')
        self.assertEqual(''.join(order), 'abc' * 4)
        self.assertIn('other work took 34%', turns.too_busy(done, 4))

    def test_ends_after_as_many_repeats_as_rounds(self):
        order, done = self.take(lambda name, i: i % 2 == 0 or i > 4)
        self.assertEqual(''.join(order), 'abc' * 8)
        self.assertIsNone(turns.too_busy(done, 4))  # two of four

    def test_equal_work_has_to_take_about_equal_times(self):
        steady = [turn(10 + 0.1 * i) for i in range(8)]
        wild = [turn(10 if i % 2 else 30) for i in range(8)]
        self.assertIsNone(turns.too_busy({'a': steady, 'b': wild}, 8, steady=['a']))
        self.assertIn('differ by', turns.too_busy({'a': steady, 'b': wild}, 8, steady=['a', 'b']))
        self.assertEqual(turns.spread([turn(3)]), 0)

    def test_share_taken_is_weighted_by_time(self):
        self.assertAlmostEqual(turns.taken_of_all([turn(10, 0.5), turn(30, 0.1)]), 0.2)
        self.assertEqual(turns.taken_of_all([]), 0)


class Shares(unittest.TestCase):
    def test_rest_of_the_token_is_the_same(self):
        # Exact: 10 ms, of which 4 attention; so the rest is 6, of 24.
        self.assertEqual(turns.attention_shares(24, 10, 0.4, 0.2), [0.75, 0.4, 0.2])

    def test_never_outside_0_to_1(self):
        self.assertIsNone(turns.attention_shares(10, 19, 0.26, 0.2))  # would be -41%
        self.assertIsNone(turns.attention_shares(24, 10, 1.2, 0.2))
        self.assertIsNone(turns.attention_shares(24, 10, 0.4, -0.2))

    def test_within_the_error_it_is_0(self):
        self.assertEqual(turns.attention_shares(10, 10.3, 0, 0), [0, 0, 0])


def results(taken=0.0, ms=(20, 10, 4), shares=(0.25, 0.1)):
    def stats(i):
        if i == 0:
            return None
        return {'decode': {'ms': shares[i - 1] * ms[i] * 50 * 8}, 'hit_ratio': 0.5 * (i == 2), 'steps': 400 * (i == 2),
                'bytes_read_share': 0.4 * (i == 2)}
    return [{'configuration': name, 'read': [turn(1, taken, 1024)] * 3, 'written': [turn(ms[i], taken)] * 8, 'text': '1. a: 2\n',
             'stats': stats(i)} for i, name in enumerate(NAMES)]


class Table(unittest.TestCase):
    def table(self, rows):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            measured = demo.table(rows, ['1. a: 2', '2. b: 3'], 8)
        return measured, out.getvalue()

    def test_measured(self):
        measured, text = self.table(results())
        self.assertTrue(measured)
        rows = [line.split() for line in text.splitlines() if line.startswith(('llama.cpp', 'macattn'))]
        self.assertEqual(rows[0], 'llama.cpp 1000 50.0 1.00 62% 0% 100% 1/2 same text'.split())
        self.assertEqual(rows[1], 'macattn exact 1000 100.0 2.00 25% 0% 100% 1/2 same text'.split())
        self.assertEqual(rows[2], 'macattn reuse 1000 250.0 5.00 10% 50% 40% 1/2 same text'.split())
        self.assertNotIn('too busy', text)

    def assert_says_it_was_too_busy(self, rows):
        measured, text = self.table(rows)
        self.assertFalse(measured)
        self.assertIn('The machine was too busy to measure speed', text)
        for line in text.splitlines():
            if line.startswith(('llama.cpp', 'macattn')):
                self.assertRegex(line, r' - +- +- +\d+% +\d+% +1/2 ')  # decode, speed-up, attention
                self.assertFalse(re.search(r'-\d', line), line)

    def test_too_busy(self):
        self.assert_says_it_was_too_busy(results(taken=0.6))

    def test_a_share_that_makes_no_sense(self):
        self.assert_says_it_was_too_busy(results(ms=(10, 19, 8), shares=(0.26, 0.1)))

    def test_only_the_prompt_was_disturbed(self):
        rows = results()
        rows[1]['read'] = [turn(1, 0.0, 1024), turn(9, 0.7, 1024)]
        measured, text = self.table(rows)
        self.assertTrue(measured)
        self.assertRegex(text, r'macattn exact +- +100\.0 ')
        self.assertIn('too busy with other work to measure the speed of the prompt', text)


class Terminal(io.StringIO):
    def isatty(self):
        return True


class Progress(unittest.TestCase):
    def test_a_line_now_and_then(self):
        now = [0.0]
        out = io.StringIO()
        progress = turns.Progress(out, 5, lambda: now[0])
        for i in range(11):
            progress('reading', i / 10)
            now[0] += 1.5
        progress.close()
        progress('writing', 0)
        progress('writing', 0.25, ', more')
        progress.close()
        progress.close()
        self.assertEqual(out.getvalue().splitlines(), [
            'reading:   0%', 'reading:  40%', 'reading:  80%', 'reading: 100%', 'writing:   0%', 'writing:  25%, more'])

    def test_one_line_on_a_terminal(self):
        out = Terminal()
        progress = turns.Progress(out)
        progress('reading', 0)
        progress('reading', 0.5)
        progress('writing', 0)
        progress.close()
        progress.close()
        self.assertEqual(out.getvalue().replace('\r\x1b[K', '|'), '|reading:   0%|reading:  50%\n|writing:   0%\n')


class Models(unittest.TestCase):
    """bench/llama/models.py"""

    def run_it(self, *arguments):
        return subprocess.run([sys.executable, pathlib.Path(FOLDER) / 'models.py', os.devnull, *arguments], check=False,
                              capture_output=True, text=True)

    def test_no_such_configuration(self):
        """It was measured as `exact`, and its rows had the name."""
        for wrong in ('paper', 'llama.cpp,budgets', 'budget:', ''):
            done = self.run_it('--configurations', wrong)
            self.assertEqual(done.returncode, 2, done.stderr)
            self.assertIn('no configuration', done.stderr)


if __name__ == '__main__':
    unittest.main(verbosity=2)
