# SPDX-License-Identifier: Apache-2.0
"""A GGUF model of arch llama or qwen2 in PyTorch, float32, with attention left to the caller: what the scripts of this folder
measure macattn on. The prompt is computed by PyTorch, on a GPU if there is one; every decode step's attention by macattn, on the
CPU, over a cache in f16. Needs torch, numpy, gguf and, for texts, tokenizers.
"""
import math
import re

import torch

import macattn
from gguf_file import File

torch.set_grad_enabled(False)
PROMPT_QUERIES = 6144  # the last of a prompt, kept for macattn to see
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def tokenizer(path):
    """The model's own byte-level BPE, from its GGUF."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    field = File(path).field
    tokens, merges, types = (field(f"tokenizer.ggml.{n}") for n in ("tokens", "merges", "token_type"))
    t = Tokenizer(models.BPE({x: i for i, x in enumerate(tokens)}, [tuple(m.split(" ")) for m in merges]))
    words = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|"
             r"\s+(?!\S)|\s+")
    t.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(words), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
    t.decoder = decoders.ByteLevel()
    t.add_special_tokens([AddedToken(x, special=True) for x, kind in zip(tokens, types) if kind == 3])
    return t


def chat(question, answer=""):
    """A conversation in the template (ChatML) that all models of fetch/models.json of these archs were trained with."""
    return ("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n{answer}")


class Model:
    def __init__(self, path, most_tokens):
        file = File(path)
        field = file.field
        arch = field("general.architecture")
        if arch not in ("llama", "qwen2"):
            raise SystemExit(f"{path}: arch {arch}; this script knows llama and qwen2")
        self.n_layers, width = field(f"{arch}.block_count"), field(f"{arch}.embedding_length")
        self.n_heads, self.n_kv_heads = field(f"{arch}.attention.head_count"), field(f"{arch}.attention.head_count_kv")
        self.head_dim = field(f"{arch}.attention.key_length", width // self.n_heads)
        self.group, self.eps = self.n_heads // self.n_kv_heads, field(f"{arch}.attention.layer_norm_rms_epsilon")
        self.interleaved = arch == "llama"  # how RoPE pairs the values of a head
        self.w = {name: torch.from_numpy(values).to(DEVICE) for name, values in file.tensors()}
        self.out = self.w.get("output.weight", self.w["token_embd.weight"])
        inverse = 1.0 / field(f"{arch}.rope.freq_base", 10000.0) ** (
            torch.arange(0, self.head_dim, 2, dtype=torch.float64) / self.head_dim)
        angle = torch.arange(most_tokens, dtype=torch.float64)[:, None] * inverse
        self.cos, self.sin = angle.cos().float().to(DEVICE), angle.sin().float().to(DEVICE)

    def settings(self):
        """Arguments of macattn.Attention that the model decides."""
        return dict(n_layers=self.n_layers, n_heads=self.n_heads, n_kv_heads=self.n_kv_heads, head_dim=self.head_dim)

    def norm(self, x, name):
        return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + self.eps) * self.w[name]

    def rope(self, x, positions):
        """x [n, heads, head_dim], positions [n]."""
        cos, sin = self.cos[positions][:, None], self.sin[positions][:, None]
        if self.interleaved:
            a, b = x[..., 0::2], x[..., 1::2]
            return torch.stack([a * cos - b * sin, b * cos + a * sin], -1).flatten(-2)
        a, b = x.chunk(2, -1)
        return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

    def linear(self, layer, name, x):
        y = x @ self.w[f"blk.{layer}.{name}.weight"].t()
        bias = self.w.get(f"blk.{layer}.{name}.bias")
        return y if bias is None else y + bias

    def qkv(self, layer, x, positions):
        """Queries before and after RoPE, keys after it, values: [n, heads, head_dim]."""
        h = self.norm(x, f"blk.{layer}.attn_norm.weight")
        q, k, v = (self.linear(layer, n, h).unflatten(-1, (-1, self.head_dim)) for n in ("attn_q", "attn_k", "attn_v"))
        return q, self.rope(q, positions), self.rope(k, positions), v

    def rest(self, layer, x, attended):
        x = x + self.linear(layer, "attn_output", attended.flatten(1))
        for part in x.split(4096):  # so that the widest arrays stay small
            h = self.norm(part, f"blk.{layer}.ffn_norm.weight")
            gate = torch.nn.functional.silu(self.linear(layer, "ffn_gate", h))
            part += self.linear(layer, "ffn_down", gate * self.linear(layer, "ffn_up", h))
        return x

    def logits(self, x):
        return self.norm(x, "output_norm.weight") @ self.out.t()

    def embed(self, tokens):
        return self.w["token_embd.weight"][torch.as_tensor(tokens, device=DEVICE)]


class Prompt:
    """A prompt computed once: its K and V in f16, its last queries, and the logits behind it.

    fast: matrix products in TF32, for answers, where thousands of prompts are computed; the cache is f16 anyway.
    """

    def __init__(self, model, tokens, n_queries=PROMPT_QUERIES, fast=False):
        torch.backends.cuda.matmul.allow_tf32 = fast
        n, self.model, self.n = len(tokens), model, len(tokens)
        n_queries = min(n_queries, n)
        positions = torch.arange(n, device=DEVICE)
        x = model.embed(tokens)
        self.layers = []  # (k, v [n, kv_heads, head_dim] f16; q_match, q [n_queries, heads, head_dim] f32), host memory
        for layer in range(model.n_layers):
            before, q, k, v = model.qkv(layer, x, positions)
            k, v = k.half(), v.half()
            x = model.rest(layer, x, self.attend(q, k.float(), v.float()))
            self.layers.append(tuple(a.cpu().contiguous() for a in (k, v, before[n - n_queries:], q[n - n_queries:])))
        self.logits = model.logits(x[-1:])
        torch.backends.cuda.matmul.allow_tf32 = False

    def attend(self, q, k, v, block=1024):
        m, out = self.model, torch.empty_like(q)
        for head in range(m.n_kv_heads):
            heads = slice(head * m.group, (head + 1) * m.group)
            for a in range(0, self.n, block):
                b = min(self.n, a + block)
                s = q[a:b, heads].transpose(0, 1) @ k[:b, head].t() * m.head_dim ** -0.5
                s.masked_fill_(torch.arange(b, device=DEVICE) > torch.arange(a, b, device=DEVICE)[:, None], -math.inf)
                out[a:b, heads] = (s.softmax(-1) @ v[:b, head]).transpose(0, 1)
        return out


class Decoder:
    """What comes behind a prompt under several settings at once, each with its own cache and macattn object."""

    PIECE, LAST, APART = 512, 32, 128  # see remember

    def __init__(self, prompt, room, settings, threads=0):
        self.prompt, self.m, self.n = prompt, prompt.model, prompt.n
        self.objects, self.caches = [], []
        for s in settings:
            o = macattn.Attention(**self.m.settings(), n_threads=threads, max_tokens=max(131072, self.n + room), **s)
            caches = []
            for layer, (k, v, before, q) in enumerate(prompt.layers):
                pair = tuple(torch.zeros(1, self.n + room, *a.shape[1:], dtype=torch.float16) for a in (k, v))
                for cache, a in zip(pair, (k, v)):
                    cache[0, :self.n] = a
                caches.append(pair)
            self.objects.append(o)
            self.caches.append(caches)
            if o.settings["policy"] != "exact":
                self.remember(o, caches)
            o.reset_stats()

    def remember(self, o, caches):
        """The object sees of the prompt what it would learn from if an engine had shown it all in pieces of PIECE: the last queries of
        each, which are remembered (an eighth; calls of LAST, which are remembered whole), and so many queries before them that one in
        APART teaches selection (calls of two, as one query is a step)."""
        held, ends = len(self.prompt.layers[0][2]), []
        for end in range(self.n, self.n - held, -self.PIECE):
            ends += [(end - i * self.LAST, self.LAST) for i in range(2)]
            ends += [(end - i * self.APART, 2) for i in range(2, self.PIECE // self.APART)]
        for end, n in sorted(x for x in ends if x[0] - x[1] >= self.n - held):
            o.plan([end], n_queries=n)
            first = end - n - (self.n - held)
            for layer, (_, _, before, q) in enumerate(self.prompt.layers):
                k, v = caches[layer]
                o.prefill(layer, q[first:first + n], k, v, q_match=before[first:first + n])

    def step(self, tokens):
        """One token for each setting: [settings] -> logits [settings, vocabulary]."""
        m = self.m
        x = m.embed(tokens)
        positions = torch.full((len(self.objects),), self.n, device=DEVICE)
        self.n += 1
        for o in self.objects:
            o.plan([self.n])
        for layer in range(m.n_layers):
            before, q, k, v = m.qkv(layer, x, positions)
            before, q, k, v = (a.cpu() for a in (before, q, k.half(), v.half()))
            out = torch.empty(len(self.objects), m.n_heads, m.head_dim)
            for i, o in enumerate(self.objects):
                cache_k, cache_v = self.caches[i][layer]
                cache_k[0, self.n - 1], cache_v[0, self.n - 1] = k[i], v[i]
                o.decode(layer, q[i:i + 1].contiguous(), cache_k, cache_v, q_match=before[i:i + 1].contiguous(), out=out[i:i + 1])
            x = m.rest(layer, x, out.to(DEVICE))
        return m.logits(x)


def divergence(exact, other):
    """KL(exact || other) of each row of logits against the first, nats."""
    a, b = exact.double().log_softmax(-1), other.double().log_softmax(-1)
    return (a.exp() * (a - b)).sum(-1)


def stop_tokens(tokenizer):
    return {i for t, i in tokenizer.get_vocab().items() if re.fullmatch(r"<\|(im_end|endoftext)\|>", t)}
