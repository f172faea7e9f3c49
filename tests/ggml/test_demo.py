#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""What ./run ends in, on a short prompt: three servers in turns. How fast they were is not looked at, only that what is said
about it can be.

usage: test_demo.py FOLDER PLUGIN BIN   (bench/llama)"""
import contextlib
import io
import pathlib
import re
import sys
import tempfile
import unittest

BIN, PLUGIN, FOLDER = (pathlib.Path(sys.argv.pop()) for _ in range(3))
sys.path.insert(0, str(FOLDER))
import demo  # noqa: E402
import llama  # noqa: E402
import prompt  # noqa: E402

llama.PLUGIN, llama.bin_dir = PLUGIN, lambda: BIN


class Demo(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.text = pathlib.Path(self.folder.name) / 'prompt.txt'

    def run_demo(self, *args):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            demo.main(['--prompt', str(self.text), '-t', '2', '--no-plot', *args])
        return out.getvalue()

    def test_short_prompt(self):
        text, answer = prompt.make(1500, 4)
        self.text.write_text(text, encoding='utf-8')
        out = self.run_demo('-n', '64')
        for part in ('reading', 'writing'):
            self.assertRegex(out, part + r', 3 x \d+ tokens: +0%\n')
        self.assertRegex(out, r'reading.*100%\n')
        texts = re.findall(r'\n--- (.+)\n((?:.+\n)+)', out)
        self.assertEqual([name for name, _ in texts], list(llama.CONFIGURATIONS))
        self.assertGreaterEqual(sum(line in texts[0][1].splitlines() for line in answer.splitlines()), 2, out)
        rows = [line for line in out.splitlines() if line.startswith(llama.CONFIGURATIONS) and ':' not in line]
        self.assertEqual(len(rows), 3, out)
        measured = 'too busy to measure speed' not in out
        for row in rows:
            number, share = (r'\d+\.\d+', r'(?:\d\d?|100)%') if measured else ('-', '-')
            self.assertRegex(row, rf'^.{{15}} *(?:\d+|-) +{number} +{number} +{share} +\d+% +\d+%')

    def test_text_that_the_model_ends(self):
        """Goes on being measured, but is not shown past its end."""
        text, answer = prompt.make(600, 1)
        self.text.write_text(text, encoding='utf-8')
        out = self.run_demo('-n', '48')
        first = re.search(r'--- llama.cpp\n((?:.+\n)+)', out).group(1)
        self.assertEqual(first.strip(), answer.strip())

    def test_no_file(self):
        with self.assertRaises(SystemExit) as raised:
            self.run_demo()
        self.assertIn('there is no file', str(raised.exception))

    def test_no_model(self):
        self.text.write_text('text', encoding='utf-8')
        with self.assertRaises(SystemExit) as raised:
            self.run_demo('--model', str(self.text))
        self.assertIn('llama-server ended', str(raised.exception))


if __name__ == '__main__':
    unittest.main(verbosity=2)
