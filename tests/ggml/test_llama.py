#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The plug-in inside unmodified llama.cpp programs, with the bundled model."""
import argparse
import concurrent.futures
import contextlib
import json
import math
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / 'bench' / 'llama'))
import llama  # noqa: E402
import prompt  # noqa: E402

MODEL = ROOT / 'model' / 'macattn-38m-q8_0.gguf'
PLUGIN = BIN = GGUF_PY = None
PYTHON = sys.executable

# Two kernels that round differently may choose differently where two tokens are about equally likely.
NEAR_TIE = 0.25  # nats between the two most likely tokens


def environment(plugin, **settings):
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MACATTN_', 'GGML_BACKEND_PATH'))}
    if plugin:
        env['GGML_BACKEND_PATH'] = str(PLUGIN)
    env.update({f'MACATTN_{k.upper()}': str(v) for k, v in settings.items()})
    return env


def run(program, *args, env, ok=True):
    done = subprocess.run([str(BIN / program), *map(str, args)], env=env, capture_output=True, text=True, errors='replace',
                          timeout=900)
    if ok and done.returncode != 0:
        raise AssertionError(f'{program} ended with {done.returncode}:\n{done.stderr[-3000:]}')
    return done


def document(n_tokens):
    return prompt.make(n_tokens, 2)[0]


class Server:
    """A llama-server that has ended, and written its statistics, when the block is left."""

    def __init__(self, *args, plugin=True, model=MODEL, **settings):
        self.folder = tempfile.TemporaryDirectory()
        self.stats_path = pathlib.Path(self.folder.name) / 'stats.json'
        self.log_path = pathlib.Path(self.folder.name) / 'log'
        if plugin:
            settings['stats'] = self.stats_path
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        self.args = [str(BIN / 'llama-server'), '-m', str(model), '--port', str(self.port), '--no-webui', '-t', '2', *map(str, args)]
        self.env = environment(plugin, **settings)

    def __enter__(self):
        self.log = open(self.log_path, 'w')
        self.process = subprocess.Popen(self.args, env=self.env, stdout=self.log, stderr=subprocess.STDOUT)
        for _ in range(600):
            if self.process.poll() is not None:
                raise AssertionError(f'llama-server ended:\n{self.log_path.read_text()[-3000:]}')
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f'http://127.0.0.1:{self.port}/health', timeout=5) as reply:
                    if reply.status == 200:
                        return self
            time.sleep(0.1)
        raise AssertionError('llama-server does not answer')

    def __exit__(self, *_):
        llama.interrupt(self.process)
        self.log.close()
        self.stats = json.loads(self.stats_path.read_text()) if self.stats_path.exists() else None
        self.folder.cleanup()

    def complete(self, text, n_predict=32, timeout=300, **more):
        body = {'prompt': text, 'n_predict': n_predict, 'temperature': 0, 'n_probs': 8, 'cache_prompt': True, **more}
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}/completion', json.dumps(body).encode(),
                                         {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=timeout) as reply:
            return json.load(reply)

    def embed(self, text):
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}/embedding', json.dumps({'content': text}).encode(),
                                         {'Content-Type': 'application/json'})
        with urllib.request.urlopen(request, timeout=100) as reply:
            return json.load(reply)[0]['embedding'][0]

    def complete_all(self, texts, **more):
        with concurrent.futures.ThreadPoolExecutor(len(texts)) as pool:
            return list(pool.map(lambda text: self.complete(text, **more), texts))


def chosen(reply):
    """(token, log-probabilities of the likeliest tokens) of every token written."""
    return [(token['id'], {c['id']: c['logprob'] for c in token['top_logprobs']})
            for token in reply['completion_probabilities']]


class Case(unittest.TestCase):
    def assert_same_but_ties(self, want, got):
        """The same tokens, up to a place where llama.cpp itself could hardly decide."""
        for i, ((a, likely), (b, _)) in enumerate(zip(chosen(want), chosen(got))):
            if a != b:
                margin = likely.get(a, math.inf) - likely.get(b, -math.inf)
                self.assertLess(margin, NEAR_TIE, f'token {i} is {b} instead of {a}, by {margin:.3f} nats')
                return i
        self.assertEqual(len(chosen(want)), len(chosen(got)))
        return len(chosen(want))

    def assert_same_memory(self, alone, said):
        """Flash attention is on in both, and computing takes as much."""
        sizes = []
        for text in (alone, said):
            self.assertEqual(re.findall('.*Flash Attention not supported.*', text), [])
            # One line for each backend that shares the buffer.
            sizes.append(set(re.findall(r'CPU compute buffer size = +([0-9.]+) MiB', text)))
        self.assertEqual(*sizes)


