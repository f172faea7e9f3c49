#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: check_readme.py ROOT

The C code in README.md is a part of examples/minimal.c, which is compiled and run; links to files
of this project and to their headings lead somewhere, and so do paths in the text, in the pages of
the root and of docs/."""
import re
import sys
from pathlib import Path


def squeeze(text):
    """Lines without indentation, comments after code and blank lines: what a reader compares."""
    lines = (re.sub(r'\s*/\*.*?\*/\s*$', '', line).strip() for line in text.splitlines())
    return [line for line in lines if line]


def contains(lines, part):
    return any(lines[i:i + len(part)] == part for i in range(len(lines) - len(part) + 1))


def anchors(page):
    """What the headings of a page are called in links."""
    headings = re.findall(r'^#+ (.*)$', page.read_text(), re.M)
    return {re.sub(r'[^\w\- ]', '', h.lower()).strip().replace(' ', '-') for h in headings}


def dead_ends(root, page):
    text = page.read_text()
    for link, anchor in re.findall(r'\]\(([^)#]*)(?:#([^)]*))?\)', text):
        if '://' in link:
            continue
        target = page.parent / link if link else page
        if not target.exists():
            yield f'broken link {link}'
        elif anchor and target.suffix == '.md' and anchor not in anchors(target):
            yield f'no heading {link}#{anchor}'
    folders = {p.name for p in root.iterdir() if p.is_dir() and p.name != 'build'}
    for path in re.findall(r'`([\w.-]+/[\w./-]*)`', text):
        if path.split('/')[0] in folders and not (root / path).exists():
            yield f'no {path}'


def main():
    root = Path(sys.argv[1])
    problems = []
    example = squeeze((root / 'examples/minimal.c').read_text())
    snippets = re.findall(r'^```c\n(.*?)^```', (root / 'README.md').read_text(), re.S | re.M)
    if not snippets:
        problems.append('README.md: no C code')
    for snippet in snippets:
        for part in re.split(r'^\s*/\* \.\.\. \*/\s*$', snippet, flags=re.M):
            if not contains(example, squeeze(part)):
                problems.append('README.md: not a part of examples/minimal.c:\n' + part)
    for page in [*root.glob('*.md'), *(root / 'docs').glob('*.md')]:
        problems += [f'{page.relative_to(root)}: {problem}' for problem in dead_ends(root, page)]
    for problem in problems:
        print(problem)
    print('readme: ' + ('not ok' if problems else 'ok'))
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
