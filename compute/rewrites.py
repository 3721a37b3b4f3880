"""Operations that torch calls inside and the table does not have, said in those that it has.

torch takes short cuts for its own tensors: one kernel for a whole transformer layer, an LSTM layer of oneDNN, bags of
embeddings, lists of tensors at once. Their kernels trust what they are given, so no peer runs them. Whoever sends
operations writes them out first: `rewritten(name)` is a function of the same arguments, in operations of the table,
with the same values.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

import torch
import torch.nn.functional as F

from compute import bags, listwise, packed, recurrent

Rewrite = Callable[..., Any]


def rewritten(name: str) -> Rewrite | None:
    """How an operation is said in others; None for one that is not known here."""
    found = REWRITES.get(name)
    return found if found is not None else listwise.for_each(name)


# --- attention ----------------------------------------------------------------------------------------------


def _attention(
    query: Any,
    key: Any,
    value: Any,
    embed_dim: int,
    num_head: int,
    qkv_weight: Any,
    qkv_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    mask: Any = None,
    need_weights: bool = True,
    average_attn_weights: bool = True,
    mask_type: int | None = None,
) -> tuple[Any, Any]:
    if query is key and key is value:
        projected = F.linear(query, qkv_weight, qkv_bias).chunk(3, -1)
    else:
        parts = zip((query, key, value), qkv_weight.chunk(3), qkv_bias.chunk(3), strict=True)
        projected = tuple(F.linear(*part) for part in parts)
    q, k, v = (part.reshape(*part.shape[:-1], num_head, -1).transpose(1, 2) for part in projected)
    scores = (q * (embed_dim // num_head) ** -0.5) @ k.transpose(-2, -1)
    weights = torch.softmax(_masked(scores, mask, mask_type), -1)
    out = F.linear((weights @ v).transpose(1, 2).flatten(2), proj_weight, proj_bias)
    if not need_weights:
        return out, None
    return out, weights.mean(1) if average_attn_weights else weights


def _masked(scores: Any, mask: Any, mask_type: int | None) -> Any:
    """`mask` is of queries and keys (0), of the keys of each sample (1), or of everything (2)."""
    if mask is None:
        return scores
    if mask_type == 1:
        mask = mask[:, None, None, :]
    return scores.masked_fill(mask, float("-inf")) if mask.dtype == torch.bool else scores + mask


def _encoder_layer(
    src: Any,
    embed_dim: int,
    num_heads: int,
    qkv_weight: Any,
    qkv_bias: Any,
    proj_weight: Any,
    proj_bias: Any,
    use_gelu: bool,
    norm_first: bool,
    eps: float,
    norm_weight_1: Any,
    norm_bias_1: Any,
    norm_weight_2: Any,
    norm_bias_2: Any,
    ffn_weight_1: Any,
    ffn_bias_1: Any,
    ffn_weight_2: Any,
    ffn_bias_2: Any,
    mask: Any = None,
    mask_type: int | None = None,
) -> Any:
    def attended(x: Any) -> Any:
        weights = (qkv_weight, qkv_bias, proj_weight, proj_bias)
        return _attention(x, x, x, embed_dim, num_heads, *weights, mask, need_weights=False, mask_type=mask_type)[0]

    def fed(x: Any) -> Any:
        hidden = F.linear(x, ffn_weight_1, ffn_bias_1)
        return F.linear(F.gelu(hidden) if use_gelu else F.relu(hidden), ffn_weight_2, ffn_bias_2)

    def first(x: Any) -> Any:
        return F.layer_norm(x, (embed_dim,), norm_weight_1, norm_bias_1, eps)

    def second(x: Any) -> Any:
        return F.layer_norm(x, (embed_dim,), norm_weight_2, norm_bias_2, eps)

    if norm_first:
        x = src + attended(first(src))
        return x + fed(second(x))
    x = first(src + attended(src))
    return second(x + fed(x))


def _not_left_aligned(values: Any, mask: Any) -> bool:
    """Whether a mask is of samples that are only shorter depends on values. Torch then computes without the mask's
    short cut (a nested tensor), which gives the same but for what stands at masked places."""
    return False


# --- distances ----------------------------------------------------------------------------------------------


def _euclidean(x1: Any, x2: Any) -> Any:
    squares1, squares2 = x1.pow(2).sum(-1, keepdim=True), x2.pow(2).sum(-1, keepdim=True)
    left = torch.cat([x1.mul(-2), squares1, torch.ones_like(squares1)], -1)
    right = torch.cat([x2, torch.ones_like(squares2), squares2], -1)
    return (left @ right.mT).clamp_min(0).sqrt()


def _cdist_backward(grad: Any, x1: Any, x2: Any, p: float, cdist: Any) -> Any:
    if p == 2:
        pull = (grad / cdist).masked_fill(cdist == 0, 0)
        return (x1 * pull.sum(-1, keepdim=True) - pull @ x2).sum_to_size(x1.shape)
    apart = x1.unsqueeze(-2) - x2.unsqueeze(-3)
    if p == float("inf"):
        pull = grad.unsqueeze(-1) * (apart.abs() == cdist.unsqueeze(-1))
        return (apart.sign() * pull).sum(-2).sum_to_size(x1.shape)
    pull = (grad / cdist.pow(p - 1)).masked_fill(cdist == 0, 0) if p > 0 else torch.zeros_like(grad)
    return (apart.sign() * apart.abs().pow(p - 1).masked_fill(apart == 0, 0) * pull.unsqueeze(-1)).sum(-2)


# --- positions of a picture under an affine map: Jaderberg et al., https://arxiv.org/abs/1506.02025 -------------


def _affine_grid(theta: Any, size: Any, align_corners: bool) -> Any:
    places = _places(theta, size, align_corners)
    return (places @ theta.mT).view(size[0], *size[2:], len(size) - 2)


def _affine_grid_backward(grad: Any, size: Any, align_corners: bool) -> Any:
    return (_places(grad, size, align_corners).mT @ grad.flatten(1, -2)).mT


def _places(like: Any, size: Any, align_corners: bool) -> Any:
    """The positions of all elements in -1..1, the last dimension first, and a 1 after them."""
    lengths = list(size[2:])
    parts = []
    for dim in reversed(range(len(lengths))):
        shape = [length if at == dim else 1 for at, length in enumerate(lengths)]
        parts.append(_from_minus_one(like, lengths[dim], align_corners).view(shape).expand(lengths))
    parts.append(like.new_ones(lengths))
    return torch.stack(parts, -1).flatten(0, -2).expand(size[0], -1, -1)


def _from_minus_one(theta: Any, count: int, align_corners: bool) -> Any:
    """Bit for bit what torch has in float32: a grid that changes nothing lies on the places themselves, where one bit
    decides between which two of them grid_sample's gradient is taken."""
    if count <= 1:
        return theta.new_zeros(count)
    numbers = theta.new_ones(count, dtype=torch.float64).cumsum(0) - 1
    step = float(torch.tensor(2, dtype=theta.dtype) / (count - 1))
    low, high = step * numbers - 1, 1 - step * (count - 1 - numbers)
    line = torch.where(numbers < count // 2, low, high).to(theta.dtype)
    return line if align_corners else line * (count - 1) / count


# --- weights of a direction and a length: Salimans and Kingma, https://arxiv.org/abs/1602.07868 ------------------


def _weight_norm(v: Any, g: Any, dim: int = 0) -> tuple[Any, Any]:
    norms = torch.linalg.vector_norm(v, dim=_others(v, dim), keepdim=True)
    return v * (g / norms), norms


def _weight_norm_backward(grad: Any, v: Any, g: Any, norms: Any, dim: int) -> tuple[Any, Any]:
    along = (grad * v).sum(_others(v, dim), keepdim=True)
    return (g / norms) * (grad - v * (along / norms.square())), along / norms


def _others(v: Any, dim: int) -> list[int]:
    return [other for other in range(v.dim()) if other != dim % v.dim()]


# --- how variables vary together: torch looks at values on the way, only to warn -----------------------------------


def _covariance(x: Any, correction: int = 1, fweights: Any = None, aweights: Any = None) -> Any:
    x = x if x.dim() == 2 else x.reshape(1, -1)
    weights = fweights if aweights is None else aweights if fweights is None else fweights * aweights
    if weights is None:
        centred = x - x.mean(1, keepdim=True)
        return ((centred @ centred.mH) / max(x.shape[1] - correction, 0)).squeeze()
    total = weights.sum()
    centred = x - (x * weights).sum(1, keepdim=True) / total
    free = correction if aweights is None or correction == 0 else correction * (weights * aweights).sum() / total
    return (((centred * weights) @ centred.mH) / (total - free).clamp(min=0)).squeeze()


def _correlation(x: Any) -> Any:
    found = _covariance(x)
    if found.dim() == 0:
        return found / found
    spread = found.diagonal().real.sqrt() if found.is_complex() else found.diagonal().sqrt()
    found = found / spread[:, None] / spread[None, :]
    return found if found.is_complex() else found.clip(-1, 1)


# --- convolutions of sequences that lie (time, batch, channels) ---------------------------------------------------


def _conv_tbc(x: Any, weight: Any, bias: Any, padding: int = 0) -> Any:
    """Laid out as torch's, which its gradient takes for granted."""
    return F.conv1d(x.permute(1, 2, 0), weight.permute(2, 1, 0), bias, padding=padding).permute(2, 0, 1).contiguous()


# --- quantised and back: Jacob et al., https://arxiv.org/abs/1712.05877 -------------------------------------------


def _quantised(x: Any, scale: Any, zero: Any, low: int, high: int) -> tuple[Any, Any]:
    """What is left of x where it goes through integers of low to high, and where it was not cut off."""
    steps = (x / scale).round() + zero
    return (steps.clamp(low, high) - zero) * scale, (steps >= low) & (steps <= high)


def _quantised_by_channel(x: Any, scale: Any, zero: Any, axis: int, low: int, high: int) -> tuple[Any, Any]:
    shape = [size if dim == axis % x.dim() else 1 for dim, size in enumerate(x.shape)]
    return _quantised(x, scale.view(shape), zero.view(shape), low, high)


def _quantised_if(x: Any, scale: Any, zero: Any, enabled: Any, low: int, high: int) -> tuple[Any, Any]:
    made, kept = _quantised(x, scale, zero, low, high)
    return torch.where(enabled > 0, made, x), kept | (enabled <= 0)


REWRITES: Final[Mapping[str, Rewrite]] = MappingProxyType(
    {
        "aten._transformer_encoder_layer_fwd.default": _encoder_layer,
        "aten._native_multi_head_attention.default": _attention,
        "aten._nested_tensor_from_mask_left_aligned.default": _not_left_aligned,
        "aten._euclidean_dist.default": _euclidean,
        "aten._cdist_backward.default": _cdist_backward,
        "aten.affine_grid_generator.default": _affine_grid,
        "aten.affine_grid_generator_backward.default": _affine_grid_backward,
        "aten._weight_norm_interface.default": _weight_norm,
        "aten._weight_norm_interface_backward.default": _weight_norm_backward,
        "aten.fake_quantize_per_tensor_affine_cachemask.default": _quantised,
        "aten.fake_quantize_per_channel_affine_cachemask.default": _quantised_by_channel,
        "aten._fake_quantize_per_tensor_affine_cachemask_tensor_qparams.default": _quantised_if,
        "aten.conv_tbc.default": _conv_tbc,
        "aten.cov.default": _covariance,
        "aten.corrcoef.default": _correlation,
        "aten._is_all_true.default": torch.all,
        "aten._is_any_true.default": torch.any,
        "aten._pack_padded_sequence.default": packed.pack,
        "aten._pack_padded_sequence_backward.default": packed.pack_backward,
        "aten._pad_packed_sequence.default": packed.pad_packed,
        "aten.mkldnn_rnn_layer.default": recurrent.lstm_layer,
        "aten.mkldnn_rnn_layer_backward.default": recurrent.lstm_layer_backward,
        "aten._embedding_bag.default": bags.embedding_bag,
        "aten._embedding_bag_forward_only.default": bags.embedding_bag,
        "aten._embedding_bag_backward.default": bags.bag_backward,
        "aten._embedding_bag_dense_backward.default": bags.weight_backward,
        "aten._embedding_bag_per_sample_weights_backward.default": bags.sample_weights_backward,
        "aten._amp_foreach_non_finite_check_and_unscale_.default": listwise.unscale,
        "aten._fused_adam_.default": listwise.fused_adam,
        "aten._fused_adam_.tensor_lr": listwise.fused_adam,
        "aten._fused_adamw_.default": listwise.fused_adamw,
        "aten._fused_adamw_.tensor_lr": listwise.fused_adamw,
        "aten._fused_sgd_.default": listwise.fused_sgd,
        "aten._fused_sgd_.tensor_lr": listwise.fused_sgd,
        "aten._fused_adagrad_.default": listwise.fused_adagrad,
        "aten._fused_adagrad_.tensor_lr": listwise.fused_adagrad,
    }
)