class options(Case):
    def test_bad_values_are_refused(self):
        for name, value, complaint in (('policy', 'fastest', 'none of exact, paper'), ('tau', '1.5', 'it must be in [0, 1]'),
                                       ('ring', '12.5', 'a whole number'), ('band', '-1', 'it must be in [0,'),
                                       ('tau', '0.5x', 'which is no number'), ('audit', 'x', 'must be a whole number in')):
            done = run('llama-bench', '--list-devices', env=environment(True, **{name: value}), ok=False)
            self.assertIn(complaint, done.stderr)
            self.assertNotIn('loaded MACATTN backend', done.stderr)

    def test_load_line(self):
        done = run('llama-bench', '--list-devices', env=environment(True, policy='paper', tau=0.6, ring=128))
        self.assertRegex(done.stderr, r'macattn: \d+\.\d+\.\d+ for ggml \S+, \w+, .* threads, policy paper, tau 0.6, ring 128')
        done = run('llama-bench', '--list-devices', env=environment(True, policy='budget', budget=0.01, fresh=8))
        self.assertIn('policy budget, budget 0.01, ring 256, band 256', done.stderr)

    def test_memory_is_said_where_queries_are_remembered(self):
        said = [run('llama-completion', '-m', MODEL, '-p', 'Some words', '-n', 2, '-no-cnv', '-c', 1024, '-t', 2,
                    env=environment(True, policy=policy)).stderr for policy in ('exact', 'budget')]
        line = r'macattn: reuse in 12 layers takes up to [0-9.]+ MB a sequence: [0-9.]+ for 256 remembered queries'
        self.assertNotRegex(said[0], line)
        self.assertEqual(len(re.findall(line, said[1])), 1)


class config(Case):
    """MACATTN_CONFIG; what the file may hold is in test_config.c."""

    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name) / 'config.json'

    def write(self, **settings):
        self.path.write_text(json.dumps({'macattn_config': 1, **settings}))

    def bench(self, **settings):
        """A few tokens behind a context that may be reused: (what was said, statistics)."""
        stats = self.path.with_name('stats')
        done = run('llama-bench', '-m', MODEL, '-t', 2, '-fa', 1, '-p', 0, '-n', 8, '-d', 600, '-r', 1,
                   env=environment(True, config=self.path, stats=stats, **settings))
        return done.stderr, json.loads(stats.read_text())

    def test_settings_are_taken(self):
        self.write(policy='paper', tau=0.75, ring=64, band=32, min_tokens=0,
                   model={'layers': 12, 'heads': 8, 'kv_heads': 2, 'head_dim': 64, 'name': 'bundled'})
        said, stats = self.bench()
        self.assertIn(f'policy paper, tau 0.75, ring 64, band 32, from {self.path}', said)
        self.assertNotIn('nothing is reused', said)
        self.assertEqual(stats['policy'], 'paper')
        self.assertEqual(stats['steps'] % (12 * 8), 0)
        self.assertGreater(stats['steps'], 0)

    def test_the_environment_overrides(self):
        self.write(policy='paper', tau=0.75)
        said, _ = self.bench(tau=0.5, ring=16)
        self.assertIn('policy paper, tau 0.5, ring 16, band 256, from', said)

    def test_another_model_is_exact(self):
        for other in ({'layers': 13}, {'heads': 16}, {'kv_heads': 8}, {'head_dim': 128}):
            self.write(policy='paper', tau=0, min_tokens=0, model={'layers': 12, 'heads': 8, **other})
            said, stats = self.bench()
            self.assertRegex(said, 'is for a model of .* this one has 12 with 8/2 of 64: nothing is reused')
            self.assertEqual((stats['hits'], stats['left_to_ggml']['calls']), (0, 0))

    def test_bad_files_are_refused(self):
        for text, complaint in (('{"macattn_config": 1, "tau": 2}', r'line 1: tau is 2; it must be in \[0, 1\]'),
                                ('{\n"macattn_config": 1,\n "tua": 0}', 'line 3: there is no setting "tua"'), ('', "'{' expected")):
            self.path.write_text(text)
            done = run('llama-bench', '--list-devices', env=environment(True, config=self.path), ok=False)
            self.assertRegex(done.stderr, f'not loaded: MACATTN_CONFIG={self.path}: .*{complaint}')
            self.assertNotIn('loaded MACATTN backend', done.stderr)
        done = run('llama-bench', '--list-devices', env=environment(True, config='/none'), ok=False)
        self.assertIn('not loaded: cannot read MACATTN_CONFIG=/none: No such file', done.stderr)


