"""The summary decoder's mixer: SummaryMixing in the place of a decoder's self-attention."""

from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.nnet.cell import SummaryMixing

# A token is a chunk by itself: it sees itself and all tokens before it.
_TOKENS = DynChunkTrainConfig(chunk_size=1, left_context_size=None)


class CausalSummaryMixing(SummaryMixing):
    """A `SummaryMixing` cell in which token i sees tokens 1 to i: its summary is a running mean.

    It stands where self-attention stands in SpeechBrain's `TransformerDecoderLayer` ("summary
    decoder" in the results of arXiv 2307.07421). A token costs the same however many precede it,
    in training and in `step`. With "SummaryMixing-expdecay", tokens further back weigh less.

    Arguments
    ---------
    enc_dim, nhead, local_proj_hid_dim, local_proj_out_dim, summary_hid_dim, summary_out_dim,
    activation, global_dropout, mode, decay, summaries
        As in `SummaryMixing`.

    Example
    -------
    >>> import torch
    >>> cell = CausalSummaryMixing(8, 1, [8], 8, [8], 8).eval()
    >>> tokens = torch.rand(2, 5, 8)
    >>> whole, _ = cell(tokens)
    >>> state = None
    >>> for i in range(5):
    ...     one, state = cell.step(tokens[:, i], state)
    ...     assert torch.allclose(one, whole[:, i], atol=1e-5)
    >>> state["0"].shape
    torch.Size([2, 1, 9])
    """

    def forward(self, query, key=None, value=None, **masks):
        """Called as SpeechBrain's decoder calls its self-attention.

        Arguments
        ---------
        query : torch.Tensor
            (batch, tokens, enc_dim).
        key, value, attn_mask, key_padding_mask
            Ignored: the cell mixes a sequence with itself and is causal without a mask, so that no
            token sees the padding, which is behind it.

        Returns
        -------
        output : torch.Tensor
            (batch, tokens, enc_dim).
        None
            In the place of attention weights.
        """
        return super().forward(query, attn_mask=_TOKENS)

    def step(self, x, state=None):
        """The next token of every hypothesis.

        Arguments
        ---------
        x : torch.Tensor
            (hypotheses, enc_dim).
        state : dict of str to torch.Tensor, optional
            Of the tokens before, from the call before; None at the first token. Its tensors have
            the hypotheses first, and are reordered, repeated and dropped with them.

        Returns
        -------
        output : torch.Tensor
            (hypotheses, enc_dim).
        state : dict of str to torch.Tensor
            {"0": (hypotheses, 1, width of the summary + 1)}: sums over the tokens, and how many
            they are.
        """
        output, state = self.stream(x.unsqueeze(1), _TOKENS, state or {})
        return output.squeeze(1), state
