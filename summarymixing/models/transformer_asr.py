"""The whole CTC + attention model: any encoder here with SpeechBrain's Transformer decoder."""

from speechbrain.lobes.models.transformer import TransformerASR as host
from speechbrain.lobes.models.transformer.Transformer import (
    PositionalEncoding,
    get_key_padding_mask,
    get_lookahead_mask,
)
from speechbrain.nnet.activations import Swish
from torch import nn

from summarymixing.errors import InputError, check_integer
from summarymixing.models.branchformer import BranchformerEncoder, BranchformerEncoderLayer
from summarymixing.models.conformer import ConformerEncoder, ConformerEncoderLayer
from summarymixing.models.decoder import CausalSummaryMixing
from summarymixing.models.feed_forward import replace_feed_forward
from summarymixing.models.mixers import (
    POSITIONS,
    UnlimitedPositionalEncoding,
    check_heads,
    find_mixer,
    has_chunks,
    make_mixer,
    with_chunks,
)
from summarymixing.models.streaming import StreamingEncoder, check_chunks
from summarymixing.models.transformer import TransformerEncoder, TransformerEncoderLayer
from summarymixing.nnet.mlp import HeadwiseLinear
from summarymixing.ops.dropout import replace_dropout
from summarymixing.ops.padding import absolute_lengths, padding_mask

ENCODERS = {
    "conformer": ConformerEncoder,
    "branchformer": BranchformerEncoder,
    "transformer": TransformerEncoder,
}
DECODER_MIXERS = ("attention", "SummaryMixing")
BRANCH_MERGES = ("linear", "mlp")


