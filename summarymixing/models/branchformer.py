"""Branchformer encoder whose layers are handed their mixer (arXiv 2207.02971)."""

import torch
from speechbrain.lobes.models import convolution
from speechbrain.lobes.models.transformer import Branchformer as host
from torch import nn

from summarymixing.models.checkpointing import checkpointed
from summarymixing.models.mixers import NoMixer
from summarymixing.models.streaming import StreamingEncoder, nested, part
from summarymixing.nnet.mlp import mlp
from summarymixing.ops.convolution import chunked_convolution, depthwise_convolution
from summarymixing.ops.padding import reflect


class ReflectingConv1d(nn.Module):
    """A SpeechBrain `Conv1d` that pads by reflection at each utterance's own end.

    The host reflects at the end of the batch, reads whatever stands in the padding, and fails on
    inputs shorter than half the kernel.
    """

    def __init__(self, conv):
        super().__init__()
        self.conv = conv.conv
        self.width = (conv.kernel_size - 1) // 2

    def forward(self, x, lengths=None):
        """(batch, time, channels), lengths (batch,) in frames."""
        batch, time, _ = x.shape
        if lengths is None:
            lengths = torch.full((batch,), time, device=x.device)
        x = reflect(x, lengths, self.width)
        # Around its first frame, an utterance of at most `width` frames reflects into what was
        # just written behind it: a reflection repeated is the same seen from either end.
        x = torch.cat([x[:, 1 : self.width + 1].flip(1), x], dim=1)
        return depthwise_convolution(x, self.conv.weight, self.conv.bias)


