#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Generate from a long document three ways: llama.cpp alone, macattn exact, macattn with reuse. What ./run ends in."""
import argparse
import os
import pathlib
import sys
import tempfile
import time

import llama
import prompt


def arguments():
    parser = argparse.ArgumentParser(prog='./run', description=__doc__)
    parser.add_argument('--model', default=llama.MODEL, help='a GGUF, or a name of fetch/models.json, which is fetched (default: the bundled model)')
    parser.add_argument('--prompt', help='a text file (default: this repository\'s documents with facts hidden in them)')
    parser.add_argument('-n', '--predict', type=int, default=400, help='tokens to generate')
    parser.add_argument('-t', '--threads', type=int, default=os.cpu_count())
    parser.add_argument('--plot', default='decode-speed.svg', help='where to draw decode speed against context length')
    parser.add_argument('--no-plot', action='store_true')
    parser.add_argument('--lengths', default='1024,2048,4096,8192,16384', help='context lengths of the plot')
    return parser.parse_args()


def show(text):
    print(text, flush=True)


def measure(configuration, number, args, prompt_file, context):
    sys.stdout.write(f'[{number}/{len(llama.CONFIGURATIONS)}] {configuration:14} ')
    sys.stdout.flush()
    start = time.time()
    result = llama.generate(configuration, args.model, prompt_file, args.predict, args.threads, context)
    show(f'prompt of {result["prompt_tokens"]} tokens, {result["tokens"]} written in {time.time() - start:.0f} s')
    return result


def attention_shares(results):
    """Share of the decode time spent in attention. llama.cpp does not say: what its token takes beyond the rest of
    the token, which is the same work in all three, is its attention."""
    exact = results[1]
    rest = (exact['eval_ms'] - exact['stats']['decode']['ms']) / exact['tokens']
    shares = [1 - rest * results[0]['tokens'] / results[0]['eval_ms']]
    return shares + [r['stats']['decode']['ms'] / r['eval_ms'] for r in results[1:]]


def agreement(text, other):
    if text == other:
        return 'same text'
    same = 0
    while same < min(len(text), len(other)) and text[same] == other[same]:
        same += 1
    return f'same for {same} of {len(text)} characters'


def table(results, answers):
    shares = attention_shares(results)
    show('')
    show(f'{"":15}{"prompt t/s":>11}{"decode t/s":>11}{"speed-up":>9}{"attention":>10}{"hits":>7}{"skipped":>9}'
         f'{"answers":>9}  agreement')
    for result, share in zip(results, shares):
        stats = result['stats'] or {}
        right = sum(line.split()[-1] in result['text'] for line in answers)
        show(f'{result["configuration"]:15}{result["prompt_tokens_per_second"]:11.0f}{result["tokens_per_second"]:11.1f}'
             f'{result["tokens_per_second"] / results[0]["tokens_per_second"]:9.2f}{share:10.0%}'
             f'{stats.get("hit_ratio", 0):7.0%}{stats.get("tokens_skipped_share", 0):9.0%}'
             f'{f"{right}/{len(answers)}" if answers else "":>9}  {agreement(results[0]["text"], result["text"])}')
    show('\nattention: share of the decode time. hits: queries answered from a summary. skipped: share of the cache not'
         ' read.')


def plot(args, folder, most):
    try:
        import matplotlib
    except ImportError:
        show('no plot: matplotlib is missing (Debian: python3-matplotlib)')
        return
    matplotlib.use('svg')
    from matplotlib import pyplot
    lengths = [int(length) for length in args.lengths.split(',') if int(length) <= most]
    speeds = {configuration: [] for configuration in llama.CONFIGURATIONS}
    for length in lengths:
        sys.stdout.write(f'decode speed at {length:6}: ')
        path = pathlib.Path(folder) / f'{length}.txt'
        path.write_text(prompt.make(length, 8)[0], encoding='utf-8')
        for configuration in llama.CONFIGURATIONS:
            result = llama.generate(configuration, args.model, path, 64, args.threads, 2 * length)
            speeds[configuration].append((result['prompt_tokens'], result['tokens_per_second']))
            sys.stdout.write(f'{configuration} {result["tokens_per_second"]:.0f} t/s  ')
            sys.stdout.flush()
        show('')
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for configuration, points in speeds.items():
        axes.plot(*zip(*points), marker='o', label=configuration)
    axes.set(xlabel='context length, tokens', ylabel='decode speed, tokens per second', xscale='log', ylim=(0, None))
    axes.set_xticks(lengths, [f'{length // 1024}K' for length in lengths])
    axes.set_title(f'{pathlib.Path(args.model).name}, {args.threads} threads')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(args.plot)
    show(f'wrote {args.plot}')


def main():
    args = arguments()
    if args.prompt and not pathlib.Path(args.prompt).is_file():
        raise SystemExit(f'run: there is no file {args.prompt}')
    try:
        args.model, trained = llama.find_model(args.model)
    except llama.Failed as error:
        raise SystemExit(f'run: {error}')
    most = (trained or 1 << 20) * 3 // 4    # tokens of a prompt: other vocabularies count more
    with tempfile.TemporaryDirectory() as folder:
        answers, prompt_file = [], args.prompt
        if not prompt_file:
            text, answer = prompt.make(min(12288, most), 24)
            prompt_file = pathlib.Path(folder) / 'prompt.txt'
            prompt_file.write_text(text, encoding='utf-8')
            answers = answer.splitlines()
        context = 1024 * ((os.path.getsize(prompt_file) // 2 + args.predict) // 1024 + 2)
        try:
            results = [measure(c, i + 1, args, prompt_file, context) for i, c in enumerate(llama.CONFIGURATIONS)]
            for result in results:
                show(f'\n--- {result["configuration"]}\n{result["text"].strip()}')
            table(results, answers)
            if not args.no_plot:
                show('')
                plot(args, folder, most)
        except llama.Failed as error:
            raise SystemExit(f'run: {error}')


if __name__ == '__main__':
    main()
