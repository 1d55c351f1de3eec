"""Kernels of the linear branch: its state over all keys, and its gradients.

The forward adds the branch inside ``ops/attention/forward.py``; what is needed before and after is
here. The state ``φ(k)ᵀ v`` and ``Σ φ(k)`` enters every kernel multiplied by ``unit``, one number a
head (1 / max Σ φ(k)): numerator and denominator of the branch share it, so nothing changes but the
range, which then suits half precision for any number of tokens.
"""

from __future__ import annotations

import triton
import triton.language as tl

from turbodiffusion.ops.attention.forward import feature_tile


@triton.jit
def token_product_kernel(
    x, y, weight, products, sums, L, N, chunk, x_b, x_l, x_n, y_b, y_l, y_n,
    D: tl.constexpr, TILE: tl.constexpr,
    FEATURE: tl.constexpr, WEIGHTED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """``f(x)ᵀ y`` and ``Σ weight · f(x)`` over a chunk of tokens. Grid (chunks, B·N).

    ``products`` float32 (chunks, B·N, D, D), ``sums`` (chunks, B·N, D), one entry a program: they
    are added up afterwards in a fixed order. ``f`` is φ, or nothing when ``FEATURE`` is none.
    """
    i_chunk, i_bn = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    o_d = tl.arange(0, D)
    p_x, p_y = x + i_b * x_b + i_n * x_n, y + i_b * y_b + i_n * y_n
    b_product = tl.zeros((D, D), tl.float32)
    b_sum = tl.zeros((TILE, D), tl.float32)
    for i in range(i_chunk * chunk, tl.minimum(i_chunk * chunk + chunk, L), TILE):
        o_l = i + tl.arange(0, TILE)
        m_l = o_l < L
        o_row = o_l[:, None].to(tl.int64)
        b_x = tl.load(p_x + o_row * x_l + o_d[None, :], mask=m_l[:, None], other=0.0)
        b_y = tl.load(p_y + o_row * y_l + o_d[None, :], mask=m_l[:, None], other=0.0)
        b_f = b_x.to(tl.float32)
        if FEATURE != "none":
            b_f = tl.where(m_l[:, None], feature_tile(b_f, FEATURE), 0.0)
            b_x = b_f.to(b_x.dtype)
        b_product = tl.dot(tl.trans(b_x), b_y, b_product, input_precision=PRECISION)
        if WEIGHTED:
            b_w = tl.load(weight + i_bn.to(tl.int64) * L + o_l, mask=m_l, other=0.0)
            b_f = b_f * b_w[:, None]
        b_sum += b_f
    i_out = i_chunk.to(tl.int64) * tl.num_programs(1) + i_bn
    o_dd = o_d[:, None] * D + o_d[None, :]
    tl.store(products + i_out * D * D + o_dd, b_product)
    tl.store(sums + i_out * D + o_d, tl.sum(b_sum, 0))


@triton.jit
def feature_gradient(b_x, b_phi, b_dphi, FEATURE: tl.constexpr):
    """Gradient of the argument of φ from that of its value, all float32 [rows, D]."""
    if FEATURE == "softmax":
        return b_phi * (b_dphi - tl.sum(b_phi * b_dphi, 1)[:, None])
    elif FEATURE == "elu":
        return tl.where(b_x > 0, b_dphi, b_dphi * b_phi)
    else:
        return tl.where(b_x > 0, b_dphi, 0.0)


@triton.jit
def linear_query_kernel(
    q, o, g, dq, dn, o_lin, dz, delta, state, key_sum, unit, proj, bias,
    L, N, q_b, q_l, q_n, o_b, o_l, o_n, g_b, g_l, g_n,
    D: tl.constexpr, TILE: tl.constexpr, FEATURE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """What the queries' side of the linear branch gives back. Grid (⌈L / TILE⌉, B·N).

    Writes dq of this branch, ``dn`` = dL/d(φ(q) state), ``o_lin`` (the branch before ``proj_l``),
    ``dz`` = dL/d(denominator) and ``delta`` = rowsum(o_s · g) of the sparse branch, from
    ``o_s = o - o_lin Wᵀ - b``. All (B, L, N, D) outputs are contiguous, dz and delta (B·N, L).
    """
    i_tile, i_bn = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    o_t = i_tile * TILE + tl.arange(0, TILE)
    m_t = o_t < L
    o_d = tl.arange(0, D)
    o_row = o_t[:, None].to(tl.int64)
    p_g = g + i_b * g_b + i_n * g_n + o_row * g_l + o_d[None, :]
    p_o = o + i_b * o_b + i_n * o_n + o_row * o_l + o_d[None, :]
    p_q = q + i_b * q_b + i_n * q_n + o_row * q_l + o_d[None, :]
    o_out = ((i_b * L + o_row) * N + i_n) * D + o_d[None, :]
    o_dd = o_d[:, None] * D + o_d[None, :]

    b_g = tl.load(p_g, mask=m_t[:, None], other=0.0)
    b_do = tl.dot(b_g, tl.load(proj + o_dd), input_precision=PRECISION)
    b_o = tl.load(p_o, mask=m_t[:, None], other=0.0).to(tl.float32)
    b_delta = tl.sum((b_o - tl.load(bias + o_d)[None, :]) * b_g.to(tl.float32), 1)

    b_q = tl.load(p_q, mask=m_t[:, None], other=0.0)
    b_phi = feature_tile(b_q.to(tl.float32), FEATURE).to(b_q.dtype)
    b_sum = tl.load(key_sum + i_bn * D + o_d)
    b_unit = tl.load(unit + i_bn)
    b_z = (tl.sum(b_phi.to(tl.float32) * b_sum[None, :], 1) + 1e-5) * b_unit
    b_state = tl.load(state + i_bn * D * D + o_dd)
    b_o = tl.dot(b_phi, b_state, input_precision=PRECISION) / b_z[:, None]
    tl.store(o_lin + o_out, b_o.to(o_lin.dtype.element_ty), mask=m_t[:, None])
    b_row = tl.sum(b_do * b_o, 1)
    tl.store(delta + i_bn.to(tl.int64) * L + o_t, b_delta - b_row, mask=m_t)
    b_dz = -b_row / b_z
    tl.store(dz + i_bn.to(tl.int64) * L + o_t, b_dz, mask=m_t)
    b_dn = b_do / b_z[:, None]
    if b_q.dtype == tl.float16:
        # A row without any positive feature (relu) divides by 1e-5; its gradient stays zero below.
        b_dn = tl.minimum(tl.maximum(b_dn, -65504.0), 65504.0)
    b_dn = b_dn.to(b_q.dtype)
    tl.store(dn + o_out, b_dn, mask=m_t[:, None])

    b_dphi = tl.dot(b_dn, tl.trans(b_state), input_precision=PRECISION)
    b_dphi += (b_dz * b_unit)[:, None] * b_sum[None, :]
    b_dq = feature_gradient(b_q.to(tl.float32), b_phi.to(tl.float32), b_dphi, FEATURE)
    tl.store(dq + o_out, b_dq.to(dq.dtype.element_ty), mask=m_t[:, None])


@triton.jit
def linear_key_kernel(
    k, v, dk, dv, dstate, dsum,
    L, N, k_b, k_l, k_n, v_b, v_l, v_n,
    D: tl.constexpr, TILE: tl.constexpr, FEATURE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """dk and dv of the linear branch, contiguous (B, L, N, D). Grid (⌈L / TILE⌉, B·N).

    ``dstate`` (B·N, D, D) in the dtype of k and ``dsum`` float32 (B·N, D) are the gradients of
    ``φ(k)ᵀ v`` and ``Σ φ(k)``.
    """
    i_tile, i_bn = tl.program_id(0), tl.program_id(1)
    i_b, i_n = (i_bn // N).to(tl.int64), (i_bn % N).to(tl.int64)
    o_t = i_tile * TILE + tl.arange(0, TILE)
    m_t = o_t < L
    o_d = tl.arange(0, D)
    o_row = o_t[:, None].to(tl.int64)
    o_out = ((i_b * L + o_row) * N + i_n) * D + o_d[None, :]
    o_dd = o_d[:, None] * D + o_d[None, :]
    p_v = v + i_b * v_b + i_n * v_n + o_row * v_l + o_d[None, :]
    p_k = k + i_b * k_b + i_n * k_n + o_row * k_l + o_d[None, :]
    b_state = tl.load(dstate + i_bn * D * D + o_dd)
    b_v = tl.load(p_v, mask=m_t[:, None], other=0.0)
    b_dphi = tl.dot(b_v, tl.trans(b_state), input_precision=PRECISION)
    b_dphi += tl.load(dsum + i_bn * D + o_d)[None, :]
    b_k = tl.load(p_k, mask=m_t[:, None], other=0.0)
    b_phi = feature_tile(b_k.to(tl.float32), FEATURE)
    b_dk = feature_gradient(b_k.to(tl.float32), b_phi, b_dphi, FEATURE)
    tl.store(dk + o_out, b_dk.to(dk.dtype.element_ty), mask=m_t[:, None])
    b_dv = tl.dot(b_phi.to(b_k.dtype), b_state, input_precision=PRECISION)
    tl.store(dv + o_out, b_dv.to(dv.dtype.element_ty), mask=m_t[:, None])
