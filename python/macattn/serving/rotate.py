# SPDX-License-Identifier: Apache-2.0
"""Queries before RoPE, had back from those after it: engines rotate before they call an attention backend."""
import triton
import triton.language as tl


@triton.jit
def unrotate_kernel(q, out, table, lengths, q_row, q_head, out_row, out_head, table_row, half: tl.constexpr,
                    rest: tl.constexpr, neox: tl.constexpr, block: tl.constexpr, rest_block: tl.constexpr):
    """Turn one row's one head back by the angle of its position, the row's length - 1."""
    row, head = tl.program_id(0), tl.program_id(1)
    position = tl.maximum(tl.load(lengths + row) - 1, 0).to(tl.int64)
    i = tl.arange(0, block)
    inside = i < half
    first = i if neox else 2 * i
    second = i + half if neox else 2 * i + 1
    source = q + row.to(tl.int64) * q_row + head * q_head
    target = out + row.to(tl.int64) * out_row + head * out_head
    cos = tl.load(table + position * table_row + i, mask=inside, other=1.0).to(tl.float32)
    sin = tl.load(table + position * table_row + half + i, mask=inside, other=0.0).to(tl.float32)
    a = tl.load(source + first, mask=inside, other=0.0).to(tl.float32)
    b = tl.load(source + second, mask=inside, other=0.0).to(tl.float32)
    size = cos * cos + sin * sin  # 1 but for rounding, and for factors that some kinds of RoPE put in
    tl.store(target + first, (a * cos + b * sin) / size, mask=inside)
    tl.store(target + second, (b * cos - a * sin) / size, mask=inside)
    if rest > 0:
        j = 2 * half + tl.arange(0, rest_block)
        tl.store(target + j, tl.load(source + j, mask=j < 2 * half + rest), mask=j < 2 * half + rest)


def unrotate(q, out, table, lengths, neox):
    """q [rows, heads, dim] after RoPE; `table` [positions, rotated dims] holds cos and sin."""
    rows, heads, dim = q.shape
    half = table.shape[1] // 2
    unrotate_kernel[rows, heads](q, out, table, lengths, q.stride(0), q.stride(1), out.stride(0), out.stride(1),
                                 table.stride(0), half, dim - 2 * half, neox, triton.next_power_of_2(half),
                                 triton.next_power_of_2(max(dim - 2 * half, 1)))
