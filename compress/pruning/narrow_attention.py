"""Multi-head attention whose inner width is its own: what ``nn.MultiheadAttention`` becomes when heads are removed.

torch's layer asserts that heads times head width is the width of its input, so it cannot lose a head. This one has
the same parameters under the same names and the same call, computes the same, and takes its inner width from the
shapes of its weights. The scale of the scores stays that of the original head width.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from compress.networks.plain_copies import replace_everywhere
from compress.pruning.groups import Unsupported


class NarrowAttention(nn.Module):
    """Attention with the parameters of ``source``; raises Unsupported for what it cannot stand in for."""

    def __init__(self, source: nn.MultiheadAttention) -> None:
        super().__init__()
        if source.bias_k is not None or source.bias_v is not None or source.add_zero_attn:
            raise Unsupported("MultiheadAttention with bias_k, bias_v or add_zero_attn is not supported")
        self.in_proj_weight: Tensor | None
        self.in_proj_bias: Tensor | None
        self.embed_dim = source.embed_dim
        self.num_heads = source.num_heads
        self.batch_first = source.batch_first
        self.dropout = source.dropout
        self.scale = source.head_dim**-0.5
        self._qkv_same_embed_dim = False
        """Tells nn.TransformerEncoderLayer not to take its fast path, which ignores this module."""
        for name in ("in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"):
            self.register_parameter(name, getattr(source, name))
        self.out_proj = nn.Linear(1, 1, bias=source.out_proj.bias is not None)
        self.out_proj.weight, self.out_proj.bias = source.out_proj.weight, source.out_proj.bias
        self.out_proj.in_features = self.out_proj.out_features = source.embed_dim
        self.train(source.training)

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,  # noqa: ARG002  a hint beside attn_mask, which must be given
    ) -> tuple[Tensor, Tensor | None]:
        """As nn.MultiheadAttention's; query: (batch, time, width) if ``batch_first``, else time first; or no batch."""
        alone, same = query.ndim == 2, query is key and key is value
        if alone:
            query, key, value = query.unsqueeze(0), key.unsqueeze(0), value.unsqueeze(0)
            key_padding_mask = None if key_padding_mask is None else key_padding_mask.unsqueeze(0)
        elif not self.batch_first:
            query, key, value = query.transpose(0, 1), key.transpose(0, 1), value.transpose(0, 1)
        q, k, v = (
            x.reshape(x.shape[0], x.shape[1], self.num_heads, -1).transpose(1, 2)
            for x in self._projected(query, key, value, same)
        )
        scores = (q * self.scale) @ k.transpose(-2, -1)
        mask = self._mask(scores, attn_mask, key_padding_mask)
        weights = (scores if mask is None else scores + mask).softmax(-1)
        dropped = F.dropout(weights, self.dropout, self.training)
        out = self.out_proj((dropped @ v).transpose(1, 2).flatten(2))
        shown = (weights.mean(1) if average_attn_weights else weights) if need_weights else None
        if alone:
            return out.squeeze(0), None if shown is None else shown.squeeze(0)
        return out if self.batch_first else out.transpose(0, 1), shown

    def _projected(self, query: Tensor, key: Tensor, value: Tensor, same: bool) -> tuple[Tensor, ...]:
        if self.in_proj_weight is not None and same:
            return F.linear(query, self.in_proj_weight, self.in_proj_bias).chunk(3, dim=-1)
        if self.in_proj_weight is not None:
            weights = tuple(self.in_proj_weight.chunk(3))
        else:
            weights = tuple(self.get_parameter(f"{name}_proj_weight") for name in "qkv")
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        return tuple(F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases, strict=True))

    def _mask(self, scores: Tensor, attn_mask: Tensor | None, key_padding_mask: Tensor | None) -> Tensor | None:
        """Both masks as one summand of the scores (batch, heads, queries, keys); None where neither is given."""
        masks = []
        for mask in (attn_mask, key_padding_mask):
            if mask is None:
                continue
            if mask is key_padding_mask:
                mask = mask[:, None, None, :]
            elif mask.ndim == 3:  # (batch * heads, queries, keys): of the original heads
                raise ValueError("a mask for each head does not fit an attention layer that may have lost heads")
            if not mask.is_floating_point():
                mask = scores.new_zeros(mask.shape).masked_fill(mask, float("-inf"))
            masks.append(mask)
        return sum(masks[1:], masks[0]) if masks else None


def adapt(module: nn.Module, touched: set[str] | None = None) -> None:
    """Replace each nn.MultiheadAttention (of those ``touched``, or all) that can be by one that may lose heads."""
    for name, layer in list(module.named_modules(remove_duplicate=False)):
        if type(layer) is nn.MultiheadAttention and name and (touched is None or name in touched):
            try:
                narrow = NarrowAttention(layer)
            except Unsupported:
                continue
            replace_everywhere(module, layer, narrow)