class texts(Case):
    def complete(self, text, plugin, *args, **settings):
        with Server('-c', 8192, '-np', 1, *args, plugin=plugin, **settings) as server:
            reply = server.complete(text, 48, ignore_eos=True)
        return reply, server.stats

    def test_exact_is_llama_cpp(self):
        text = document(5000)
        for args in ((), ('-ctk', 'q8_0', '-ctv', 'q8_0'), ('-ctk', 'bf16', '-ctv', 'bf16')):
            without = ('-fa', 'off', *args[:2]) if 'q8_0' not in args else ('-fa', 'on', *args)
            want, _ = self.complete(text, False, *without)
            got, stats = self.complete(text, True, *args)
            self.assert_same_but_ties(want, got)
            self.assertGreater(stats['decode']['calls'], 12 * 40, args)
            self.assertGreater(stats['prefill']['calls'], 12 * 4, args)
            self.assertEqual(stats['left_to_ggml']['calls'], 0, args)

    def test_reuse_hits_and_stays_near(self):
        text = document(5000)
        want, _ = self.complete(text, False)
        for k, v in (('f16', 'f16'), ('q8_0', 'q5_1')):
            got, stats = self.complete(text, True, '-ctk', k, '-ctv', v, policy='paper', tau=0.9, audit=1)
            self.assertGreater(stats['hit_ratio'], 0.1, (k, v))
            self.assertEqual(stats['sequences']['mismatches'], 0, (k, v))
            self.assertLess(stats['layers'][0]['error_max'], 0.05, (k, v))
        self.assertGreater(len(chosen(got)), 0)
        self.assertEqual(len(chosen(want)), 48)

    def test_types_of_cache(self):
        """Every type of 4 or 5 bits as K and as V, alike and not: what ggml writes, and flash attention stays on. The two
        programs at the same time."""
        text = document(700)[:1200]
        for k, v in (('q4_0', 'q4_0'), ('q4_1', 'q5_0'), ('q5_0', 'iq4_nl'), ('q5_1', 'q4_1'), ('iq4_nl', 'q5_1'), ('q5_0', 'f16')):
            args = ('-c', 512, '-np', 1, '-t', 1, '--no-warmup', '-ctk', k, '-ctv', v, '-v')
            with Server(*args, plugin=False) as alone, Server(*args, policy='exact') as exact:
                with concurrent.futures.ThreadPoolExecutor(2) as pool:
                    want, got = pool.map(lambda server: server.complete(text, 12, ignore_eos=True), (alone, exact))
                self.assert_same_memory(alone.log_path.read_text(), exact.log_path.read_text())
            n = self.assert_same_but_ties(want, got)
            # ggml rounds the query to 8 bits, and what it rounds changes the cache of the next layer.
            apart = [max(abs(math.exp(a[t]) - math.exp(b[t])) for t in a if t in b)
                     for (_, a), (_, b) in zip(chosen(want)[:n + 1], chosen(got))]
            self.assertLess(sum(apart) / len(apart), 0.1, (k, v))
            self.assertGreaterEqual(exact.stats['decode']['calls'], 12 * 11, (k, v))
            self.assertGreater(exact.stats['prefill']['calls'], 0, (k, v))
            self.assertEqual(exact.stats['left_to_ggml']['calls'], 0, (k, v))

    def test_f32_cache_has_no_identity_and_stays_exact(self):
        text = document(3000)
        want, _ = self.complete(text, False, '-fa', 'off')
        got, stats = self.complete(text, True, '-ctk', 'f32', '-ctv', 'f32', policy='paper', tau=0.5)
        self.assert_same_but_ties(want, got)
        self.assertEqual(stats['hits'], 0)

    def test_draft_model(self):
        # Its own draft model: nearly every draft is accepted, the rest is taken back.
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'prompt.txt'
            path.write_text(document(1800), encoding='utf-8')
            stats_path = pathlib.Path(folder) / 'stats.json'
            args = ('-m', MODEL, '-md', MODEL, '-f', path, '-n', 48, '--temp', 0, '-c', 8192, '-t', 2, '--spec-draft-n-max', 5,
                    '--spec-type', 'draft-simple')
            want = run('llama-speculative-simple', *args, env=environment(False)).stdout
            got = run('llama-speculative-simple', *args, env=environment(True, policy='exact', stats=stats_path)).stdout
            self.assertEqual(want[:40], got[:40])
            run('llama-speculative-simple', *args, env=environment(True, policy='paper', tau=0.9, min_tokens=512,
                                                                         audit=1, stats=stats_path))
            stats = json.loads(stats_path.read_text())
            self.assertGreater(stats['hits'], 0)
            self.assertLess(stats['layers'][0]['error_max'], 0.05)