class TransformerASR(host.TransformerASR):
    """SpeechBrain's `TransformerASR` with a choice of mixers, exact with padding, for any length.

    Takes the place of SpeechBrain's class in any recipe (one `!new:` line). Without the summary
    arguments, and with one of SpeechBrain's attention types, it is SpeechBrain's model with
    padding kept out of the convolutions.

    Arguments
    ---------
    tgt_vocab : int
        Output tokens.
    input_size : int
        Width of the front end's output.
    d_model, nhead, num_encoder_layers, num_decoder_layers, d_ffn, dropout, activation,
    positional_encoding, normalize_before, kernel_size, bias, encoder_module, conformer_activation,
    branchformer_activation, csgu_linear_units, gate_activation, use_linear_after_conv,
    output_hidden_states, layerdrop_prob
        As in SpeechBrain's `TransformerASR`, its defaults included.
    attention_type : str or list of str
        The encoder's mixer: "SummaryMixing", "RoPEMHA", "RelPosMHAXL", "regularMHA",
        "hypermixing" or "none", or MODULE.CLASS of your own (`summarymixing.models.mixers`).
        Conformer and Branchformer have no positional encoding with SummaryMixing (as published),
        the Transformer has sinusoids, without which it could not tell one order of the frames
        from another. A list is the mixers of the layers, in turn: [SummaryMixing, SummaryMixing,
        SummaryMixing, RoPEMHA] has attention in every fourth.
    encoder_nhead : int or list of int, optional
        Heads of the mixer; those of the decoder's attention (`nhead`) when left out. A list goes
        with one of mixers: [1, 1, 1, 8]. Without a decoder `nhead` may be that list.
    local_proj_hid_dim, local_proj_out_dim, summary_hid_dim, summary_out_dim, mode, summaries
        Of the `SummaryMixing` cell; widths default to d_model.
    branch_merge : str, optional
        How Branchformer puts a layer's two branches together: "linear", SpeechBrain's one linear
        layer, or "mlp", the published merge of SummaryMixing: widths `summary_hid_dim` and
        d_model, the activation after both. None: "mlp" in layers with SummaryMixing, "linear" in
        the others. Nothing to the other encoders.
    max_length : int
        Frames for which sinusoids are made at once; longer inputs make more.
    causal : bool
        Only with SpeechBrain's attention types. SpeechBrain's default is True, ours is False.
    decoder_mixer : str
        What mixes the decoder's tokens: "attention", SpeechBrain's self-attention, or
        "SummaryMixing", a cell over each token and those before it, with `encoder_nhead`, `mode`
        and widths as in the encoder; its parameters are `decoder.layers.N.self_attn.*`. Attention
        to the encoder's frames and sinusoidal positions are there with both.
    activation_checkpointing : bool
        In training, the encoder's layers keep their inputs only, and backward computes them again:
        the same outputs and gradients in less memory, for the time of another forward pass.

    Example
    -------
    >>> import torch
    >>> model = TransformerASR(tgt_vocab=30, input_size=64, d_model=16, nhead=4,
    ...     num_encoder_layers=2, num_decoder_layers=1, d_ffn=32, encoder_module="branchformer",
    ...     csgu_linear_units=32, attention_type="SummaryMixing", mode="SummaryMixing")
    >>> frames = torch.rand(2, 40, 64)
    >>> encoded, decoded = model(frames, torch.randint(1, 30, (2, 7)), torch.tensor([40, 21]))
    >>> encoded.shape, decoded.shape
    (torch.Size([2, 40, 16]), torch.Size([2, 7, 16]))
    """

    def __init__(
        self,
        tgt_vocab,
        input_size,
        d_model=512,
        nhead=8,
        num_encoder_layers=6,
        num_decoder_layers=6,
        d_ffn=2048,
        dropout=0.1,
        activation=nn.ReLU,
        positional_encoding="fixed_abs_sine",
        normalize_before=False,
        kernel_size=31,
        bias=True,
        encoder_module="transformer",
        conformer_activation=Swish,
        branchformer_activation=nn.GELU,
        attention_type="SummaryMixing",
        max_length=2500,
        causal=False,
        csgu_linear_units=3072,
        gate_activation=nn.Identity,
        use_linear_after_conv=False,
        output_hidden_states=False,
        layerdrop_prob=0.0,
        encoder_nhead=None,
        local_proj_hid_dim=None,
        local_proj_out_dim=None,
        summary_hid_dim=None,
        summary_out_dim=None,
        mode="SummaryMixing",
        summaries=None,
        decoder_mixer="attention",
        activation_checkpointing=False,
        branch_merge=None,
    ):
        if encoder_module not in ENCODERS:
            raise InputError(
                f"encoder_module must be one of {', '.join(ENCODERS)}, got {encoder_module!r}"
            )
        encoder_nhead = nhead if encoder_nhead is None else encoder_nhead
        if not num_decoder_layers and isinstance(nhead, (list, tuple)):
            nhead = 1  # of no attention
        mixers = _in_turn(attention_type, encoder_nhead)
        kinds = {kind for kind, _ in mixers}
        if decoder_mixer not in DECODER_MIXERS:
            raise InputError(
                f"decoder_mixer must be one of {', '.join(DECODER_MIXERS)}, got {decoder_mixer!r}"
            )
        if branch_merge not in (None, *BRANCH_MERGES):
            raise InputError(
                f"branch_merge must be one of {', '.join(BRANCH_MERGES)}, or null for that of the "
                f"mixer, got {branch_merge!r}"
            )
        check_integer("d_model", d_model)
        check_heads(d_model, nhead)
        if encoder_module != "transformer" and kernel_size % 2 == 0:
            raise InputError(f"kernel_size must be odd, got {kernel_size}")
        if causal and not kinds.isdisjoint(("SummaryMixing", "hypermixing")):
            raise InputError(f"causal: True is not possible with attention_type: {attention_type}")
        wanted = {find_mixer(kind).positions for kind in kinds} - {None}
        if "RelPosMHAXL" in wanted and not wanted.isdisjoint(("regularMHA", "RoPEMHA")):
            raise InputError(
                "attention_type: RelPosMHAXL has positions of another kind than regularMHA and "
                "RoPEMHA, which one encoder cannot give them all"
            )
        wanted = wanted or {"regularMHA" if encoder_module == "transformer" else "RoPEMHA"}
        # A name of the host's, which says only what positional encodings to add.
        positions = next(name for name in POSITIONS if name in wanted)
        # The host insists on at least one layer, and its encoder is replaced below.
        super().__init__(
            tgt_vocab=tgt_vocab,
            input_size=input_size,
            d_model=d_model,
            nhead=nhead,
            num_encoder_layers=0 if num_decoder_layers else 1,
            num_decoder_layers=num_decoder_layers,
            d_ffn=d_ffn,
            dropout=dropout,
            activation=activation,
            positional_encoding=positional_encoding,
            normalize_before=normalize_before,
            attention_type=positions,
            max_length=max_length,
            causal=causal,
            output_hidden_states=output_hidden_states,
        )
        for name in ("positional_encoding", "positional_encoding_decoder"):
            if type(getattr(self, name, None)) is PositionalEncoding:
                setattr(self, name, UnlimitedPositionalEncoding(d_model, max_length))

        self.encoder_module = encoder_module
        self.mixer = attention_type

        def default(value, otherwise):
            return otherwise if value is None else value

        summary = {
            "local_proj_hid_dim": default(local_proj_hid_dim, [d_model]),
            "local_proj_out_dim": default(local_proj_out_dim, d_model),
            "summary_hid_dim": default(summary_hid_dim, [d_model]),
            "summary_out_dim": default(summary_out_dim, d_model),
            "mode": mode,
        }

        def layer(kind, heads):
            hyper_width = d_model * 4 if encoder_module == "branchformer" else d_ffn
            mixer = make_mixer(
                kind,
                d_model,
                heads,
                hyper_width,
                dropout,
                summaries=summaries,
                **summary,
            )
            if encoder_module == "conformer":
                return ConformerEncoderLayer(
                    mixer, d_model, d_ffn, kernel_size, conformer_activation, bias, dropout, causal
                )
            if encoder_module == "transformer":
                return TransformerEncoderLayer(
                    mixer, d_model, d_ffn, activation, dropout, normalize_before
                )
            merge = branch_merge or ("mlp" if kind == "SummaryMixing" else "linear")
            return BranchformerEncoderLayer(
                mixer,
                d_model,
                kernel_size,
                branchformer_activation,
                dropout,
                csgu_linear_units,
                gate_activation,
                use_linear_after_conv,
                summary["summary_hid_dim"] if merge == "mlp" else None,
            )

        self.encoder = ENCODERS[encoder_module](
            [layer(*mixers[i % len(mixers)]) for i in range(num_encoder_layers)],
            d_model,
            output_hidden_states,
            layerdrop_prob,
        )
        for encoder_layer in self.encoder.layers:
            encoder_layer.activation_checkpointing = activation_checkpointing
        if decoder_mixer == "SummaryMixing" and num_decoder_layers:
            heads = dict(reversed(mixers)).get("SummaryMixing", mixers[0][1])
            for decoder_layer in self.decoder.layers:
                decoder_layer.self_attn = CausalSummaryMixing(
                    enc_dim=d_model, nhead=heads, global_dropout=dropout, **summary
                )
        replace_dropout(self)
        replace_feed_forward(self)
        self._init_params()

    def forward(self, src, tgt, wav_len=None, pad_idx=0, dynchunktrain_config=None):
        """Encodes and decodes with teacher forcing.

        Arguments
        ---------
        src : torch.Tensor
            (batch, time, features) or the front end's (batch, time, features, channels).
        tgt : torch.Tensor
            (batch, tokens), beginning with the bos token. None: encodes only, as `encode`.
        wav_len : torch.Tensor, optional
            (batch,): frames of `src` if integers (exact), fractions of its time otherwise.
        pad_idx : int
        dynchunktrain_config : DynChunkTrainConfig, optional
            The encoder works chunk by chunk: SpeechBrain's chunk size in frames and left context
            in chunks (None: no limit). Conformer and Branchformer with SummaryMixing, RoPEMHA or
            no mixer; linear in time with SummaryMixing.

        Returns
        -------
        encoder_out : torch.Tensor
            (batch, time, d_model).
        decoder_out : torch.Tensor
            (batch, tokens, d_model).
        """
        if tgt is None:  # as the host; data-parallel training sees calls of forward only
            return self.encode(src, wav_len, pad_idx, dynchunktrain_config)
        if not hasattr(self, "decoder"):
            raise InputError("num_decoder_layers is 0: there is no decoder to give targets to")
        encoded = self.encode(src, wav_len, pad_idx, dynchunktrain_config)
        hidden = ()
        if self.output_hidden_states:
            encoded, *hidden = encoded
        embedded = self.custom_tgt_module(tgt)
        positions = getattr(self, "positional_encoding_decoder", None) or self.positional_encoding
        decoded, _, _ = self.decoder(
            tgt=embedded + positions(embedded),
            memory=encoded,
            tgt_mask=get_lookahead_mask(tgt).isinf(),  # of the padding mask's type
            tgt_key_padding_mask=get_key_padding_mask(tgt, pad_idx=pad_idx),
            memory_key_padding_mask=self._padding(encoded, wav_len),
        )
        return encoded, *hidden, decoded

    def encode(self, src, wav_len=None, pad_idx=0, dynchunktrain_config=None):
        """The encoder alone, with the arguments of `forward`; (batch, time, d_model)."""
        src = self._source(src)
        positions = None
        if self.attention_type == "RelPosMHAXL":
            positions = self.positional_encoding(src)
        elif self.attention_type == "regularMHA":
            src = src + self.positional_encoding(src)
        if dynchunktrain_config is not None:
            self.check_chunks(dynchunktrain_config)
            mask = dynchunktrain_config
        else:
            mask = get_lookahead_mask(src) if self.causal else None
        encoded, _, *hidden = self.encoder(
            src,
            src_mask=mask,
            src_key_padding_mask=self._padding(src, wav_len),
            pos_embs=positions,
        )
        return (encoded, *hidden) if hidden else encoded

    def make_streaming_context(self, dynchunktrain_config, batch_size=1):
        """The context of streams that have not begun, for `encode_streaming`.

        Arguments
        ---------
        dynchunktrain_config : DynChunkTrainConfig
            Chunk size in frames, left context in chunks (None: no limit, in constant memory with
            SummaryMixing; not with RoPEMHA).
        batch_size : int
            Streams.

        Returns
        -------
        summarymixing.models.streaming.StreamingContext
        """
        self.check_chunks(dynchunktrain_config)
        return self.encoder.make_streaming_context(dynchunktrain_config, batch_size)

    def encode_streaming(self, src, context, lengths=None):
        """The next whole chunks of each stream; a stream's last ones may end within a chunk.

        Joined, the outputs are those of `encode` on the whole with the context's configuration.

        Arguments
        ---------
        src : torch.Tensor
            (batch, time, features) or the front end's (batch, time, features, channels).
        context : StreamingContext
            From `make_streaming_context`; changed in place.
        lengths : torch.Tensor, optional
            (batch,): valid frames of each stream, where some streams end here.

        Returns
        -------
        torch.Tensor
            (batch, time, d_model).

        Raises
        ------
        InputError
            For the context of another model or batch, or after a piece that was not of whole
            chunks.

        Example
        -------
        >>> import torch
        >>> from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
        >>> model = TransformerASR(tgt_vocab=30, input_size=8, d_model=16, nhead=4, d_ffn=32,
        ...     num_encoder_layers=2, num_decoder_layers=0, encoder_module="conformer").eval()
        >>> chunks = DynChunkTrainConfig(chunk_size=4, left_context_size=None)
        >>> context = model.make_streaming_context(chunks)
        >>> frames = torch.rand(1, 10, 8)
        >>> pieces = [model.encode_streaming(piece, context) for piece in frames.split(4, dim=1)]
        >>> whole = model.encode(frames, dynchunktrain_config=chunks)
        >>> torch.allclose(torch.cat(pieces, 1), whole, atol=1e-5)
        True
        """
        src = self._source(src)
        padding = None if lengths is None else padding_mask(lengths, src.shape[1])
        return self.encoder.forward_streaming(src, context, padding=padding)[0]

    def _source(self, src):
        return self.custom_src_module(src.flatten(2))

    @staticmethod
    def _padding(frames, lengths):
        if lengths is None:
            return None
        return padding_mask(absolute_lengths(lengths, frames.shape[1]), frames.shape[1])

    def check_chunks(self, chunks):
        """Raises InputError unless this encoder can work in chunks of a `DynChunkTrainConfig`."""
        check_chunks(chunks)
        if not isinstance(self.encoder, StreamingEncoder) or not all(
            has_chunks(layer.mha_layer) for layer in self.encoder.layers
        ):
            encoders = [name for name in ENCODERS if issubclass(ENCODERS[name], StreamingEncoder)]
            raise InputError(
                f"chunks are for encoder_module {' or '.join(encoders)} with "
                f"attention_type {', '.join(with_chunks())} or a class with stream and "
                f"initial_state; this is {self.encoder_module} with {self.mixer}"
            )
        if self.causal:
            raise InputError("chunks need an encoder with causal: False")

    def _init_params(self):
        super()._init_params()
        for module in self.modules():
            if isinstance(module, HeadwiseLinear):
                module.xavier_normal_()


def _in_turn(attention_type, heads):
    """The layers' mixers, each with its heads, until they begin anew: [("SummaryMixing", 1)]."""
    kinds = attention_type if isinstance(attention_type, (list, tuple)) else [attention_type]
    for kind in kinds or [attention_type]:
        find_mixer(kind)
    if not isinstance(heads, (list, tuple)):
        heads = [heads] * len(kinds)
    if len(heads) != len(kinds):
        raise InputError(
            f"encoder_nhead must have as many values as attention_type, {len(kinds)}, got {heads!r}"
        )
    return list(zip(kinds, heads))
