"""Transformer encoder whose layers are handed their mixer."""

from speechbrain.lobes.models.transformer import Transformer as host
from torch import nn

from summarymixing.models.checkpointing import checkpointed
from summarymixing.models.mixers import NoMixer


class TransformerEncoderLayer(host.TransformerEncoderLayer):
    """One Transformer layer around a given mixer.

    Arguments
    ---------
    mixer : torch.nn.Module
        Stands where self-attention stood.
    d_model, d_ffn, activation, dropout, normalize_before
        As in SpeechBrain's layer.
    """

    activation_checkpointing = False

    def __init__(
        self, mixer, d_model, d_ffn, activation=nn.GELU, dropout=0.0, normalize_before=True
    ):
        super().__init__(
            d_ffn,
            nhead=1,
            d_model=d_model,
            activation=activation,
            dropout=dropout,
            normalize_before=normalize_before,
            attention_type=None,
        )
        self.self_att = mixer
        if isinstance(mixer, NoMixer) and normalize_before:
            self.norm1 = nn.Identity()  # its parameters would never get a gradient

    @checkpointed
    def forward(self, *args, **kwargs):
        """As SpeechBrain's."""
        return super().forward(*args, **kwargs)


class TransformerEncoder(host.TransformerEncoder):
    """SpeechBrain's Transformer encoder over given layers.

    Arguments
    ---------
    layers : list of TransformerEncoderLayer
    d_model : int
    output_hidden_states : bool
    layerdrop_prob : float

    Example
    -------
    >>> import torch
    >>> from summarymixing import SummaryMixing
    >>> cells = [SummaryMixing(16, 1, [16], 16, [16], 16) for _ in range(2)]
    >>> layers = [TransformerEncoderLayer(cell, 16, 32) for cell in cells]
    >>> TransformerEncoder(layers, 16)(torch.rand(2, 9, 16))[0].shape
    torch.Size([2, 9, 16])
    """

    def __init__(self, layers, d_model, output_hidden_states=False, layerdrop_prob=0.0):
        super().__init__(
            num_layers=0,
            nhead=None,
            d_ffn=None,
            d_model=d_model,
            output_hidden_states=output_hidden_states,
            layerdrop_prob=layerdrop_prob,
        )
        self.layers = nn.ModuleList(layers)
