# SPDX-License-Identifier: Apache-2.0
"""A text for models to read, 35 KB: what is asked of their figures must not change with every edit of our own pages."""
import pathlib

# Debian and Ubuntu have it in every image (package base-files).
LICENCE = pathlib.Path('/usr/share/common-licenses/GPL-3')
DOCS = pathlib.Path(__file__).resolve().parents[2] / 'docs'


def long_text():
    if LICENCE.exists():
        return LICENCE.read_bytes()
    return b'\n'.join(page.read_bytes() for page in sorted(DOCS.glob('*.md')))
