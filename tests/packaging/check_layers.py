#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: check_layers.py [--table] ROOT

The rules of the house, checked in every source file. --table prints the table of folders that
CONTRIBUTING.md shows; without it the table there has to be this one.

  - A folder includes what its row allows. A folder with sources and no row fails.
  - No include and no call leads in a circle.
  - A header declares what the .c file of its own name defines.
  - No file above 800 lines and no function above 60 in src, plugins, tools and python.
  - The library never prints, exits, aborts or reads the environment, and takes memory in one place.
    Other things too have one home (HOMES).
  - Every instruction set that CMake knows has its file.
  - Every source file says its licence.
"""
import ast
import re
import sys
from fnmatch import fnmatch
from pathlib import Path

MAX_LINES = 800
MAX_FUNCTION = 60

# ------------------------------------------------------------------------------------ the table --
# Folders, what they hold, and what they may include besides themselves: folders, files, or None for
# anything. A file may always include its own folder.

GROUND = ['src/core/base.h', 'src/core/object.h', 'src/core/host_device.h']
STATE = GROUND + ['src/core/backend.h']
PLUGIN = ['include/macattn', 'ggml']
TABLE = [
    ('include/macattn', 'the public interface; its comments are the manual', ['the C library']),
    ('src/core', 'what is computed: configuration, plan, threads, calls',
     ['src/core/policy', 'src/core/state', 'src/core/decode', 'include/macattn']),
    ('src/core/policy', 'when a head reuses: policies and their judge',
     GROUND + ['include/macattn']),
    ('src/core/state', 'what is remembered: slots, rings, means of runs, saving',
     STATE + ['src/core/policy', 'include/macattn']),
    ('src/core/decode', 'how a step goes: match, select, items, parts, refusal',
     STATE + ['src/core/run.h', 'src/core/plan.h', 'src/core/work.h', 'src/core/sums.h',
              'src/core/pick.h', 'src/core/summarise.h', 'src/core/policy', 'src/core/state',
              'include/macattn']),
    ('src/cpu, src/cpu/isa, src/cpu/body',
     'how, on CPUs: one file per instruction set, bodies written once',
     ['src/cpu', 'src/cpu/body', 'src/core/backend.h', 'include/macattn', 'intrinsics']),
    ('src/cuda, src/cuda/device, src/cuda/attend, src/cuda/capture',
     'how, on GPUs: the boundary and the schedule, kernels, what they share',
     ['src/cuda', 'src/cuda/device', 'src/cuda/attend', 'src/core/policy/judge.h', 'src/core/policy/select.h',
      'src/core/host_device.h',
      'include/macattn', 'CUDA']),
    ('src/cuda/host', "the GPU object: C, and the only place that asks for the device's memory",
     ['src/cuda/launch.h', 'src/cuda/schedule.h', 'src/core/base.h', 'src/core/config.h',
      'src/core/host_device.h', 'src/core/policy', 'include/macattn', 'CUDA']),
    ('src/ref', 'the float64 reference: short, plain, slow', ['include/macattn']),
    ('plugins/ggml', 'the plug-in for llama.cpp',
     ['plugins/ggml/settings'] + PLUGIN + ['intrinsics']),
    ('plugins/ggml/settings', 'its settings: file, environment, program',
     ['plugins/ggml/host.h'] + PLUGIN),
    ('tools', 'the `macattn` command', ['tools/common', 'include/macattn']),
    ('tools/common', 'what its commands share', ['include/macattn', 'intrinsics']),
    ('tools/tasks', 'long-context tasks and their scores',
     ['tools/commands.h', 'tools/common', 'include/macattn']),
    ('tools/bench', 'speed, and the comparison with the reference',
     ['tools/commands.h', 'tools/common', 'src/ref', 'include/macattn', 'CUDA']),
    ('tools/eval', 'what reuse changes in a model',
     ['tools/commands.h', 'tools/common', 'tools/tasks', 'include/macattn', 'ggml']),
    ('python', "running on the threads of an engine's process", ['include/macattn']),
    ('python/macattn', 'the library in Python', ['Python packages']),
    ('python/macattn/engines', 'inference engines that use it: no policy, no arithmetic',
     ['python/macattn', 'python/macattn/serving', 'its engine']),
    ('python/macattn/serving', 'what plug-ins for serving engines on GPUs share',
     ['python/macattn', 'Python packages']),
    ('fetch', 'all that comes over the network, pinned by hashes', []),
    ('bench, bench/*', 'measurements and their results', None),
    ('tests, tests/*, python/tests', 'tests', None),
    ('examples, examples/*', 'programs that use the library', ['include/macattn']),
    ('model/*', 'the bundled model and how it was made', None),
]
ROWS = {folder: allowed for folders, _, allowed in TABLE for folder in folders.split(', ')}


def row_of(folder):
    """The pattern of the row that a folder has, or None."""
    return next((pattern for pattern in ROWS if fnmatch(folder, pattern)), None)


# Headers of other projects. A row names the group.
SYSTEM = {'intrinsics': re.compile(r'(intrin|arm_neon|arm_sve)\.h$'),
          'CUDA': re.compile(r'^(cuda|mma|cooperative_groups)'),
          'ggml': re.compile(r'^(ggml|llama)[a-z-]*\.h$')}
GENERATED = {'commit.h'}
WORDS = set(SYSTEM) | {'the C library', 'Python packages', 'its engine'}

# Headers whose functions other files than their own define, and which ones.
SHARED_HEADERS = {
    'src/core/base.h': ['alloc', 'status', 'threads'],     # the ground: errors, memory, threads
    'src/core/backend.h': ['state/ring', 'state/runs', '../cpu/dispatch', 'status'],  # the door between what and how
    'src/core/policy/policy.h': ['policy', 'judge'],  # judge.h is shared with the GPU
    'src/core/state/state.h': ['ring', 'runs', 'slot'],
    'src/core/decode/decode.h': ['decode', 'match', 'select', 'items', 'parts', 'refuse'],
    'src/cpu/cpu.h': ['dispatch'],
    'src/cuda/launch.h': ['attend/table', 'match', 'slots', 'capture/far', 'capture/remember',
                          'capture/show', 'capture/shown', 'select'],  # C on one side only
    'src/ref/ref.h': ['ref_attn', 'ref_mac', 'ref_select'],
    'tools/commands.h': ['info', 'bench/command', 'bench/check', 'eval/eval', 'eval/tune',
                         'tasks/command', 'eval/none'],
    'tools/bench/cuda.h': ['cuda', 'no_cuda'],
}

# Functions that may be longer.
LONG_FUNCTIONS = set()

# ----------------------------------------------------------------------------- what has one home --

CALL = r'\b({})\s*\('
PRINTS = CALL.format('abort|exit|_exit|_Exit|quick_exit|printf|vprintf|fprintf|vfprintf|puts|'
                     'fputs|putchar|perror|system')
ALLOCATES = CALL.format('malloc|calloc|realloc|aligned_alloc|posix_memalign|free|strdup|strndup|'
                        'asprintf|alloca|mmap')
LIBRARY = 'src/core src/cpu src/cuda'
# Where it is looked for, what, where it may be, and what is said where it may not.
HOMES = [
    (LIBRARY, PRINTS, [], 'the library never calls {}'),
    (LIBRARY, ALLOCATES, ['src/core/alloc.c'], '{} belongs in src/core/alloc.c'),
    ('src plugins tools', r'\b((?:secure_)?getenv|environ)\b',
     ['plugins/ggml/settings/environment.c', 'tools/bench/peer_load.c'],
     '{} belongs where settings are read'),
    ('src plugins tools', r'\b(stderr|perror)\b',
     ['plugins/ggml/host.c', 'plugins/ggml/report.c', 'tools/common/say.c',
      'tools/common/report.c'], '{} belongs in the functions that speak'),
    ('src plugins tools', CALL.format('cuda(?:Malloc|Free|HostAlloc)[A-Za-z]*'),
     ['src/cuda/host/memory.c', 'tools/bench/cuda_device.c'],
     '{} belongs in src/cuda/host/memory.c'),
    # Elsewhere in the package its names for structs and numbers come from _abi.py.
    ('python/macattn', r'\b(ctypes|C\.(?:Structure|CDLL)|argtypes|restype)\b',
     ['python/macattn/_abi.py', 'python/macattn/_library.py'],
     '{} belongs in _abi.py and _library.py'),
    ('python/macattn', r'\b(os\.environ|os\.getenv|getenv)\b', ['python/macattn/_library.py'],
     '{} belongs in _library.py'),
]

C_SUFFIXES = ('.c', '.h', '.cu', '.cuh', '.inc', '.cu.in')
LICENSED = C_SUFFIXES + ('.py', '.sh', '.cmake', 'CMakeLists.txt')
LICENCE = 'SPDX-License-Identifier: Apache-2.0'
MEASURED = ('src/', 'plugins/', 'tools/', 'python/macattn/')

# ------------------------------------------------------------------------------------- reading C --

INCLUDE = re.compile(r'^[ \t]*#[ \t]*include[ \t]*(["<])([^">]+)[">]', re.M)
COMMENTS_AND_STRINGS = re.compile(
    r'//[^\n]*|/\*.*?\*/|"(?:\\.|[^"\\\n])*"|\'(?:\\.|[^\'\\\n])*\'', re.S)
DIRECTIVE = re.compile(r'^[ \t]*#(?:[^\n]*\\\n)*[^\n]*', re.M)
ATTRIBUTE = re.compile(r'(__attribute__|__launch_bounds__|__align__|alignas|_Alignas)\s*\(')
NO_FUNCTION = {'if', 'for', 'while', 'switch', 'return', 'sizeof', '_Static_assert',
               'static_assert', 'defined', 'asm', '__asm__'}


def blank(match):
    """As many line ends as it held, so that lines keep their numbers."""
    return '\n' * match.group().count('\n') or ' '


def strip(text):
    return COMMENTS_AND_STRINGS.sub(blank, text)


def without_attributes(text):
    while True:
        match = ATTRIBUTE.search(text)
        if not match:
            return text
        end, depth = match.end(), 1
        while depth and end < len(text):
            depth += {'(': 1, ')': -1}.get(text[end], 0)
            end += 1
        text = text[:match.start()] + ' ' + text[end:]


def declared_name(head):
    """The name of the function or the external variable that a declaration is of, or None."""
    head = re.sub(r'\btemplate\s*<[^{;]*?>(?=\s*[\w_])', ' ', without_attributes(head)).strip()
    if head.startswith('typedef') or '=' in head.split('(')[0]:
        return None
    match = re.search(r'(\w+)\s*\(', head)
    if match:
        name = match.group(1)
        return None if name in NO_FUNCTION or head.startswith(name) else name
    match = re.match(r'extern\b.*?(\w+)\s*(\[[^\]]*\]\s*)*$', head, re.S)
    return match.group(1) if match else None


class Source:
    """What a C or CUDA file defines, declares and names."""

    def __init__(self, text, is_cuda=False):
        self.is_cuda = is_cuda
        self.functions = []     # (name, is_static, lines)
        self.declared = set()   # functions and variables for other files
        self.variables = set()  # defined at the top level
        self.code = DIRECTIVE.sub(blank, strip(text))
        self.used = set(re.findall(r'(?<![.>\w])[A-Za-z_]\w*', self.code))
        self.scan()

    def scan(self):
        """Cuts the top level into declarations and definitions."""
        code, head, i = self.code, '', 0
        while i < len(code):
            if code[i] == ';':
                self.declare(head)
                head = ''
            elif code[i] == '}':
                head = ''   # of a block that was entered
            elif code[i] != '{':
                head += code[i]
            elif self.is_entered(head):
                head = ''
            else:
                end = self.block_end(i)
                if '=' not in head.split('(')[0] and ')' in head:
                    self.define(head, head.lstrip().count('\n') + code.count('\n', i, end) + 1)
                    head = ''
                i = end - 1
            i += 1

    def is_entered(self, head):
        """Whether the inside of a block is read like the outside."""
        entered = r'\bextern\s*$|\bnamespace\s*\w*\s*$'
        if self.is_cuda:
            entered += r'|^\s*(template\b.*)?struct\s+\w+\s*$'
        return re.search(entered, head, re.S)

    def block_end(self, i):
        depth = 0
        for k in range(i, len(self.code)):
            depth += {'{': 1, '}': -1}.get(self.code[k], 0)
            if depth == 0:
                return k + 1
        return len(self.code)

    def define(self, head, lines):
        name = declared_name(head)
        if name:
            self.functions.append((name, bool(re.search(r'\bstatic\b', head)), lines))

    def define_variable(self, head):
        match = re.search(r'(\w+)\s*(\[[^\]]*\]\s*)*$', head.strip())
        if match:
            self.variables.add(match.group(1))

    def declare(self, head):
        if re.search(r'\bstatic\b', head):
            return
        if '=' in head.split('(')[0]:
            self.define_variable(head.split('=')[0])
        elif re.match(r'\s*extern\b', head) or '(' in head:
            name = declared_name(head)
            if name:
                self.declared.add(name)
        else:
            self.define_variable(head)

    def exports(self):
        return {name for name, is_static, _ in self.functions if not is_static} | self.variables


# -------------------------------------------------------------------------------------- checking --

class House:
    def __init__(self, root):
        self.root = root
        self.problems = []
        self.files = sorted(self.walk(root))
        self.sources = {f: Source(self.text(f), '.cu' in f) for f in self.files
                        if f.endswith(C_SUFFIXES)}
        self.includes = {}

    def walk(self, folder):
        for path in folder.iterdir():
            if path.is_dir():
                if path.name not in ('build', '__pycache__') and path.name[0] != '.':
                    yield from self.walk(path)
            elif path.name.endswith(LICENSED) or path.name in ('run', 'test'):
                yield path.relative_to(self.root).as_posix()

    def text(self, file):
        return (self.root / file).read_text()

    def say(self, where, problem):
        self.problems.append(f'{where}: {problem}')

    def resolve(self, file, name):
        """The file of this project that an include names, or None."""
        folder = file.rsplit('/', 1)[0]
        for base in (folder, 'include', 'src', 'src/ref', 'tools', 'plugins/ggml', 'tests',
                     'tools/bench', '.'):
            path = (self.root / base / name).resolve()
            if path.is_file() and path.is_relative_to(self.root):
                return path.relative_to(self.root).as_posix()
        return None

    def check_rows(self):
        for file in self.files:
            folder = file.rsplit('/', 1)[0] if '/' in file else ''
            if folder and file.endswith(C_SUFFIXES + ('.py',)) and row_of(folder) is None:
                self.say(folder, f'has no row in the table of {Path(__file__).name} ({file})')

    def may_include(self, file, target):
        folder, other = file.rsplit('/', 1)[0], target.rsplit('/', 1)[0]
        allowed = ROWS.get(row_of(folder))
        return allowed is None or other == folder or other in allowed or target in allowed

    def check_includes(self):
        for file in self.sources:
            text, targets = self.text(file), []
            folder = file.rsplit('/', 1)[0]
            allowed = ROWS.get(row_of(folder))
            for match in INCLUDE.finditer(text):
                name = match.group(2)
                where = f'{file}:{text.count(chr(10), 0, match.start()) + 1}'
                target = self.resolve(file, name)
                groups = [g for g, pattern in SYSTEM.items() if pattern.search(name)]
                if target and not (match.group(1) == '<' and groups):
                    targets.append(target)
                    if not self.may_include(file, target):
                        self.say(where, f'{folder} may not include {target}')
                elif groups:
                    if allowed is not None and groups[0] not in allowed:
                        self.say(where, f'{folder} may not include {name} ({groups[0]})')
                elif match.group(1) == '"' and name not in GENERATED:
                    self.say(where, f'"{name}" is no file of this project')
            self.includes[file] = targets

    def check_circles(self):
        self.circle(self.includes, 'includes lead in a circle')
        for sides in ('src/core', 'src/cpu', 'src/cuda/host', 'plugins', 'tools'):
            files = [f for f in self.sources if f.startswith(sides + '/') and f.endswith('.c')]
            home = {}
            for file in files:
                for name in self.sources[file].exports() - {'main'}:
                    home[name] = file if name not in home else None  # defined twice: alternatives
            self.circle({f: sorted({home[n] for n in self.sources[f].used if home.get(n)} - {f})
                         for f in files}, 'calls lead in a circle')

    def circle(self, graph, what):
        """Says the first circle of a graph, as files in order."""
        done, path = set(), []

        def visit(file):
            if file in path:
                circle = path[path.index(file):] + [file]
                self.say(file, f'{what}: {" -> ".join(circle)}')
                return True
            if file in done:
                return False
            path.append(file)
            found = any(visit(target) for target in graph.get(file, []))
            path.pop()
            done.add(file)
            return found

        return any(visit(file) for file in sorted(graph))

    def check_headers(self):
        for file, source in self.sources.items():
            if not file.endswith('.h') or not file.startswith(('src/', 'plugins/', 'tools/')):
                continue
            folder = file.rsplit('/', 1)[0]
            homes = SHARED_HEADERS.get(file, [file[len(folder) + 1:-2]])
            defined = set()
            for home in homes:
                for suffix in ('.c', '.cu'):
                    path = (self.root / folder / (home + suffix)).resolve()
                    if path.is_file():
                        other = self.sources[path.relative_to(self.root).as_posix()]
                        defined |= other.exports()
            own = {name for name, _, _ in source.functions}
            for name in sorted(source.declared - defined - own):
                self.say(file, f'declares {name}, which {" or ".join(homes)}.c does not define')

    def check_sizes(self):
        for file in self.files:
            if not file.startswith(MEASURED) or not file.endswith(C_SUFFIXES + ('.py',)):
                continue
            lines = self.text(file).count('\n')
            if lines > MAX_LINES:
                self.say(file, f'{lines} lines, more than {MAX_LINES}')
            for name, length in self.function_lengths(file):
                if length > MAX_FUNCTION and f'{file}:{name}' not in LONG_FUNCTIONS:
                    self.say(file, f'{name} has {length} lines, more than {MAX_FUNCTION}')

    def function_lengths(self, file):
        if not file.endswith('.py'):
            return [(name, lines) for name, _, lines in self.sources[file].functions]
        return [(node.name, node.end_lineno - node.lineno + 1)
                for node in ast.walk(ast.parse(self.text(file)))
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))]

    def check_homes(self):
        for folders, pattern, homes, sentence in HOMES:
            wanted = tuple(f'{f}/' for f in folders.split())
            for file in self.files:
                if file in homes or not file.startswith(wanted):
                    continue
                if not file.endswith(C_SUFFIXES + ('.py',)):
                    continue
                for number, line in enumerate(self.code_lines(file), 1):
                    for match in re.finditer(pattern, line):
                        if not re.search(r'(->|\.)\s*$', line[:match.start()]):
                            self.say(f'{file}:{number}', sentence.format(match.group(1)))

    def code_lines(self, file):
        text = self.text(file)
        if file.endswith('.py'):
            return re.sub(r'#[^\n]*|"""(?s:.*?)"""', blank, text).splitlines()
        return without_attributes(strip(text)).splitlines()

    def check_engines(self):
        """An engine imports the standard library, itself, its engine, and macattn."""
        for file in self.files:
            if not re.match(r'python/macattn/engines/\w+\.py$', file):
                continue
            name = Path(file).stem
            mine = {name, 'macattn', 'torch'} | set(sys.stdlib_module_names)
            for node in ast.walk(ast.parse(self.text(file))):
                for module in self.imported(node):
                    if module.startswith(('.', 'macattn.engines')) and not module.startswith('..'):
                        self.say(f'{file}:{node.lineno}',
                                 f'an engine may not import another: {module}')
                    elif module[0] != '.' and module.split('.')[0] not in mine:
                        self.say(f'{file}:{node.lineno}', f'an engine may not import {module}')

    def imported(self, node):
        if isinstance(node, ast.Import):
            return [alias.name for alias in node.names]
        if isinstance(node, ast.ImportFrom):
            return ['.' * node.level + (node.module or '')]
        return []

    def check_instruction_sets(self):
        isa = self.root / 'cmake' / 'Isa.cmake'
        for name in re.findall(r'^\s*_macattn_isa\((\w+)', isa.read_text() if isa.is_file() else '',
                               re.M):
            if f'src/cpu/isa/{name}.c' not in self.sources:
                self.say('cmake/Isa.cmake', f'{name} has no file in src/cpu/isa')

    def check_licences(self):
        for file in self.files:
            if LICENCE not in self.text(file)[:300]:
                self.say(file, 'no SPDX line at the top')

    def check_table(self):
        if table() not in self.text_or_nothing('CONTRIBUTING.md'):
            self.say('CONTRIBUTING.md',
                     f'its table is not what {Path(__file__).name} --table prints')

    def text_or_nothing(self, file):
        path = self.root / file
        return path.read_text() if path.is_file() else ''

    def check(self):
        if not any(f.startswith('src/core/') for f in self.files):
            self.say(self.root, 'no sources found')
        self.check_rows()
        self.check_includes()
        self.check_circles()
        self.check_headers()
        self.check_sizes()
        self.check_homes()
        self.check_engines()
        self.check_instruction_sets()
        self.check_licences()
        self.check_table()
        return self.problems


def table():
    def names(items):
        return ', '.join(item if item in WORDS else f'`{item}`' for item in items)

    lines = ['| folder | holds | may include, besides itself |', '|---|---|---|']
    for folders, holds, allowed in TABLE:
        what = 'anything' if allowed is None else names(allowed) or 'nothing'
        lines.append(f'| {names(folders.split(", "))} '
                     f'| {holds} | {what} |')
    return '\n'.join(lines) + '\n'


def main():
    if sys.argv[1:2] == ['--table']:
        print(table(), end='')
        return 0
    problems = House(Path(sys.argv[1]).resolve()).check()
    for problem in problems:
        print(problem)
    print(f'{len(problems)} problems' if problems else 'layers: ok')
    return 1 if problems else 0


if __name__ == '__main__':
    sys.exit(main())
