"""Conformer encoder whose layers are handed their mixer (arXiv 2005.08100)."""

from speechbrain.lobes.models.transformer import Conformer as host
from torch import nn

from summarymixing.errors import InputError
from summarymixing.models.mixers import NoMixer


class ConvolutionModule(host.ConvolutionModule):
    """SpeechBrain's module with padding kept out of the depthwise convolution.

    The host masks the module's output only, so that the last valid frames see what stands in the
    padding, and an utterance's encoding depends on the batch around it.
    """

    def forward(self, x, mask=None, dynchunktrain_config=None):
        """(batch, time, features); mask (batch, time, 1), True = padding."""
        if dynchunktrain_config is not None:
            raise InputError("this encoder has no dynamic chunk training: set no chunk size")
        x = self.bottleneck(self.layer_norm(x).transpose(1, 2))
        if mask is not None:
            x = x.masked_fill(mask.transpose(1, 2), 0)
        x = self.conv(x)
        if self.causal:
            x = x[..., : -self.padding]
        return self.after_conv(x.transpose(1, 2))


class ConformerEncoderLayer(host.ConformerEncoderLayer):
    """One Conformer layer around a given mixer.

    Arguments
    ---------
    mixer : torch.nn.Module
        Stands where self-attention stood (pre-norm, residual).
    d_model, d_ffn, kernel_size, activation, bias, dropout, causal
        As in SpeechBrain's layer.
    """

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


class ConformerEncoder(host.ConformerEncoder):
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
