"""Streams from raw audio against the chunk-wise forward of the whole recording."""

import random

import numpy as np
import pytest
import torch
import torchaudio
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.errors import InputError
from summarymixing.inference.streaming import Stream, StreamingSession, chunk_frames
from summarymixing.inference.text import Transcript

KINDS = (
    ("conformer", "ctc", {}),
    ("branchformer", "ctc", {}),
    ("conformer", "transducer", {"mode": "SummaryMixing-fast"}),
    ("branchformer", "transducer", {}),
    ("conformer", "transducer", {"attention_type": "RoPEMHA"}),
)


class _Recording:
    """A search that remembers the encoder's output of a single stream."""

    def __init__(self, search):
        self.search = search
        self.encoded = []

    def initial_state(self, *args):
        return self.search.initial_state(*args)

    def step(self, modules, encoded, lengths, state):
        assert len(encoded) == 1
        self.encoded.append(encoded[:, : lengths[0]])
        return self.search.step(modules, encoded, lengths, state)


def _offline(recogniser, wav, chunk_size, left_context):
    """Encoder output and words of the whole recording."""
    frames, lengths = recogniser.front_end(wav.unsqueeze(0), torch.tensor([len(wav)]))
    with torch.no_grad():
        encoded = recogniser.modules["Transformer"].encode(
            frames, lengths, dynchunktrain_config=DynChunkTrainConfig(chunk_size, left_context)
        )
    state = recogniser.search.initial_state(recogniser.modules, 1)
    tokens, places, _ = recogniser.search.step(recogniser.modules, encoded, lengths, state)
    transcript = Transcript(recogniser.tokenizer, frame_seconds=640 / 16000)
    transcript.add(tokens[0], places[0])
    transcript.finish()
    events = transcript.events(limit=len(wav) / 16000)
    assert _text(events) == recogniser.tokenizer.decode(tokens[0]).rstrip(" ")
    return encoded, events


def _stable(events):
    return [event for event in events if event.stable]


def _text(events):
    return "".join(event.text for event in events if event.stable)


def _streamed(recogniser, wav, chunk_size, left_context, splits, rate=None):
    stream = Stream(recogniser, chunk_size, left_context, rate)
    events = []
    for piece in wav.split(splits):
        events += stream.push(piece)
    return _stable(events + stream.finish())


@pytest.mark.parametrize("encoder, kind, changes", KINDS)
@pytest.mark.parametrize(
    "chunk_size, left_context", ((1, 2), (4, 0), (16, 2), (8, None), (10**12, 0))
)
def test_streamed_is_the_chunkwise_forward(
    make_recogniser, noise, encoder, kind, changes, chunk_size, left_context
):
    if "attention_type" in changes and left_context is None:
        pytest.skip("attention's state grows with its left context")
    recogniser = make_recogniser(encoder, kind, **changes)
    for samples in (1, 100, 639, 640, 641, 33333):
        wav = noise(samples)
        encoded, expected = _offline(recogniser, wav, chunk_size, left_context)
        search = recogniser.search
        recogniser.search = recording = _Recording(search)
        events = _streamed(recogniser, wav, chunk_size, left_context, 1600)
        recogniser.search = search
        torch.testing.assert_close(torch.cat(recording.encoded, 1), encoded, atol=1e-5, rtol=0)
        assert events == expected
    assert len(_text(events)) > 10 and events[-1].start > 1


@pytest.mark.parametrize("rate", (None, 8000, 44100))
def test_any_split_gives_the_same(make_recogniser, noise, rate):
    recogniser, wav = make_recogniser("branchformer"), noise(40001)
    draw = random.Random(0)
    whole = _streamed(recogniser, wav, 4, 2, len(wav), rate)
    assert len(whole) > 3
    for largest in (3000, 20000):
        splits = []
        while (left := len(wav) - sum(splits)) > 0:
            splits.append(min(left, draw.choice((0, 1, draw.randrange(largest)))))
        assert _streamed(recogniser, wav, 4, 2, splits, rate) == whole


@pytest.mark.parametrize("rate", (8000, 44100))
def test_other_rates_are_resampled(make_recogniser, noise, rate):
    recogniser, wav = make_recogniser(), noise(50001)
    resampled = torchaudio.functional.resample(wav, rate, 16000)
    _, expected = _offline(recogniser, resampled, 4, 2)
    events = _streamed(recogniser, wav, 4, 2, 1000, rate)
    assert [(e.text, e.start) for e in events] == [(e.text, e.start) for e in expected]