class flash(Case):
    """The plug-in never makes llama.cpp give up flash attention, nor need more memory, and takes its part."""

    def complete(self, *args, plugin=True, ok=True):
        """(what was said, statistics)"""
        with tempfile.TemporaryDirectory() as folder:
            stats = pathlib.Path(folder) / 'stats'
            settings = {'stats': stats} if plugin else {}
            done = run('llama-completion', '-m', MODEL, '-p', 'Some words to begin with', '-n', 6, '-no-cnv', '-v', '-c', 1024,
                       '-t', 2, *args, env=environment(plugin, **settings), ok=ok)
            return done.stdout + done.stderr, json.loads(stats.read_text()) if plugin else None

    def test_stays_on(self):
        for args in ((), ('-ctk', 'f32', '-ctv', 'f32'), ('-ctk', 'q8_0', '-ctv', 'q8_0'), ('-ub', '1'), ('-ub', '1', '-ctk', 'f32')):
            alone, _ = self.complete(*args, plugin=False)
            said, stats = self.complete(*args)
            self.assert_same_memory(alone, said)
            self.assertGreaterEqual(stats['decode']['calls'], 12 * 5, args)
            self.assertEqual(stats['left_to_ggml']['calls'], 0, args)

    def test_as_many_sequences_as_tokens_at_a_time(self):
        logs = []
        for plugin in (False, True):
            with Server('-c', 2048, '-np', 4, '-kvu', '-ub', 4, '-b', 4, '-v', plugin=plugin) as server:
                server.complete('Some words to begin with', 6)
                logs.append(server.log_path.read_text())
        self.assert_same_memory(*logs)
        self.assertGreater(server.stats['decode']['calls'] + server.stats['prefill']['calls'], 12 * 5)

    def test_encoder(self):
        """No cache; every token sees all."""
        logs, vectors = [], []
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'model.gguf'
            subprocess.run([PYTHON, pathlib.Path(__file__).with_name('make_model.py'), GGUF_PY, 'bert', path], check=True)
            for plugin in (False, True):
                with Server('--embedding', '-c', 2048, '-b', 2048, '-ub', 2048, '-np', 1, '-v', plugin=plugin, model=path) as server:
                    vectors.append([server.embed(text) for text in ('A few words.', document(1000)[:1500])])
                    logs.append(server.log_path.read_text())
        self.assert_same_memory(*logs)
        for want, got in zip(*vectors):
            self.assertLess(max(abs(a - b) for a, b in zip(want, got)), 2e-3)
        self.assertGreater(server.stats['decode']['calls'] + server.stats['left_to_ggml']['calls'], 0)

    def test_no_device_for_layers(self):
        for program, args in (('llama-completion', ('-p', 'x', '-n', 1, '-no-cnv', '--device', 'MACATTN')),
                              ('llama-bench', ('-n', 1, '-p', 0, '-dev', 'MACATTN'))):
            done = run(program, '-m', MODEL, *args, env=environment(True), ok=False)
            self.assertIn('MACATTN is no device to put layers on: leave --device out', done.stderr)
            self.assertNotEqual(done.returncode, 0)


