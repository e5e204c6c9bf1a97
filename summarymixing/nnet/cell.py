"""The SummaryMixing cell (arXiv 2307.07421): a linear-time replacement for self-attention."""

from torch import nn
from torch.nn import functional as F

from summarymixing.errors import InputError
from summarymixing.nnet.mlp import mlp
from summarymixing.ops import means

MODES = (
    "SummaryMixing",
    "SummaryMixing-lite",
    "SummaryMixing-fast",
    "SummaryMixing-expdecay",
)


class SummaryMixing(nn.Module):
    """Mixes the frames of an utterance through one average of them, in O(T).

    With a local network f, a summary network s and a combiner c (one linear layer), each ending in
    the activation (section 3 of the paper):

        h_t = c([f(x_t); mean over valid frames u of s(x_u)])

    Arguments
    ---------
    enc_dim : int
        Width of the input and of the output (d_model).
    nhead : int
        Heads of f and s: their weights are block-diagonal with this many blocks.
        "SummaryMixing-fast" has no heads and ignores it.
    local_proj_hid_dim : list of int
        Hidden widths of f.
    local_proj_out_dim : int
        Output width of f; for "SummaryMixing-fast", of each half of the shared projection.
    summary_hid_dim : list of int
        Hidden widths of s.
    summary_out_dim : int
        Output width of s; for "SummaryMixing-lite" it must be enc_dim.
    activation : type
        A module class.
    global_dropout : float
        Dropout on [f; mean], before c.
    mode : str
        "SummaryMixing"; "SummaryMixing-lite", the mean alone without f and c;
        "SummaryMixing-fast", one linear layer for both f and s; "SummaryMixing-expdecay", where
        frame u weighs decay^|t - u| in the mean of frame t.
    decay : float
        For "SummaryMixing-expdecay".

    Raises
    ------
    InputError
        (a ValueError) for an unknown mode, widths that are not positive or that heads do not
        divide.

    Example
    -------
    >>> import torch
    >>> cell = SummaryMixing(enc_dim=16, nhead=4, local_proj_hid_dim=[32], local_proj_out_dim=16,
    ...                      summary_hid_dim=[32], summary_out_dim=16)
    >>> x = torch.rand(2, 7, 16)
    >>> padding = torch.tensor([[False] * 7, [False] * 4 + [True] * 3])
    >>> h, _ = cell(x, x, x, key_padding_mask=padding)
    >>> h.shape
    torch.Size([2, 7, 16])
    """

    def __init__(
        self,
        enc_dim,
        nhead=1,
        local_proj_hid_dim=(512,),
        local_proj_out_dim=512,
        summary_hid_dim=(512,),
        summary_out_dim=512,
        activation=nn.GELU,
        global_dropout=0.1,
        mode="SummaryMixing",
        decay=0.995,
    ):
        super().__init__()
        if mode not in MODES:
            raise InputError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        if isinstance(nhead, bool) or not isinstance(nhead, int) or nhead < 1:
            raise InputError(f"nhead must be a positive integer, got {nhead!r}")
        for name, widths in (
            ("local_proj_hid_dim", local_proj_hid_dim),
            ("summary_hid_dim", summary_hid_dim),
        ):
            if not isinstance(widths, (list, tuple)):
                raise InputError(f"{name} must be a list of widths, got {widths!r}")
        local_widths = [enc_dim, *local_proj_hid_dim, local_proj_out_dim]
        summary_widths = [enc_dim, *summary_hid_dim, summary_out_dim]
        for width in (*local_widths, *summary_widths):
            if not isinstance(width, int) or width < 1:
                raise InputError(f"widths of the cell must be positive integers, got {width!r}")
        if not 0 < decay <= 1:
            raise InputError(f"decay must be in (0, 1], got {decay}")
        self.mode = mode
        self.decay = decay

        if mode == "SummaryMixing-lite":
            if summary_out_dim != enc_dim:
                raise InputError(
                    "SummaryMixing-lite returns the summary itself: summary_out_dim must be "
                    f"enc_dim={enc_dim}, got {summary_out_dim}"
                )
            self.summary = mlp(summary_widths, activation, nhead)
            return

        if mode == "SummaryMixing-fast":
            summary_out_dim = local_proj_out_dim
            self.shared = mlp([enc_dim, 2 * local_proj_out_dim], activation)
        else:
            self.local = mlp(local_widths, activation, nhead)
            self.summary = mlp(summary_widths, activation, nhead)
        self.local_dim = local_proj_out_dim
        self.dropout = nn.Dropout(global_dropout)
        self.combine = nn.Linear(local_proj_out_dim + summary_out_dim, enc_dim)
        self.activation = activation()

    def forward(
        self,
        query,
        key=None,
        value=None,
        attn_mask=None,
        key_padding_mask=None,
        pos_embs=None,
        return_attn_weights=False,
    ):
        """Called as SpeechBrain calls its attention; only two arguments matter.

        Arguments
        ---------
        query : torch.Tensor
            (batch, time, enc_dim).
        key, value, pos_embs, return_attn_weights
            Ignored: the cell mixes a sequence with itself and knows no positions.
        attn_mask : None
            The summary is taken over the whole utterance: which frame sees which cannot be
            restricted.
        key_padding_mask : torch.Tensor, optional
            (batch, time), True = padding.

        Returns
        -------
        output : torch.Tensor
            (batch, time, enc_dim); what stands at padded frames has no meaning.
        None
            In the place of attention weights.
        """
        if attn_mask is not None:
            raise InputError(
                "SummaryMixing summarises the whole utterance and takes no attn_mask: build the "
                "encoder with causal: False and without dynamic chunks"
            )
        if self.mode == "SummaryMixing-fast":
            local, summary = self.shared(query).split(self.local_dim, dim=-1)
        else:
            summary = self.summary(query)

        if self.mode == "SummaryMixing-expdecay":
            summary = means.decayed_mean(summary, self.decay, key_padding_mask)
        else:
            summary = means.utterance_mean(summary, key_padding_mask)

        if self.mode == "SummaryMixing-lite":
            return summary.expand_as(query), None
        if self.mode != "SummaryMixing-fast":
            local = self.local(query)

        if self.training and self.dropout.p > 0:
            # Published dropout falls on the summary of every frame independently.
            summary = summary.expand(-1, query.shape[1], -1)
        # combine([f; mean]) without the concatenation: in evaluation the summary's half is one
        # product an utterance instead of one a frame.
        for_local, for_summary = self.combine.weight.split(
            (self.local_dim, self.combine.in_features - self.local_dim), dim=1
        )
        mixed = F.linear(self.dropout(local), for_local, self.combine.bias)
        mixed = mixed + F.linear(self.dropout(summary), for_summary)
        return self.activation(mixed), None
