"""Beside SpeechBrain: equal where it is right, and taken by what it offers around its models."""

import inspect

import pytest
import torch
from speechbrain.decoders import CTCScorer, S2STransformerBeamSearcher, ScorerBuilder
from speechbrain.lobes.models.transformer.TransformerASR import EncoderWrapper
from speechbrain.lobes.models.transformer.TransformerASR import TransformerASR as HostASR
from speechbrain.nnet.activations import Swish
from speechbrain.nnet.linear import Linear
from torch import nn

from summarymixing.models.transformer_asr import TransformerASR
from summarymixing.nnet.cell import MODES

# SpeechBrain's Branchformer builds no mixer with RoPEMHA.
PAIRS = [
    (encoder, attention)
    for encoder in ("conformer", "branchformer", "transformer")
    for attention in ("RoPEMHA", "RelPosMHAXL", "regularMHA", "hypermixing")
    if (encoder, attention) != ("branchformer", "RoPEMHA")
]
BASE = {
    "tgt_vocab": 11,
    "input_size": 12,
    "d_model": 16,
    "nhead": 4,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "d_ffn": 24,
    "csgu_linear_units": 24,
    "kernel_size": 7,
    "activation": nn.GELU,
    "conformer_activation": nn.GELU,
    "normalize_before": True,
    "causal": False,
}


def _twins(**changes):
    host = HostASR(**{**BASE, **changes}).eval()
    ours = TransformerASR(**{**BASE, **changes}).eval()
    with torch.no_grad():
        for parameter in host.parameters():
            if parameter.dim() == 1:
                parameter += 0.2 * torch.randn_like(parameter)
    ours.load_state_dict(host.state_dict(), strict=True)
    return ours, host


def _assert_equal(ours, host, time=40):
    source = torch.randn(3, time, 12)
    tokens = torch.tensor([[1, 3, 4, 5], [1, 3, 0, 0], [1, 2, 2, 0]])
    with torch.no_grad():
        for lengths in (None, torch.ones(3)):
            expected = host.encode(source, lengths)
            torch.testing.assert_close(ours.encode(source, lengths), expected, rtol=0, atol=2e-6)
            for f, e in zip(ours(source, tokens, lengths), host(source, tokens, lengths)):
                torch.testing.assert_close(f, e, rtol=0, atol=2e-6)
        memory = torch.randn(3, 9, 16)
        found = ours.decode(tokens, memory, torch.tensor([9, 4, 1]))[0]
        expected = host.decode(tokens, memory, torch.tensor([9, 4, 1]))[0]
        torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("encoder, attention", PAIRS)
def test_same_output_with_the_same_weights(encoder, attention):
    ours, host = _twins(encoder_module=encoder, attention_type=attention)
    _assert_equal(ours, host)


@pytest.mark.parametrize("encoder, attention", PAIRS)
def test_weights_go_both_ways(encoder, attention):
    ours, host = _twins(encoder_module=encoder, attention_type=attention)
    with torch.no_grad():
        for parameter in ours.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # outputs keep their size
    missing, unexpected = host.load_state_dict(ours.state_dict(), strict=False)
    assert not unexpected
    # Constants, which ours does not save.
    assert all(name.endswith(".pe") for name in missing)
    names = dict(host.named_parameters())
    for name, parameter in ours.named_parameters():
        assert torch.equal(names.pop(name), parameter)
    assert not names
    _assert_equal(ours, host)


@pytest.mark.parametrize(
    "changes",
    (
        {"encoder_module": "transformer", "normalize_before": False},
        {"encoder_module": "transformer", "activation": nn.ReLU},
        {"encoder_module": "conformer", "bias": False, "conformer_activation": Swish},
        {"encoder_module": "conformer", "kernel_size": 31},
        {"encoder_module": "branchformer", "use_linear_after_conv": True},
        {"encoder_module": "branchformer", "gate_activation": nn.Sigmoid},
        {"encoder_module": "branchformer", "branchformer_activation": nn.ReLU},
        {"encoder_module": "branchformer", "kernel_size": 31},
    ),
    ids=str,
)
def test_same_output_with_other_options(changes):
    _assert_equal(*_twins(**{"attention_type": "regularMHA", **changes}))


