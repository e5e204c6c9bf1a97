"""Chunk by chunk: what encoders share in Dynamic Chunk Training and in streaming.

Both are one operation. A part of a model that mixes time has

    stream(x, chunks, state, padding) -> (y, state)

over whole chunks (the last may be ragged): training calls it on the whole utterance with an empty
state, inference piece by piece with the state of the piece before. A state is a flat dict of
tensors, batch first and of the same shapes at every call, all zeros before the first frame, so
that streams can be joined, dropped and reordered along the first dimension.
"""

import weakref
from dataclasses import dataclass

from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.errors import InputError, check_integer


@dataclass
class StreamingContext:
    """The state of a batch of streams, changed in place by every piece that is encoded.

    Arguments
    ---------
    dynchunktrain_config : DynChunkTrainConfig
        Chunk size in frames, left context in chunks (None: no limit).
    state : dict of str to torch.Tensor
        Batch first.
    encoder : weakref.ref, optional
        To the encoder that the state is of, and that no other may be given it. None: not known.
    ended : bool
        Whether a piece has ended within a chunk, after which there can be no other.
    """

    dynchunktrain_config: DynChunkTrainConfig
    state: dict
    encoder: weakref.ref | None = None  # a copy of the context refers to the same encoder
    ended: bool = False


def check_chunks(chunks):
    """Raises InputError unless the sizes of a `DynChunkTrainConfig` can be used."""
    check_integer("chunk_size", chunks.chunk_size)
    check_integer("left_context_size", chunks.left_context_size, least=0, none="None")


def nested(states):
    """{"mixer": {"0": t}} → {"mixer.0": t}."""
    return {f"{name}.{key}": t for name, state in states.items() for key, t in state.items()}


def part(state, name):
    """{"mixer.0": t, "convolution.0": u}, "mixer" → {"0": t}."""
    return {k[len(name) + 1 :]: t for k, t in state.items() if k.startswith(f"{name}.")}


class StreamingEncoder:
    """Adds streaming to an encoder of `layers` and a final `norm`."""

    def make_streaming_context(self, dynchunktrain_config, batch_size=1):
        """A `StreamingContext` of streams that have not begun."""
        check_chunks(dynchunktrain_config)
        weight = self.norm.norm.weight
        state = {
            str(i): layer.initial_state(batch_size, dynchunktrain_config, weight)
            for i, layer in enumerate(self.layers)
        }
        return StreamingContext(dynchunktrain_config, nested(state), weakref.ref(self))

    def forward_streaming(self, src, context, pos_embs=None, padding=None):
        """The next whole chunks of each stream; a stream's last ones may end within a chunk.

        Arguments
        ---------
        src : torch.Tensor
            (batch, time, d_model).
        context : StreamingContext
            Changed in place.
        pos_embs : None
            As in SpeechBrain; no encoder that streams has any.
        padding : torch.Tensor, optional
            (batch, time), True = padding.

        Returns
        -------
        output : torch.Tensor
            (batch, time, d_model).
        list
            Empty, in the place of attention weights.

        Raises
        ------
        InputError
            For the context of another encoder, or after a piece that was not of whole chunks.
        """
        if context.encoder is not None and context.encoder() is not self:
            raise InputError(
                "the context is of another model: make_streaming_context() of this one begins a "
                "stream"
            )
        size = context.dynchunktrain_config.chunk_size
        if context.ended and src.shape[1]:
            raise InputError(
                f"the stream has ended, with a piece that was not of whole chunks of {size} "
                "frames: make_streaming_context() begins another"
            )
        after = {}
        for i, layer in enumerate(self.layers):
            src, after[str(i)] = layer.stream(
                src, context.dynchunktrain_config, part(context.state, str(i)), padding
            )
        context.state = nested(after)
        context.ended = context.ended or src.shape[1] % size > 0
        return self.norm(src), []
