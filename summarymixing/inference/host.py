"""A trained folder in SpeechBrain's `StreamingASR`, with exact parts in the place of its own.

`StreamingSession` does the same and more (streams that join and leave, other sample rates, times):
this is for programs that are written for SpeechBrain's class.
"""

import weakref

import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference import ASR
from speechbrain.utils.filter_analysis import FilterProperties
from speechbrain.utils.streaming import split_fixed_chunks
from torch import nn

from summarymixing.dataio.audio import EmptyError
from summarymixing.dataio.samples import as_samples
from summarymixing.errors import InputError
from summarymixing.inference.filters import FilterStream, front_end_filter
from summarymixing.inference.loading import load
from summarymixing.inference.text import Detokeniser


class StreamingASR(ASR.StreamingASR):
    """SpeechBrain's class for a recogniser of this package: greedy, one stream or a batch of them.

    The streams of a batch begin and end together, and end with `finish`.

    Arguments
    ---------
    recogniser : summarymixing.inference.loading.Recogniser

    Example
    -------
    >>> asr = StreamingASR.from_folder("results/AN4/conformer/1")  # doctest: +SKIP
    >>> asr.transcribe_file("speech.wav", DynChunkTrainConfig(16, 4))  # doctest: +SKIP
    """

    def __init__(self, recogniser):
        tokenizer = recogniser.tokenizer
        hparams = {
            "fea_streaming_extractor": _FrontEnd(recogniser),
            "make_decoder_streaming_context": dict,
            "decoding_function": _decoding_function(recogniser),
            "make_tokenizer_streaming_context": lambda: _Text(tokenizer),
            "tokenizer_decode_streaming": lambda _, tokens, context: context.push(tokens),
            "tokenizer": tokenizer,
            "audio_normalizer": AudioNormalizer(sample_rate=recogniser.sample_rate),
        }
        modules = {"enc": _Encoder(recogniser.modules["Transformer"]), "proj_enc": nn.Identity()}
        super().__init__(modules, hparams, {"device": str(recogniser.device)})

    @classmethod
    def from_folder(cls, folder, device="cpu"):
        """From the output folder of a training."""
        return cls(load(folder, device))

    def make_streaming_context(self, dynchunktrain_config):
        """As SpeechBrain's; the front end, too, works chunk by chunk."""
        context = super().make_streaming_context(dynchunktrain_config)
        context.fea_extractor_context["chunk_size"] = dynchunktrain_config.chunk_size
        return context

    def get_chunk_size_frames(self, dynchunktrain_config):
        """Samples of a chunk (SpeechBrain's number is smaller, and drifts)."""
        return self.filter_props.stride * dynchunktrain_config.chunk_size

    def transcribe_file_streaming(
        self, path, dynchunktrain_config, use_torchaudio_streaming=False, **kwargs
    ):
        """As SpeechBrain's, but it ends where the file ends, without silence behind it."""
        if use_torchaudio_streaming:
            raise InputError("use_torchaudio_streaming: torchaudio can no longer do it; leave it")
        waveform = self.load_audio(str(path), **kwargs).unsqueeze(0)
        if waveform.shape[1] == 0:
            raise EmptyError(f"{path}: the audio file is empty")
        context = self.make_streaming_context(dynchunktrain_config)
        for chunk in split_fixed_chunks(waveform, self.get_chunk_size_frames(dynchunktrain_config)):
            yield self.transcribe_chunk(context, chunk)[0]
        yield self.finish(context)[0]

    def transcribe_file(self, path, dynchunktrain_config, use_torchaudio_streaming=False):
        """The text of a file."""
        return super().transcribe_file(path, dynchunktrain_config, use_torchaudio_streaming)

    @torch.no_grad()
    def encode_chunk(self, context, chunk, chunk_len=None):
        """As SpeechBrain's, for chunks of any length.

        Arguments
        ---------
        context : ASRStreamingContext
        chunk : torch.Tensor
            (streams, samples): floats in [-1, 1], or int16.
        chunk_len : torch.Tensor, optional
            (streams,), ones.

        Returns
        -------
        torch.Tensor
            (streams, frames, d_model): of the model's chunks that are complete by now.

        Raises
        ------
        InputError
            For samples that are no such samples, no numbers or far beyond 1 (then nothing has been
            taken), for other streams than before, or after `finish`.
        """
        self.mods.enc.check(context.encoder_context)
        frames = self.hparams.fea_streaming_extractor(
            chunk, context.fea_extractor_context, chunk_len
        )
        encoded = self.mods.enc.forward_streaming(frames, context.encoder_context)
        return self.mods.proj_enc(encoded)

    def transcribe_chunk(self, context, chunk, chunk_len=None):
        """As SpeechBrain's, with what `encode_chunk` takes."""
        return self.decode_chunk(context, self.encode_chunk(context, chunk, chunk_len))[0]

    @torch.no_grad()
    def finish(self, context):
        """Ends the streams where their last chunk ended: their last words, a list of str."""
        self.mods.enc.check(context.encoder_context)
        frames = self.hparams.fea_streaming_extractor.finish(context.fea_extractor_context)
        encoded = self.mods.enc.forward_streaming(frames, context.encoder_context)
        words, _ = self.decode_chunk(context, self.mods.proj_enc(encoded))
        return [text + c.finish() for text, c in zip(words, context.tokenizer_context)]


