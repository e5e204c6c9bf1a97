"""An utterance is encoded alike alone and in any batch, whatever stands behind it there."""

import pytest
import torch

from summarymixing.models.branchformer import ReflectingConv1d
from summarymixing.models.mixers import MIXERS
from summarymixing.models.transformer_asr import ENCODERS
from summarymixing.nnet.cell import MODES

LENGTHS = (1, 2, 3, 4, 5, 15, 16, 17, 31, 61, 64, 65, 67, 260)
MIXTURES = [("SummaryMixing", {"mode": mode}) for mode in MODES]
MIXTURES += [("SummaryMixing", {"encoder_nhead": 1, "local_proj_out_dim": 8})]
OTHERS = [(attention, {}) for attention in MIXERS if attention != "SummaryMixing"]


def _id(value):
    return value if isinstance(value, str) else ",".join(map(str, value.values()))


each_encoder = pytest.mark.parametrize("encoder", ENCODERS)
every = pytest.mark.parametrize("attention, changes", MIXTURES + OTHERS, ids=_id)
summary = pytest.mark.parametrize("attention, changes", MIXTURES, ids=_id)


def _assert_invariant(encode, utterances, batch, lengths, out_lengths):
    with torch.no_grad():
        together = encode(batch, lengths)
        for row, utterance, length in zip(together, utterances, out_lengths):
            alone = encode(utterance)[0]
            assert len(alone) == length
            torch.testing.assert_close(row[:length], alone, rtol=0, atol=1e-5)


