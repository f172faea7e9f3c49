#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""One file of all parts' rows, a table of them, and the speed-up against the hit ratio as SVG.

usage: report.py RESULTS.jsonl [--plot SPEEDUP.svg]                     table and plot of a results file
       report.py RESULTS.jsonl --collect FOLDER --meta KEY=VALUE...  make the file from the parts' *.jsonl

Every line of a results file is one measurement; the first says on what. Times are milliseconds: `cold` is the
median of graph replays with L2 flushed before each, `warm` the mean of back-to-back replays."""
import argparse
import collections
import json
import os
import sys

PARTS = ("bw", "fi", "macattn", "mac")


def collect(path, folder, meta):
    rows = [dict(part="meta", **dict(m.split("=", 1) for m in meta))]
    for part in PARTS:
        try:
            with open(os.path.join(folder, part + ".jsonl"), encoding="utf-8") as f:
                rows += [json.loads(line) for line in f if line.strip()]
        except OSError:
            print(f"{part}: not run", file=sys.stderr)
    with open(path, "w", encoding="utf-8") as f:
        for row in rows:
            f.write(json.dumps({k: round(v, 6) if isinstance(v, float) else v for k, v in row.items()}) + "\n")


def load(path):
    with open(path, encoding="utf-8") as f:
        return [json.loads(line) for line in f]


def shape(row):
    return row["hkv"], row["batch"], row["ctx"]


class Results:
    def __init__(self, rows):
        self.peer, self.exact, self.reuse, self.public, self.read = {}, {}, {}, {}, {}
        for r in rows:
            if "cold" not in r:
                continue
            if r["part"] == "read":
                self.read[r["bytes"]] = min(r["cold"], self.read.get(r["bytes"], 1e9))
            elif r["part"] == "flashinfer" and not r["perm"]:
                best = self.peer.get(shape(r))
                if best is None or r["cold"] < best["cold"]:
                    self.peer[shape(r)] = r
            elif r["part"] == "macattn" and r["policy"] == "exact" and r["page"] == 16:
                self.exact[shape(r)] = r
            elif r["part"] == "macattn" and r["policy"] == "paper":
                self.reuse[shape(r) + (r["pattern"], r["hit"])] = r["cold"]
            elif r["part"] == "mac" and r.get("M") == 512:
                self.public[shape(r) + (r["pattern"], r["hit"])] = r["cold"]

    def shapes(self):
        return sorted(s for s in self.exact if s in self.peer)


COLUMNS = [("clust", 0.0), ("clust", 0.5), ("clust", 0.9), ("clust", 0.99), ("clust", 1.0),
           ("scat", 0.5), ("scat", 0.9), ("scat", 0.95), ("scat", 0.99)]


def table(results):
    head = " ".join(f"{p[0]}{h * 100:.0f}%".rjust(7) for p, h in COLUMNS)
    print("bf16, head_dim 128, 32 query heads; ms cold; 'x': FlashInfer's best kernel / macattn. "
          "c: misses clustered, s: scattered")
    print(f"{'KV heads':>8} {'batch':>5} {'context':>7} {'FlashInfer':>10} {'kernel':>9} {'exact':>8} {'x':>6} "
          f"{'of read':>7} | with reuse, x: {head}")
    for s in results.shapes():
        peer, exact = results.peer[s], results.exact[s]
        read = results.read.get(exact["bytes"])
        share = f"{read / exact['cold']:7.3f}" if read else "      -"
        xs = [results.reuse.get(s + c) for c in COLUMNS]
        print(f"{s[0]:8d} {s[1]:5d} {s[2]:7d} {peer['cold']:10.4f} {peer['kind']:>9} {exact['cold']:8.4f} "
              f"{peer['cold'] / exact['cold']:6.3f} {share} |                " +
              " ".join(f"{peer['cold'] / x:7.2f}" if x else "      -" for x in xs))
    print("\nthe paper's public kernel, ring 512 (its results were made up as in its own benchmark); 'x': it / macattn")
    for key in sorted(results.public):
        if key in results.reuse:
            print(f"{key[0]:8d} {key[1]:5d} {key[2]:7d} {key[3]:>6} {key[4] * 100:4.0f}%  public {results.public[key]:9.4f}  "
                  f"macattn {results.reuse[key]:9.4f}  x {results.public[key] / results.reuse[key]:6.2f}")


def plot(results, path, title):
    import matplotlib
    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "macattn"
    from matplotlib import pyplot
    wanted = [s for s in ((4, 64, 131072), (8, 16, 32768), (4, 1, 131072)) if s in results.exact]
    figure, axes = pyplot.subplots(1, len(wanted), figsize=(4.6 * len(wanted), 3.8), squeeze=False)
    for axis, s in zip(axes[0], wanted):
        peer = results.peer[s]["cold"]
        for data, name, marks in ((results.reuse, "macattn", ("o-", "s-")), (results.public, "public kernel", ("o--", "s--"))):
            for pattern, mark, words in (("clust", marks[0], "clustered"), ("scat", marks[1], "scattered")):
                curve = sorted((k[4] * 100, peer / v) for k, v in data.items() if k[:3] == s and k[3] == pattern)
                if curve:
                    axis.plot(*zip(*curve), mark, markersize=4, label=f"{name}, misses {words}")
        axis.axhline(1, color="black", linewidth=0.8)
        axis.axhline(peer / results.exact[s]["cold"], color="gray", linewidth=0.8, linestyle=":", label="macattn, exact")
        axis.set_yscale("log")
        axis.set_xlabel("query heads that hit, %")
        axis.set_title(f"32/{s[0]} heads, batch {s[1]}, {s[2] // 1024}K tokens", fontsize=10)
        axis.grid(True, which="both", alpha=0.3)
    axes[0][0].set_ylabel("speed-up over FlashInfer, exact")
    axes[0][0].legend(fontsize=7)
    figure.suptitle(title, fontsize=11)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results")
    parser.add_argument("--collect", metavar="FOLDER")
    parser.add_argument("--meta", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--plot", metavar="FILE")
    args = parser.parse_args()
    if args.collect:
        collect(args.results, args.collect, args.meta)
    rows = load(args.results)
    results = Results(rows)
    table(results)
    if args.plot:
        meta = rows[0] if rows and rows[0]["part"] == "meta" else collections.defaultdict(str)
        plot(results, args.plot, f"{meta.get('gpu', '')}: decode attention, bf16, head_dim 128, cold L2")


main()
