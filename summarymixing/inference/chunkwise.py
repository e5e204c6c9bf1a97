"""A trained model chunk by chunk: what `StreamingSession` asks of one."""

import logging
from dataclasses import replace

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch.nn.utils.rnn import pad_sequence

from summarymixing.errors import InputError

logger = logging.getLogger(__name__)


class Chunkwise:
    """The encoder and the search of a recogniser, a chunk of some streams at a time.

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser
    chunk_size : int
        Encoder frames.
    left_context : int or None
        Chunks.

    Raises
    ------
    InputError
        If the model cannot stream, or not with these numbers.
    """

    def __init__(self, recogniser, chunk_size, left_context):
        normalize = recogniser.modules["normalize"]
        if getattr(normalize, "norm_type", "global") != "global":
            raise InputError(
                f"norm_type {normalize.norm_type} needs the whole recording: "
                "to stream, train with norm_type: global"
            )
        if getattr(recogniser.compute_features, "top_db", None) is not None:
            logger.warning(
                "features were clipped at top_db below each utterance's maximum, which a stream "
                "does not know: results may differ a little (train with top_db: null to stream)"
            )
        self.recogniser = recogniser
        self.config = DynChunkTrainConfig(chunk_size, left_context)
        encoder = recogniser.modules["Transformer"]
        self._beginning = encoder.make_streaming_context(self.config, batch_size=1)
        self.encoder_state = self._beginning.state
        self.search_state = recogniser.search.initial_state(recogniser.modules, 1)

    def as_input(self, samples):
        """numpy.ndarray (samples,) → what the front end's filter takes."""
        return torch.from_numpy(samples).to(self.recogniser.device)

    @torch.no_grad()
    def step(self, frames, encoder_states, search_states):
        """One chunk, or what is left of one, of some streams.

        Arguments
        ---------
        frames : list of torch.Tensor
            (time, ...) of each stream.
        encoder_states, search_states : list of dict
            Before it.

        Returns
        -------
        list of (list of int, list of int, dict, dict)
            Of each stream the tokens, the frames of this chunk where they are, and the states
            after it.
        """
        modules = self.recogniser.modules
        lengths = torch.tensor([len(f) for f in frames], device=frames[0].device)
        frames = pad_sequence(frames, batch_first=True)
        context = replace(self._beginning, state=_joined(encoder_states))
        ragged = lengths if (lengths < frames.shape[1]).any() else None  # masks cost time
        encoded = modules["Transformer"].encode_streaming(frames, context, ragged)
        tokens, places, state = self.recogniser.search.step(
            modules, encoded, lengths, _joined(search_states)
        )
        return [
            (tokens[row], places[row], _row(context.state, row), _row(state, row))
            for row in range(len(frames))
        ]


def _joined(states):
    return {name: torch.cat([state[name] for state in states]) for name in states[0]}


def _row(state, row):
    # A copy: a view would keep the states of all streams of this batch.
    return {name: values[row : row + 1].clone() for name, values in state.items()}