@pytest.mark.parametrize("kind", ("ctc", "transducer"))
def test_streams_that_join_and_leave_are_as_alone(make_recogniser, noise, kind):
    recogniser = make_recogniser("conformer", kind)
    lengths = [20000, 300, 12345, 25601, 7000, 0, 16000]
    rates = [None, None, 8000, None, 44100, None, None]
    wavs = [noise(length) for length in lengths]
    alone = [_streamed(recogniser, w, 4, None, 999, r) for w, r in zip(wavs, rates)]

    draw = random.Random(1)
    session = StreamingSession(recogniser, 4, None)
    waiting, running, found = list(range(len(wavs))), {}, {i: [] for i in range(len(wavs))}
    most = 0
    while waiting or running:
        while waiting and (not running or draw.random() < 0.3):
            stream = waiting.pop(0)
            running[session.open(rates[stream])] = [stream, 0]
        pieces = {}
        for number, (stream, place) in running.items():
            if draw.random() < 0.7:
                size = draw.randrange(6000)
                pieces[number] = wavs[stream][place : place + size]
                running[number][1] += size
        for number, events in session.push(pieces).items():
            found[running[number][0]] += events
        ended = [n for n, (stream, place) in running.items() if place >= lengths[stream]]
        most = max(most, len(running))
        for number, events in session.finish(*ended).items():
            found[running.pop(number)[0]] += events
    assert most > 2
    for events, expected in zip(found.values(), alone):
        assert _stable(events) == expected
    assert session._streams == {}


@pytest.mark.parametrize("encoder, kind, changes", KINDS)
def test_streams_that_end_together_at_different_places(
    make_recogniser, noise, encoder, kind, changes
):
    recogniser = make_recogniser(encoder, kind, **changes)
    wavs = [noise(samples) for samples in (20000, 20480, 0, 21500, 1, 23999)]
    session = StreamingSession(recogniser, 8, 2)
    numbers = [session.open() for _ in wavs]
    found = session.push(dict(zip(numbers, wavs)))
    for state in (session._streams[1].encoder_state, session._streams[1].search_state):
        # No stream holds the memory of the others.
        assert all(t.untyped_storage().nbytes() == t.nbytes for t in state.values())
    last = session.finish(*numbers)
    for number, wav in zip(numbers, wavs):
        events = _stable(found[number] + last[number])
        assert events == _streamed(recogniser, wav, 8, 2, 999)


def test_one_stream_of_a_batch_can_be_dropped(make_recogniser, noise):
    recogniser, wav = make_recogniser(), noise(20000)
    expected = _streamed(recogniser, wav, 4, 2, 999)
    session = StreamingSession(recogniser, 4, 2)
    first, second = session.open(), session.open()
    events = session.push({first: noise(9000), second: wav[:9000]})[second]
    session.close(first)
    events += session.push({second: wav[9000:]})[second] + session.finish(second)[second]
    assert _stable(events) == expected


def test_words_that_may_still_grow(make_recogniser, noise):
    """An unstable word is the beginning of the stable one that follows, or of a longer one."""
    recogniser, wav = make_recogniser(), noise(60000)
    stream, growing, unstable = Stream(recogniser, 2, 2), None, 0
    events = [event for piece in wav.split(700) for event in stream.push(piece)]
    for event in events + stream.finish():
        if growing is not None:
            assert event.text.startswith(growing.text) and event.start == growing.start
        growing = None if event.stable else event
        unstable += not event.stable
        assert 0 <= event.start <= event.end <= 60000 / 16000
    assert growing is None and unstable > 3


def test_state_does_not_grow(make_recogniser):
    recogniser = make_recogniser("branchformer", "transducer")
    session = StreamingSession(recogniser, 2, None)
    number = session.open()
    sizes = []
    for _ in range(20):
        session.push({number: torch.randn(2560) * 0.1})
        stream = session._streams[number]
        state = [*stream.encoder_state.values(), *stream.search_state.values()]
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in state))
    assert len(set(sizes)) == 1
    assert len(stream.transcript._text) <= 40 + 10 and stream.transcript._stable == []


def test_latency_is_when_the_first_frames_come(make_recogniser):
    recogniser = make_recogniser()
    for rate in (None, 8000, 44100):
        session = StreamingSession(recogniser, 4, 2)
        number = session.open(rate)
        samples = 0
        while session._streams[number].frames == 0:
            session.push({number: torch.zeros(10)})
            samples += 10
        # The frame in the chunk's middle counts from its centre: half a frame less.
        waited = samples / (rate or 16000)
        assert waited <= session.latency(rate) <= waited + 0.04 + 10 / 8000
    assert 0.16 < session.latency() < 0.25


def test_chunks_in_milliseconds(make_recogniser):
    recogniser = make_recogniser()
    assert chunk_frames(recogniser, 640) == 16
    for wrong in (0, -40, 650, float("nan")):
        with pytest.raises(InputError, match="multiple of 40 ms"):
            chunk_frames(recogniser, wrong)


