"""Attention weights against the attention's own output, and their measures against loops."""

import csv
import json
import math

import pytest
import soundfile
import torch
from speechbrain.nnet.attention import RelPosEncXL
from torch import nn

from summarymixing.errors import InputError
from summarymixing.inference import attention
from summarymixing.models.mixers import make_mixer


def _output(mixer, weights, x):
    """From weights to the output, with the mixer's own values."""
    heads = weights.shape[1]
    if isinstance(mixer, attention.MultiheadAttention):
        inner = mixer.att
        width = inner.embed_dim
        bias = inner.in_proj_bias[2 * width :]
        values = (x @ inner.in_proj_weight[2 * width :].T + bias).unflatten(-1, (heads, -1))
        projection = inner.out_proj
    else:  # heads have their query, key and value beside each other
        each = mixer.in_proj_weight.unflatten(0, (heads, 3, -1))[:, 2]
        values = torch.einsum("btd,hed->bthe", x, each)
        projection = mixer.out_proj
    return projection(torch.einsum("bhts,bshe->bthe", weights, values).flatten(2))


@pytest.mark.parametrize("name", ("RoPEMHA", "RelPosMHAXL", "regularMHA"))
@pytest.mark.parametrize("time", (1, 7, 40))
def test_weights_times_values_are_the_output(name, time):
    mixer = make_mixer(name, d_model=16, nhead=4, d_ffn=32, dropout=0.1).eval()
    for parameter in mixer.parameters():
        nn.init.normal_(parameter, std=0.5)
    x = torch.randn(2, time, 16)
    positions = RelPosEncXL(16)(x) if name == "RelPosMHAXL" else None
    with torch.no_grad():
        weights = attention.attention_weights(mixer, x, positions)
        expected, _ = mixer(x, x, x, pos_embs=positions)
        found = _output(mixer, weights, x)
    assert weights.shape == (2, 4, time, time)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, time))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", ("RoPEMHA", "RelPosMHAXL", "regularMHA"))
@pytest.mark.parametrize("encoder", ("conformer", "branchformer", "transformer"))
def test_maps_are_those_of_the_layers(make_recogniser, noise, encoder, name):
    recogniser = make_recogniser(encoder, attention_type=name, nhead=2)
    layers = recogniser.modules["Transformer"].encoder.layers
    seen = []
    mixers = [m for layer in layers for m in layer.modules() if isinstance(m, attention.ATTENTION)]
    for mixer in mixers:
        mixer.register_forward_hook(lambda _, given, got: seen.append((given[0], got[0])))
    maps = attention.attention_maps(recogniser, noise(9000))
    assert list(maps) == [0, 1]
    for mixer, found, (x, expected) in zip(mixers, maps.values(), seen):
        with torch.no_grad():
            y = _output(mixer, found[None], x)
        torch.testing.assert_close(y, expected, atol=1e-5, rtol=1e-5)


def test_models_that_have_no_maps(make_recogniser, noise):
    with pytest.raises(InputError, match="attention_type: SummaryMixing: no layer"):
        attention.attention_maps(make_recogniser(), noise(5000))
    with pytest.raises(InputError, match="causal: True"):
        attention.attention_maps(make_recogniser(attention_type="RoPEMHA", causal=True), noise(800))


def test_measures():
    maps = torch.randn(2, 3, 9, 9).mul(2).softmax(-1)
    for k in range(2):
        for head in range(3):
            rows = maps[k, head].tolist()
            mean = [sum(row[j] for row in rows) / 9 for j in range(9)]
            distances = {"uniform": 0, "shared": 0, "window": 0}
            nats = 0
            for i, row in enumerate(rows):
                around = [j for j in range(9) if i - 2 <= j <= i + 4]
                others = {
                    "uniform": [1 / 9] * 9,
                    "shared": mean,
                    "window": [(j in around) / len(around) for j in range(9)],
                }
                for name, other in others.items():
                    # Weight that has to move: total variation in its other form.
                    distances[name] += sum(max(a - b, 0) for a, b in zip(row, other)) / 9
                nats -= sum(p * math.log(p) for p in row) / 9
            one = maps[k, head]
            assert attention.from_uniform(one).item() == pytest.approx(distances["uniform"], 1e-5)
            assert attention.from_shared(one).item() == pytest.approx(distances["shared"], 1e-5)
            window = attention.from_window(one, left=2, right=4).item()
            assert window == pytest.approx(distances["window"], 1e-5)
            assert attention.entropy(one).item() == pytest.approx(nats, 1e-5)
    assert attention.from_window(maps, 2, 4).shape == (2, 3)
    # A weight of zero, as of a frame that is far, is no nan.
    assert attention.entropy(torch.eye(3)) == 0


