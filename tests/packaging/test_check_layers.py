#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""check_layers.py finds what it should: a small house that keeps every rule, and breaks each."""
import subprocess
import sys
import tempfile
import unittest
from pathlib import Path

CHECK = Path(__file__).resolve().parent / 'check_layers.py'
C = '/* SPDX-License-Identifier: Apache-2.0 */\n'
PY = '# SPDX-License-Identifier: Apache-2.0\n'

HOUSE = {
    'include/macattn/macattn.h': C + 'int macattn_run(void);\n',
    'src/core/alloc.c': C + '#include "base.h"\n'
                            'void *mai_alloc(int n)\n{\n    return malloc(n);\n}\n',
    'src/core/base.h': C + 'void *mai_alloc(int n);\n',
    'src/core/plan.h': C + '#include "base.h"\n'
                           'int mai_plan(void);\nextern const int mai_sizes[2];\n',
    'src/core/plan.c': C + '#include "plan.h"\nconst int mai_sizes[] = {1, 2};\n'
                           'int mai_plan(void)\n{\n    return mai_alloc(1) != 0;\n}\n',
    'src/core/calls.c': C + '#include "macattn/macattn.h"\n#include "plan.h"\n'
                            'int macattn_run(void)\n{\n    return mai_plan();\n}\n',
    'src/core/policy/judge.h': C + 'struct judge {\n    void (*free)(void *);\n};\n',
    'src/cpu/isa/avx2.c': C + '#include <immintrin.h>\n#include "core/backend.h"\n',
    'src/core/backend.h': C,
    'src/cuda/launch.h': C + 'extern "C" {\nint mai_cu_slots(void);\n}\n',
    'src/cuda/slots.cu': C + '#include <cuda_runtime.h>\n#include "launch.h"\n'
                             'extern "C" int mai_cu_slots(void)\n{\n    return 0;\n}\n',
    'src/cuda/attend/kernel.cuh': C + '#include "cuda/launch.h"\n'
                                      'template <int N>\nstruct Tile {\n    int at(int i)\n    {\n'
                                      '        return i * N;\n    }\n};\n',
    'src/cuda/host/memory.c': C + '#include "cuda/launch.h"\nvoid mai_cu_take(void **p)\n{\n'
                                  '    cudaMalloc(p, 1);\n}\n',
    'src/ref/ref.h': C,
    'plugins/ggml/host.c': C + '#include "ggml-backend.h"\nvoid host_say(void)\n{\n'
                               '    fputs("x", stderr); /* getenv */\n}\n',
    'plugins/ggml/settings/environment.c': C + 'const char *read_it(void)\n{\n'
                                               '    return getenv("X");\n}\n',
    'tools/main.c': C + '#include "commands.h"\nint main(void)\n{\n    return command_info();\n}\n',
    'tools/commands.h': C + 'int command_info(void);\n',
    'tools/info.c': C + '#include "commands.h"\nint command_info(void)\n{\n    return 0;\n}\n',
    'tools/eval/eval.c': C + '#include "commit.h"\n#include "llama.h"\n',
    'python/macattn/_abi.py': PY + 'import ctypes\n',
    'python/macattn/_library.py': PY + 'import os\nplace = os.environ\n',
    'python/macattn/engines/vllm.py': PY + 'import json\nimport vllm\nfrom .. import cuda\n',
    'bench/plot.py': PY + 'import ctypes\n',
    'tests/core/test_plan.c': C + '#include "core/plan.h"\n',
    'fetch/get.sh': '#!/bin/sh\n' + PY,
    'cmake/Isa.cmake': PY + '  _macattn_isa(avx2 -mavx2)\n',
}

LONG_FUNCTION = 'static int f(int x)\n{\n' + '    x++;\n' * 58 + '    return x;\n}\n'


def table():
    done = subprocess.run([sys.executable, CHECK, '--table'], capture_output=True, text=True)
    return done.stdout