class SpatialGatingUnit(convolution.ConvolutionalSpatialGatingUnit):
    """SpeechBrain's convolutional gate, independent of padding and for any length."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.conv = ReflectingConv1d(self.conv)

    def forward(self, x, lengths=None):
        """(batch, time, 2 channels) → (batch, time, channels)."""
        x, gate = x.chunk(2, dim=-1)
        return self._gate(x, self.conv(self.norm(gate), lengths))

    def stream(self, x, chunks, state, padding=None):
        """As `forward`, (x, state): a chunk sees zeros beyond its end, where reflection cannot be.

        padding (batch, time), True = padding.
        """
        x, gate = x.chunk(2, dim=-1)
        gate = self.norm(gate)
        if padding is not None:
            gate = gate.masked_fill(padding.unsqueeze(-1), 0)
        conv = self.conv.conv
        gate, past = chunked_convolution(
            gate, conv.weight, conv.bias, chunks.chunk_size, state.get("past")
        )
        return self._gate(x, gate), {"past": past}

    def _gate(self, x, gate):
        if self.use_linear_after_conv:
            gate = self.linear(gate)
        return self.dropout(x * self.activation(gate))


class ConvolutionBranch(host.ConvolutionBranch):
    """The gating MLP (cgMLP) with lengths."""

    def __init__(self, input_size, linear_units, kernel_size, gate_activation, dropout, **kwargs):
        super().__init__(
            input_size,
            linear_units,
            kernel_size,
            gate_activation=gate_activation,
            dropout=dropout,
            **kwargs,
        )
        self.csgu = SpatialGatingUnit(
            linear_units,
            kernel_size,
            dropout=dropout,
            use_linear_after_conv=kwargs.get("use_linear_after_conv", False),
            activation=gate_activation,
        )

    def forward(self, x, lengths=None):
        """(batch, time, features), lengths (batch,) in frames."""
        x = self.activation(self.pre_channel_proj(x))
        return self.post_channel_proj(self.csgu(x, lengths))

    def stream(self, x, chunks, state, padding=None):
        """(batch, time, features), whole chunks → (same, state)."""
        x = self.activation(self.pre_channel_proj(x))
        x, state = self.csgu.stream(x, chunks, state, padding)
        return self.post_channel_proj(x), state


class BranchformerEncoderLayer(host.BranchformerEncoderLayer):
    """One Branchformer layer: a given mixer beside the gating MLP, then their merge.

    Arguments
    ---------
    mixer : torch.nn.Module
        The global branch. `NoMixer` leaves the convolution branch alone ("CNN only").
    d_model, kernel_size, activation, dropout, csgu_linear_units, gate_activation,
    use_linear_after_conv
        As in SpeechBrain's layer.
    merge_hid_dim : list of int, optional
        Hidden widths of the merge. None gives SpeechBrain's one linear layer; a list gives the
        published merge of SummaryMixing, an MLP with the activation after every layer.
    """

    activation_checkpointing = False

    def __init__(
        self,
        mixer,
        d_model,
        kernel_size=31,
        activation=nn.GELU,
        dropout=0.0,
        csgu_linear_units=3072,
        gate_activation=nn.Identity,
        use_linear_after_conv=False,
        merge_hid_dim=None,
    ):
        super().__init__(
            d_model, nhead=1, dropout=dropout, attention_type=None, csgu_linear_units=2
        )
        self.convolution_branch = ConvolutionBranch(
            d_model,
            csgu_linear_units,
            kernel_size,
            gate_activation,
            dropout,
            activation=activation,
            use_linear_after_conv=use_linear_after_conv,
        )
        self.mha_layer = mixer
        self.has_mixer = not isinstance(mixer, NoMixer)
        merged = d_model * (1 + self.has_mixer)
        if not self.has_mixer:
            self.norm_mhsa = nn.Identity()
        if merge_hid_dim is None:
            self.merge_proj = nn.Linear(merged, d_model)
        else:
            self.merge_proj = mlp([merged, *merge_hid_dim, d_model], activation)

    @checkpointed
    def forward(self, x, src_mask=None, src_key_padding_mask=None, pos_embs=None):
        """(batch, time, d_model) → (same, attention weights or None); masks True = excluded.

        Chunks come as `src_mask`.
        """
        if hasattr(src_mask, "chunk_size"):
            return self.stream(x, src_mask, {}, src_key_padding_mask)[0], None
        lengths = None if src_key_padding_mask is None else (~src_key_padding_mask).sum(1)
        local = self.convolution_branch(self.norm_conv(x), lengths)
        y = self.norm_mhsa(x)
        y, weights = self.mha_layer(
            y,
            y,
            y,
            attn_mask=src_mask,
            key_padding_mask=src_key_padding_mask,
            pos_embs=pos_embs,
        )
        return self._merge(x, y, local), weights

    def stream(self, x, chunks, state, padding=None):
        """(batch, time, d_model), whole chunks → (same, state): see `models.streaming`."""
        local, past = self.convolution_branch.stream(
            self.norm_conv(x), chunks, part(state, "convolution"), padding
        )
        y, mixer = self.mha_layer.stream(self.norm_mhsa(x), chunks, part(state, "mixer"), padding)
        return self._merge(x, y, local), nested({"mixer": mixer, "convolution": past})

    def initial_state(self, batch_size, chunks, like):
        """The state of streams that have not begun, on the device and in the type of `like`."""
        conv = self.convolution_branch.csgu.conv.conv
        past = like.new_zeros(batch_size, conv.kernel_size[0] // 2, conv.in_channels)
        mixer = self.mha_layer.initial_state(batch_size, chunks, like.device)
        return nested({"mixer": mixer, "convolution": {"past": past}})

    def _merge(self, x, mixed, local):
        branches = [self.dropout(mixed)] if self.has_mixer else []
        branches.append(self.dropout(local))
        return x + self.dropout(self.merge_proj(torch.cat(branches, dim=-1)))


class BranchformerEncoder(StreamingEncoder, host.BranchformerEncoder):
    """SpeechBrain's Branchformer encoder over given layers.

    Arguments
    ---------
    layers : list of BranchformerEncoderLayer
    d_model : int
    output_hidden_states : bool
    layerdrop_prob : float

    Example
    -------
    >>> from summarymixing import SummaryMixing
    >>> cells = [SummaryMixing(16, 1, [16], 16, [16], 16) for _ in range(2)]
    >>> layers = [BranchformerEncoderLayer(cell, 16, csgu_linear_units=32, merge_hid_dim=[16])
    ...           for cell in cells]
    >>> BranchformerEncoder(layers, 16)(torch.rand(2, 9, 16))[0].shape
    torch.Size([2, 9, 16])
    """

    def __init__(self, layers, d_model, output_hidden_states=False, layerdrop_prob=0.0):
        super().__init__(
            num_layers=0,
            d_model=d_model,
            nhead=None,
            attention_type=None,
            output_hidden_states=output_hidden_states,
            layerdrop_prob=layerdrop_prob,
        )
        self.layers = nn.ModuleList(layers)
