#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: test_eval.py MACATTN GGUF_PY CASE

`macattn eval` and `macattn tune` on the bundled model and a short text: this repository's own pages.
"""
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
import unittest

from long_text import long_text

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / 'model' / 'macattn-38m-q8_0.gguf'
BINARY = GGUF_PY = None

# What scripts rely on.
FIELDS = ('policy', 'setting', 'context', 'kl_mean', 'kl_p99', 'top1_agreement', 'ppl_exact', 'ppl_policy', 'rel_error_mean',
          'rel_error_p99', 'hit_ratio', 'bytes_skipped', 'kl_max', 'rel_error_max', 'layer_error_mean', 'layer_error_p99',
          'layer_error_max', 'refused_layer_error_rms', 'bytes_read', 'lse_order', 'fresh_tokens', 'text', 'tokens', 'model', 'dtype', 'threads',
          'machine', 'version', 'commit', 'llama_version', 'ggml_version', 'per_layer_head')
SHORT = ('--context', '1k', '--tokens', '24', '--windows', '1', '--min-tokens', '0', '--threads', '1')


class Case(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)
        self.text = self.path / 'text'
        pages = long_text()
        self.text.write_bytes(b'\0short\0' + pages + b'\0\0' + pages[::-1])

    def run_macattn(self, *args, status=0, config=None):
        env = {k: v for k, v in os.environ.items() if not k.startswith(('MACATTN_', 'GGML_'))}
        if config:
            env['MACATTN_CONFIG'] = str(config)
        done = subprocess.run([str(BINARY), *map(str, args)], env=env, capture_output=True, text=True, timeout=600, check=False)
        self.assertEqual(done.returncode, status, done.stderr[-2000:])
        return done

    def eval(self, *args, text=None, config=None):
        rows = self.path / 'rows'
        self.run_macattn('eval', '--model', MODEL, '--text', text or self.text, '--json', rows, *SHORT, *args, config=config)
        rows = [json.loads(line) for line in rows.read_text().splitlines()]
        for row in rows:
            for field in FIELDS:
                self.assertIn(field, row)
        return rows


class exact(Case):
    def test_exact_is_exact(self):
        rows = self.eval('--policy', 'exact,paper', '--tau', '1')
        self.assertEqual([r['policy'] for r in rows], ['exact', 'paper'])
        for row in rows:    # nothing is that similar: all misses
            self.assertEqual((row['kl_mean'], row['kl_max'], row['top1_agreement'], row['hit_ratio']), (0, 0, 1, 0))
            self.assertEqual(row['ppl_exact'], row['ppl_policy'])
            self.assertEqual(row['tokens'], 24)
            self.assertEqual(row['left_to_ggml'], 0)
            self.assertIsNone(row['rel_error_mean'])
        self.assertIsNone(rows[0]['setting'])

    def test_other_caches(self):
        for kv in ('q8_0', 'bf16'):
            row = self.eval('--policy', 'exact', '--kv', kv)[0]
            self.assertEqual((row['kl_mean'], row['dtype']), (0, kv))

    def test_ggml_as_baseline(self):
        row = self.eval('--policy', 'exact', '--baseline', 'ggml')[0]
        self.assertGreater(row['kl_mean'], 0)      # it rounds otherwise
        self.assertLess(row['kl_mean'], 0.05)
        self.assertEqual(row['baseline'], 'ggml')


class reuse(Case):
    def test_settings_on_one_prompt(self):
        rows = self.eval('--policy', 'paper', '--tau', '0,0.6,0', '--policy', 'budget', '--budget', '0', '--audit-every', '1')
        all_, some, again, none = rows
        self.assertGreater(all_['kl_mean'], 0)
        self.assertGreater(all_['hit_ratio'], 0.9)
        self.assertGreater(all_['bytes_skipped'], 0.5)
        self.assertLess(some['hit_ratio'], all_['hit_ratio'])
        self.assertLess(some['kl_mean'], all_['kl_mean'])
        for field in ('kl_mean', 'kl_max', 'hit_ratio', 'bytes_skipped', 'rel_error_mean', 'ppl_policy'):
            self.assertEqual(all_[field], again[field], field)    # going back leaves nothing behind
        self.assertEqual(none['kl_mean'], 0)
        self.assertEqual([r['setting'] for r in rows], [0, 0.6, 0, 0])
        grid = all_['per_layer_head']
        self.assertEqual([len(line) for line in grid], [8] * 12)
        self.assertAlmostEqual(sum(map(sum, grid)) / 96, all_['hit_ratio'], 3)
        for row in (all_, some):
            self.assertLessEqual(row['rel_error_mean'], row['rel_error_p99'])
            self.assertLessEqual(row['rel_error_p99'], row['rel_error_max'])
            self.assertLessEqual(row['kl_mean'], row['kl_max'])
            self.assertLessEqual(row['kv_bytes_skipped'], row['kv_bytes_far'])
            self.assertEqual(row['restarts'], 0)

    def test_bytes_add_up(self):
        row = self.eval('--policy', 'paper', '--tau', '0', '--band', '128')[0]
        a_row = 12 * 2 * (64 + 64) * 2    # layers, KV heads, K and V, f16
        lengths = range(1025, 1025 + 24)
        self.assertEqual(row['kv_bytes'], sum(lengths) * a_row)
        self.assertEqual(row['kv_bytes_far'], sum(n - 128 for n in lengths) * a_row)

    def test_errors_in_both_units(self):
        row = self.eval('--policy', 'budget', '--budget', '0.3', '--band', '64', '--audit-every', '1')[0]
        self.assertGreater(row['hit_ratio'], 0.2)       # from the first tokens on: the prompt has taught
        for unit in ('rel', 'layer'):
            self.assertGreater(row[f'{unit}_error_mean'], 0)
            self.assertLessEqual(row[f'{unit}_error_mean'], row[f'{unit}_error_max'])
        self.assertNotEqual(row['rel_error_mean'], row['layer_error_mean'])
        self.assertLess(row['layer_error_mean'], 0.3)

    def test_order_of_the_lse_and_first_tokens(self):
        rows = [self.eval('--policy', 'paper', '--tau', '0.3', *args)[0]
                for args in ((), ('--lse-order', '0'), ('--fresh', '0'))]
        self.assertEqual([(r['lse_order'], r['fresh_tokens']) for r in rows], [(1, 4), (0, 4), (1, 0)])
        self.assertEqual(len({r['kl_mean'] for r in rows}), 3)

    def test_prompt_alone_or_shared(self):
        """A setting gives the same after other settings as alone."""
        alone = self.eval('--policy', 'paper', '--tau', '0.5')[0]
        shared = self.eval('--policy', 'exact,paper', '--tau', '0.2,0.5')[2]
        for field in ('kl_mean', 'hit_ratio', 'bytes_skipped', 'ppl_policy'):
            self.assertEqual(alone[field], shared[field], field)

    def test_several_windows_and_lengths(self):
        rows = self.eval('--context', '600,900', '--windows', '3', '--policy', 'paper', '--tau', '0.5')
        self.assertEqual([r['context'] for r in rows], [600, 900])
        self.assertEqual([r['tokens'] for r in rows], [72, 72])


class free_run(Case):
    def test_drift_is_measured(self):
        exact_, reused = self.eval('--free-run', '--policy', 'exact,paper', '--tau', '0')
        self.assertEqual((exact_['kl_mean'], exact_['top1_agreement']), (0, 1))
        self.assertGreater(reused['kl_mean'], 0)
        self.assertEqual((reused['mode'], reused['edge_tokens']), ('free-run', 12))
        self.assertAlmostEqual((reused['kl_first'] + reused['kl_last']) / 2, reused['kl_mean'], 5)

    def test_sampling_is_repeatable(self):
        args = ('--free-run', '--temperature', '1', '--policy', 'paper', '--tau', '0.5')
        first, again, other = self.eval(*args), self.eval(*args), self.eval(*args, '--seed', '2')
        self.assertEqual(first[0]['ppl_policy'], again[0]['ppl_policy'])
        self.assertNotEqual(first[0]['ppl_policy'], other[0]['ppl_policy'])


class tasks(Case):
    def score(self, *args):
        rows = self.path / 'rows'
        done = self.run_macattn('eval', *args, '--json', rows)
        self.assertIn('native_lines', done.stdout)
        return json.loads(rows.read_text())

    def test_options_in_any_order(self):
        first = self.score('--model', MODEL, '--tasks', 'native_lines', '--length', '1k', '--samples', '1', '--budget', '0.5',
                           '--min-tokens', '0', '--band', '64', '--seed', '7')
        again = self.score('--band=64', '--sam=1', '--budg=0.5', '--min=0', '--seed=7', '--len', '1k', '--policy=budget',
                           '--task=native_lines', '-m', MODEL)
        for field in ('task', 'policy', 'setting', 'length', 'seed', 'samples', 'tokens', 'score_exact', 'score_policy',
                      'answers_differ', 'model'):
            self.assertEqual(first[field], again[field], field)
        self.assertEqual((first['samples'], first['seed'], first['setting'], first['policy']), (1, 7, 0.5, 'budget'))

    def test_defaults(self):
        row = self.score('-m', MODEL, '-t', 'native_lines', '-l', '900', '--samples', '1', '-p', 'paper')
        self.assertEqual((row['policy'], row['setting'], row['seed'], row['length']), ('paper', 0.45, 42, 900))


class progress(Case):
    """Without a terminal: rows as they are done, and lines that say how far it is."""

    def start(self, *args):
        files = [(self.path / name).open('w') for name in ('out', 'err')]
        for f in files:
            self.addCleanup(f.close)
        env = {k: v for k, v in os.environ.items() if not k.startswith(('MACATTN_', 'GGML_'))}
        process = subprocess.Popen([str(BINARY), *map(str, args)], env=env, stdout=files[0], stderr=files[1])
        self.addCleanup(process.kill)
        return process

    def rows_at_each_look(self, process):
        """How many rows the file of standard output held, look by look."""
        seen = []
        while process.poll() is None:
            seen.append((self.path / 'out').read_text().count(' 1024 '))
            time.sleep(0.02)
        self.assertEqual(process.returncode, 0, (self.path / 'err').read_text())
        return seen

    def test_rows_come_one_by_one(self):
        process = self.start('eval', '--model', MODEL, '--text', self.text, *SHORT, '--windows', '2', '--policy', 'paper',
                             '--tau', '0.2,0.5,0.8', '--progress', '0.001')
        seen = self.rows_at_each_look(process)
        self.assertTrue({1, 2} <= set(seen), seen)
        self.assertEqual((self.path / 'out').read_text().count(' 1024 '), 3)
        lines = (self.path / 'err').read_text()
        self.assertRegex(lines, r'(?m)^macattn: context 1024, window 2 of 2, setting \d of 3 \(\w+\): \d+ of 24 tokens$')
        self.assertRegex(lines, r'(?m)^macattn: prompt: \d+ of 1024 tokens$')

    def test_tune(self):
        process = self.start('tune', '--model', MODEL, '--text', self.text, *SHORT, '--tokens', '4', '--output',
                             self.path / 'config', '--one-budget', '--progress', '0.001')
        seen = self.rows_at_each_look(process)
        self.assertGreater(len(set(seen)), 4, seen)
        self.assertIn('setting 3 of 12', (self.path / 'err').read_text())

    def test_none(self):
        for interval in ('0', '600'):
            process = self.start('eval', '--model', MODEL, '--text', self.text, *SHORT, '--progress', interval)
            self.assertEqual(process.wait(), 0)
            self.assertNotRegex((self.path / 'err').read_text(), r'\d of \d+ tokens')


class tune(Case):
    def tune(self, *args):
        config = self.path / 'config.json'
        done = self.run_macattn('tune', '--model', MODEL, '--text', self.text, '--output', config, *SHORT, '--tokens', '4',
                                '--context', '512', *args)
        return json.loads(config.read_text()), done.stdout

    def test_pays_if_all_is_allowed(self):
        config, text = self.tune('--kl', '1000', '--top1', '0', '--context', '1k')
        self.assertEqual(config['macattn_config'], 1)
        self.assertIn(config['policy'], ('paper', 'budget'))
        self.assertEqual({k: v for k, v in config['model'].items() if k != 'name'},
                         {'layers': 12, 'heads': 8, 'kv_heads': 2, 'head_dim': 64})
        self.assertGreaterEqual(config['evidence']['bytes_saved'], 0.05)
        self.assertIn(f'ring {config["ring"]}, band {config["band"]} saves', text)

    def test_exact_if_nothing_pays(self):
        config, text = self.tune('--kl', '0', '--top1', '1', '--gain', '0.9', '--ring', '64', '--band', '64')
        self.assertEqual(config['policy'], 'exact')
        self.assertNotIn('tau', config)
        self.assertIn('reuse does not pay', text)

    def test_budgets_of_heads(self):
        scale = [[0] * 8 for _ in range(12)]
        scale[3][4:] = [2] * 4      # one KV head of layer 3
        config = self.path / 'config.json'
        config.write_text(json.dumps({'macattn_config': 1, 'policy': 'budget', 'budget': 0.5, 'band': 64, 'budget_scale': scale}))
        row = self.eval('--policy', 'budget', '--budget', '0.5', '--tokens', '48', config=config)[0]
        self.assertEqual((row['head_budgets'], row['band']), (1, 64))
        for layer, heads in enumerate(row['per_layer_head']):
            for head, hits in enumerate(heads):
                if layer == 3 and head >= 4:
                    self.assertGreater(hits, 0.3)       # after the first 16 steps
                else:
                    self.assertEqual(hits, 0)
        self.assertGreater(row['kl_mean'], 0)

    def test_text_of_its_own(self):
        self.run_macattn('tune', '--model', MODEL, '--output', self.path / 'c', *SHORT, '--tokens', '4', '--context', '300',
                         '--ring', '64', '--band', '64')
        self.assertEqual(json.loads((self.path / 'c').read_text())['evidence']['text'], 'sampled from the model')


class errors(Case):
    def refuse(self, status, sentence, *args):
        self.assertIn(sentence, self.run_macattn(*args, status=status).stderr)

    def test_command_line(self):
        self.refuse(2, '--model is missing', 'eval', '--text', self.text)
        self.refuse(2, '--text is missing', 'eval', '--model', MODEL)
        model = ('eval', '--model', MODEL, '--text', self.text)
        self.refuse(2, "--policy does not take 'fastest'", *model, '--policy', 'fastest')
        self.refuse(2, "--tau does not take '1.5'", *model, '--tau', '1.5')
        self.refuse(2, '--tau is for --policy paper', *model, '--policy', 'budget', '--tau', '0.5')
        self.refuse(2, '--budget is for --policy budget', *model, '--budget', '0.5')
        self.refuse(2, '--temperature is for --free-run', *model, '--temperature', '1')
        self.refuse(2, "--context does not take '0'", *model, '--context', '0')
        self.refuse(2, "--tokens does not take '1'", *model, '--tokens', '1')
        self.refuse(2, "--kv does not take 'f12'", *model, '--kv', 'f12')
        self.refuse(2, "--baseline does not take 'torch'", *model, '--baseline', 'torch')
        self.refuse(2, "--kl does not take 'x'", 'tune', '--kl', 'x')
        self.refuse(2, "--ring does not take '5000' (0 to 4096)", *model, '--ring', '5000')
        self.refuse(2, "--lse-order does not take '2' (0 to 1)", *model, '--lse-order', '2')
        self.refuse(2, "--fresh does not take '-1'", *model, '--fresh', '-1')
        self.refuse(2, "--select does not take '3' (0 to 2)", *model, '--select', '3')
        self.refuse(2, "'--prog' requires an argument", *model, '--prog')   # not ambiguous with argp's own
        self.refuse(1, 'has no chat template', *model, '--chat')
        self.refuse(2, 'no K and V in f8_e4m3', *model, '--kv', 'f8_e4m3')

    def test_tasks_or_text(self):
        model = ('eval', '--model', MODEL)
        for option in ('--text=x', '--context=1k', '--tokens=4', '--windows=1', '--audit-every=1', '--baseline=ggml', '--heads',
                       '--free-run', '--temperature=1'):
            self.refuse(2, f'eval: {option.split("=")[0]} is not for --tasks', *model, '--tasks', 'native', option)
        for option in ('--length=1k', '--samples=1', '--essay=x', '--data=x'):
            self.refuse(2, f'eval: {option.split("=")[0]} is for --tasks', *model, '--text', self.text, option)
        self.refuse(2, 'one setting of one policy', *model, '--tasks', 'native', '--policy', 'paper,budget')
        self.refuse(2, 'one setting of one policy', *model, '--tasks', 'native', '--budget', '0.1,0.2')
        self.refuse(2, '--tau is for --policy paper', *model, '--tasks', 'native', '--tau', '0.5')
        self.refuse(2, "there is no task or family 'chess'", *model, '--tasks', 'chess')
        self.refuse(2, '--model is missing', 'eval', '--tasks', 'native')
        self.refuse(1, 'cannot write', *model, '--tasks', 'native', '--json', '/none/rows')

    def test_files(self):
        self.refuse(1, 'llama.cpp does not load', 'eval', '--model', self.text, '--text', self.text)
        self.refuse(1, 'cannot read', 'eval', '--model', MODEL, '--text', self.path / 'none', *SHORT)
        self.refuse(1, 'cannot read', 'eval', '--model', MODEL, '--text', self.path, *SHORT)
        self.refuse(1, 'there is no plug-in', 'eval', '--model', MODEL, '--text', self.text, '--plugin', '/none')
        self.refuse(1, 'was not loaded', 'eval', '--model', MODEL, '--text', self.text, '--plugin', self.text)
        self.refuse(1, 'cannot write', 'eval', '--model', MODEL, '--text', self.text, '--json', '/none/rows')
        self.refuse(1, 'cannot write', 'tune', '--model', MODEL, '--text', self.text, '--output', '/none/config')
        self.refuse(1, 'no document has the', 'eval', '--model', MODEL, '--text', self.text, *SHORT, '--context', '64k')

    def test_nothing_computed(self):
        """Heads of 20 are none of the library's: ggml computes all, and comparing it with itself says nothing."""
        model = self.path / 'model.gguf'
        subprocess.run([sys.executable, ROOT / 'tests' / 'ggml' / 'make_model.py', GGUF_PY, 'gpt2', model, '80'], check=True)
        self.text.write_text('one word after the other ' * 400)    # its vocabulary is small
        sentence = 'no attention of model.gguf was computed by macattn'
        self.refuse(1, sentence, 'eval', '--model', model, '--text', self.text, *SHORT)
        self.refuse(1, sentence, 'eval', '--model', model, '--tasks', 'native_lines', '--samples', '1', '--length', '2k')
        self.refuse(1, sentence, 'tune', '--model', model, '--text', self.text, *SHORT, '--output', self.path / 'config')

    def test_nothing_to_reuse(self):
        """A cache in f32 reaches attention as a copy: always exact, and said so."""
        self.refuse(1, 'can reuse anything', 'eval', '--model', MODEL, '--text', self.text, *SHORT, '--kv', 'f32')


if __name__ == '__main__':
    BINARY = pathlib.Path(sys.argv[1]).resolve()
    GGUF_PY = sys.argv[2]
    unittest.main(argv=[sys.argv[0], *sys.argv[3:]], verbosity=2)
