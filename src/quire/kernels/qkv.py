"""From the fused projection to attention: norm of the heads, rotation, write to the cache.

On a GPU this is one kernel, in place: queries and keys are turned where they lie, and keys
and values go to their slots of the paged cache on the way.
"""

from __future__ import annotations

from torch import Tensor

from quire.kernels.norm import MANY_ROWS, rms_norm_torch
from quire.kernels.rotation import Rotation, rotate
from quire.kernels.runtime import jit, serves, starts_early, tl, triton
from quire.kv.layer import LayerKV
from quire.kv.quantized import LARGEST

# A step of at most so many tokens lets attention in as soon as this kernel has waited; a larger one
# at this kernel's end, since programs of attention that come early take places on the
# multiprocessors unevenly, and the one that ends last decides. Never before the wait: attention
# reads lengths before its own, and the step's first kernel must have written them.
FEW_TOKENS = 8
Heads = tuple[Tensor, Tensor, Tensor]  # query, key, value: each [T, its heads, head_size]


def norm_rotate(
    qkv: Tensor,
    head_norm_weight: Tensor | None,
    eps: float,
    rotation: Rotation,
    num_heads: int,
    num_kv_heads: int,
    kv: LayerKV | None,
    slots: Tensor | None,
) -> Heads:
    """Normalise and rotate queries and keys, write keys and values to the cache.

    Args:
        qkv: [T, (num_heads + 2 · num_kv_heads) · head_size], queries, keys, values. On a GPU
            it is changed in place and the results are views of it.
        head_norm_weight: [num_heads + num_kv_heads, head_size], the RMSNorm weight of each
            query and key head; None: heads are not normalised.
        eps: the norm's.
        rotation: the angles at the tokens' positions.
        kv, slots: the layer's paged cache and, int64 [T], block · block_size + offset of
            each token. None: nothing is written.
    """
    arguments = (qkv, head_norm_weight, eps, rotation, num_heads, num_kv_heads)
    if serves(qkv):
        return norm_rotate_triton(*arguments, kv, slots)
    return norm_rotate_torch(*arguments, kv, slots)


def norm_rotate_torch(
    qkv: Tensor,
    head_norm_weight: Tensor | None,
    eps: float,
    rotation: Rotation,
    num_heads: int,
    num_kv_heads: int,
    kv: LayerKV | None,
    slots: Tensor | None,
) -> Heads:
    """`norm_rotate` in torch; qkv stays as it was."""
    head_size = qkv.shape[1] // (num_heads + 2 * num_kv_heads)
    heads = qkv.view(qkv.shape[0], -1, head_size)
    num_rotated = num_heads + num_kv_heads
    rotated, value = heads.narrow(1, 0, num_rotated), heads.narrow(1, num_rotated, num_kv_heads)
    if head_norm_weight is not None:
        rotated = rms_norm_torch(rotated, head_norm_weight, eps)
    rotated = rotate(rotated, *rotation.gathered)
    query, key = rotated.narrow(1, 0, num_heads), rotated.narrow(1, num_heads, num_kv_heads)
    if kv is not None and slots is not None:
        kv.write(slots, key, value)
    return query, key, value


