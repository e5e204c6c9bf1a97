"""Log-mel features with exact lengths."""

import torch
from speechbrain.lobes.features import Fbank
from torch import nn

from summarymixing.errors import InputError
from summarymixing.ops.padding import absolute_lengths, padding_mask


class LogMel(nn.Module):
    """SpeechBrain's `Fbank` with lengths in samples in, and in frames out.

    Arguments
    ---------
    sample_rate : int
        Samples a second.
    n_fft : int
        Points of the Fourier transform, in samples.
    win_length, hop_length : float
        In milliseconds, as in SpeechBrain.
    n_mels : int
        Features a frame.
    top_db : float, optional
        Decibels below the utterance's loudest feature at which the others are clipped. None: no
        clipping, so that features depend on nothing far away: what streaming needs.

    Example
    -------
    >>> features = LogMel()
    >>> x, lengths = features(torch.rand(2, 16000), torch.tensor([16000, 1]))
    >>> x.shape, lengths.tolist()
    (torch.Size([2, 101, 80]), [101, 1])
    """

    def __init__(
        self, sample_rate=16000, n_fft=512, win_length=32, hop_length=10, n_mels=80, top_db=80.0
    ):
        super().__init__()
        if top_db is not None and not top_db > 0:
            raise InputError(f"top_db must be positive, or null for no clipping, got {top_db}")
        self.top_db = top_db
        self.hop = round(sample_rate * hop_length / 1000)
        self.fbank = Fbank(
            sample_rate=sample_rate,
            n_fft=n_fft,
            n_mels=n_mels,
            win_length=win_length,
            hop_length=hop_length,
        )
        self.fbank.compute_fbanks.top_db = float("inf") if top_db is None else top_db

    def frames(self, samples):
        """Frames for a number of samples (an integer or a tensor of them)."""
        return samples // self.hop + 1

    def get_filter_properties(self):
        """Window and stride in samples, as SpeechBrain's `FilterProperties`."""
        return self.fbank.get_filter_properties()

    @torch.no_grad()
    def forward(self, wavs, lengths):
        """Audio to log-mel frames.

        Arguments
        ---------
        wavs : torch.Tensor
            (batch, samples).
        lengths : torch.Tensor
            (batch,): samples if integers, fractions of the longest otherwise.

        Returns
        -------
        features : torch.Tensor
            (batch, frames, n_mels).
        lengths : torch.Tensor
            (batch,), int64, in frames.
        """
        lengths = absolute_lengths(lengths, wavs.shape[1])
        wavs = wavs.masked_fill(padding_mask(lengths, wavs.shape[1]), 0)
        return self.fbank(wavs), self.frames(lengths)
