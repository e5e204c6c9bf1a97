"""Conformer encoder whose layers are handed their mixer (arXiv 2005.08100)."""

import torch
from speechbrain.lobes.models.transformer import Conformer as host
from torch import nn
from torch.nn import functional as F

from summarymixing.models.checkpointing import checkpointed
from summarymixing.models.mixers import NoMixer
from summarymixing.models.streaming import StreamingEncoder, nested, part
from summarymixing.ops.convolution import chunked_convolution, depthwise_convolution


class ConvolutionModule(host.ConvolutionModule):
    """SpeechBrain's module with padding kept out of the depthwise convolution.

    The host masks the module's output only, so that the last valid frames see what stands in the
    padding, and an utterance's encoding depends on the batch around it.
    """

    def forward(self, x, mask=None, dynchunktrain_config=None):
        """(batch, time, features); mask (batch, time, 1), True = padding."""
        if dynchunktrain_config is not None:
            return self.stream(x, dynchunktrain_config, {}, mask)[0]
        x = self._before_conv(x, mask)
        after = 0 if self.causal else self.padding
        x = depthwise_convolution(x, self.conv.weight, self.conv.bias, self.padding, after)
        return self.after_conv(x)

    def stream(self, x, chunks, state, mask=None):
        """(batch, time, features), whole chunks → (same, state)."""
        x, past = chunked_convolution(
            self._before_conv(x, mask),
            self.conv.weight,
            self.conv.bias,
            chunks.chunk_size,
            state.get("past"),
        )
        return self.after_conv(x), {"past": past}

    def _before_conv(self, x, mask):
        # The host's pointwise convolution as the product that it is, without transposing.
        pointwise = self.bottleneck[0]
        x = F.linear(self.layer_norm(x), pointwise.weight.squeeze(-1), pointwise.bias)
        x = F.glu(x, dim=-1)
        return x if mask is None else x.masked_fill(mask, 0)


def half_step(x, feed_forward):
    """A Conformer layer's residual around a feed-forward part: half of it is added."""
    return torch.add(x, feed_forward(x), alpha=0.5)


class ConformerEncoderLayer(host.ConformerEncoderLayer):
    """One Conformer layer around a given mixer.

    Arguments
    ---------
    mixer : torch.nn.Module
        Stands where self-attention stood (pre-norm, residual).
    d_model, d_ffn, kernel_size, activation, bias, dropout, causal
        As in SpeechBrain's layer.
    """

    activation_checkpointing = False

    def __init__(
        self,
        mixer,
        d_model,
        d_ffn,
        kernel_size=31,
        activation=nn.GELU,
        bias=True,
        dropout=0.0,
        causal=False,
    ):
        super().__init__(
            d_model,
            d_ffn,
            nhead=1,
            kernel_size=kernel_size,
            activation=activation,
            bias=bias,
            dropout=dropout,
            causal=causal,
            attention_type=None,
        )
        self.mha_layer = mixer
        self.convolution_module = ConvolutionModule(
            d_model, kernel_size, bias, activation, dropout, causal=causal
        )
        if isinstance(mixer, NoMixer):
            self.norm1 = nn.Identity()  # its parameters would never get a gradient

    @checkpointed
    def forward(
        self,
        x,
        src_mask=None,
        src_key_padding_mask=None,
        pos_embs=None,
        dynchunktrain_config=None,
    ):
        """(batch, time, d_model) → (same, attention weights or None); masks True = excluded.

        Chunks come as `src_mask`; SpeechBrain's argument for them is the convolution's alone.
        """
        if hasattr(src_mask, "chunk_size"):
            return self.stream(x, src_mask, {}, src_key_padding_mask)[0], None
        mask = None if src_key_padding_mask is None else src_key_padding_mask.unsqueeze(-1)
        x = half_step(x, self.ffn_module1)
        y = self.norm1(x)
        y, weights = self.mha_layer(
            y,
            y,
            y,
            attn_mask=src_mask,
            key_padding_mask=src_key_padding_mask,
            pos_embs=pos_embs,
        )
        x = x + y
        x = x + self.convolution_module(x, mask, dynchunktrain_config)
        return self.norm2(half_step(x, self.ffn_module2)), weights

    def stream(self, x, chunks, state, padding=None):
        """(batch, time, d_model), whole chunks → (same, state): see `models.streaming`."""
        mask = None if padding is None else padding.unsqueeze(-1)
        x = half_step(x, self.ffn_module1)
        y, mixer = self.mha_layer.stream(self.norm1(x), chunks, part(state, "mixer"), padding)
        x = x + y
        y, past = self.convolution_module.stream(x, chunks, part(state, "convolution"), mask)
        x = self.norm2(half_step(x + y, self.ffn_module2))
        return x, nested({"mixer": mixer, "convolution": past})

    def initial_state(self, batch_size, chunks, like):
        """The state of streams that have not begun, on the device and in the type of `like`."""
        conv = self.convolution_module.conv
        past = like.new_zeros(batch_size, conv.kernel_size[0] // 2, conv.in_channels)
        mixer = self.mha_layer.initial_state(batch_size, chunks, like.device)
        return nested({"mixer": mixer, "convolution": {"past": past}})


class ConformerEncoder(StreamingEncoder, host.ConformerEncoder):
    """SpeechBrain's Conformer encoder over given layers.

    Arguments
    ---------
    layers : list of ConformerEncoderLayer
    d_model : int
    output_hidden_states : bool
    layerdrop_prob : float

    Example
    -------
    >>> import torch
    >>> from summarymixing import SummaryMixing
    >>> cells = [SummaryMixing(16, 1, [16], 16, [16], 16) for _ in range(2)]
    >>> layers = [ConformerEncoderLayer(cell, 16, 32, kernel_size=5) for cell in cells]
    >>> ConformerEncoder(layers, 16)(torch.rand(2, 9, 16))[0].shape
    torch.Size([2, 9, 16])
    """

    def __init__(self, layers, d_model, output_hidden_states=False, layerdrop_prob=0.0):
        super().__init__(
            num_layers=0,
            d_model=d_model,
            d_ffn=None,
            nhead=None,
            attention_type=None,
            output_hidden_states=output_hidden_states,
            layerdrop_prob=layerdrop_prob,
        )
        self.layers = nn.ModuleList(layers)