class Layers(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = Path(folder.name)
        for file, text in HOUSE.items():
            self.write(file, text)
        self.write('CONTRIBUTING.md', f'# Contributing\n\n{table()}\nMore.\n')

    def write(self, file, text):
        path = self.root / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def add(self, file, text):
        self.write(file, HOUSE[file] + text)

    def check(self):
        done = subprocess.run([sys.executable, CHECK, self.root], capture_output=True, text=True)
        *problems, last = done.stdout.splitlines()
        self.assertEqual(done.stderr, '')
        self.assertEqual(done.returncode, 1 if problems else 0)
        self.assertEqual(last, f'{len(problems)} problems' if problems else 'layers: ok')
        return problems

    def finds(self, *expected):
        self.assertEqual(self.check(), list(expected))


class Kept(Layers):
    def test_a_house_in_order(self):
        self.finds()

    def test_build_folders_are_not_looked_at(self):
        self.write('build/release/x.c', 'no licence')
        self.finds()


class Includes(Layers):
    def test_folders(self):
        self.add('src/core/plan.c', '#include "cpu/body/x.h"\n')
        self.write('src/cpu/body/x.h', C)
        self.finds('src/core/plan.c:8: src/core may not include src/cpu/body/x.h')

    def test_of_a_folder_only_what_is_named(self):
        self.add('src/cpu/isa/avx2.c', '#include "core/plan.h"\n')
        self.finds('src/cpu/isa/avx2.c:4: src/cpu/isa may not include src/core/plan.h')

    def test_cuda(self):
        self.add('src/cuda/attend/kernel.cuh', '#include "core/base.h"\n')
        self.finds('src/cuda/attend/kernel.cuh:10: src/cuda/attend may not include src/core/base.h')

    def test_generated_sources(self):
        self.write('src/cuda/attend/kernel.cu.in', C + '#include "core/plan.h"\n')
        self.write('src/cuda/attend/list.inc', C + '#include "ref/ref.h"\n')
        self.finds('src/cuda/attend/kernel.cu.in:2: '
                   'src/cuda/attend may not include src/core/plan.h',
                   'src/cuda/attend/list.inc:2: src/cuda/attend may not include src/ref/ref.h')

    def test_tools_know_the_public_header_alone(self):
        self.add('tools/info.c', '#include "core/plan.h"\n')
        self.finds('tools/info.c:7: tools may not include src/core/plan.h')

    def test_instruction_sets(self):
        self.add('src/core/plan.c', '#include <immintrin.h>\n')
        self.finds('src/core/plan.c:8: src/core may not include immintrin.h (intrinsics)')

    def test_other_projects(self):
        self.add('src/core/plan.c', '#include <cuda_runtime.h>\n')
        self.add('tools/info.c', '#include "ggml.h"\n')
        self.finds('src/core/plan.c:8: src/core may not include cuda_runtime.h (CUDA)',
                   'tools/info.c:7: tools may not include ggml.h (ggml)')

    def test_missing_file(self):
        self.add('src/core/plan.c', '#include "gone.h"\n')
        self.finds('src/core/plan.c:8: "gone.h" is no file of this project')

    def test_new_folder(self):
        self.write('src/core/select/new.c', C)
        self.finds('src/core/select: has no row in the table of check_layers.py '
                   '(src/core/select/new.c)')

    def test_table(self):
        self.write('CONTRIBUTING.md', table().replace('| what is computed', '| all'))
        self.finds("CONTRIBUTING.md: its table is not what check_layers.py --table prints")


class Circles(Layers):
    def test_includes(self):
        self.add('src/core/base.h', '#include "plan.h"\n')
        self.finds('src/core/base.h: includes lead in a circle: src/core/base.h -> src/core/plan.h '
                   '-> src/core/base.h')

    def test_calls(self):
        self.add('src/core/alloc.c', 'int mai_more(void)\n{\n    return mai_plan();\n}\n')
        self.finds('src/core/alloc.c: calls lead in a circle: src/core/alloc.c -> src/core/plan.c '
                   '-> src/core/alloc.c')

    def test_names_in_comments_and_members_are_no_calls(self):
        self.add('src/core/alloc.c', '/* mai_plan() */\nint mai_x(struct s *s)\n{\n'
                                     '    return s->mai_plan();\n}\n')
        self.finds()


class Headers(Layers):
    def test_function_of_another_file(self):
        self.add('src/core/plan.h', 'int macattn_run(void);\n')
        self.finds('src/core/plan.h: declares macattn_run, which plan.c does not define')

    def test_variable_of_nobody(self):
        self.add('src/core/plan.h', 'extern int mai_count;\n')
        self.finds('src/core/plan.h: declares mai_count, which plan.c does not define')

    def test_shared_header(self):
        self.add('tools/commands.h', 'int command_sing(int (*note)(int));\n')
        self.assertIn('tools/commands.h: declares command_sing, which', self.check()[0])

    def test_of_a_gpu(self):
        self.add('src/cuda/launch.h', 'int mai_cu_none(void);\n')
        self.assertIn('src/cuda/launch.h: declares mai_cu_none, which', self.check()[0])


class Sizes(Layers):
    def test_file(self):
        for file in ('src/core/plan.c', 'src/cuda/attend/kernel.cuh', 'tools/info.c',
                     'plugins/ggml/host.c', 'python/macattn/_abi.py'):
            self.add(file, '\n' * 800)
        self.assertEqual([p.split(':')[0] for p in self.check()],
                         ['plugins/ggml/host.c', 'python/macattn/_abi.py', 'src/core/plan.c',
                          'src/cuda/attend/kernel.cuh', 'tools/info.c'])

    def test_tests_may_be_long(self):
        self.add('tests/core/test_plan.c', LONG_FUNCTION + '\n' * 800)
        self.finds()

    def test_function(self):
        self.add('plugins/ggml/host.c', LONG_FUNCTION)
        self.finds('plugins/ggml/host.c: f has 62 lines, more than 60')

    def test_function_of_60_lines(self):
        self.add('plugins/ggml/host.c', LONG_FUNCTION.replace('    x++;\n', '', 2))
        self.finds()

    def test_kernel_and_member(self):
        body = '{\n' + '    i++;\n' * 60 + '}\n'
        self.add('src/cuda/attend/kernel.cuh',
                 'template <int N>\n__global__ void __launch_bounds__(32) k(int i)\n' + body +
                 'struct Part {\n    int step(int i)\n' + body + '};\n')
        self.finds('src/cuda/attend/kernel.cuh: k has 64 lines, more than 60',
                   'src/cuda/attend/kernel.cuh: step has 63 lines, more than 60')

    def test_python(self):
        self.add('python/macattn/_abi.py', 'def f():\n' + '    x = 1\n' * 60)
        self.finds('python/macattn/_abi.py: f has 61 lines, more than 60')


class Homes(Layers):
    def found(self, file, text, *sentences):
        self.add(file, text)
        self.assertEqual([p.split(': ', 1)[1] for p in self.check()], list(sentences))

    def test_print(self):
        self.found('src/core/plan.c', 'void f(void)\n{\n    printf("x");\n}\n',
                   'the library never calls printf')

    def test_exit_on_the_gpu_side(self):
        self.found('src/cuda/host/memory.c', 'void f(void)\n{\n    exit(1);\n}\n',
                   'the library never calls exit')

    def test_format_attribute_is_no_call(self):
        self.found('src/core/plan.c', '__attribute__((format(printf, 1, 2))) static void f(int);\n')

    def test_allocation(self):
        self.found('src/core/plan.c', 'void f(void *p)\n{\n    free(p);\n}\n',
                   'free belongs in src/core/alloc.c')

    def test_allocator_of_the_caller(self):
        self.found('src/core/plan.c', 'void f(struct c *c)\n{\n    c->free(c);\n}\n')

    def test_environment(self):
        for file in ('plugins/ggml/host.c', 'tools/info.c', 'src/ref/ref.h'):
            with self.subTest(file):
                self.found(file, 'static void f(void)\n{\n    getenv("X");\n}\n',
                           'getenv belongs where settings are read')
                self.write(file, HOUSE[file])

    def test_standard_error(self):
        self.found('tools/info.c', 'static void f(void)\n{\n    fputs("x", stderr);\n}\n',
                   'stderr belongs in the functions that speak')

    def test_device_memory(self):
        self.found('src/cuda/slots.cu', 'static void f(void *p)\n{\n    cudaFree(p);\n}\n',
                   'cudaFree belongs in src/cuda/host/memory.c')

    def test_environment_itself(self):
        self.found('tools/info.c', 'extern char **environ;\n',
                   'environ belongs where settings are read')

    def test_perror(self):
        self.found('tools/info.c', 'static void f(void)\n{\n    perror("x");\n}\n',
                   'perror belongs in the functions that speak')

    def test_ctypes(self):
        for file in ('python/macattn/engines/vllm.py', 'python/macattn/attention.py'):
            self.write(file, PY + 'import ctypes\n')
        self.finds('python/macattn/attention.py:2: ctypes belongs in _abi.py and _library.py',
                   'python/macattn/engines/vllm.py:2: ctypes belongs in _abi.py and _library.py')

    def test_ctypes_of_an_array(self):
        self.found('python/macattn/engines/vllm.py', 'x = y.ctypes.data\n')

    def test_environment_of_python(self):
        self.found('python/macattn/_abi.py', 'import os\nx = os.environ\n# os.environ\n',
                   'os.environ belongs in _library.py')


class Engines(Layers):
    def test_another_engine(self):
        self.add('python/macattn/engines/vllm.py', 'from .sglang import x\n')
        self.finds('python/macattn/engines/vllm.py:5: an engine may not import another: .sglang')

    def test_another_package(self):
        self.add('python/macattn/engines/vllm.py', 'import pandas\n')
        self.finds('python/macattn/engines/vllm.py:5: an engine may not import pandas')


class Others(Layers):
    def test_instruction_set_without_file(self):
        self.add('cmake/Isa.cmake', '  _macattn_isa(neondot)\n')
        self.finds('cmake/Isa.cmake: neondot has no file in src/cpu/isa')

    def test_licence(self):
        for file in ('src/cuda/slots.cu', 'src/cuda/attend/kernel.cuh', 'python/macattn/_abi.py',
                     'fetch/get.sh', 'plugins/ggml/host.c', 'bench/plot.py', 'cmake/Isa.cmake'):
            with self.subTest(file):
                self.write(file, HOUSE[file].replace('SPDX', ''))
                self.finds(f'{file}: no SPDX line at the top')
                self.write(file, HOUSE[file])

    def test_model(self):
        self.write('model/training/train.py', 'import torch\n')
        self.write('run', '#!/bin/sh\n')
        self.finds('model/training/train.py: no SPDX line at the top',
                   'run: no SPDX line at the top')

    def test_nothing_there(self):
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run([sys.executable, CHECK, folder], capture_output=True, text=True)
            self.assertIn('no sources found', done.stdout)
            self.assertEqual(done.returncode, 1)


if __name__ == '__main__':
    unittest.main()