def norm_rotate_triton(
    qkv: Tensor,
    head_norm_weight: Tensor | None,
    eps: float,
    rotation: Rotation,
    num_heads: int,
    num_kv_heads: int,
    kv: LayerKV | None,
    slots: Tensor | None,
) -> Heads:
    """`norm_rotate` in one kernel; qkv is contiguous and changed in place."""
    num_tokens, all_heads = qkv.shape[0], num_heads + 2 * num_kv_heads
    head_size = qkv.shape[1] // all_heads
    writes = kv is not None and slots is not None
    positions, cos, sin = rotation.positions, rotation.cos, rotation.sin
    key_cache, value_cache = (kv.key, kv.value) if kv is not None else (qkv, qkv)
    scales = (kv.key_scale, kv.value_scale) if kv is not None and writes else (None, None)
    strides = (*key_cache.stride()[:3], *value_cache.stride()[:3]) if writes else (0,) * 6
    early = starts_early(qkv)
    # Of a few tokens, few heads a program fill more multiprocessors; of many, more heads hide one
    # another's waiting (16,384 tokens of the 8B shape on an H200: 120 us, 183 with 4 heads).
    heads_per_program = 16 if num_tokens > MANY_ROWS else 4
    half_block = triton.next_power_of_2(head_size // 2)
    _norm_rotate_kernel[(num_tokens, triton.cdiv(all_heads, heads_per_program))](
        qkv,
        qkv if head_norm_weight is None else head_norm_weight,
        eps,
        cos,
        sin,
        positions,
        key_cache,
        value_cache,
        *scales,
        slots if writes else positions,
        *strides,
        num_heads=num_heads,
        num_kv_heads=num_kv_heads,
        head_size=head_size,
        half_block=half_block,
        heads_per_program=heads_per_program,
        block_size=key_cache.shape[2] if writes else 1,
        normalises=head_norm_weight is not None,
        writes=writes,
        largest_code=LARGEST.get(key_cache.dtype, 0.0),
        early=early,
        lets_in=num_tokens <= FEW_TOKENS,
        # Each number has one thread: of two that turn it in place, the later one would read what
        # the other has written.
        num_warps=max(1, min(4, heads_per_program * half_block // 32)),
        launch_pdl=early,
    )
    heads = qkv.view(num_tokens, all_heads, head_size)
    query, key, value = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    return query, key, value


@jit
def _quantize(low, high, inside, largest_code: tl.constexpr):
    """Divide heads, given as halves [heads, half], by their scales; return these as well."""
    low = tl.where(inside, low.to(tl.float32), 0.0)
    high = tl.where(inside, high.to(tl.float32), 0.0)
    largest = tl.max(tl.maximum(tl.abs(low), tl.abs(high)), axis=1, keep_dims=True)
    scale = largest / largest_code
    divisor = tl.maximum(scale, 1e-30)  # SMALLEST_SCALE
    return low / divisor, high / divisor, tl.broadcast_to(scale, low.shape)


@jit
def _as_code(x, cache):
    """Round to the cache's codes."""
    if cache.dtype.element_ty == tl.int8:
        x = tl.floor(x + 0.5)
    return x.to(cache.dtype.element_ty)


@jit
def _norm_rotate_kernel(
    qkv,
    head_norm_weight,
    eps,
    cos,
    sin,
    positions,
    key_cache,
    value_cache,
    key_scale,
    value_scale,
    slots,
    key_block_stride,
    key_head_stride,
    key_offset_stride,
    value_block_stride,
    value_head_stride,
    value_offset_stride,
    num_heads: tl.constexpr,
    num_kv_heads: tl.constexpr,
    head_size: tl.constexpr,
    half_block: tl.constexpr,
    heads_per_program: tl.constexpr,
    block_size: tl.constexpr,
    normalises: tl.constexpr,
    writes: tl.constexpr,
    largest_code: tl.constexpr,  # of a cache of codes
    early: tl.constexpr,
    lets_in: tl.constexpr,
):
    """One program a token and a few heads; each head is two halves, turned against each other."""
    num_rotated: tl.constexpr = num_heads + num_kv_heads
    all_heads: tl.constexpr = num_rotated + num_kv_heads
    half: tl.constexpr = head_size // 2
    token = tl.program_id(0).to(tl.int64)
    head = tl.program_id(1) * heads_per_program + tl.arange(0, heads_per_program)[:, None]
    column = tl.arange(0, half_block)[None, :]
    inside = (column < half) & (head < all_heads)
    rotated = inside & (head < num_rotated)
    if early:
        tl.extra.cuda.gdc_wait()
        if lets_in:
            tl.extra.cuda.gdc_launch_dependents()
    position = tl.load(positions + token)
    place = qkv + (token * all_heads + head) * head_size + column
    low = tl.load(place, inside, other=0.0).to(tl.float32)
    high = tl.load(place + half, inside, other=0.0).to(tl.float32)
    if normalises:
        weight = head_norm_weight + head * head_size + column
        squares = tl.sum(low * low + high * high, axis=1, keep_dims=True)
        scale = tl.rsqrt(squares / head_size + eps)
        low_norm = low * scale * tl.load(weight, rotated, other=0.0)
        high_norm = high * scale * tl.load(weight + half, rotated, other=0.0)
    else:
        low_norm, high_norm = low, high
    # The table's sine carries the sign of the rotation: -sin for the low half.
    angle = position * head_size + column
    turn = column < half
    cos_low = tl.load(cos + angle, turn, other=0.0).to(tl.float32)
    cos_high = tl.load(cos + angle + half, turn, other=0.0).to(tl.float32)
    sin_low = tl.load(sin + angle, turn, other=0.0).to(tl.float32)
    sin_high = tl.load(sin + angle + half, turn, other=0.0).to(tl.float32)
    low = tl.where(rotated, low_norm * cos_low + high_norm * sin_low, low)
    high = tl.where(rotated, high_norm * cos_high + low_norm * sin_high, high)
    low = low.to(qkv.dtype.element_ty)
    high = high.to(qkv.dtype.element_ty)
    tl.store(place, low, rotated)
    tl.store(place + half, high, rotated)
    if writes:
        slot = tl.load(slots + token)
        block = slot // block_size
        offset = slot % block_size
        is_key = rotated & (head >= num_heads)
        is_value = inside & (head >= num_rotated)
        if key_scale is not None:
            low, high, scale = _quantize(low, high, inside, largest_code)
            scales = block * num_kv_heads * block_size + offset
            first = column == 0
            kv_head = (head - num_heads).to(tl.int64)
            tl.store(key_scale + scales + kv_head * block_size + column, scale, is_key & first)
            kv_head = (head - num_rotated).to(tl.int64)
            tl.store(value_scale + scales + kv_head * block_size + column, scale, is_value & first)
            low = _as_code(low, key_cache)
            high = _as_code(high, key_cache)
        kv_head = (head - num_heads).to(tl.int64)
        entry = block * key_block_stride + kv_head * key_head_stride + offset * key_offset_stride
        tl.store(key_cache + entry + column, low, is_key)
        tl.store(key_cache + entry + column + half, high, is_key)
        kv_head = (head - num_rotated).to(tl.int64)
        entry = (
            block * value_block_stride + kv_head * value_head_stride + offset * value_offset_stride
        )
        tl.store(value_cache + entry + column, low, is_value)
        tl.store(value_cache + entry + column + half, high, is_value)
