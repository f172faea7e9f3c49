#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""The plug-in's figures, as JSON lines: llama.cpp alone, macattn exact and macattn with reuse in turns.

    figures.py [--repeat 3] [--lengths 8192,16384,32768] OUT.jsonl

`decode`: tokens per second after a prompt of this repository's documents (llama-completion). `bench`: the same with
llama-bench's random tokens. `prompt`: prompt processing. `overhead`: one token at depth 128.
"""
import argparse
import json
import os
import pathlib
import platform
import statistics
import subprocess
import tempfile

import llama
import prompt


def machine():
    text = pathlib.Path('/proc/cpuinfo').read_text()
    cpu = next((line.split(':')[1].strip() for line in text.splitlines() if line.startswith('model name')), '')
    commit = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], capture_output=True, text=True, cwd=llama.ROOT).stdout.strip()
    return {'cpu': cpu, 'cpus': os.cpu_count(), 'os': f'{platform.system()} {platform.release()}', 'commit': commit}


def spread(values):
    return {'median': statistics.median(values), 'min': min(values), 'max': max(values)}


def llama_bench(configuration, args, extra):
    out, _ = llama.run('llama-bench', ['-m', args.model, '-t', args.threads, '-fa', 1, '-o', 'json', *extra],
                       llama.environment(configuration, args.model))
    return [sample for row in json.loads(out) for sample in row['samples_ts']]


class Writer:
    def __init__(self, path, args):
        self.file = open(path, 'w', encoding='utf-8')
        self.common = {'model': pathlib.Path(args.model).name, 'threads': args.threads, 'repeat': args.repeat, **machine()}

    def row(self, **fields):
        print({k: v for k, v in fields.items()}, flush=True)
        self.file.write(json.dumps({**fields, **self.common}) + '\n')
        self.file.flush()


def decode(args, writer):
    with tempfile.TemporaryDirectory() as folder:
        for length in args.lengths:
            path = pathlib.Path(folder) / 'prompt.txt'
            path.write_text(prompt.make(length - 400, 24)[0], encoding='utf-8')
            runs = {c: [] for c in llama.CONFIGURATIONS}
            for _ in range(args.repeat):
                for c in llama.CONFIGURATIONS:
                    runs[c].append(llama.generate(c, args.model, path, 192, args.threads, length + length // 4))
            for c, results in runs.items():
                stats = results[-1]['stats'] or {}
                writer.row(what='decode', configuration=c, settings=llama.reuse(args.model) if 'reuse' in c else {}, prompt_tokens=results[0]['prompt_tokens'],
                           tokens_per_second=spread([r['tokens_per_second'] for r in results]),
                           prompt_tokens_per_second=spread([r['prompt_tokens_per_second'] for r in results]),
                           hit_ratio=stats.get('hit_ratio'), tokens_skipped_share=stats.get('tokens_skipped_share'),
                           same_text=all(r['text'] == runs['llama.cpp'][0]['text'] for r in results))


def bench(args, writer, what, extra, **fields):
    runs = {c: [] for c in llama.CONFIGURATIONS[:2]}
    for _ in range(args.repeat):
        for c, samples in runs.items():
            samples += llama_bench(c, args, extra)
    for c, samples in runs.items():
        writer.row(what=what, configuration=c, tokens_per_second=spread(samples), **fields)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('out')
    parser.add_argument('--model', default=llama.MODEL, help='a GGUF, or a name of fetch/models.json')
    parser.add_argument('--threads', type=int, default=os.cpu_count())
    parser.add_argument('--repeat', type=int, default=3)
    parser.add_argument('--lengths', type=lambda s: [int(x) for x in s.split(',')], default=[8192, 16384, 30000])
    args = parser.parse_args()
    try:
        args.model = llama.find_model(args.model)[0]
    except llama.Failed as error:
        raise SystemExit(f'figures.py: {error}')
    writer = Writer(args.out, args)
    bench(args, writer, 'overhead', ['-p', 0, '-n', 128, '-d', 128, '-r', 3], depth=128)
    bench(args, writer, 'prompt', ['-p', 8192, '-n', 0, '-r', 1], prompt_tokens=8192)
    for depth in (16384, 32768):
        bench(args, writer, 'bench', ['-p', 0, '-n', 32, '-d', depth, '-r', 1], depth=depth)
    decode(args, writer)


if __name__ == '__main__':
    main()
