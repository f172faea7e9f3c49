#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Make a long prompt out of this repository's own documents, with facts hidden in it and a question about them.

    prompt.py --tokens 12288 --facts 24 OUT.txt [ANSWER.txt]

The wording of facts and question is the one the bundled model was trained on (model/training/tasks.py). The same
arguments give the same prompt.
"""
import argparse
import pathlib
import random
import re

ROOT = pathlib.Path(__file__).resolve().parents[2]
DOCUMENTS = ['include/macattn/macattn.h', 'docs/algorithm.md', 'docs/does-it-help.md', 'docs/is-it-exact.md',
             'docs/kernels.md', 'docs/dependencies.md', 'TESTING.md', 'CONTRIBUTING.md', 'SECURITY.md', 'README.md']
SOURCES = ['src/core/**/*.[ch]', 'src/cpu/*.[ch]', 'src/cpu/body/*.h', 'src/ref/*.[ch]', 'plugins/ggml/**/*.[ch]']
BYTES_PER_TOKEN = 3.3  # of the bundled model's vocabulary on this text

HEAD = ('Some special magic numbers are hidden in the following text. Memorize them. You will be quizzed about them '
        'afterwards.\n\n')
QUESTION = '\nQuestion: What are the special magic values for {} mentioned in the text?\nAnswer:\n'


def document(n_bytes):
    paths = [ROOT / name for name in DOCUMENTS]
    for pattern in SOURCES:
        paths += sorted(ROOT.glob(pattern))
    text = ''.join(path.read_text(encoding='utf-8') for path in paths)
    if len(text.encode()) < n_bytes:
        raise SystemExit(f'prompt.py: the documents end after {len(text)} bytes; {n_bytes} were asked for')
    return text.encode()[:n_bytes].decode('utf-8', 'ignore').rsplit('\n', 1)[0].splitlines(True)


def make(n_tokens, n_facts):
    rng = random.Random(f'{n_tokens}/{n_facts}')
    lines = document(int((n_tokens - 42 * n_facts - 100) * BYTES_PER_TOKEN))
    # No word serves twice: keys that share one are a harder task than finding them.
    words = sorted(set(re.findall(r'\b[a-z]{5,9}\b', ''.join(document(30000)))))
    words = rng.sample(words, 2 * n_facts)
    keys = [f'{a}-{b}' for a, b in zip(words[::2], words[1::2])]
    values = [str(rng.randrange(1000000, 10000000)) for _ in keys]
    places = sorted(rng.randrange(1, len(lines)) for _ in keys)
    for place, key, value in reversed(list(zip(places, keys, values))):
        lines.insert(place, f'One of the special magic numbers for {key} is: {value}.\n')
    asked = rng.sample(list(zip(keys, values)), n_facts)
    answer = ''.join(f'{i + 1}. {k}: {v}\n' for i, (k, v) in enumerate(asked))
    return HEAD + ''.join(lines) + QUESTION.format(', '.join(k for k, _ in asked)), answer


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--tokens', type=int, default=12288, help='about how many tokens')
    parser.add_argument('--facts', type=int, default=24)
    parser.add_argument('prompt')
    parser.add_argument('answer', nargs='?')
    args = parser.parse_args()
    prompt, answer = make(args.tokens, args.facts)
    pathlib.Path(args.prompt).write_text(prompt, encoding='utf-8')
    if args.answer:
        pathlib.Path(args.answer).write_text(answer, encoding='utf-8')


if __name__ == '__main__':
    main()
