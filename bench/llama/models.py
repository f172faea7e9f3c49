#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Tokens a second of pretrained models in llama.cpp, by configurations in turns, as JSON lines.

    models.py [--model coder-0.5b] [--text code] [--lengths 16384,32000] [--configurations llama.cpp,exact,budget,budget:0.01]
              [--cache f16] OUT.jsonl

Configurations: `llama.cpp` alone, `exact` (the plug-in's), `budget` and `budget:X` (reuse and selection within a stated error),
`ik` (ik_llama.cpp, which fetch/get-ik-llama.sh builds). Each has a llama-server of its own. The prompt is a text of
bench/models/texts.py; what is written after it is sampled, with the same seed, so that no text runs in circles.

The prompt is read once by each server, but by `llama.cpp` alone only if nobody else can leave it its cache: `exact` does.
With --prompt it is read by all of them, in turns of 1024 tokens, and its speed is reported, too.

With --read-on a longer prompt is read on from where a shorter one ended, by the same server. What the plug-in says of itself, and rows
carry, is then of all lengths.
"""
import argparse
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile

import figures
import llama
import turns

PIECE = 1024
TEXTS = llama.ROOT / 'bench' / 'models' / 'texts.py'
SAMPLING = {'temperature': 0.8, 'seed': 1}


def configurations(text):
    names = text.split(',')
    for name in names:
        if not re.fullmatch(r'llama\.cpp|exact|ik|budget(:[0-9.]+)?', name):
            raise argparse.ArgumentTypeError(f"no configuration '{name}'; there are llama.cpp, exact, budget, budget:X, ik")
    return names


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out')
    parser.add_argument('--model', default='coder-0.5b', help='a GGUF, or a name of fetch/models.json')
    parser.add_argument('--text', default='code')
    parser.add_argument('--lengths', type=lambda s: [int(x) for x in s.split(',')], default=[16384, 32000])
    parser.add_argument('--configurations', type=configurations, default=['llama.cpp', 'exact', 'budget', 'budget:0.01'])
    parser.add_argument('--cache', default='f16', help='type of K and V')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--threads-batch', type=int, help='threads that read the prompt, which then says nothing about theirs (--threads)')
    parser.add_argument('--rounds', type=int, default=8, help='turns of each configuration')
    parser.add_argument('--tokens', type=int, default=32, help='tokens written in a turn')
    parser.add_argument('--prompt', action='store_true', help='measure the prompt, too')
    parser.add_argument('--read-on', action='store_true', help='one server for all lengths')
    parser.add_argument('--hold', help='a command that keeps the machine quiet while tokens are written: it says a line when it '
                                       'does, and ends when its input does')
    return parser.parse_args()


def ik_server():
    out = subprocess.run([llama.ROOT / 'fetch' / 'get-ik-llama.sh', '--dir'], check=True, capture_output=True, text=True).stdout
    program = pathlib.Path(out.strip()) / 'build' / 'bin' / 'llama-server'
    if not program.exists():
        raise llama.Failed('there is no ik_llama.cpp: fetch/get-ik-llama.sh builds it')
    return program


def settings(configuration):
    """What the plug-in is told."""
    name, _, value = configuration.partition(':')
    if name != 'budget':
        return {}
    return {'MACATTN_POLICY': 'budget', **({'MACATTN_BUDGET': value} if value else {})}


def start(configuration, args, context, folder):
    options = ['-fa', 'on', '-ctk', args.cache, '-ctv', args.cache, '--slot-save-path', folder]
    if args.threads_batch:
        options += ['-tb', args.threads_batch]
    if configuration == 'ik':
        return llama.Server('llama.cpp', args.model, args.threads, context, None, options, ik_server())
    name = 'llama.cpp' if configuration == 'llama.cpp' else 'macattn exact'
    return llama.Server(name, args.model, args.threads, context, settings(configuration), options)


def work_of(server, servers, threads, work):
    processes = [s.process.pid for s in servers.values()]
    before = turns.usage(processes)
    tokens, ms = work()
    return turns.Turn(ms / tokens, tokens, turns.taken(before, turns.usage(processes), threads))


def read_in_turns(servers, read, tokens, begin, threads):
    """The tokens from `begin` on; turns are added to `read`."""
    for at in range(begin, len(tokens), PIECE):
        end = min(at + PIECE, len(tokens))
        for c, server in servers.items():
            read[c].append(work_of(server, servers, threads, lambda s=server: (end - at, s.read(tokens[:end]))))
        print(f'read {end} of {len(tokens)}', file=sys.stderr)


def read_once(servers, tokens):
    """`llama.cpp` gets what `exact` has read: neither remembers anything but K and V."""
    for c, server in servers.items():
        if c == 'llama.cpp' and 'exact' in servers:
            continue
        print(f'{c} reads {len(tokens)} tokens', file=sys.stderr)
        server.read(tokens)
        if c == 'exact' and 'llama.cpp' in servers:
            server.keep('save', 'prompt')
            servers['llama.cpp'].keep('restore', 'prompt')


def write_in_turns(servers, prompt_tokens, args):
    texts = {c: list(prompt_tokens) for c in servers}

    def take(c):
        def work():
            written, _, ms = servers[c].write(texts[c], args.tokens, True, **SAMPLING)
            texts[c] += written
            return args.tokens, ms
        return work_of(servers[c], servers, args.threads, work)

    for c in servers:   # what a server does once
        take(c)
    hold = args.hold and subprocess.Popen(args.hold, shell=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        if hold:
            hold.stdout.readline()
        return turns.in_turns(list(servers), take, args.rounds)
    finally:
        if hold:
            hold.communicate()


def spread(done):
    speeds = sorted(1e3 / turn.ms for turn in turns.undisturbed(done) or done)
    return {'median': statistics.median(speeds), 'min': speeds[0], 'max': speeds[-1], 'turns': len(speeds),
            'disturbed': len(done) - len(turns.undisturbed(done))}


def ways(stats):
    """Shares of (step, layer, KV head) that reused, selected, or read all; and of K and V's bytes that were read."""
    n = sum(stats['groups'].values())
    return {**{way: count / n for way, count in stats['groups'].items()}, 'bytes_read': stats['bytes_read_share']} if n else {}


def prompt_row(read):
    return {'prompt_tokens_per_second': 1e3 * sum(t.tokens for t in read) / sum(t.ms * t.tokens for t in read),
            'prompt_pieces': [round(1e3 / t.ms, 2) for t in read], 'prompt_taken': turns.taken_of_all(read)}


def rows_of(servers, lengths, text, args):
    """A row a length and configuration, but for what servers tell when they have ended."""
    tokens = next(iter(servers.values())).tokenize(text)[:lengths[-1]]
    if len(tokens) < lengths[-1]:
        raise llama.Failed(f'the text has only {len(tokens)} tokens')
    read, begin = {c: [] for c in servers}, 0
    for length in lengths:
        prompt = tokens[:length]
        if args.prompt:
            read_in_turns(servers, read, prompt[:-1], begin, args.threads_batch or args.threads)
        else:
            read_once(servers, prompt[:-1])
        begin = length - 1
        for c, done in write_in_turns(servers, prompt, args).items():
            yield {'what': 'decode', 'configuration': c, 'settings': settings(c), 'cache': args.cache, 'text': args.text,
                   'prompt_tokens': length, 'tokens_per_second': spread(done), **(prompt_row(read[c]) if args.prompt else {})}


def measure(args, lengths, writer):
    text = subprocess.run([sys.executable, TEXTS, args.text], check=True, capture_output=True, text=True).stdout
    servers, rows = {}, []
    context = 256 * -(-(lengths[-1] + (2 * args.rounds + 2) * args.tokens) // 256)
    with tempfile.TemporaryDirectory() as folder:
        try:
            for c in args.configurations:
                servers[c] = start(c, args, context, folder)
            for server in servers.values():
                server.wait()
            for row in rows_of(servers, lengths, text, args):
                print(row['configuration'], row['prompt_tokens'], row['tokens_per_second'],
                      row.get('prompt_tokens_per_second', ''), file=sys.stderr)
                rows.append(row)
        finally:
            for server in servers.values():
                server.stop()
            for row in rows:
                stats = servers[row['configuration']].stats
                if stats:
                    row['attention_ms_per_call'] = stats['decode']['ms'] / max(1, stats['decode']['calls'])
                    row.update(ways(stats) if stats.get('steps') else {})
                writer.row(**row)


def main():
    args = arguments()
    try:
        args.model = llama.find_model(args.model)[0]
        args.repeat = args.rounds
        writer = figures.Writer(args.out, args)
        lengths = sorted(args.lengths)
        for some in [lengths] if args.read_on else [[n] for n in lengths]:
            measure(args, some, writer)
    except llama.Failed as error:
        raise SystemExit(f'models.py: {error}') from error


if __name__ == '__main__':
    main()