class server(Case):
    """Everything a server does to its cache. Under `exact` the texts are those of llama.cpp alone; with reuse, layer 0
    (whose queries are equal where tokens are) shows that no summary is used for tokens it was not made of."""

    def program(self, server):
        """A session; returns the replies that llama.cpp alone must agree with."""
        replies = []
        first = [document(2200 + 300 * i) for i in range(4)]
        replies += server.complete_all(first, n_predict=24)
        # The same prompts continued: their cache is used again, from whichever slot.
        longer = [t + r['content'] + f'\nQuestion: What is the special magic value number {i}?\nAnswer:'
                  for i, (t, r) in enumerate(zip(first, replies))]
        replies += server.complete_all(longer, n_predict=24)
        # A client that goes away, in the prompt and while tokens are written.
        for timeout in (0.05, 0.8):
            with contextlib.suppress(OSError):
                server.complete(document(2600) * 1, n_predict=512, timeout=timeout, stream=False)
        # Other prompts in the slots of the first, one of them shared at its beginning.
        replies += server.complete_all([first[1][:4000] + ' An aside.', document(2900)[600:]], n_predict=24)
        return replies

    def scenario(self, *args):
        args = ('-c', 16384, '-np', 4, *args)
        with Server(*args, '-fa', 'off', plugin=False) as alone:
            want = self.program(alone)
        with Server(*args, policy='exact') as exact:
            got = self.program(exact)
        for a, b in zip(want, got):
            # Where a reply differs at a near-tie, what follows it was asked differently: texts only.
            if a.get('prompt') == b.get('prompt'):
                self.assert_same_but_ties(a, b)
        self.assertEqual(exact.stats['left_to_ggml']['calls'], 0)
        with Server(*args, policy='paper', tau=0.9, min_tokens=512, audit=1) as reuse:
            replies = self.program(reuse)
        self.assertEqual(len(replies), len(want))
        stats = reuse.stats
        self.assertGreater(stats['hit_ratio'], 0.05)
        self.assertGreater(stats['layers'][0]['audited'], 100)
        self.assertLess(stats['layers'][0]['error_max'], 0.05)

    def test_a_budget_is_kept(self):
        """Summaries, means of runs and what was learnt go with the sequences: errors stay what the budget allows."""
        for kind in ('--no-kv-unified', '--kv-unified'):
            with Server('-c', 16384, '-np', 4, kind, policy='budget', budget=0.05, min_tokens=512, audit=1) as server:
                self.program(server)
            stats = server.stats
            self.assertGreater(stats['groups']['reused'], 0)
            self.assertGreater(stats['groups']['selected'], 0)
            self.assertLess(stats['bytes_read_share'], 0.9)
            audited = sum(layer['audited'] for layer in stats['layers'])
            mean = sum(layer['audited'] * layer['layer_error_mean'] for layer in stats['layers']) / audited
            print(f'{kind}: {stats["groups"]}, read {stats["bytes_read_share"]:.3f}, mean error {mean:.4f}, '
                  f'largest {max(layer["layer_error_max"] for layer in stats["layers"]):.3f}')
            self.assertLess(mean, 0.05)

    def test_a_cache_for_each_slot(self):
        self.scenario('--no-kv-unified')

    def test_one_cache_for_all(self):
        self.scenario('--kv-unified')

    def test_context_shift(self):
        args = ('-c', 1536, '-np', 1, '--context-shift')
        with Server(*args, policy='paper', tau=0.9, min_tokens=256, audit=1) as server:
            reply = server.complete(document(900), n_predict=1500, ignore_eos=True)
        self.assertGreater(reply['tokens_predicted'], 1400)
        self.assertGreater(server.stats['sequences']['changes'] + server.stats['sequences']['mismatches'], 0)
        self.assertGreater(server.stats['hits'], 0)
        self.assertLess(server.stats['layers'][0]['error_max'], 0.05)

    def test_slot_saved_and_restored(self):
        with tempfile.TemporaryDirectory() as folder:
            with Server('-c', 8192, '-np', 1, '--slot-save-path', folder, policy='paper', tau=0.9, min_tokens=512,
                        audit=1) as server:
                def slot(action):
                    body = json.dumps({'filename': 'slot.bin'}).encode()
                    url = f'http://127.0.0.1:{server.port}/slots/0?action={action}'
                    urllib.request.urlopen(urllib.request.Request(url, body, {'Content-Type': 'application/json'})).read()
                text = document(2500)
                server.complete(text, 16)
                slot('save')
                server.complete(document(2700)[900:], 48)
                slot('restore')
                server.complete(text + ' Go on.', 48)
            self.assertLess(server.stats['layers'][0]['error_max'], 0.05)
            self.assertGreater(server.stats['hits'], 0)


