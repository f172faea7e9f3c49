# SPDX-License-Identifier: Apache-2.0
"""Running llama.cpp's own programs, with and without the plug-in. Needs nothing but Python's library."""
import contextlib
import json
import os
import pathlib
import re
import signal
import socket
import subprocess
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
MODEL = ROOT / 'model' / 'macattn-38m-q8_0.gguf'
PLUGIN = ROOT / 'build' / 'release' / 'plugins' / 'ggml' / 'libggml-macattn.so'

CONFIGURATIONS = ('llama.cpp', 'macattn exact', 'macattn reuse')


class Failed(Exception):
    pass


def bin_dir():
    """Where llama.cpp's programs are: LLAMA_CPP_DIR's build, or the pinned one."""
    own = os.environ.get('LLAMA_CPP_DIR')
    if own:
        return pathlib.Path(own) / 'build' / 'bin'
    script = ROOT / 'fetch' / 'get-llama.sh'
    out = subprocess.run([script, '--dir'], check=True, capture_output=True, text=True).stdout
    return pathlib.Path(out.strip()) / 'build' / 'bin'


def find_model(name):
    """(path, tokens it was trained to see or None) of a file, or of a name of fetch/models.json, which is fetched."""
    models = json.loads((ROOT / 'fetch' / 'models.json').read_text(encoding='utf-8'))
    for known, model in models.items():
        if pathlib.Path(name).is_file():
            if pathlib.Path(name).name == model['file']:
                return str(name), model['context']
        elif str(name) == known:
            done = subprocess.run([ROOT / 'fetch' / 'get-model.sh', name], stdout=subprocess.PIPE, text=True, check=False)
            if done.returncode != 0:
                raise Failed(f'the model {name} cannot be had')
            return done.stdout.split('\n')[-2], model['context']
    if not pathlib.Path(name).is_file():
        raise Failed(f'there is no file {name}, nor a model of that name ({", ".join(models)})')
    return str(name), None


def reuse(model):
    """The settings of reuse: a pretrained model's is the error allowed; the bundled one can take the paper's rule."""
    return {'MACATTN_POLICY': 'paper', 'MACATTN_TAU': '0.7'} if pathlib.Path(model) == MODEL else {'MACATTN_POLICY': 'budget'}


def environment(configuration, model, stats=None, extra=None):
    env = {k: v for k, v in os.environ.items() if not k.startswith(('MACATTN_', 'GGML_BACKEND_PATH'))}
    if configuration != 'llama.cpp':
        env['GGML_BACKEND_PATH'] = str(PLUGIN)
        env['MACATTN_POLICY'] = 'exact'
        if configuration == 'macattn reuse':
            env.update(reuse(model))
        if stats:
            env['MACATTN_STATS'] = str(stats)
        env.update(extra or {})
    return env


def run(program, args, env, timeout=3600):
    done = subprocess.run([str(bin_dir() / program), *map(str, args)], env=env, capture_output=True, text=True,
                          errors='replace', timeout=timeout)
    if done.returncode != 0:
        raise Failed(f'{program} {" ".join(map(str, args))}\nended with {done.returncode}:\n{done.stderr[-2000:]}')
    return done.stdout, done.stderr


def timing(log, what):
    """Milliseconds and number of what llama.cpp reports as `prompt eval time` or `eval time`."""
    found = re.findall(r': +' + what + r' = +([0-9.]+) ms / +([0-9]+) (?:runs|tokens)', log)
    if not found:
        raise Failed(f'llama.cpp printed no "{what}":\n{log[-2000:]}')
    return float(found[-1][0]), int(found[-1][1])


def generate(configuration, model, prompt_file, n_predict, threads, context, extra=None):
    """Greedy continuation of a prompt. Returns text, times, and the plug-in's statistics."""
    with tempfile.TemporaryDirectory() as folder:
        stats = pathlib.Path(folder) / 'stats.json'
        text, log = run('llama-completion', ['-m', model, '-f', prompt_file, '-n', n_predict, '-t', threads, '-c', context,
                                             '--temp', 0, '-no-cnv', '--no-display-prompt'],
                        environment(configuration, model, stats, extra))
        prompt_ms, prompt_tokens = timing(log, 'prompt eval time')
        eval_ms, runs = timing(log, 'eval time')
        return {'configuration': configuration, 'text': text, 'prompt_ms': prompt_ms, 'prompt_tokens': prompt_tokens,
                'eval_ms': eval_ms, 'tokens': runs, 'tokens_per_second': runs / eval_ms * 1e3,
                'prompt_tokens_per_second': prompt_tokens / prompt_ms * 1e3,
                'stats': json.loads(stats.read_text()) if stats.exists() else None}


