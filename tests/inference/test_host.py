"""SpeechBrain's StreamingASR over our parts against our own streams."""

import pytest
import soundfile
import torch
from speechbrain.inference import ASR
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.errors import InputError
from summarymixing.inference import Stream
from summarymixing.inference.host import StreamingASR

CONFIG = DynChunkTrainConfig(4, 2)


def _text(recogniser, wav):
    stream = Stream(recogniser, CONFIG.chunk_size, CONFIG.left_context_size)
    return "".join(e.text for e in stream.push(wav) + stream.finish() if e.stable)


@pytest.mark.parametrize("kind", ("ctc", "transducer"))
@pytest.mark.parametrize("samples", (500, 10240, 40001))
def test_file(make_recogniser, noise, tmp_path, kind, samples):
    recogniser, wav = make_recogniser("branchformer", kind), noise(samples)
    soundfile.write(tmp_path / "a.wav", wav.numpy(), 16000, subtype="FLOAT")
    asr = StreamingASR(recogniser)
    assert asr.transcribe_file(tmp_path / "a.wav", CONFIG) == _text(recogniser, wav)


@pytest.mark.parametrize("size", (2560, 999, 2556))
def test_chunks_of_a_batch(make_recogniser, noise, size):
    """SpeechBrain's own methods; its own, shorter size of a chunk (639 x 4 here) does not drift."""
    recogniser = make_recogniser()
    wavs = torch.stack([noise(30000), noise(30000)])
    asr = StreamingASR(recogniser)
    context, texts = asr.make_streaming_context(CONFIG), ["", ""]
    for chunk in wavs.split(size, dim=1):
        words = ASR.StreamingASR.transcribe_chunk(asr, context, chunk)
        texts = [text + word for text, word in zip(texts, words)]
    texts = [text + word for text, word in zip(texts, asr.finish(context))]
    assert texts == [_text(recogniser, wav) for wav in wavs]


def test_folder(trained, noise, tmp_path):
    folder, _ = trained()
    soundfile.write(tmp_path / "a.wav", noise(30000).numpy(), 16000)
    asr = StreamingASR.from_folder(folder)
    assert asr.transcribe_file(str(tmp_path / "a.wav"), CONFIG) != ""


def test_what_is_not_offered(make_recogniser, noise, tmp_path):
    asr = StreamingASR(make_recogniser())
    with pytest.raises(InputError, match="use_torchaudio_streaming"):
        asr.transcribe_file("a.wav", CONFIG, use_torchaudio_streaming=True)
    with pytest.raises(InputError, match="chunk_size"):
        asr.make_streaming_context(DynChunkTrainConfig(0, 2))
    context = asr.make_streaming_context(CONFIG)
    with pytest.raises(InputError, match=r"finish\(\)"):
        asr.transcribe_chunk(context, torch.zeros(1, 2560), torch.tensor([0.5]))
    asr.transcribe_chunk(context, torch.zeros(1, 2560))
    with pytest.raises(InputError, match="of 1 streams"):
        asr.transcribe_chunk(context, torch.zeros(2, 2560))
    other = StreamingASR(make_recogniser())
    with pytest.raises(InputError, match="another model"):
        other.transcribe_chunk(context, torch.zeros(1, 2560))
