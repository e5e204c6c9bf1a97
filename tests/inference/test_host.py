"""SpeechBrain's StreamingASR over our parts against our own streams."""

import copy

import pytest
import soundfile
import torch
from speechbrain.inference import ASR
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.dataio.audio import EmptyError
from summarymixing.errors import InputError
from summarymixing.inference import Stream
from summarymixing.inference.host import StreamingASR, _Text

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


def test_there_are_no_spaces_at_the_end(tokenizer):
    """A space is shown when a word follows it, in the next chunk or later."""
    space, one = tokenizer.piece_to_id("▁"), tokenizer.encode("one")
    text = _Text(tokenizer)
    assert tokenizer.decode([*one, space, *one, space]) == "one  one "
    chunks = one, [space], [], one, [space]
    assert [text.push(chunk) for chunk in chunks] == ["one", "", "", "  one", ""]
    assert text.finish() == ""


def test_what_is_not_offered(make_recogniser, noise, tmp_path):
    asr = StreamingASR(make_recogniser())
    with pytest.raises(InputError, match="use_torchaudio_streaming"):
        asr.transcribe_file("a.wav", CONFIG, use_torchaudio_streaming=True)
    with pytest.raises(InputError, match="chunk_size"):
        asr.make_streaming_context(DynChunkTrainConfig(0, 2))
    context = asr.make_streaming_context(CONFIG)
    with pytest.raises(InputError, match=r"finish\(\)"):
        asr.transcribe_chunk(context, torch.zeros(1, 2560), torch.tensor([0.5]))
    for wrong in (torch.zeros(2560), torch.tensor(0.0), torch.zeros(0, 2560), [0.0]):
        with pytest.raises(InputError, match=r"a chunk must be a tensor \(streams, samples\)"):
            asr.transcribe_chunk(context, wrong)
    with pytest.raises(InputError, match="there is no audio"):
        asr.finish(context)
    asr.transcribe_chunk(context, torch.zeros(1, 2560))
    with pytest.raises(InputError, match="of 1 streams"):
        asr.transcribe_chunk(context, torch.zeros(2, 2560))
    other = StreamingASR(make_recogniser())
    with pytest.raises(InputError, match="another model"):
        other.transcribe_chunk(context, torch.zeros(1, 2560))
    with pytest.raises(InputError, match="another model"):
        other.finish(context)
    asr.finish(context)
    for call in (
        lambda: asr.transcribe_chunk(context, torch.zeros(1, 1)),
        lambda: asr.finish(context),
    ):
        with pytest.raises(InputError, match="are finished"):
            call()
    soundfile.write(tmp_path / "empty.wav", torch.zeros(0).numpy(), 16000)
    with pytest.raises(EmptyError, match="empty.wav: the audio file is empty"):
        asr.transcribe_file(tmp_path / "empty.wav", CONFIG)


def test_samples_are_checked_as_in_a_session(make_recogniser, noise):
    recogniser = make_recogniser()
    integers = (noise(30000).clamp(-1, 1) * 32767).to(torch.int16)
    asr = StreamingASR(recogniser)
    context, texts = asr.make_streaming_context(CONFIG), []
    for number, chunk in enumerate(integers.split(1000)):
        for wrong in (torch.nan, torch.inf, 1e30, 12345.0):
            spoilt = torch.zeros(1, 1000)
            spoilt[0, 7] = wrong
            with pytest.raises(InputError, match=f"stream 1: sample {1000 * number + 7} is"):
                asr.transcribe_chunk(context, spoilt)
        texts += asr.transcribe_chunk(context, chunk.unsqueeze(0))
    with pytest.raises(InputError, match="int16, got torch.int32"):
        asr.transcribe_chunk(context, torch.zeros(1, 5, dtype=torch.int32))
    texts += asr.finish(context)
    assert "".join(texts) == _text(recogniser, integers) != ""


def test_a_copied_context_goes_on(make_recogniser, noise):
    recogniser, wav = make_recogniser(), noise(30000)
    asr = StreamingASR(recogniser)
    context, texts = asr.make_streaming_context(CONFIG), []
    for chunk in wav.split(3000):
        texts += asr.transcribe_chunk(context, chunk.unsqueeze(0))
        context = copy.deepcopy(context)
        assert context.fea_extractor_context["streams"][0].filter.function.__self__ is recogniser
    texts += asr.finish(context)
    assert "".join(texts) == _text(recogniser, wav) != ""