def interrupt(process):
    """Ends a server as Ctrl-C does, so that it writes its statistics; by force after a minute."""
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """llama-server with one sequence, asked for a stretch of work at a time. `stats` are the plug-in's, once it has ended.
    `extra` goes to its environment, `options` to its command line; `program` is another llama-server than the pinned one."""

    def __init__(self, configuration, model, threads, context, extra=None, options=(), program=None):
        self.folder = tempfile.TemporaryDirectory()
        self.stats_path, self.log_path = (pathlib.Path(self.folder.name) / name for name in ('stats.json', 'log'))
        self.stats = None
        with socket.socket() as s:
            s.bind(('127.0.0.1', 0))
            self.port = s.getsockname()[1]
        if not program:
            program, options = bin_dir() / 'llama-server', ['--no-webui', *options]
        arguments = ['-m', model, '-t', threads, '-c', context, '-np', 1, '--cache-ram', 0, '--port', self.port, *options]
        with open(self.log_path, 'w', encoding='utf-8') as log:
            self.process = subprocess.Popen([str(program), *map(str, arguments)], stdout=log,
                                            stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL,
                                            env=environment(configuration, model, self.stats_path, extra))

    def failed(self, what):
        return Failed(f'llama-server {what}:\n{self.log_path.read_text(errors="replace")[-2000:]}')

    def wait(self):
        """Until the model is loaded."""
        while self.process.poll() is None:
            with contextlib.suppress(OSError):
                with urllib.request.urlopen(f'http://127.0.0.1:{self.port}/health', timeout=60):
                    return
            time.sleep(0.05)
        raise self.failed(f'ended with {self.process.returncode}')

    def ask(self, path, **body):
        request = urllib.request.Request(f'http://127.0.0.1:{self.port}/{path}', json.dumps(body).encode(),
                                         {'Content-Type': 'application/json'})
        try:
            with urllib.request.urlopen(request, timeout=3600) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise Failed(f'llama-server refused {path}: {error.read().decode(errors="replace")[:500]}') from error
        except OSError as error:
            raise self.failed(f'does not answer ({error})') from error

    def tokenize(self, text):
        return self.ask('tokenize', content=text, add_special=True)['tokens']

    def detokenize(self, tokens):
        return self.ask('detokenize', tokens=tokens)['content']

    def read(self, tokens):
        """Process a prompt, but what of it has been before. Returns milliseconds."""
        return self.ask('completion', prompt=tokens, n_predict=0, cache_prompt=True)['timings']['prompt_ms']

    def write(self, tokens, n, ignore_end=False, **sampling):
        """Continuation by at most n tokens, greedy unless `sampling` has it otherwise, of what has been read but for its last
        token, so that each token written is one decode. Returns the tokens (none, if the program does not tell them),
        whether they end the text, and milliseconds."""
        reply = self.ask('completion', prompt=tokens, n_predict=n, cache_prompt=True, return_tokens=True, ignore_eos=ignore_end,
                         **{'temperature': 0, **sampling})
        timings = reply['timings']
        return reply.get('tokens', []), reply.get('stop_type') == 'eos', timings['prompt_ms'] + timings['predicted_ms']

    def keep(self, action, path):
        """`save` or `restore` what was read, in a server with --slot-save-path."""
        self.ask(f'slots/0?action={action}', filename=path)

    def stop(self):
        interrupt(self.process)
        if self.stats_path.exists():
            self.stats = json.loads(self.stats_path.read_text())
        self.folder.cleanup()


@contextlib.contextmanager
def servers(configurations, model, threads, context):
    """{configuration: Server}, loaded; they have ended, and have their statistics, when the block is left."""
    running = {}
    try:
        for configuration in configurations:
            running[configuration] = Server(configuration, model, threads, context)
        for server in running.values():
            server.wait()
        yield running
    finally:
        for server in running.values():
            server.stop()
