#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plots of what `macattn eval --json`, or bench/models/fidelity.py, wrote.

    plot_eval.py ROWS.jsonl... [--out FOLDER] [--prefix TEXT] [--no-heads]

Writes into the folder (default: the current one)
    kl-MODEL-TEXT-CONTEXT.svg      mean KL divergence against the bytes read, as a share of all K and V: a curve a policy (and
                                   band, order of the lse, selection, where rows differ in these)
    heads-CONTEXT-POLICY-X.svg     hit ratio of every layer and head, for each setting that reuses (and band, if there are several)
and names each file. Needs matplotlib.
"""
import argparse
import json
import math
import pathlib
import sys

try:
    import matplotlib
    matplotlib.use('svg')
    matplotlib.rcParams['svg.hashsalt'] = 'macattn'    # the same rows give the same file
    from matplotlib import pyplot
except ImportError:
    sys.exit('plot_eval.py needs matplotlib')

# parameter, colour, where its value is written
POLICIES = {'paper': ('tau', 'C0', (4, 5)), 'budget': ('budget', 'C1', (4, -11))}
STYLES = [('o', '-'), ('s', '--'), ('^', ':'), ('D', '-.'), ('v', '-'), ('P', '--')]  # of one policy's curves
# What tells a policy's curves apart, and how it is written. The paper's rule never selects.
VARIANTS = {'band': 'band {}', 'lse_order': 'order {}', 'select': 'select {}'}
NOT_OF = {('paper', 'select')}


def read(paths):
    rows = []
    for path in paths:
        for number, line in enumerate(path.read_text(encoding='utf-8').splitlines(), 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                rows.append({**row, 'policy': row['policy'], 'context': int(row['context'])})
            except (ValueError, KeyError, TypeError) as error:
                sys.exit(f'{path}:{number}: this is no row of macattn eval ({error})')
    if not rows:
        sys.exit('there are no rows')
    return rows


def bytes_read(row):
    """As a share of all K and V. Older rows do not say it."""
    if 'bytes_read' in row:
        return row['bytes_read']
    return (row['kv_bytes'] - row['kv_bytes_skipped'] + row.get('search_bytes', 0)) / row['kv_bytes']


def stem(name):
    return pathlib.Path(str(name)).name.removesuffix('.gguf')


def curves(rows):
    """[(policy, label, [(read, divergence, setting)])]: without reuse the divergence is 0, which has no place on a
    logarithmic axis."""
    differ = [name for name in VARIANTS if len({row.get(name) for row in rows if row['policy'] in POLICIES}) > 1]
    found = {}
    for row in rows:
        if row['policy'] in POLICIES and row['kl_mean']:
            key = (row['policy'], *(None if (row['policy'], name) in NOT_OF else row.get(name) for name in differ))
            found.setdefault(key, []).append((bytes_read(row), row['kl_mean'], row['setting']))
    for key in sorted(found, key=lambda key: tuple(map(str, key))):
        variant = [VARIANTS[name].format(value) for name, value in zip(differ, key[1:]) if value is not None]
        label = ', '.join([f'{key[0]} ({POLICIES[key[0]][0]})', *variant])
        yield key[0], label, sorted(found[key])


def plot_curves(rows, path):
    figure, axes = pyplot.subplots(figsize=(7, 5))
    drawn = {policy: 0 for policy in POLICIES}
    for policy, label, points in curves(rows):
        _, colour, offset = POLICIES[policy]
        marker, line = STYLES[drawn[policy] % len(STYLES)]
        drawn[policy] += 1
        x, y, settings = zip(*points)
        axes.plot([100 * v for v in x], y, color=colour, marker=marker, linestyle=line, label=label)
        for px, py, setting in zip(x, y, settings):
            axes.annotate(f'{setting:g}', (100 * px, py), textcoords='offset points', xytext=offset, fontsize=8)
    floors = [row['kl_floor'] for row in rows if row.get('kl_floor')]
    if floors:
        axes.axhline(sum(floors) / len(floors), color='grey', linestyle='--', linewidth=1, label='rounding alone')
    if axes.lines:
        axes.set_yscale('log')
        axes.legend(fontsize=8, ncol=2, loc='upper center', bbox_to_anchor=(0.5, -0.15))    # on no point
    one, tokens = rows[0], sorted({row.get('tokens', row.get('positions')) for row in rows})
    axes.set_xlabel('bytes read, % of all K and V')
    axes.set_ylabel('mean KL divergence from exact, nats')
    axes.set_title(f"{stem(one['model'])}: {one.get('text', 'text')}, {one['context']} tokens of context\n"
                   f"{one.get('dtype', 'f16')} cache, {'/'.join(map(str, tokens))} positions", fontsize=10)
    axes.grid(alpha=0.3)
    save(figure, path)


def plot_heads(row, path):
    grid = [[math.nan if value is None else value for value in line] for line in row['per_layer_head']]
    figure, axes = pyplot.subplots(figsize=(1.5 + 0.35 * max(len(grid[0]), 8), 1.5 + 0.3 * max(len(grid), 8)))
    image = axes.imshow(grid, vmin=0, vmax=1, cmap='viridis', aspect='auto')
    figure.colorbar(image, label='hit ratio')
    axes.set_xlabel('query head')
    axes.set_ylabel('layer')
    axes.set_title(f"{row['policy']} {row['setting']:g}, {row['context']} tokens, {row['model']}", fontsize=9)
    save(figure, path)


def save(figure, path):
    figure.tight_layout()
    figure.savefig(path, metadata={'Date': None})
    pyplot.close(figure)
    print(path)


def main():
    parser = argparse.ArgumentParser(description='Plots of what macattn eval --json wrote.')
    parser.add_argument('rows', nargs='+', type=pathlib.Path)
    parser.add_argument('--out', type=pathlib.Path, default=pathlib.Path('.'), metavar='FOLDER')
    parser.add_argument('--prefix', default='', metavar='TEXT', help='what names of files begin with')
    parser.add_argument('--no-heads', action='store_true')
    args = parser.parse_args()
    rows = read(args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    groups = {}
    for row in rows:
        groups.setdefault((stem(row['model']), stem(row.get('text', 'text')), row['context']), []).append(row)
    for (model, text, context), chosen in sorted(groups.items()):
        plot_curves(chosen, args.out / f'{args.prefix}kl-{model}-{text}-{context}.svg'.replace(' ', '-'))
    for row in rows if not args.no_heads else []:
        if row['policy'] in POLICIES and row.get('per_layer_head'):
            several = any(r['policy'] == row['policy'] and r['context'] == row['context'] and r['band'] != row['band'] for r in rows)
            band = f"-band-{row['band']}" if several else ''
            plot_heads(row, args.out / f"{args.prefix}heads-{row['context']}-{row['policy']}-{row['setting']:g}{band}.svg")


if __name__ == '__main__':
    try:
        main()
    except OSError as error:
        sys.exit(f'plot_eval.py: {error}')
