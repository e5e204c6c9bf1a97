"""The SummaryMixing cell (arXiv 2307.07421): a linear-time replacement for self-attention."""

import torch
from torch import nn
from torch.nn import functional as F

from summarymixing.errors import InputError, check_integer
from summarymixing.nnet.mlp import mlp
from summarymixing.nnet.summaries import DecayedMean, UtteranceMean
from summarymixing.ops.dropout import Dropout
from summarymixing.ops.means import state_dtype

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

    With several `summaries`, c is given the means of all of them, side by side.

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
    summaries : list, optional
        What to average s over, instead of what the mode says: one or more of the classes in
        `summarymixing.nnet.summaries`.

    Raises
    ------
    InputError
        (a ValueError) for an unknown mode, widths that are not positive or that heads do not
        divide, several summaries with "SummaryMixing-lite".

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
        summaries=None,
    ):
        super().__init__()
        if mode not in MODES:
            raise InputError(f"mode must be one of {', '.join(MODES)}, got {mode!r}")
        check_integer("nhead", nhead)
        for name, widths in (
            ("local_proj_hid_dim", local_proj_hid_dim),
            ("summary_hid_dim", summary_hid_dim),
        ):
            if not isinstance(widths, (list, tuple)):
                raise InputError(f"{name} must be a list of widths, got {widths!r}")
        local_widths = [enc_dim, *local_proj_hid_dim, local_proj_out_dim]
        summary_widths = [enc_dim, *summary_hid_dim, summary_out_dim]
        for width in (*local_widths, *summary_widths):
            check_integer("each width of the cell", width)
        if summaries is None:
            summaries = [DecayedMean(decay) if mode.endswith("expdecay") else UtteranceMean()]
        if not isinstance(summaries, (list, tuple)) or not summaries:
            raise InputError(f"summaries must be a list of one or more, got {summaries!r}")
        for summary in summaries:
            if not hasattr(summary, "slots"):
                raise InputError(
                    "summaries must be of the classes in summarymixing.nnet.summaries, "
                    f"got {summary!r}"
                )
        self.mode = mode
        self.summaries = list(summaries)

        if mode == "SummaryMixing-lite":
            if len(summaries) > 1:
                raise InputError(
                    "SummaryMixing-lite returns the summary itself: one only, "
                    f"got {len(summaries)} summaries"
                )
            if summary_out_dim != enc_dim:
                raise InputError(
                    "SummaryMixing-lite returns the summary itself: summary_out_dim must be "
                    f"enc_dim={enc_dim}, got {summary_out_dim}"
                )
            self.summary = mlp(summary_widths, activation, nhead)
            self.summary_dim = summary_out_dim
            return

        if mode == "SummaryMixing-fast":
            summary_out_dim = local_proj_out_dim
            self.shared = mlp([enc_dim, 2 * local_proj_out_dim], activation)
        else:
            self.local = mlp(local_widths, activation, nhead)
            self.summary = mlp(summary_widths, activation, nhead)
        self.local_dim = local_proj_out_dim
        self.summary_dim = summary_out_dim
        self.dropout = Dropout(global_dropout)
        self.combine = nn.Linear(local_proj_out_dim + summary_out_dim * len(summaries), enc_dim)
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
        attn_mask : optional
            Chunks: an object with `chunk_size` (frames) and `left_context_size` (chunks, None for
            no limit), such as SpeechBrain's `DynChunkTrainConfig`. Each frame then summarises the
            frames of its own chunk and of as many before it, no more, still in O(T). A mask of
            frame by frame is refused.
        key_padding_mask : torch.Tensor, optional
            (batch, time), True = padding.

        Returns
        -------
        output : torch.Tensor
            (batch, time, enc_dim); what stands at padded frames has no meaning.
        None
            In the place of attention weights.
        """
        if attn_mask is not None and not hasattr(attn_mask, "chunk_size"):
            raise InputError(
                "SummaryMixing takes chunks (SpeechBrain's DynChunkTrainConfig) as attn_mask, "
                f"which can be summarised in linear time, got {type(attn_mask).__name__}"
            )
        return self._mix(query, key_padding_mask, attn_mask, {})[0], None

    def stream(self, x, chunks, state, padding=None):
        """The next whole chunks of a stream; the last ones of it may end within a chunk.

        The outputs, joined, are those of one call on the whole with these chunks.

        Arguments
        ---------
        x : torch.Tensor
            (batch, time, enc_dim).
        chunks : object
            As `attn_mask` of `forward`.
        state : dict of str to torch.Tensor
            From `initial_state` or from the call before.
        padding : torch.Tensor, optional
            (batch, time), True = padding.

        Returns
        -------
        output : torch.Tensor
            (batch, time, enc_dim).
        state : dict of str to torch.Tensor
            Of the same shapes.

        Example
        -------
        >>> from types import SimpleNamespace
        >>> cell = SummaryMixing(8, 1, [8], 8, [8], 8).eval()
        >>> chunks = SimpleNamespace(chunk_size=2, left_context_size=None)
        >>> x = torch.rand(1, 4, 8)
        >>> first, state = cell.stream(x[:, :2], chunks, cell.initial_state(1, chunks))
        >>> second, state = cell.stream(x[:, 2:], chunks, state)
        >>> whole, _ = cell(x, attn_mask=chunks)
        >>> torch.allclose(torch.cat([first, second], 1), whole, atol=1e-6)
        True
        """
        return self._mix(x, padding, chunks, state)

    def initial_state(self, batch_size, chunks, device="cpu"):
        """The state of `batch_size` streams that have not begun: zeros, batch first."""
        return {
            str(i): torch.zeros(
                batch_size,
                summary.slots(chunks),
                self.summary_dim + 1,
                dtype=state_dtype(device),
                device=device,
            )
            for i, summary in enumerate(self.summaries)
        }

    def _mix(self, x, padding, chunks, state):
        time = x.shape[1]
        if self.mode == "SummaryMixing-fast":
            local, values = self.shared(x).split(self.local_dim, dim=-1)
        else:
            values = self.summary(x)
        found = [
            summary(values, padding, chunks, state.get(str(i)))
            for i, summary in enumerate(self.summaries)
        ]
        state = {str(i): after for i, (_, after) in enumerate(found)}
        summaries = [mean for mean, _ in found]

        def spread(mean):
            """One a chunk → one a frame."""
            if mean.shape[1] == time:
                return mean
            if mean.shape[1] == 1:
                return mean.expand(-1, time, -1)
            return mean.repeat_interleave(min(chunks.chunk_size, time), 1)[:, :time]

        if self.mode == "SummaryMixing-lite":
            return spread(summaries[0]), state
        if self.mode != "SummaryMixing-fast":
            local = self.local(x)

        # combine([f; means]) without the concatenation: in evaluation a summary's part is one
        # product a chunk or utterance instead of one a frame.
        for_local, *for_summaries = self.combine.weight.split(
            [self.local_dim] + [self.summary_dim] * len(summaries), dim=1
        )
        mixed = F.linear(self.dropout(local), for_local, self.combine.bias)
        for mean, weight in zip(summaries, for_summaries):
            if self.training and self.dropout.p > 0:
                # Published dropout falls on the summary of every frame independently.
                mean = self.dropout(spread(mean))
            mixed = mixed + spread(F.linear(mean, weight))
        return self.activation(mixed), state
