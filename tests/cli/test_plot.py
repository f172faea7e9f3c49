#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: test_plot.py PLOT_EVAL   (77: there is no matplotlib)"""
import json
import pathlib
import subprocess
import sys
import tempfile
import unittest
import xml.dom.minidom

try:
    import matplotlib  # noqa: F401
except ImportError:
    sys.exit(77)

PLOT = None


def row(policy, setting, kl, skipped, context=8192, band=256):
    return {'policy': policy, 'setting': setting, 'context': context, 'kl_mean': kl, 'kl_floor': 1e-4, 'band': band, 'kv_bytes': 1000,
            'kv_bytes_skipped': 1000 * skipped,
            'model': 'x.gguf', 'text': 'a.txt', 'dtype': 'f16', 'mode': 'teacher-forced', 'tokens': 64,
            'per_layer_head': [[0.5, None], [0.0, 1.0], [0.25, 0.75]]}


class Plot(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.addCleanup(self.folder.cleanup)
        self.path = pathlib.Path(self.folder.name)

    def plot(self, text, *args):
        rows = self.path / 'rows'
        rows.write_text(text)
        return subprocess.run([sys.executable, PLOT, rows, '--out', self.path / 'out', *args], capture_output=True, text=True, check=False)

    def test_one_plot_a_context_and_one_a_setting(self):
        rows = [row('exact', None, 0, 0), row('paper', 0.45, 1e-2, 0.6), row('paper', 0.9, 1e-3, 0.1), row('budget', 0.02, 4e-4, 0.05),
                row('budget', 0.02, 1e-4, 0.05, band=2048), row('paper', 0.45, 1e-2, 0.7, 16384)]
        done = self.plot('\n'.join(map(json.dumps, rows)))
        self.assertEqual(done.returncode, 0, done.stderr)
        names = sorted(p.name for p in (self.path / 'out').iterdir())
        self.assertEqual(names, ['heads-16384-paper-0.45.svg', 'heads-8192-budget-0.02-band-2048.svg',
                                 'heads-8192-budget-0.02-band-256.svg', 'heads-8192-paper-0.45.svg', 'heads-8192-paper-0.9.svg',
                                 'kl-x-a.txt-16384.svg', 'kl-x-a.txt-8192.svg'])
        for name in names:
            xml.dom.minidom.parse(str(self.path / 'out' / name))
            self.assertIn(name, done.stdout)

    def test_a_curve_for_all_that_differs(self):
        """Rows of bench/models/fidelity.py, which have fewer fields."""
        rows = [{'model': 'y', 'text': 'code', 'policy': policy, 'setting': setting, 'lse_order': order, 'band': 256, 'select': 0,
                 'context': 16384, 'kl_mean': 1e-3, 'bytes_read': 0.4, 'positions': 192}
                for policy, setting, order in (('paper', 0.45, 0), ('paper', 0.45, 1), ('budget', 0.05, 1), ('budget', 0.1, 1))]
        done = self.plot('\n'.join(map(json.dumps, rows)), '--no-heads', '--prefix', 'now-')
        self.assertEqual(done.returncode, 0, done.stderr)
        names = [p.name for p in (self.path / 'out').iterdir()]
        self.assertEqual(names, ['now-kl-y-code-16384.svg'])
        figure = (self.path / 'out' / names[0]).read_text()
        for label in ('paper (tau), order 0', 'paper (tau), order 1', 'budget (budget), order 1'):
            self.assertIn(f'<!-- {label} -->', figure)

    def test_nothing_reused(self):
        self.assertEqual(self.plot(json.dumps(row('exact', None, 0, 0))).returncode, 0)

    def test_no_rows_of_eval(self):
        for text, complaint in (('', 'there are no rows'), ('x', ':1: this is no row'), ('{"a": 1}', ':1: this is no row')):
            done = self.plot(text)
            self.assertEqual((done.returncode, complaint in done.stderr), (1, True), done.stderr)


if __name__ == '__main__':
    PLOT = sys.argv.pop(1)
    unittest.main(verbosity=2)