class models(Case):
    """Models made on the spot: without RoPE nothing may be reused; with partial RoPE the query is found all the same."""

    def replies(self, architecture, **settings):
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / 'model.gguf'
            subprocess.run([PYTHON, pathlib.Path(__file__).with_name('make_model.py'), GGUF_PY, architecture, path], check=True)
            text = document(2000)[:2500]
            with Server('-c', 4096, '-np', 1, '-fa', 'off', plugin=False, model=path) as server:
                want = server.complete(text, 40, ignore_eos=True)
            with Server('-c', 4096, '-np', 1, model=path, **settings) as server:
                got = server.complete(text, 40, ignore_eos=True)
        return want, got, server.stats

    def test_without_rope(self):
        want, got, stats = self.replies('gpt2', policy='paper', tau=0.1, min_tokens=0)
        self.assert_same_but_ties(want, got)
        self.assertGreater(stats['decode']['calls'], 0)
        self.assertEqual(stats['hits'], 0)

    def test_partial_rope(self):
        want, got, stats = self.replies('stablelm', policy='exact')
        self.assert_same_but_ties(want, got)
        _, _, stats = self.replies('stablelm', policy='paper', tau=0.95, min_tokens=0, audit=1)
        self.assertGreater(stats['layers'][0]['hits'], 0)
        self.assertLess(stats['layers'][0]['error_max'], 0.1)


class perplexity(Case):
    """Next-token distributions against those of -fa off, whose attention is done in f32.

    The model's q8_0 products round activations, so any change of the last bits of attention moves
    the distributions by a floor, which the divergence of ggml's own flash attention measures."""

    def run_it(self, folder, *args, plugin):
        done = run('llama-perplexity', '-m', MODEL, '-f', folder / 'text.txt', '-c', 4096, '-t', 2, '--chunks', 2,
                   '--kl-divergence-base', folder / 'base', *args, env=environment(plugin))
        return done.stdout + done.stderr

    def measure(self, folder, plugin):
        """(mean KL divergence, ln of the ratio of perplexities, its standard error)"""
        said = self.run_it(folder, '-fa', 'on', '--kl-divergence', plugin=plugin)
        divergence = re.search(r'Mean +KLD: +([-0-9.]+)', said)
        ratio = re.search(r'Mean ln\(PPL\(Q\)/PPL\(base\)\) +: +([-0-9.]+) ± +([0-9.]+)', said)
        return float(divergence.group(1)), float(ratio.group(1)), float(ratio.group(2))

    def test_no_further_from_f32_than_ggml(self):
        with tempfile.TemporaryDirectory() as folder:
            folder = pathlib.Path(folder)
            (folder / 'text.txt').write_text(document(9000), encoding='utf-8')
            self.run_it(folder, '-fa', 'off', plugin=False)
            ggml, ours = self.measure(folder, False), self.measure(folder, True)
        print(f'from -fa off: -fa on {ggml}, macattn {ours}')
        self.assertLess(ours[0], 1.1 * ggml[0])
        self.assertLess(abs(ours[1]), 3 * ours[2])


if __name__ == '__main__':
    parser = argparse.ArgumentParser()
    parser.add_argument('--plugin', required=True, type=pathlib.Path)
    parser.add_argument('--bin', required=True, type=pathlib.Path)
    parser.add_argument('--gguf-py', type=pathlib.Path, help="llama.cpp's folder gguf-py")
    parser.add_argument('case')
    parser.add_argument('test', nargs='?', help='one test of the case')
    arguments = parser.parse_args()
    PLUGIN, BIN, GGUF_PY = arguments.plugin.resolve(), arguments.bin.resolve(), arguments.gguf_py
    names = f'{arguments.case}.{arguments.test}' if arguments.test else arguments.case
    unittest.main(argv=[sys.argv[0], names, '-v'])
