"""What the `hyperparams.yaml` of a package is made of: parts for SpeechBrain's inference classes.

SpeechBrain's `EncoderDecoderASR` encodes with one module and decodes with another, and its
Pretrainer loads what fits and says nothing of the rest: here it is strict.
"""

import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig
from torch import nn

from summarymixing.errors import InputError, one_line
from summarymixing.inference.loading import check_same_names, front_end
from summarymixing.ops.padding import absolute_lengths


class Encoder(nn.Module):
    """From audio to encoder output, for any recogniser of this package.

    Arguments
    ---------
    compute_features : callable
        As in a recipe.
    parts : dict of str to torch.nn.Module
        `normalize`, `CNN` and `Transformer`, others besides.
    chunk_size, left_context_size : int, optional
        To encode in chunks of so many frames, with as many of them to the left.
    """

    def __init__(self, compute_features, parts, chunk_size=None, left_context_size=None):
        super().__init__()
        self.compute_features = compute_features
        self.parts = nn.ModuleDict(parts)
        self.chunks = chunk_size and DynChunkTrainConfig(chunk_size, left_context_size)

    @torch.no_grad()
    def forward(self, wavs, wav_lens):
        """wavs (batch, samples), wav_lens (batch,) as fractions → (batch, time, d_model)."""
        # The statistics are no buffers, and stay behind when the rest goes to a GPU.
        self.parts["normalize"].to(wavs.device)
        lengths = absolute_lengths(wav_lens, wavs.shape[1])
        frames, lengths = front_end(self.compute_features, self.parts, wavs, lengths)
        encoded = self.parts["Transformer"].encode(
            frames, lengths, dynchunktrain_config=self.chunks
        )
        # A decoder of SpeechBrain gets the fractions of the audio, which are about those of the
        # frames, and not always exactly.
        encoded.lengths = lengths
        return encoded


class Decoder(nn.Module):
    """From encoder output to tokens, with the call of SpeechBrain's searchers.

    Arguments
    ---------
    search : callable
        As in a recipe: (modules, encoded, lengths) → list of token lists.
    parts : dict of str to torch.nn.Module
        The recogniser's modules.
    """

    def __init__(self, search, parts):
        super().__init__()
        self.search = search
        self.parts = nn.ModuleDict(parts)

    def forward(self, encoded, wav_lens):
        """Tokens of each utterance; lengths, scores and log probabilities are None."""
        lengths = getattr(encoded, "lengths", None)
        if lengths is None:
            lengths = absolute_lengths(wav_lens, encoded.shape[1])
        return self.search(dict(self.parts.items()), encoded, lengths), None, None, None


def load_model(module, path):
    """A Pretrainer's hook for weights, strictly."""
    found = _read(path)
    check_same_names(path, found, module.state_dict())
    try:
        module.load_state_dict(found, strict=True)
    except RuntimeError as error:  # another shape
        raise InputError(f"{path}: {' '.join(str(error).split())}") from error


def load_normalizer(module, path):
    """A Pretrainer's hook for the statistics of `InputNormalization`, strictly."""
    found = _read(path)
    check_same_names(path, found, module._statistics_dict())
    module._load_statistics_dict(found)


def give_file(search, path, argument):
    """A Pretrainer's hook that gives a search the path of a file, as of its language model."""
    if not hasattr(search, argument):
        raise InputError(f"{path}: {type(search).__name__} has no {argument} for it")
    setattr(search, argument, str(path))


def _read(path):
    try:
        found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch has many words for a damaged file
        raise InputError(
            f"{path}: it cannot be read: {type(error).__name__}: {one_line(error)}"
        ) from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: it holds no weights")
    return found
