# SPDX-License-Identifier: Apache-2.0
"""dump_qkv.py MODELDIR OUTDIR (--ids ids.npy | --text file | --task FAMILY --length N [--seed S]) [--layers 0,5,11] [--f16] [--heldout]
Runs the model on the CPU (float32) over one sequence and writes, per layer, q (before RoPE), qr (after RoPE), k (after RoPE), v as
npy [T, heads, head_dim]; plus ids.npy, answer.npy (1 where the token is part of an expected answer), logits-argmax.npy."""
import sys, os, argparse, numpy as np, torch, time
from common import load
ap = argparse.ArgumentParser()
ap.add_argument('model')
ap.add_argument('out')
ap.add_argument('--ids')
ap.add_argument('--text')
ap.add_argument('--task')
ap.add_argument('--length', type=int, default=4096)
ap.add_argument('--seed', type=int, default=1)
ap.add_argument('--layers')
ap.add_argument('--f16', action='store_true')
ap.add_argument('--corpus', help='filler text (default: the held-out text in data/)')
a = ap.parse_args()
m, tok = load(a.model)
os.makedirs(a.out, exist_ok=True)
code = None
if a.ids:
    ids = np.load(a.ids).astype(np.int64)
elif a.text:
    ids = np.array([0] + tok.encode(open(a.text).read()).ids)[:a.length]
else:
    from make_tasks import gen
    ids, code = gen(tok, a.seed, a.corpus).row(a.length, a.task)
    ids = ids[:-1].astype(np.int64)
    code = code[:-1]
    nz = np.nonzero(code)[0]
    ids, code = ids[:nz[-1] + 1], code[:nz[-1] + 1]
want = set(map(int, a.layers.split(','))) if a.layers else set(range(m.cfg['layers']))
dt = np.float16 if a.f16 else np.float32


def tap(l, q, qr, kr, v):
    if l in want:
        for n, t in (('q', q), ('qr', qr), ('k', kr), ('v', v)):
            np.save(f'{a.out}/L{l:02d}_{n}.npy', t.float().numpy().astype(dt))


t = time.time()
lg = m.forward_plain(torch.from_numpy(ids), tap=tap)
np.save(a.out + '/ids.npy', ids)
np.save(a.out + '/argmax.npy', lg.argmax(-1).numpy())
if code is not None:
    ans = ((code >= 1) & (code < 250)).astype(np.uint8)
    np.save(a.out + '/answer.npy', ans)
    ok = lg.argmax(-1).numpy()[:-1] == ids[1:]
    print('answer tokens right: %.3f of %d' % (ok[ans[1:] > 0].mean(), ans.sum()))
nll = torch.nn.functional.cross_entropy(lg[:-1], torch.from_numpy(ids[1:])).item()
print(f'{len(ids)} tokens, nll {nll:.3f}, {time.time()-t:.1f} s ->', a.out)