@each_encoder
@every
def test_with_front_end(encoder, attention, changes, make_system, make_batch):
    system = make_system(encoder, attention, **changes)
    utterances, batch, lengths = make_batch(LENGTHS, 12, garbage=30.0)
    out_lengths = [-(-length // 4) for length in LENGTHS]
    _assert_invariant(system, utterances, batch, lengths, out_lengths)


@each_encoder
@every
def test_encoder_alone(encoder, attention, changes, make_model, make_batch):
    model = make_model(encoder, attention, **changes)
    lengths = LENGTHS[:-1]
    utterances, batch, tensor = make_batch(lengths, 12, garbage=30.0)
    _assert_invariant(model.encode, utterances, batch, tensor, lengths)


@each_encoder
@summary
def test_not_even_nan_leaks_from_the_padding(encoder, attention, changes, make_system, make_batch):
    system = make_system(encoder, attention, **changes)
    utterances, batch, lengths = make_batch(LENGTHS, 12, garbage=float("nan"))
    out_lengths = [-(-length // 4) for length in LENGTHS]
    _assert_invariant(system, utterances, batch, lengths, out_lengths)


@pytest.mark.parametrize("activation", (torch.nn.Sigmoid, torch.nn.Identity))
def test_branchformer_gate_options(activation, make_model, make_batch):
    model = make_model("branchformer", use_linear_after_conv=True, gate_activation=activation)
    utterances, batch, lengths = make_batch((1, 4, 30, 33), 12, garbage=30.0)
    _assert_invariant(model.encode, utterances, batch, lengths, lengths.tolist())


@each_encoder
def test_decoder_too(encoder, make_model, make_batch):
    model = make_model(encoder)
    utterances, batch, lengths = make_batch((1, 5, 40), 12, garbage=30.0)
    tokens = torch.tensor([[1, 3, 0, 0], [1, 4, 5, 0], [1, 6, 7, 8]])
    with torch.no_grad():
        encoded, decoded = model(batch, tokens, lengths)
        for b, (n, t) in enumerate(((1, 2), (5, 3), (40, 4))):
            e, d = model(utterances[b], tokens[b : b + 1, :t])
            torch.testing.assert_close(encoded[b, :n], e[0], rtol=0, atol=1e-5)
            torch.testing.assert_close(decoded[b, :t], d[0], rtol=0, atol=1e-5)


@each_encoder
@summary
def test_gradients(encoder, attention, changes, make_system, make_batch):
    system = make_system(encoder, attention, **changes, num_decoder_layers=0).double()
    lengths = (1, 2, 5, 17, 66, 150)
    utterances, batch, tensor = make_batch(lengths, 12, garbage=30.0, dtype=torch.float64)
    batch.requires_grad_()
    cotangent = torch.randn(len(lengths), 38, 16, dtype=torch.float64)
    together = system(batch, tensor)
    loss = sum(
        (together[b, : -(-n // 4)] * cotangent[b, : -(-n // 4)]).sum()
        for b, n in enumerate(lengths)
    )
    loss.backward()
    found = {name: p.grad for name, p in system.named_parameters()}
    system.zero_grad(set_to_none=True)
    for b, utterance in enumerate(utterances):
        utterance.requires_grad_()
        alone = system(utterance)
        (alone[0] * cotangent[b, : alone.shape[1]]).sum().backward()
        torch.testing.assert_close(
            batch.grad[b, : lengths[b]], utterance.grad[0], rtol=1e-9, atol=1e-9
        )
        assert not batch.grad[b, lengths[b] :].any()
    for name, parameter in system.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-8, msg=name)


@each_encoder
@every
def test_a_gradient_for_every_parameter(encoder, attention, changes, make_system):
    system = make_system(encoder, attention, **changes, dropout=0.0).train()
    frames, lengths = system.front_end(torch.randn(2, 90, 12), torch.tensor([90, 50]))
    outputs = system.model(frames, torch.randint(1, 11, (2, 6)), lengths)
    sum((output * torch.randn_like(output)).sum() for output in outputs).backward()
    for name, parameter in system.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


@pytest.mark.parametrize("kernel", (3, 7, 31))
def test_reflecting_convolution_equals_one_on_written_out_reflections(kernel, make_model):
    model = make_model("branchformer", kernel_size=kernel)
    conv = model.encoder.layers[0].convolution_branch.csgu.conv
    assert isinstance(conv, ReflectingConv1d)
    width = kernel // 2
    lengths = (1, 2, 3, 8, 14, 15, 16, 17, 40)
    x = torch.randn(len(lengths), 40, 12)
    with torch.no_grad():
        found = conv(x, torch.tensor(lengths))
        for b, length in enumerate(lengths):
            indices = []
            for t in range(-width, length + width):
                while length > 1 and not 0 <= t < length:
                    t = -t if t < 0 else 2 * (length - 1) - t
                indices.append(t if length > 1 else 0)
            padded = x[b, indices].T.unsqueeze(0)
            expected = torch.nn.functional.conv1d(
                padded, conv.conv.weight, conv.conv.bias, groups=12
            )
            torch.testing.assert_close(found[b, :length], expected[0].T, rtol=0, atol=1e-5)


@each_encoder
def test_fractions_and_frames_agree(encoder, make_model):
    model = make_model(encoder)
    frames = torch.randn(5, 77, 12)
    lengths = torch.tensor([77, 1, 29, 38, 76])
    tokens = torch.randint(1, 11, (5, 3))
    fractions = lengths.float() / 77
    with torch.no_grad():
        assert torch.equal(model.encode(frames, lengths), model.encode(frames, fractions))
        for one, other in zip(model(frames, tokens, lengths), model(frames, tokens, fractions)):
            assert torch.equal(one, other)
        whole = torch.full((5,), 77)
        torch.testing.assert_close(model.encode(frames, whole), model.encode(frames))


def test_every_length_reaches_the_mixer_as_it_was_given(make_model):
    class Recorder(torch.nn.Module):
        def forward(self, query, key, value, key_padding_mask=None, **_):
            self.lengths = (~key_padding_mask).sum(1)
            return query, None

    model = make_model("transformer", num_encoder_layers=1, d_model=2, nhead=1)
    recorder = model.encoder.layers[0].self_att = Recorder()
    for time in (*range(1, 40), 997, 1511, 30_011):
        lengths = torch.arange(1, time + 1)[-16:]
        with torch.no_grad():
            model.encode(torch.zeros(len(lengths), time, 12), lengths)
        assert torch.equal(recorder.lengths, lengths)
