#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Generate from a long document three ways: llama.cpp alone, macattn exact, macattn with reuse. What ./run ends in."""
import argparse
import functools
import os
import pathlib

import llama
import prompt
import turns

READ = 1024       # prompt tokens a turn
ROUNDS = 8        # turns of each configuration that what is written is split into
LEAST = 16        # tokens of a turn
PLOT = (3, 32)    # the same at each length of the plot: turns, tokens


def arguments(given=None):
    parser = argparse.ArgumentParser(prog='./run', description=__doc__,
                                     epilog='The three take turns, each in a llama-server with the model loaded.')
    parser.add_argument('--model', default=llama.MODEL,
                        help='a GGUF, or a name of fetch/models.json, which is fetched (default: the bundled model)')
    parser.add_argument('--prompt', help='a text file (default: this repository\'s documents with facts hidden in them)')
    parser.add_argument('-n', '--predict', type=int, default=400, help='tokens to generate')
    parser.add_argument('-t', '--threads', type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument('--plot', default='decode-speed.svg', help='where to draw decode speed against context length')
    parser.add_argument('--no-plot', action='store_true')
    parser.add_argument('--lengths', default='1024,2048,4096,8192,16384', help='context lengths of the plot')
    return parser.parse_args(given)


def show(text):
    print(text, flush=True)


class Watch:
    """Makes a turn of work done by one of the servers: its time, and what other programs took of the processors."""

    def __init__(self, running, threads):
        self.processes, self.threads = [server.process.pid for server in running.values()], threads

    def __call__(self, work):
        before = turns.usage(self.processes)
        tokens, ms = work()
        return turns.Turn(ms / tokens, tokens, turns.taken(before, turns.usage(self.processes), self.threads))


class Text:
    """A prompt, and how one configuration goes on with it, a turn at a time."""

    def __init__(self, server, watch, tokens):
        self.server, self.watch, self.tokens = server, watch, list(tokens)
        self.n_prompt = len(tokens)
        self.n_read = 0
        self.end = None  # where the model ended the text

    def left(self):
        """Prompt tokens to be read: all but the last, which is the first that is decoded."""
        return self.n_prompt - 1 - self.n_read

    def read(self):
        def work():
            n = min(READ, self.left())
            self.n_read += n
            return n, self.server.read(self.tokens[:self.n_read])
        return self.watch(work)

    def write(self, n):
        """Past the text's end it goes on, for the time that takes."""
        def work():
            written, ended, ms = self.server.write(self.tokens, n, ignore_end=self.end is not None)
            self.tokens += written[:-1] if ended else written
            if ended:
                self.end = len(self.tokens)
            return len(written), ms
        return self.watch(work)

    def text(self, n):
        end = len(self.tokens) if self.end is None else self.end
        return self.server.detokenize(self.tokens[self.n_prompt:min(self.n_prompt + n, end)])


def read_in_turns(texts, progress):
    """{configuration: [Turn]} of the prompt. A disturbed turn cannot be repeated: what is read is read."""
    read = {configuration: [] for configuration in texts}
    all_texts = list(texts.values())
    progress(0)
    while any(text.left() > 0 for text in all_texts):
        for configuration, text in texts.items():
            read[configuration].append(text.read())
            progress(1 - sum(t.left() for t in all_texts) / sum(t.n_prompt - 1 for t in all_texts))
    return read


def write_in_turns(texts, rounds, tokens, progress):
    """{configuration: [Turn]} of what is written: `rounds` undisturbed turns of each, if they can be had."""
    def report(done):
        share, disturbed = turns.come(done, rounds)
        progress(share, f', turns disturbed by other programs: {disturbed}' if disturbed else '')
    progress(0)
    return turns.in_turns(list(texts), lambda configuration: texts[configuration].write(tokens), rounds, report)


def measure(args, text, rounds, tokens, progress):
    """What each configuration reads and writes: [{configuration, read, written (turns), text, stats}]."""
    context = context_for(text, rounds, tokens)
    with llama.servers(llama.CONFIGURATIONS, args.model, args.threads, context) as running:
        watch = Watch(running, args.threads)
        prompt_tokens = next(iter(running.values())).tokenize(text)
        texts = {c: Text(server, watch, prompt_tokens) for c, server in running.items()}
        read = read_in_turns(texts, functools.partial(progress, f'reading, 3 x {len(prompt_tokens)} tokens'))
        written = write_in_turns(texts, rounds, tokens, functools.partial(progress, f'writing, 3 x {args.predict} tokens'))
        progress.close()
        results = [{'configuration': c, 'read': read[c], 'written': written[c], 'text': texts[c].text(args.predict)}
                   for c in running]
    for result in results:
        result['stats'] = running[result['configuration']].stats
    return results


def context_for(text, rounds, tokens):
    """Tokens of context that surely hold a text and twice the turns, in case all are repeated."""
    return 1024 * ((len(text.encode()) // 2 + 2 * rounds * tokens) // 1024 + 2)


def attention_share(result):
    return result['stats']['decode']['ms'] / sum(turn.ms * turn.tokens for turn in result['written'])


def speeds(results, rounds):
    """Decode milliseconds a token and shares of attention, or None and why there are none."""
    written = {result['configuration']: result['written'] for result in results}
    why = turns.too_busy(written, rounds, steady=llama.CONFIGURATIONS[:2])
    if why:
        return None, None, why
    ms = [turns.ms(result['written']) for result in results]
    shares = turns.attention_shares(ms[0], ms[1], *map(attention_share, results[1:]))
    return (ms, shares, None) if shares else (None, None, 'the times of the three contradict each other')


def prompt_speed(result):
    if turns.taken_of_all(result['read']) > turns.DISTURBED:
        return '-'
    return f'{1e3 * sum(t.tokens for t in result["read"]) / sum(t.ms * t.tokens for t in result["read"]):.0f}'


def agreement(text, other):
    if text == other:
        return 'same text'
    same = 0
    while same < min(len(text), len(other)) and text[same] == other[same]:
        same += 1
    return f'same for {same} of {len(text)} characters'


def read_share(stats):
    """Without reuse all is read, and nothing counted."""
    return stats['bytes_read_share'] if stats.get('steps') else 1


def table(results, answers, rounds):
    """Returns whether the speeds are worth something."""
    ms, shares, why = speeds(results, rounds)
    show('')
    show(f'{"":15}{"prompt t/s":>11}{"decode t/s":>11}{"speed-up":>9}{"attention":>10}{"hits":>7}{"read":>7}'
         f'{"answers":>9}  agreement')
    for i, result in enumerate(results):
        stats = result['stats'] or {}
        right = sum(line.split()[-1] in result['text'] for line in answers)
        decode, faster, share = (f'{1e3 / ms[i]:.1f}', f'{ms[0] / ms[i]:.2f}', f'{shares[i]:.0%}') if ms else '---'
        show(f'{result["configuration"]:15}{prompt_speed(result):>11}{decode:>11}{faster:>9}{share:>10}'
             f'{stats.get("hit_ratio", 0):7.0%}{read_share(stats):7.0%}'
             f'{f"{right}/{len(answers)}" if answers else "":>9}  {agreement(results[0]["text"], result["text"])}')
    show(f'\nMedians of {rounds} turns each. attention: share of the decode time. hits: queries answered from a summary.'
         '\nread: bytes read a token, as a share of the cache.')
    if why:
        show(f'\nThe machine was too busy to measure speed: {why}. What was written, hits and answers do not depend on that.')
    elif any(prompt_speed(result) == '-' for result in results):
        show('\nThe machine was too busy with other work to measure the speed of the prompt.')
    return not why


def plot_point(texts, rounds, tokens, progress):
    """Decode tokens per second of each configuration, or None if the machine was too busy."""
    read_in_turns(texts, lambda share, detail='': progress(0.8 * share))
    written = write_in_turns(texts, rounds, tokens, lambda share, detail='': progress(0.8 + 0.2 * share, detail))
    if turns.too_busy(written, rounds, steady=llama.CONFIGURATIONS[:2]):
        return None
    return {configuration: 1e3 / turns.ms(taken) for configuration, taken in written.items()}


def plot_points(args, progress):
    """{configuration: [(context length, tokens per second)]}"""
    prompts = {length: prompt.make(length, 8)[0] for length in args.lengths}
    points = {configuration: [] for configuration in llama.CONFIGURATIONS}
    context = max(context_for(text, *PLOT) for text in prompts.values())
    with llama.servers(llama.CONFIGURATIONS, args.model, args.threads, context) as running:
        watch = Watch(running, args.threads)
        for length, text in prompts.items():
            tokens = next(iter(running.values())).tokenize(text)
            part = f'decode speed at {length:5}'
            point = plot_point({c: Text(server, watch, tokens) for c, server in running.items()}, *PLOT,
                               functools.partial(progress, part))
            progress.close()
            show(f'{part}: ' + ('the machine was too busy to measure it' if point is None else
                                '  '.join(f'{c} {speed:.0f} t/s' for c, speed in point.items())))
            for configuration, speed in (point or {}).items():
                points[configuration].append((len(tokens), speed))
    return points


def plot(args, progress):
    try:
        import matplotlib
    except ImportError:
        show('no plot: matplotlib is missing (Debian: python3-matplotlib)')
        return
    matplotlib.use('svg')
    from matplotlib import pyplot
    points = plot_points(args, progress)
    if not points['llama.cpp']:
        show('no plot: the machine was too busy')
        return
    figure, axes = pyplot.subplots(figsize=(7, 4))
    for configuration, measured in points.items():
        axes.plot(*zip(*measured), marker='o', label=configuration)
    axes.set(xlabel='context length, tokens', ylabel='decode speed, tokens per second', xscale='log', ylim=(0, None))
    axes.set_xticks(args.lengths, [f'{length // 1024}K' for length in args.lengths])
    axes.set_title(f'{pathlib.Path(args.model).name}, {args.threads} threads')
    axes.grid(alpha=0.3)
    axes.legend()
    figure.tight_layout()
    figure.savefig(args.plot)
    show(f'wrote {args.plot}')


def main(given=None):
    args = arguments(given)
    if args.prompt and not pathlib.Path(args.prompt).is_file():
        raise SystemExit(f'run: there is no file {args.prompt}')
    try:
        args.model, trained = llama.find_model(args.model)
    except llama.Failed as error:
        raise SystemExit(f'run: {error}') from error
    most = (trained or 1 << 20) * 3 // 4    # tokens of a prompt: other vocabularies make more of a text
    args.lengths = [n for n in map(int, args.lengths.split(',')) if n <= most]
    answers = []
    if args.prompt:
        text = pathlib.Path(args.prompt).read_text(encoding='utf-8', errors='replace')
    else:
        text, answer = prompt.make(min(12288, most), 24)
        answers = answer.splitlines()
    tokens = max(LEAST, -(-args.predict // ROUNDS))
    rounds = -(-args.predict // tokens)
    progress = turns.Progress()
    try:
        results = measure(args, text, rounds, tokens, progress)
        for result in results:
            show(f'\n--- {result["configuration"]}\n{result["text"].strip()}')
        measured = table(results, answers, rounds)
        if not args.no_plot:
            show('')
            if measured:
                plot(args, progress)
            else:
                show('no plot: the machine was too busy')
    except llama.Failed as error:
        raise SystemExit(f'run: {error}') from error


if __name__ == '__main__':
    main()
