"""A trained folder in SpeechBrain's `StreamingASR`, with exact parts in the place of its own.

`StreamingSession` does the same and more (streams that join and leave, other sample rates, times):
this is for programs that are written for SpeechBrain's class.
"""

import torch
from speechbrain.dataio.preprocess import AudioNormalizer
from speechbrain.inference import ASR
from speechbrain.utils.filter_analysis import FilterProperties
from speechbrain.utils.streaming import split_fixed_chunks
from torch import nn

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
            "make_tokenizer_streaming_context": lambda: Detokeniser(tokenizer),
            "tokenizer_decode_streaming": lambda _, tokens, context: "".join(
                [context.push(token) for token in tokens]
            ),
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
        context = self.make_streaming_context(dynchunktrain_config)
        for chunk in split_fixed_chunks(waveform, self.get_chunk_size_frames(dynchunktrain_config)):
            yield self.transcribe_chunk(context, chunk)[0]
        yield self.finish(context)[0]

    def transcribe_file(self, path, dynchunktrain_config, use_torchaudio_streaming=False):
        """The text of a file."""
        return super().transcribe_file(path, dynchunktrain_config, use_torchaudio_streaming)

    @torch.no_grad()
    def finish(self, context):
        """Ends the streams where their last chunk ended: their last words, a list of str."""
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

    def __call__(self, chunk, context, lengths):
        if (lengths < 1).any():
            raise InputError("chunk_len must be 1: streams that end are ended with finish()")
        streams = context.setdefault("streams", [FilterStream(self.filter) for _ in chunk])
        if len(chunk) != len(streams):
            raise InputError(f"the context is of {len(streams)} streams, the chunk of {len(chunk)}")
        for stream, samples in zip(streams, chunk):
            stream.push(samples)
        found = [torch.stack([self.no_frames] * len(streams))]
        while None not in (pulled := [s.pull(context["chunk_size"]) for s in streams]):
            found.append(torch.stack(pulled))
        return torch.cat(found, dim=1)

    def finish(self, context):
        return torch.stack(
            [self.no_frames if (f := s.finish()) is None else f for s in context["streams"]]
        )


class _Encoder(nn.Module):
    """The encoder with the names of SpeechBrain's wrapper, for no frames as well."""

    def __init__(self, encoder):
        super().__init__()
        self.encoder = encoder

    def make_streaming_context(self, config):
        self.encoder.make_streaming_context(config)  # what is wrong with it is said at once
        return {"config": config, "of": self}

    def forward_streaming(self, frames, context):
        if context["of"] is not self:
            raise InputError(
                "the context is of another model: make_streaming_context() of this one"
            )
        if frames.shape[1] == 0:
            return frames
        if "encoder" not in context:
            context["encoder"] = self.encoder.make_streaming_context(context["config"], len(frames))
        return self.encoder.encode_streaming(frames, context["encoder"])