def _decoding_function(recogniser):
    def decode(encoded, context):
        if encoded.shape[1] == 0:
            return [[] for _ in encoded]
        lengths = torch.full((len(encoded),), encoded.shape[1], device=encoded.device)
        if not context:
            context["state"] = recogniser.search.initial_state(recogniser.modules, len(encoded))
        tokens, _, context["state"] = recogniser.search.step(
            recogniser.modules, encoded, lengths, context["state"]
        )
        return tokens

    return decode


class _FrontEnd:
    """Takes any number of samples, gives the chunks that are complete by then, perhaps none."""

    def __init__(self, recogniser):
        self.filter = front_end_filter(recogniser)
        self.properties = FilterProperties(2 * self.filter.context + 1, int(self.filter.stride))
        self.no_frames = self.filter.function(torch.zeros(1, device=recogniser.device))[:0]

    def make_streaming_context(self):
        return {}

    def __call__(self, chunk, context, lengths=None):
        _check_unfinished(context)
        if lengths is not None and (lengths < 1).any():
            raise InputError("chunk_len must be 1: streams that end are ended with finish()")
        shape = tuple(getattr(chunk, "shape", ()))
        if len(shape) != 2 or not len(chunk):
            raise InputError(f"a chunk must be a tensor (streams, samples), got shape {shape}")
        streams = context.get("streams") or [FilterStream(self.filter) for _ in chunk]
        if len(chunk) != len(streams):
            raise InputError(f"the context is of {len(streams)} streams, the chunk of {len(chunk)}")
        checked = [
            as_samples(samples, f"stream {number}", stream.received)
            for number, (samples, stream) in enumerate(zip(chunk, streams), 1)
        ]
        context["streams"] = streams
        for stream, samples in zip(streams, checked):
            stream.push(torch.from_numpy(samples).to(self.no_frames.device))
        found = [torch.stack([self.no_frames] * len(streams))]
        while None not in (pulled := [s.pull(context["chunk_size"]) for s in streams]):
            found.append(torch.stack(pulled))
        return torch.cat(found, dim=1)

    def finish(self, context):
        _check_unfinished(context)
        if "streams" not in context:
            raise InputError("there is no audio: transcribe_chunk() comes before finish()")
        context["finished"] = True
        return torch.stack(
            [self.no_frames if (f := s.finish()) is None else f for s in context["streams"]]
        )


class _Text:
    """The text of tokens as they come; spaces wait for what follows them, perhaps nothing."""

    def __init__(self, tokenizer):
        self._detokeniser = Detokeniser(tokenizer)
        self._spaces = ""

    def push(self, tokens):
        return self._without_end("".join([self._detokeniser.push(token) for token in tokens]))

    def finish(self):
        return self._without_end(self._detokeniser.finish())

    def _without_end(self, text):
        text = self._spaces + text
        shown = text.rstrip(" ")
        self._spaces = text[len(shown) :]
        return shown


def _check_unfinished(context):
    if "finished" in context:
        raise InputError("the streams are finished: make_streaming_context() begins others")


class _Encoder(nn.Module):
    """The encoder with the names of SpeechBrain's wrapper, for no frames as well."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def make_streaming_context(self, config):
        self.encoder.make_streaming_context(config)  # what is wrong with it is said at once
        return {"config": config, "of": weakref.ref(self)}

    def check(self, context):
        if context["of"]() is not self:
            raise InputError(
                "the context is of another model: make_streaming_context() of this one"
            )

    def forward_streaming(self, frames, context):
        if frames.shape[1] == 0:
            return frames
        if "encoder" not in context:
            context["encoder"] = self.encoder.make_streaming_context(context["config"], len(frames))
        return self.encoder.encode_streaming(frames, context["encoder"])
