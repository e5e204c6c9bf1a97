"""Chunk by chunk: batches, SpeechBrain's chunks, streams and memory."""

import copy

import pytest
import torch
from speechbrain.lobes.models.transformer import Conformer as host
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR as HostASR
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.errors import InputError
from summarymixing.models import mixers
from summarymixing.models.conformer import ConvolutionModule
from summarymixing.models.streaming import StreamingContext
from summarymixing.nnet.cell import MODES
from summarymixing.nnet.summaries import DecayedMean, UtteranceMean, WindowMean

SEVERAL = [UtteranceMean(), WindowMean(9, 2), DecayedMean(0.8, causal=True)]
MIXTURES = [("SummaryMixing", {"mode": mode}) for mode in MODES]
MIXTURES += [("SummaryMixing", {"summaries": SEVERAL})]
OTHERS = [("RoPEMHA", {}), ("none", {})]
LENGTHS = (1, 2, 7, 8, 9, 40, 61)
CONFIGS = [DynChunkTrainConfig(*sizes) for sizes in ((8, 0), (8, 2), (8, None), (1, 3), (100, 1))]


def _id(value):
    if isinstance(value, DynChunkTrainConfig):
        return f"{value.chunk_size}-{value.left_context_size}"
    if isinstance(value, list):
        return "-".join(value)
    return value if isinstance(value, str) else "".join(map(str, value.values()))[:20]


each_encoder = pytest.mark.parametrize("encoder", ("conformer", "branchformer"))
each_config = pytest.mark.parametrize("config", CONFIGS, ids=_id)
OTHERS += [(["SummaryMixing", "RoPEMHA"], {}), (["none", "SummaryMixing"], {})]
every = pytest.mark.parametrize("attention, changes", MIXTURES + OTHERS, ids=_id)
summary = pytest.mark.parametrize("attention, changes", MIXTURES, ids=_id)


@each_encoder
@each_config
@every
def test_batch_does_not_matter(encoder, attention, changes, config, make_model, make_batch):
    model = make_model(encoder, attention, **changes)
    garbage = float("nan") if attention == "SummaryMixing" else 30.0
    utterances, batch, lengths = make_batch(LENGTHS, 12, garbage=garbage)
    with torch.no_grad():
        together = model.encode(batch, lengths, dynchunktrain_config=config)
        for row, utterance, length in zip(together, utterances, LENGTHS):
            alone = model.encode(utterance, dynchunktrain_config=config)[0]
            torch.testing.assert_close(row[:length], alone, rtol=0, atol=1e-5)


