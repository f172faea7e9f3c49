#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: check_layers.py ROOT

Checks who may include whom, and what the library may never do:
  src/core   includes src/core and the public headers; no intrinsics
  src/cpu    includes src/cpu, src/core/backend.h and the public headers
  src/ref    includes src/ref and the public headers
  tools      includes tools, src/ref and the public headers
  src/core and src/cpu never print, exit, abort or read the environment, and take memory from
  src/core/alloc.c alone; no file there has more than 800 lines; every file says its licence.
"""
import re
import sys
from pathlib import Path

MAX_LINES = 800
INCLUDE = re.compile(r'^\s*#\s*include\s*(["<])([^">]+)[">]')
COMMENTS_AND_STRINGS = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
BANNED = re.compile(
    r'\b(getenv|secure_getenv|abort|exit|_exit|_Exit|quick_exit|printf|vprintf|fprintf|vfprintf|'
    r'puts|fputs|putchar|perror|system)\s*\(')
ALLOCATION = re.compile(
    r'\b(malloc|calloc|realloc|aligned_alloc|posix_memalign|free|strdup|strndup|asprintf|alloca|'
    r'mmap)\s*\(')
INTRINSICS = re.compile(r'(intrin\.h|arm_neon\.h|arm_sve\.h)$')


def strip(text):
    """Comments and literals, replaced by as many line ends as they held."""
    return COMMENTS_AND_STRINGS.sub(lambda m: '\n' * m.group().count('\n') or ' ', text)


def sources(root, folder):
    return sorted(p for p in (root / folder).rglob('*') if p.suffix in ('.c', '.h'))


def includes(path):
    for number, line in enumerate(path.read_text().splitlines(), 1):
        match = INCLUDE.match(line)
        if match:
            yield number, match.group(1) == '"', match.group(2)


def resolve(root, path, name):
    """The file of this project that an include names, or None for one of the system."""
    for base in (path.parent, root / 'include', root / 'src' / 'core', root / 'src' / 'cpu',
                 root / 'src' / 'ref', root / 'src', root / 'tools', root):
        candidate = (base / name).resolve()
        if candidate.is_file() and candidate.is_relative_to(root):
            return candidate.relative_to(root).as_posix()
    return None


def check_includes(root, folder, allowed, problems):
    for path in sources(root, folder):
        where = path.relative_to(root)
        for number, quoted, name in includes(path):
            if folder == 'src/core' and INTRINSICS.search(name):
                problems.append(f'{where}:{number}: src/core knows no instruction set: {name}')
            target = resolve(root, path, name)
            if target is None:
                if quoted and folder.startswith('src'):
                    problems.append(f'{where}:{number}: "{name}" is no file of this project')
            elif not target.startswith(allowed):
                problems.append(f'{where}:{number}: {folder} may not include {target}')


def check_calls(root, folder, problems):
    for path in sources(root, folder):
        where = path.relative_to(root)
        text = path.read_text()
        if text.count('\n') > MAX_LINES:
            problems.append(f'{where}: {text.count(chr(10))} lines, more than {MAX_LINES}')
        for number, line in enumerate(strip(text).splitlines(), 1):
            code = re.sub(r'__attribute__\s*\(\(.*?\)\)', '', line)
            for match in BANNED.finditer(code):
                problems.append(f'{where}:{number}: the library never calls {match.group(1)}')
            if where.as_posix() != 'src/core/alloc.c':
                for match in ALLOCATION.finditer(code):
                    if re.search(r'(->|\.)\s*$', code[:match.start()]):
                        continue    # a function pointer of that name
                    problems.append(
                        f'{where}:{number}: {match.group(1)} belongs in src/core/alloc.c')


def check_licence(root, problems):
    for folder in ('include', 'src', 'tools', 'tests', 'examples', 'dev', 'bench'):
        for path in sources(root, folder):
            if 'SPDX-License-Identifier: Apache-2.0' not in path.read_text()[:200]:
                problems.append(f'{path.relative_to(root)}: no SPDX line at the top')


def main():
    root = Path(sys.argv[1]).resolve()
    problems = []
    if not sources(root, 'src/core') or not sources(root, 'src/cpu'):
        problems.append(f'{root}: no sources found')
    check_includes(root, 'src/core', ('src/core/', 'include/'), problems)
    check_includes(root, 'src/cpu', ('src/cpu/', 'src/core/backend.h', 'include/'), problems)
    check_includes(root, 'src/ref', ('src/ref/', 'include/'), problems)
    check_includes(root, 'tools', ('tools/', 'src/ref/', 'include/'), problems)
    check_calls(root, 'src/core', problems)
    check_calls(root, 'src/cpu', problems)
    check_licence(root, problems)
    for problem in problems:
        print(problem)
    print(f'{len(problems)} problems' if problems else 'layers: ok')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