def test_samples_of_other_types(make_recogniser, noise):
    recogniser, wav = make_recogniser(), noise(30000).clamp(-1, 1)
    integers = (wav * 2**15).clamp(max=2**15 - 1).to(torch.int16)
    exact = integers.float() / 2**15
    expected = _streamed(recogniser, exact, 4, 2, 1000)
    for samples in (
        integers,
        integers.numpy(),
        exact.double(),
        exact.numpy(),
        np.frombuffer(integers.numpy().tobytes(), dtype="<i2"),
        exact.numpy().astype(">f4"),
        exact.numpy().astype(np.longdouble),
        exact.clone().requires_grad_(),
    ):
        stream = Stream(recogniser, 4, 2)
        assert _stable(stream.push(samples) + stream.finish()) == expected


def test_the_users_buffer_can_be_used_again(make_recogniser, noise):
    recogniser, wav = make_recogniser(), noise(30000)
    expected = _streamed(recogniser, wav, 4, 2, 1000)
    for buffer in (np.zeros(1000, np.float32), torch.zeros(1000)):
        stream, events = Stream(recogniser, 4, 2), []
        for piece in wav.split(1000):
            buffer[:] = piece
            events += stream.push(buffer)
            buffer[:] = 7
        assert _stable(events + stream.finish()) == expected


def test_empty_stream(make_recogniser):
    session = StreamingSession(make_recogniser("conformer", "transducer"), 4, 2)
    number = session.open(8000)
    assert session.push({number: torch.zeros(0)}) == {number: []}
    assert session.finish(number) == {number: []}
    assert session.push({}) == session.finish() == {}


@pytest.mark.parametrize(
    "samples, message",
    (
        ([0.0, 0.1], "torch.Tensor or numpy.ndarray, got list"),
        (torch.zeros(5, 2), r"one channel.*got shape \(5, 2\)"),
        (torch.tensor(0.5), r"got shape \(\)"),
        (torch.zeros(5, dtype=torch.int32), "int16, got torch.int32"),
        (np.zeros(5, dtype=np.uint8), "int16, got uint8"),
        (np.zeros(5, dtype=complex), "int16, got complex128"),
        (torch.tensor([0.0, 0.0, torch.nan, 1.0]), "stream 2: sample 102 is nan"),
        (np.array([0.0, np.inf]), "stream 2: sample 101 is inf"),
        (torch.tensor([0.0, -1e30]), r"stream 2: sample 101 is -1e\+30: .*\[-1, 1\].*32768"),
        (np.full(5, 12345.0), "stream 2: sample 100 is 12345: .*divided by 32768"),
        (torch.tensor([1e300], dtype=torch.float64), "stream 2: sample 100 is inf"),
    ),
)
def test_samples_that_are_none(make_recogniser, noise, samples, message):
    recogniser, wav = make_recogniser(), noise(20000)
    session = StreamingSession(recogniser, 4, 2)
    good, bad = session.open(), session.open()
    events = session.push({good: wav[:10000], bad: wav[:100]})[good]
    with pytest.raises(InputError, match=message):
        session.push({good: wav[10000:], bad: samples})
    # Nothing was taken: the streams go on as if it had not happened.
    events += session.push({good: wav[10000:]})[good] + session.finish(good)[good]
    assert _stable(events) == _streamed(recogniser, wav, 4, 2, 999)


def test_streams_that_are_not_open(make_recogniser):
    session = StreamingSession(make_recogniser(), 4, 2)
    number = session.open()
    session.finish(number)
    for call in (
        lambda: session.push({number: torch.zeros(3)}),
        lambda: session.finish(number),
        lambda: session.close(number),
    ):
        with pytest.raises(InputError, match="stream 1 is finished"):
            call()
    for unknown in (0, 2, "a", None):
        with pytest.raises(InputError, match="there is no stream"):
            session.push({unknown: torch.zeros(3)})
    with pytest.raises(InputError, match="stream 1 is finished"):
        session.finish(session.open(), number)
    assert session.finish(2) == {2: []}


@pytest.mark.parametrize(
    "chunk_size, left_context", ((0, 2), (-1, 2), (2.5, 2), (4, -1), (None, 2), (True, 1))
)
def test_chunks_that_cannot_be(make_recogniser, chunk_size, left_context):
    with pytest.raises(InputError, match="chunk_size|left_context_size"):
        StreamingSession(make_recogniser(), chunk_size, left_context)


def test_models_that_cannot_stream(make_recogniser, caplog):
    recogniser = make_recogniser()
    recogniser.modules["normalize"].norm_type = "sentence"
    with pytest.raises(InputError, match="norm_type: global"):
        StreamingSession(recogniser, 4, 2)
    with pytest.raises(InputError):
        StreamingSession(make_recogniser(attention_type="RoPEMHA"), 4, None)
    with pytest.raises(InputError):
        StreamingSession(make_recogniser("transformer"), 4, 2)
    assert "top_db" not in caplog.text
    StreamingSession(make_recogniser(top_db=80.0), 4, 2)
    assert "top_db: null" in caplog.text
