#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: run.py BIN TRANSCRIPT

Runs the commands of a transcript and compares what they print. In a transcript

    # a comment
    $ a command, for the shell; BIN and this directory come first in PATH
    a line it prints, on standard output or error, where * stands for anything
    ...                   any number of lines
    [2]                   its exit status, if that is not 0

Lines of progress ('macattn: [1/4] filling the rings') are left out: whether they come depends on
how fast the machine is.

The exit status is 0 if all is as written.
"""
import os
import re
import subprocess
import sys
from pathlib import Path

STATUS = re.compile(r'\[(\d+)\]$')
PROGRESS = re.compile(r'macattn: \[\d+/\d+\] ')


def parse(text):
    """[(line number, command, [expected line], status)]"""
    steps = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith('$ '):
            steps.append([number, line[2:], [], 0])
        elif line.startswith('#') or (not line.strip() and not steps):
            continue
        elif STATUS.match(line):
            steps[-1][3] = int(STATUS.match(line).group(1))
        else:
            steps[-1][2].append(line.rstrip())
    for step in steps:
        while step[2] and not step[2][-1]:
            step[2].pop()
    return steps


def pattern(line):
    return re.compile('.*'.join(re.escape(part) for part in line.split('*')) + '$')


def matches(expected, lines):
    if not expected:
        return not lines
    if expected[0] == '...':
        return any(matches(expected[1:], lines[i:]) for i in range(len(lines) + 1))
    return bool(lines) and bool(pattern(expected[0]).match(lines[0])) and \
        matches(expected[1:], lines[1:])


def main():
    binary, transcript = Path(sys.argv[1]).resolve(), Path(sys.argv[2])
    here = Path(__file__).resolve().parent
    env = dict(os.environ, LC_ALL='C', SRC=str(here.parent.parent),
               PATH=f'{binary.parent}:{here}:{os.environ["PATH"]}')
    env.pop('ARGP_HELP_FMT', None)
    steps = parse(transcript.read_text())
    if not steps:
        sys.exit(f'{transcript}: no commands')
    failed = 0
    for number, command, expected, status in steps:
        done = subprocess.run(['sh', '-c', command], env=env, stdin=subprocess.DEVNULL,
                              stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                              check=False)
        lines = [line.rstrip() for line in done.stdout.splitlines() if not PROGRESS.match(line)]
        while lines and not lines[-1]:
            lines.pop()
        if done.returncode != status or not matches(expected, lines):
            failed += 1
            print(f'{transcript.name}:{number}: {command}\n  status {done.returncode}, '
                  f'expected {status}\n--- expected\n' + '\n'.join(expected) +
                  '\n--- printed\n' + '\n'.join(lines) + '\n')
    print(f'{transcript.name}: {len(steps) - failed} of {len(steps)} commands as written')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