@pytest.mark.parametrize("attention", ("RoPEMHA", "RelPosMHAXL", "regularMHA"))
@pytest.mark.parametrize("encoder", ("conformer", "transformer"))
def test_causal(encoder, attention):
    ours, host = _twins(encoder_module=encoder, attention_type=attention, causal=True)
    _assert_equal(ours, host)
    source = torch.randn(1, 20, 12)
    with torch.no_grad():
        before = ours.encode(source)
        source[:, 12:] += 1
        after = ours.encode(source)
    torch.testing.assert_close(after[:, :12], before[:, :12])
    assert not torch.allclose(after[:, 12:], before[:, 12:])


@pytest.mark.parametrize("encoder", ("conformer", "branchformer", "transformer"))
def test_hidden_states(encoder):
    ours, host = _twins(
        encoder_module=encoder, attention_type="regularMHA", output_hidden_states=True
    )
    source, tokens = torch.randn(2, 20, 12), torch.randint(1, 11, (2, 3))
    with torch.no_grad():
        for f, e in zip(ours.encode(source)[1], host.encode(source)[1], strict=True):
            torch.testing.assert_close(f, e, rtol=0, atol=2e-6)
        assert len(ours(source, tokens)) == 3


@pytest.mark.parametrize("encoder", ("conformer", "branchformer", "transformer"))
def test_layer_drop(encoder):
    model = TransformerASR(
        **{**BASE, "encoder_module": encoder, "dropout": 0.0}, layerdrop_prob=0.5
    )
    source = torch.randn(1, 8, 12)
    with torch.no_grad():
        outputs = [model.train().encode(source) for _ in range(12)]
        model.eval()
        assert torch.equal(model.encode(source), model.encode(source))
    assert any(not torch.equal(outputs[0], other) for other in outputs[1:])


@pytest.mark.parametrize("mode", MODES)
def test_encoder_wrapper(mode):
    model = TransformerASR(**BASE, mode=mode).eval()
    source, fractions = torch.randn(2, 20, 12), torch.tensor([1.0, 0.55])
    with torch.no_grad():
        found = EncoderWrapper(model)(source, fractions)
        assert torch.equal(found, model.encode(source, torch.tensor([20, 11])))


def _searcher(model, heads):
    ctc, seq = heads
    return S2STransformerBeamSearcher(
        modules=[model, seq],
        bos_index=1,
        eos_index=2,
        min_decode_ratio=0.0,
        max_decode_ratio=0.5,
        beam_size=3,
        using_eos_threshold=False,
        length_normalization=True,
        scorer=ScorerBuilder(
            full_scorers=[CTCScorer(ctc, blank_index=0, eos_index=2)], weights={"ctc": 0.4}
        ),
    )


@pytest.mark.parametrize("encoder", ("conformer", "branchformer", "transformer"))
def test_beam_search(encoder):
    heads = [Linear(input_size=16, n_neurons=11).eval() for _ in range(2)]
    lengths, source = torch.tensor([1.0, 0.5]), torch.randn(2, 20, 12)
    ours, host = _twins(encoder_module=encoder, attention_type="regularMHA")
    summary = TransformerASR(**{**BASE, "encoder_module": encoder}).eval()
    with torch.no_grad():
        encoded = ours.encode(source)
        found, expected = (_searcher(m, heads)(encoded, lengths)[0] for m in (ours, host))
        assert found == expected
        assert any(found)
        hypotheses, *_ = _searcher(summary, heads)(summary.encode(source), lengths)
    assert len(hypotheses) == 2


def test_defaults_are_the_hosts():
    ours = inspect.signature(TransformerASR).parameters
    theirs = inspect.signature(HostASR).parameters
    different = {name for name in theirs if ours[name].default != theirs[name].default}
    assert different == {"attention_type", "causal"}
