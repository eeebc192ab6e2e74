"""nn.MultiheadAttention, which packs the weights of queries, keys and values, with fewer heads.

drop_heads(module)   # after rows of its packed weights, and columns that read them, have gone
"""

import torch
from torch import nn
from torch.nn import functional as F


class PackedRows(nn.Linear):
    """The packed weights of queries, keys and values of an nn.MultiheadAttention, as a linear layer
    with the same parameters. Nothing calls it, so that its outputs cannot be watched."""

    def __init__(self, attention):
        nn.Module.__init__(self)
        self.weight, self.bias = attention.in_proj_weight, attention.in_proj_bias
        self.out_features, self.in_features = self.weight.shape


class FewerHeads(nn.MultiheadAttention):
    """With heads as wide as they were, of which there may be fewer than fit its outputs; torch's
    own class computes such ones wrongly or not at all."""

    def forward(self, query, key, value, need_weights=False):
        dropout = self.dropout if self.training else 0.0
        return attend(self, (query, key, value), _weights_of(self), dropout), None


def drop_heads(attention):
    """Let an nn.MultiheadAttention that has lost rows, in place, have as many heads as are left."""
    attention.__class__ = FewerHeads
    attention.num_heads = len(attention.in_proj_weight) // 3 // attention.head_dim


def has_packed_heads(module, args, kwargs):
    """Whether a layer, called with these arguments, is an nn.MultiheadAttention whose heads can
    leave: without biases of its own for keys and values, without masks, its weights not asked
    for."""
    return (
        type(module) is nn.MultiheadAttention
        and module._qkv_same_embed_dim
        and module.bias_k is None
        and not module.add_zero_attn
        and module.num_heads > 1
        and len(args) == 3
        and kwargs == {"need_weights": False}
    )


def _weights_of(attention):
    out = attention.out_proj
    return attention.in_proj_weight, attention.in_proj_bias, out.weight, out.bias


def attend(attention, inputs, weights, dropout=0.0, mask=None):
    """What an nn.MultiheadAttention gives, without the weights of its softmax.

    inputs: queries, keys and values, N x T x C each, or T x N x C as the layer asks for them.
    weights: its packed ones, their bias, those of its output, their bias. mask: a factor for each
    of the channels that its output reads.
    """
    in_weight, in_bias, out_weight, out_bias = weights
    biases = (None,) * 3 if in_bias is None else in_bias.chunk(3)
    heads = []
    for tensor, weight, bias in zip(inputs, in_weight.chunk(3), biases):
        tensor = tensor if attention.batch_first else tensor.transpose(0, 1)
        rows = F.linear(tensor, weight, bias)
        heads.append(rows.unflatten(2, (-1, attention.head_dim)).transpose(1, 2))
    mixed = F.scaled_dot_product_attention(*heads, dropout_p=dropout)
    mixed = mixed.transpose(1, 2).flatten(2)
    if mask is not None:
        mixed = mixed * mask
    result = F.linear(mixed, out_weight, out_bias)
    return result if attention.batch_first else result.transpose(0, 1)


class MaskedHeads(nn.Module):
    """An attention, with its own weights, some of whose heads are zero where its output reads
    them. mask: a factor for each channel of these, which is changed in place."""

    def __init__(self, attention, mask):
        super().__init__()
        self.attention = attention
        self.register_buffer("mask", mask)

    def forward(self, query, key, value, need_weights=False):
        weights = _weights_of(self.attention)
        return attend(self.attention, (query, key, value), weights, mask=self.mask), None


def rows_of(module: nn.Module) -> nn.Module:
    """The layer with `weight` and `bias` whose rows are the filters of a layer: itself, or those of
    its packed weights."""
    return PackedRows(module) if isinstance(module, nn.MultiheadAttention) else module


def weight_of(module: nn.Module) -> torch.Tensor | None:
    """The weight of a layer whose rows are its filters; None where it has none."""
    name = "in_proj_weight" if isinstance(module, nn.MultiheadAttention) else "weight"
    return getattr(module, name, None)