@pytest.fixture
def manifest(tmp_path, noise):
    rows = []
    for i, samples in enumerate((9000, 5000, 12000, 20000)):
        soundfile.write(tmp_path / f"{i}.wav", noise(samples).numpy(), 16000)
        rows.append([f"u{i}", samples / 16000, tmp_path / f"{i}.wav", "a", "one"])
    with open(tmp_path / "dev.csv", "w", newline="") as file:
        csv.writer(file).writerows([["ID", "duration", "wav", "spk_id", "wrd"], *rows])
    return tmp_path / "dev.csv"


def test_script(trained, manifest, load_script, tmp_path, capsys):
    folder, _ = trained(attention_type="RoPEMHA", encoder_nhead=2, num_encoder_layers=2)
    script = load_script("attention_maps")
    out = [f"--json={tmp_path}/a.json", f"--plot={tmp_path}/a.png"]
    script.main([str(folder), str(manifest), *out])
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["command"] and content["device"] and content["versions"]["torch"]
    assert [(row["layer"], row["head"]) for row in content["heads"]] == [
        (0, 0), (0, 1), (1, 0), (1, 1)
    ]  # fmt: skip
    assert [utterance["ID"] for utterance in content["utterances"]] == ["u1", "u0", "u2", "u3"]
    from summarymixing.dataio import manifests
    from summarymixing.inference import load

    recogniser = load(folder)
    maps = [
        attention.attention_maps(recogniser, manifests.read_audio(row, 16000))
        for row in manifests.read(manifest)
    ]
    for row in content["heads"]:
        own = [found[row["layer"]][row["head"]] for found in maps]
        mean = sum(attention.from_uniform(found).item() for found in own) / 4
        assert row["uniform"] == pytest.approx(mean, 1e-5)
        windows = {
            (left, right): sum(attention.from_window(found, left, right).item() for found in own)
            for left in script.SIDES
            for right in script.SIDES
        }
        assert row["window"] == pytest.approx(min(windows.values()) / 4, 1e-5)
        assert windows[row["left"], row["right"]] == pytest.approx(min(windows.values()), 1e-5)
        ratio = sum(attention.entropy(found).item() / math.log(len(found)) for found in own) / 4
        assert row["entropy"] == pytest.approx(ratio, 1e-5)
    assert (tmp_path / "a.png").read_bytes()[1:4] == b"PNG"
    printed = capsys.readouterr().out
    assert "| 1 | " in printed and "| all | " in printed

    script.main([str(folder), str(manifest), "--utterances=2", "--untrained"])
    assert "\n2 utterances" in capsys.readouterr().out


def test_entropy_of_averages_grows_with_log_t(load_script):
    slope = load_script("attention_maps")._slope
    frames = (10, 20, 50, 90)
    logs = [math.log(n) for n in frames]
    uniform = [attention.entropy(torch.full((n, n), 1 / n)).item() for n in frames]
    assert slope(logs, uniform) == pytest.approx(1, 1e-4)
    assert slope(logs, [1.0] * 4) == pytest.approx(0, abs=1e-4)
    assert slope([2.0, 2.0], [1.0, 2.0]) is None


@pytest.mark.parametrize(
    "changes, options, message",
    (
        (
            {
                "attention_type": ["RoPEMHA", "RoPEMHA"],
                "encoder_nhead": [1, 2],
                "num_encoder_layers": 2,
            },
            [],
            "layers with unequal numbers of heads: 1, 2",
        ),
        ({"attention_type": "RoPEMHA"}, ["--plot=/"], "--plot=/: a file is expected"),
        ({}, [], "no layer of the encoder has attention"),
        ({"attention_type": "RoPEMHA"}, ["--utterances=0"], "--utterances must be at least 1"),
    ),
)
def test_mistakes_are_one_line(trained, manifest, load_script, capsys, changes, options, message):
    folder, _ = trained(**changes)
    with pytest.raises(SystemExit) as stop:
        load_script("attention_maps").main([str(folder), str(manifest), *options])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