@each_encoder
@each_config
@every
def test_nothing_is_seen_outside_of_the_chunks(encoder, attention, changes, config, make_model):
    model = make_model(encoder, attention, num_encoder_layers=1, kernel_size=3, **changes)
    size, left = config.chunk_size, config.left_context_size
    x = torch.randn(1, 45, 12, requires_grad=True)
    encoded = model.encode(x, dynchunktrain_config=config)
    for t in (0, 7, 8, 31, 44):
        (gradient,) = torch.autograd.grad(encoded[0, t].square().sum(), x, retain_graph=True)
        seen = gradient[0].abs().sum(-1) > 1e-9
        assert not seen[(t // size + 1) * size :].any()
        if left is not None:
            # Conformer's convolution sees one frame of the past here, and what that has mixed.
            oldest = t - 1 if encoder == "conformer" else t
            assert not seen[: max(0, min((oldest // size - left) * size, t - 1))].any()
        assert seen[t]


@each_encoder
@each_config
@every
@pytest.mark.parametrize("at_once", (1, 2))
def test_streams_as_it_was_trained(
    encoder, attention, changes, config, at_once, make_model, make_batch
):
    model = make_model(encoder, attention, **changes)
    if "RoPEMHA" in attention and config.left_context_size is None:
        with pytest.raises(InputError, match="limited left context"):
            model.make_streaming_context(config)
        return
    _, batch, lengths = make_batch(LENGTHS, 12, garbage=30.0)
    with torch.no_grad():
        expected = model.encode(batch, lengths, dynchunktrain_config=config)
        context = model.make_streaming_context(config, len(LENGTHS))
        shapes = {name: t.shape for name, t in context.state.items()}
        assert not any(t.any() for t in context.state.values())
        begun, pieces = 0, []
        for piece in batch.split(at_once * config.chunk_size, 1):
            left = (lengths - begun).clamp(min=0, max=piece.shape[1])
            pieces.append(model.encode_streaming(piece, context, left))
            begun += piece.shape[1]
            assert {name: t.shape for name, t in context.state.items()} == shapes
    found = torch.cat(pieces, 1)
    for b, length in enumerate(LENGTHS):
        torch.testing.assert_close(found[b, :length], expected[b, :length], rtol=0, atol=1e-5)


@each_encoder
@summary
def test_streams_join_and_leave(encoder, attention, changes, make_model):
    model = make_model(encoder, attention, **changes)
    config = DynChunkTrainConfig(4, 2)
    first, second = torch.randn(1, 24, 12), torch.randn(1, 24, 12)
    with torch.no_grad():
        expected = [model.encode(x, dynchunktrain_config=config) for x in (first, second)]
        context = model.make_streaming_context(config)
        model.encode_streaming(first[:, :8], context)
        fresh = model.make_streaming_context(config).state
        context.state = {k: torch.cat([fresh[k], t]) for k, t in context.state.items()}
        both = torch.cat([second[:, :12], first[:, 8:20]])
        found = model.encode_streaming(both, context)
        torch.testing.assert_close(found[0], expected[1][0, :12], rtol=0, atol=1e-5)
        torch.testing.assert_close(found[1], expected[0][0, 8:20], rtol=0, atol=1e-5)
        context.state = {k: t[:1] for k, t in context.state.items()}
        found = model.encode_streaming(second[:, 12:], context)
        torch.testing.assert_close(found[0], expected[1][0, 12:], rtol=0, atol=1e-5)


def test_state_of_another_model_or_batch(make_model):
    model, config = make_model("conformer"), DynChunkTrainConfig(4, 2)
    frames = torch.randn(2, 4, 12)
    with pytest.raises(InputError, match="state of shape"):
        model.encode_streaming(frames, model.make_streaming_context(config, 3))
    for other in (
        make_model("conformer"),
        make_model("conformer", d_model=8),
        copy.deepcopy(model),
    ):
        with pytest.raises(InputError, match="of another model"):
            model.encode_streaming(frames, other.make_streaming_context(config, 2))
    for other in (make_model("conformer", d_model=8), make_model("conformer", kernel_size=7)):
        context = StreamingContext(config, other.make_streaming_context(config, 2).state)
        with pytest.raises(InputError, match="state of shape"):
            model.encode_streaming(frames, context)


def test_a_copied_context_goes_on(make_model):
    model, config = make_model("conformer"), DynChunkTrainConfig(4, 2)
    frames = torch.randn(1, 8, 12)
    with torch.no_grad():
        expected = model.encode(frames, dynchunktrain_config=config)[:, 4:]
        context = model.make_streaming_context(config)
        model.encode_streaming(frames[:, :4], context)
        for copied in (copy.copy(context), copy.deepcopy(context)):
            found = model.encode_streaming(frames[:, 4:], copied)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
            with pytest.raises(InputError, match="of another model"):
                make_model("conformer").encode_streaming(frames, copied)


def test_a_stream_ends_with_a_piece_that_is_not_of_whole_chunks(make_model):
    model, config = make_model("conformer"), DynChunkTrainConfig(16, None)
    context = model.make_streaming_context(config)
    with torch.no_grad():
        model.encode_streaming(torch.randn(1, 32, 12), context)
        model.encode_streaming(torch.randn(1, 5, 12), context)
    for ended in (context, copy.deepcopy(context)):
        with pytest.raises(InputError, match="has ended.* whole chunks of 16"):
            model.encode_streaming(torch.randn(1, 16, 12), ended)


@pytest.mark.parametrize("config", CONFIGS, ids=_id)
def test_convolution_is_speechbrains(config):
    theirs, ours = host.ConvolutionModule(6, 7).eval(), ConvolutionModule(6, 7).eval()
    ours.load_state_dict(theirs.state_dict())
    for time in (1, 8, 45):
        x = torch.randn(2, time, 6)
        found = ours(x, dynchunktrain_config=config)
        torch.testing.assert_close(found, theirs(x, dynchunktrain_config=config))


@each_config
def test_conformer_with_rope_is_speechbrains(config, make_model):
    arguments = {
        "tgt_vocab": 11, "input_size": 12, "d_model": 16, "nhead": 4, "num_encoder_layers": 2,
        "num_decoder_layers": 0, "d_ffn": 24, "kernel_size": 31, "encoder_module": "conformer",
        "attention_type": "RoPEMHA",
    }  # fmt: skip
    ours = make_model(**arguments)
    theirs = HostASR(**arguments, causal=False, normalize_before=True).eval()
    ours.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 45, 12)
    with torch.no_grad():
        found = ours.encode(x, dynchunktrain_config=config)
        expected = theirs.encode(x, dynchunktrain_config=config)
        torch.testing.assert_close(found, expected, rtol=0, atol=5e-6)


@each_encoder
@every
def test_a_chunk_costs_the_frames_that_are_there(encoder, attention, changes, make_model):
    model, config = make_model(encoder, attention, **changes), DynChunkTrainConfig(10**12, 0)
    frames = torch.randn(1, 20, 12)
    with torch.no_grad():
        expected = model.encode(frames, dynchunktrain_config=DynChunkTrainConfig(20, 0))
        whole = model.encode(frames, dynchunktrain_config=config)
        streamed = model.encode_streaming(frames, model.make_streaming_context(config))
    torch.testing.assert_close(whole, expected)
    torch.testing.assert_close(streamed, expected)


@each_encoder
@summary
@pytest.mark.parametrize("left", (2, None))
@pytest.mark.parametrize("size", (8, 1))  # with 1, a square of the chunks is one of the frames
def test_memory_is_linear(encoder, attention, changes, left, size, make_model, square_tensors):
    time = 1511
    model = make_model(encoder, attention, num_encoder_layers=1, **changes).train()
    config = DynChunkTrainConfig(size, left)
    with square_tensors(time) as square:
        encoded = model.encode(
            torch.randn(1, time, 12), torch.tensor([time - 3]), dynchunktrain_config=config
        )
        encoded.square().sum().backward()
    assert not square.found


@each_encoder
@summary
def test_a_gradient_for_every_parameter(encoder, attention, changes, make_model):
    model = make_model(encoder, attention, **changes, dropout=0.0).train()
    outputs = model(
        torch.randn(2, 20, 12),
        torch.randint(1, 11, (2, 6)),
        torch.tensor([20, 9]),
        dynchunktrain_config=DynChunkTrainConfig(8, 1),
    )
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize(
    "sizes, message",
    (
        ((0, None), "chunk_size .*got 0"),
        ((-2, None), "chunk_size .*got -2"),
        ((2.5, None), "chunk_size .*got 2.5"),
        ((True, None), "chunk_size .*got True"),
        ((4, -1), "left_context_size .* or None, got -1"),
        ((4, 1.0), "left_context_size .*got 1.0"),
        ((4, False), "left_context_size .*got False"),
    ),
)
def test_bad_sizes(sizes, message, make_model):
    model, config = make_model("conformer"), DynChunkTrainConfig(*sizes)
    with pytest.raises(InputError, match=message):
        model.encode(torch.randn(1, 9, 12), dynchunktrain_config=config)
    with pytest.raises(InputError, match=message):
        model.make_streaming_context(config)


@pytest.mark.parametrize(
    "changes",
    (
        {"encoder_module": "transformer"},
        {"attention_type": "hypermixing"},
        {"attention_type": "RelPosMHAXL"},
        {"attention_type": "regularMHA"},
        {"attention_type": ["SummaryMixing", "regularMHA"]},
    ),
    ids=str,
)
def test_what_has_no_chunks_says_so(changes, make_model):
    model = make_model(**{"encoder_module": "conformer", **changes})
    right = "conformer or branchformer with attention_type SummaryMixing, RoPEMHA, none or"
    with pytest.raises(InputError, match=f"chunks are for encoder_module {right}"):
        model.encode(torch.randn(1, 9, 12), dynchunktrain_config=DynChunkTrainConfig(4, 1))
    with pytest.raises(InputError, match="causal: False"):
        make_model("conformer", "RoPEMHA", causal=True).make_streaming_context(CONFIGS[0])


class _Whole(torch.nn.Module):
    """A mixer that adds nothing, of whole utterances only."""

    def forward(self, query, key=None, value=None, **masks_and_positions):
        return query.new_zeros(()), None


@each_encoder
def test_a_new_mixer_is_an_entry(encoder, make_model, monkeypatch):
    x, chunks = torch.randn(1, 9, 12), DynChunkTrainConfig(4, 1)
    monkeypatch.setitem(mixers.MIXERS, "new", mixers.Mixer(lambda **_: mixers.NoMixer()))
    monkeypatch.setitem(mixers.MIXERS, "whole", mixers.Mixer(lambda **_: _Whole()))
    new, none = make_model(encoder, "new"), make_model(encoder, "none")
    new.load_state_dict(none.state_dict())
    expected = none.encode(x, dynchunktrain_config=chunks)
    torch.testing.assert_close(new.encode(x, dynchunktrain_config=chunks), expected)
    model = make_model(encoder, ["new", "whole"])
    with pytest.raises(InputError, match=r"none, new or a .*; this is \w+ with \['new', 'whole'\]"):
        model.make_streaming_context(chunks)
