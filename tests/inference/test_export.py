"""Exported graphs against the model that they are of, and bad input to both sides."""

import json
import shutil

import numpy as np
import pytest
import soundfile
import torch

pytest.importorskip("onnx", reason="pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="pip install onnx onnxruntime")

from summarymixing import export as module
from summarymixing.errors import InputError
from summarymixing.export import TOLERANCE, export, streamed
from summarymixing.inference.loading import load
from summarymixing.inference.streaming import StreamingSession
from summarymixing.inference.transcribe import transcribe
from summarymixing.runtime import load_exported

SIZE = 4  # frames in a chunk, of 40 ms
KINDS = (
    ("conformer", None, {}),
    ("branchformer", 1, {"mode": "SummaryMixing-lite"}),
    ("conformer", 2, {"mode": "SummaryMixing-fast", "encoder_nhead": 2}),
    ("branchformer", None, {"mode": "SummaryMixing-expdecay", "encoder_nhead": 4}),
    ("conformer", 2, {"attention_type": "RoPEMHA"}),
)


@torch.no_grad()
def _torch_log_probs(recogniser, samples, lengths, **chunks):
    frames, valid = recogniser.front_end(samples, lengths)
    encoded = recogniser.modules["Transformer"].encode(frames, valid, **chunks)
    return recogniser.modules["ctc_lin"](encoded).log_softmax(-1), valid


def _differences(found, expected, valid):
    return [np.abs(a[:n] - b[:n].numpy()).max() for a, b, n in zip(found, expected, valid)]


def _events(model, wavs, left_context):
    """Of streams that begin and end together, each in its own pieces."""
    session = StreamingSession(model, SIZE, left_context)
    streams = {session.open(): wav for wav in wavs}
    found = {number: [] for number in streams}
    for start in range(0, max(map(len, wavs)), 7001):
        pieces = {number: wav[start : start + 7001] for number, wav in streams.items()}
        for number, events in session.push(pieces).items():
            found[number] += events
    for number, events in session.finish(*streams).items():
        found[number] += events
    return list(found.values())


@pytest.mark.parametrize("encoder, left_context, changes", KINDS)
def test_graphs_say_what_the_model_says(
    make_recogniser, noise, tmp_path, encoder, left_context, changes
):
    recogniser = make_recogniser(encoder, num_encoder_layers=2, **changes)
    export(recogniser, tmp_path / "out", 40 * SIZE, left_context)
    exported = load_exported(tmp_path / "out", threads=1)
    # One sample, fewer than a frame's, more frames than a block of decayed means; padded batches.
    for lengths in ((1,), (97,), (50007,), (33333, 641, 12000), (90001, 89999)):
        samples = torch.stack([noise(max(lengths)) for _ in lengths])
        expected, valid = _torch_log_probs(recogniser, samples, torch.tensor(lengths))
        found, frames = exported.log_probs(samples.numpy(), np.array(lengths))
        assert frames.tolist() == valid.tolist()
        assert max(_differences(found, expected, valid)) <= TOLERANCE
    alone, _ = exported.log_probs(samples[1:, :89999].numpy(), np.array([89999]))
    np.testing.assert_allclose(alone[0], found[1, : len(alone[0])], atol=TOLERANCE)

    # Several streams, of which some end within a chunk.
    frames, valid = recogniser.front_end(samples, torch.tensor([60001, 31000]))
    state = exported.chunkwise(SIZE, left_context)
    assert {name: v.shape for name, v in state.encoder_state.items()} == {
        name: tuple(v.shape)
        for name, v in recogniser.chunkwise(SIZE, left_context).encoder_state.items()
    }
    chunks = recogniser.chunkwise(SIZE, left_context).config
    with torch.no_grad():
        encoded = recogniser.modules["Transformer"].encode(
            frames, valid, dynchunktrain_config=chunks
        )
        expected = recogniser.modules["ctc_lin"](encoded).log_softmax(-1)
    found = streamed(exported, frames.flatten(2).numpy(), valid.numpy())
    assert max(_differences(found, expected, valid)) <= TOLERANCE

    wavs = [noise(length).numpy() for length in (40001, 300, 25000)]
    expected = _events(recogniser, wavs, left_context)
    assert any(expected) and _events(exported, wavs, left_context) == expected


def test_files_and_int8(make_recogniser, noise, tmp_path):
    """Whole files have the same words, at any rate; quantised graphs are near."""
    recogniser = make_recogniser("branchformer", top_db=80.0)
    export(recogniser, tmp_path / "out", 40 * SIZE, int8=True)
    paths = [tmp_path / "a.wav", tmp_path / "b.flac"]
    soundfile.write(paths[0], noise(40000).numpy(), 16000)
    soundfile.write(paths[1], noise(30000).numpy(), 44100)
    expected = list(transcribe(recogniser, paths))
    exported = load_exported(tmp_path / "out")
    for found, result in zip(transcribe(exported, paths), expected):
        assert (found.text, found.duration) == (result.text, result.duration) and found.text
        for word, other in zip(found.words, result.words, strict=True):
            assert (word.text, word.start, word.end) == (other.text, other.start, other.end)
            assert word.confidence == pytest.approx(other.confidence, abs=1e-3)
    samples, lengths = noise(30000).numpy()[None], np.array([30000])
    quantised = load_exported(tmp_path / "out", int8=True)
    difference = np.abs(
        quantised.log_probs(samples, lengths)[0] - exported.log_probs(samples, lengths)[0]
    ).max()
    assert 1e-4 < difference < 1
    assert len(_events(quantised, [samples[0]], None)) == 1


def test_normalisation_of_sentences_has_no_streaming_graph(
    make_recogniser, noise, tmp_path, caplog
):
    recogniser = make_recogniser(num_encoder_layers=1)
    recogniser.modules["normalize"].norm_type = "sentence"
    config = export(recogniser, tmp_path / "out")
    assert config["streaming"] is None and "needs the whole recording" in caplog.text
    samples, lengths = torch.stack([noise(30000), noise(30000)]), torch.tensor([30000, 17000])
    expected, valid = _torch_log_probs(recogniser, samples, lengths)
    exported = load_exported(tmp_path / "out")
    found, _ = exported.log_probs(samples.numpy(), lengths.numpy())
    assert max(_differences(found, expected, valid)) <= TOLERANCE
    with pytest.raises(InputError, match="does not stream"):
        StreamingSession(exported, SIZE)


def test_a_graph_that_differs_is_not_kept(make_recogniser, tmp_path, monkeypatch):
    monkeypatch.setattr(
        module,
        "_waves",
        lambda transform: 1.01 * torch.rand(transform.n_fft + 2, 1, transform.n_fft),
    )
    with pytest.raises(InputError, match="differs from it by"):
        export(make_recogniser(num_encoder_layers=1), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_models_that_cannot_be_exported(make_recogniser, tmp_path):
    with pytest.raises(InputError, match="no ctc_lin"):
        export(make_recogniser(kind="transducer"), tmp_path / "out")
    recogniser = make_recogniser()
    recogniser.modules["normalize"].norm_type = "batch"
    with pytest.raises(InputError, match="norm_type: batch"):
        export(recogniser, tmp_path / "out")
    with pytest.raises(InputError, match="multiple of 40 ms"):
        export(make_recogniser(), tmp_path / "out", chunk_ms=50)
    with pytest.raises(InputError, match="left_context_size"):
        export(make_recogniser(), tmp_path / "out", left_chunks=-1)
    assert list(tmp_path.iterdir()) == []


def test_a_transducer_with_a_ctc_head(make_recogniser, tmp_path, caplog):
    recogniser = make_recogniser(kind="transducer", num_encoder_layers=1)
    recogniser.modules["ctc_lin"] = make_recogniser().modules["ctc_lin"]
    config = export(recogniser, tmp_path / "out")
    assert "the CTC head is exported" in caplog.text and config["streaming"]


def test_bad_input(make_recogniser, tmp_path):
    recogniser, out = make_recogniser(num_encoder_layers=1), tmp_path / "out"
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("text")
    with pytest.raises(InputError, match="is there already; --force"):
        export(recogniser, tmp_path / "precious")
    with pytest.raises(InputError, match="no exported model, and is not replaced"):
        export(recogniser, tmp_path / "precious", force=True)
    assert (tmp_path / "precious" / "file").read_text() == "text"

    (tmp_path / "precious" / "config.json").write_text('{"export_version": 1, "files": {}}')
    with pytest.raises(InputError, match="no exported model, and is not replaced"):
        export(recogniser, tmp_path / "precious", force=True)
    (tmp_path / "precious" / "config.json").unlink()

    export(recogniser, out, 40 * SIZE, 2)
    (out / "notes").mkdir()
    with pytest.raises(InputError, match="notes, not of the exported model, would be lost"):
        export(recogniser, out, 40 * SIZE, 2, force=True)
    (out / "notes").rmdir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "precious"]
    with pytest.raises(InputError, match="exported for left_context=2, got None"):
        StreamingSession(load_exported(out), SIZE)
    with pytest.raises(InputError, match="exported for chunk_size=4, got 5"):
        StreamingSession(load_exported(out), 5, 2)
    with pytest.raises(InputError, match="no int8 graphs"):
        load_exported(out, int8=True)
    with pytest.raises(InputError, match="it is of scripts/export.py; wanted: package"):
        load(out)

    def broken(change):
        """The message for a copy of the folder with something wrong in it."""
        copy = tmp_path / "copy"
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(out, copy)
        change(copy)
        with pytest.raises(InputError) as error:
            load_exported(copy)
        assert "\n" not in str(error.value)
        return str(error.value)

    def configured(**values):
        def change(copy):
            config = json.loads((copy / "config.json").read_text())
            (copy / "config.json").write_text(json.dumps(config | values))

        return change

    assert "not complete" in broken(lambda copy: (copy / "offline.onnx").unlink())
    assert "damaged" in broken(lambda copy: (copy / "offline.onnx").write_bytes(b"0"))
    assert "SHA-256" in broken(lambda copy: (copy / "tokens.txt").write_text("a\tnormal\n"))
    assert "install a newer" in broken(configured(export_version=99))
    assert "sample_rate" in broken(configured(sample_rate="high"))
    assert "it has 32 tokens" in broken(configured(tokens=31))
    assert "no JSON" in broken(lambda copy: (copy / "config.json").write_text("{"))
    assert "no export_version" in broken(lambda copy: (copy / "config.json").write_text("[]"))
    with pytest.raises(InputError, match="No such file or directory; wanted: exported model"):
        load_exported(tmp_path / "nowhere")
    with pytest.raises(InputError, match="wanted: exported model of scripts/export.py"):
        load_exported(tmp_path / "precious")


def test_what_cannot_be_traced_is_one_line(tmp_path, capfd):
    """Without the graph, which torch would print."""

    class Transposed(torch.nn.Module):
        def forward(self, x):
            return x.mT

    names = {"x": {}}, {"y": {}}
    with pytest.raises(InputError, match="^the whole graph of this model cannot be exported: Unsu"):
        module._trace(tmp_path / "whole.onnx", Transposed(), (torch.rand(1, 2, 3),), *names)
    assert not [part for part in capfd.readouterr() if "graph" in part]
