#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Plots of what `macattn eval --json` wrote.

    plot_eval.py ROWS.jsonl... [--out FOLDER]

Writes into the folder (default: the current one)
    error-CONTEXT.svg              mean KL divergence against the share of K and V that was not read, a line a policy and band
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
STYLES = [('o', '-'), ('s', '--'), ('^', ':'), ('D', '-.')]  # of bands


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


def subtitle(rows):
    one = rows[0]
    tokens = {row['tokens'] for row in rows}
    return f"{one['model']}, {one['dtype']}, {one['mode']}, {'/'.join(map(str, sorted(tokens)))} tokens"


def plot_error(rows, context, path):
    """Without reuse the divergence is 0, which has no place on a logarithmic axis."""
    figure, axes = pyplot.subplots(figsize=(7, 4.5))
    for policy, band in sorted({(row['policy'], row['band']) for row in rows if row['policy'] in POLICIES}):
        parameter, colour, offset = POLICIES[policy]
        marker, line = STYLES[sum(a == policy and b < band for a, b in {(r['policy'], r['band']) for r in rows}) % len(STYLES)]
        points = sorted((row['kv_bytes_skipped'] / row['kv_bytes'], row['kl_mean'], row['setting']) for row in rows
                        if (row['policy'], row['band']) == (policy, band) and row['kl_mean'])
        if not points:
            continue
        x, y, _ = zip(*points)
        axes.plot([100 * v for v in x], y, color=colour, marker=marker, linestyle=line, label=f'{policy} ({parameter}), band {band}')
        for px, py, setting in points:
            axes.annotate(f'{setting:g}', (100 * px, py), textcoords='offset points', xytext=offset, fontsize=8)
    floors = [row['kl_floor'] for row in rows if row.get('kl_floor')]
    if floors:
        axes.axhline(sum(floors) / len(floors), color='grey', linestyle='--', linewidth=1, label='rounding alone')
    if axes.lines:
        axes.set_yscale('log')
        axes.legend()
    axes.set_xlabel('K and V not read, %')
    axes.set_ylabel('mean KL divergence from exact, nats')
    axes.set_title(f'{context} tokens of context\n{subtitle(rows)}', fontsize=10)
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
    args = parser.parse_args()
    rows = read(args.rows)
    args.out.mkdir(parents=True, exist_ok=True)
    for context in sorted({row['context'] for row in rows}):
        chosen = [row for row in rows if row['context'] == context]
        plot_error(chosen, context, args.out / f'error-{context}.svg')
        for row in chosen:
            if row['policy'] in POLICIES and row.get('per_layer_head'):
                several = any(r['policy'] == row['policy'] and r['band'] != row['band'] for r in chosen)
                band = f"-band-{row['band']}" if several else ''
                plot_heads(row, args.out / f"heads-{context}-{row['policy']}-{row['setting']:g}{band}.svg")


if __name__ == '__main__':
    try:
        main()
    except OSError as error:
        sys.exit(f'plot_eval.py: {error}')
