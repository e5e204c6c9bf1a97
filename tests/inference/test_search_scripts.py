"""evaluate_searches.py, evaluate_chunks.py, tune_search.py, train_ngram.py, measure_long.py,
measure_export.py and measure_streaming.py on a tiny model."""

import copy
import csv
import itertools
import json
import math
import random
import time

import pytest
import soundfile
import torch
from speechbrain.utils.dynamic_chunk_training import DynChunkTrainConfig

from summarymixing.dataio import manifests
from summarymixing.decoding import Hypothesis, make_search
from summarymixing.decoding.ngram import NGram
from summarymixing.inference import load
from summarymixing.inference.evaluation import encoded_batches
from summarymixing.inference.transcribe import transcribe
from summarymixing.machine import describe
from summarymixing.scoring import metrics

FACTS = {"command", *describe()}


@pytest.fixture
def command(load_script, capsys):
    """command(script, *arguments) → exit status, standard output, last line of the error output."""

    def call(script, *arguments):
        capsys.readouterr()
        status = 0
        try:
            load_script(script).main([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        out, err = capsys.readouterr()
        return status, out, (err.splitlines() or [""])[-1]

    return call


@pytest.fixture
def manifest(tmp_path, noise):
    path = tmp_path / "dev.csv"
    rows = []
    for i, (samples, text) in enumerate(((9000, "one two"), (5000, "six"), (12000, "zero and"))):
        wav = tmp_path / f"{i}.wav"
        soundfile.write(wav, noise(samples).numpy(), 16000)
        rows.append([f"u{i}", samples / 16000, wav, "a", text])
    with open(path, "w", newline="") as file:
        csv.writer(file).writerows([["ID", "duration", "wav", "spk_id", "wrd"], *rows])
    return path


def test_a_table_of_searches(trained, manifest, command, tmp_path):
    folder, _ = trained()
    status, out, _ = command(
        "evaluate_searches", folder, manifest, "--batch_size=2", f"--json={tmp_path}/a.json",
        "--methods", "ctc_greedy", "ctc_beam beam_size=3", "recipe",
    )  # fmt: skip
    assert status == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert FACTS <= content.keys()
    table = content["searches"]
    recogniser = load(folder)
    searches = (make_search("ctc_greedy"), make_search("ctc_beam", beam_size=3),
                recogniser.test_search)  # fmt: skip
    references = {"u0": "one two", "u1": "six", "u2": "zero and"}
    for row, search in zip(table, searches):
        texts = {}
        rows = [dict(zip(("ID", "duration", "wav"), (f"u{i}", d, str(tmp_path / f"{i}.wav"))))
                for i, d in enumerate((9000 / 16000, 5000 / 16000, 12000 / 16000))]  # fmt: skip
        for batch, encoded, lengths in encoded_batches(recogniser, rows, 1):
            tokens = search(recogniser.modules, encoded, lengths)[0]
            texts[batch[0]["ID"]] = recogniser.tokenizer.decode(tokens)
        assert row["wer"] == metrics.score(references, texts).wer
        assert f"| {row['search']} | {row['wer']:.2f} |" in out
        assert row["seconds"] > 0 and row["rtf"] > 0


def test_left_chunks_that_are_none(load_script, capsys):
    for name in ("evaluate_chunks", "export"):
        with pytest.raises(SystemExit):
            load_script(name).main(["a", "b", "--left_chunks", "abc"])
        assert "must be an integer or unlimited, got 'abc'" in capsys.readouterr().err


def test_a_table_of_chunks(trained, manifest, command, load_script, tmp_path):
    folder, _ = trained()
    status, out, _ = command(
        "evaluate_chunks", folder, manifest, "--batch_size=2", f"--json={tmp_path}/a.json",
        "--chunk_ms", 80, "--left_chunks", 0, "unlimited",
    )  # fmt: skip
    assert status == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert FACTS <= content.keys()
    recogniser, rows = load(folder), list(manifests.read(manifest))
    references = {row["ID"]: row["wrd"] for row in rows}
    configurations = [None, DynChunkTrainConfig(2, 0), DynChunkTrainConfig(2, None)]
    found = load_script("evaluate_chunks").decode(recogniser, rows, configurations, 2)
    wers = [content["offline"], *(row["wer"] for row in content["chunks"])]
    for texts, chunks, wer in zip(found, configurations, wers, strict=True):
        assert wer == metrics.score(references, texts).wer
        for row in rows:
            wav = manifests.read_audio(row)
            frames, lengths = recogniser.front_end(wav[None], torch.tensor([len(wav)]))
            model = recogniser.modules["Transformer"]
            encoded = model.encode(frames, lengths, dynchunktrain_config=chunks)
            tokens = recogniser.search(recogniser.modules, encoded, lengths)[0]
            assert texts[row["ID"]] == recogniser.tokenizer.decode(tokens)
    assert found[0] != found[1]
    assert f"offline {wers[0]:.2f}" in out and f"| unlimited | {wers[2]:.2f} |" in out


@pytest.mark.parametrize("encoder", ("conformer", "branchformer"))
def test_where_the_loss_comes_from(encoder, make_recogniser, load_script):
    transformer = make_recogniser(encoder).modules["Transformer"].eval()
    script, x = load_script("evaluate_chunks"), torch.randn(1, 9, 12)

    def encoded(chunks, *parts):
        model = copy.deepcopy(transformer)
        for part in parts:
            script.see_the_whole(model.encoder, part)
        with torch.no_grad():
            return model.encode(x, dynchunktrain_config=chunks)

    cut, whole = DynChunkTrainConfig(2, 0), encoded(script.WHOLE)
    torch.testing.assert_close(encoded(cut, "mixers", "convolutions"), whole)
    different = [encoded(cut), encoded(cut, "mixers"), encoded(cut, "convolutions"), whole]
    for i, one in enumerate(different):
        for other in different[:i]:
            assert (one - other).abs().max() > 1e-3


def test_mistakes(trained, manifest, command, tmp_path):
    folder, _ = trained()
    for script, arguments, message in (
        ("evaluate_searches", [folder, manifest, "--methods", "fast"], "no search 'fast'"),
        ("evaluate_searches", [folder, manifest, "--batch_size=0"], "--batch_size"),
        ("evaluate_searches", [folder, tmp_path / "none.csv"], "there is no such manifest"),
        (
            "evaluate_chunks",
            [folder, manifest, "--batch_size=0"],
            "--batch_size must be a positive",
        ),
        ("evaluate_chunks", [folder, manifest, "--left_chunks=-1"], "left_context"),
        ("tune_search", [folder, manifest, "--batch_size=0"], "--batch_size must be at least 1"),
        ("tune_search", [folder, manifest, "--search", "ctc_greedy"], "has no weights to tune"),
        ("tune_search", [folder, manifest, "--search", "attention"], "leaves nothing to weigh"),
        ("train_ngram", [folder / "tokenizer.model", "none", tmp_path / "a"], "no such file"),
        ("train_ngram", [folder / "tokenizer.model", manifest, tmp_path], "directory"),
    ):
        status, _, err = command(script, *arguments)
        assert status == 2 and err.startswith("error: ") and message in err, (script, err)


def test_a_scan_finds_the_fewest_errors(load_script):
    script = load_script("tune_search")
    random.seed(0)
    references = {f"u{i}": "a b" for i in range(30)}
    texts = ["a b", "a", "c d e", ""]
    nbest = {
        name: [
            Hypothesis(
                [3] * random.randrange(1, 6), 0.0,
                {"attention": random.uniform(-9, 0), "ctc": random.uniform(-9, 0)}, i != 2,
            )
            for i in range(random.randrange(1, 5))
        ]
        for name in references
    }  # fmt: skip
    order = {id(h.tokens): texts[i] for found in nbest.values() for i, h in enumerate(found)}
    for normalised in (False, True):
        lists = script.Lists(nbest, references, lambda t: order[id(t)], normalised)
        assert lists.words == 60

        def by_hand(weight, bonus, normalised=normalised):
            errors = 0
            for found in nbest.values():

                def score(h):
                    total = weight * h.parts["ctc"] + (1 - weight) * h.parts["attention"]
                    total += bonus * len(h.tokens)
                    return total / (len(h.tokens) + 1 + (not h.complete) if normalised else 1)

                best = max(found, key=score)
                errors += (0, 1, 3, 2)[texts.index(order[id(best.tokens)])]
            return errors

        best, errors, curves = script.scan(lists, {"ctc_weight": 0.4, "length_bonus": 0.0})
        grid = [script.GRID[name][0] for name in ("ctc_weight", "length_bonus")]
        assert errors == min(by_hand(*point) for point in itertools.product(*grid))
        assert errors == by_hand(best["ctc_weight"], best["length_bonus"])
        assert errors < by_hand(0.4, 0.0)
        for name, others in (("ctc_weight", "length_bonus"), ("length_bonus", "ctc_weight")):
            for value, count in curves[name]:
                point = {name: value, others: best[others]}
                assert count == by_hand(point["ctc_weight"], point["length_bonus"])
        oracle = sum(min((0, 1, 3, 2)[i] for i in range(len(found))) for found in nbest.values())
        assert lists.oracle() == oracle


def test_the_grid_has_a_bound(load_script):
    script = load_script("tune_search")
    script.POINTS = 200
    weights = {"ctc_weight": 0.4, "lm_weight": 0.33, "ngram_weight": 0.5, "length_bonus": 0.1}
    parts = dict.fromkeys(("attention", "ctc", "lm", "ngram"), -1.0)
    lists = script.Lists({"u": [Hypothesis([3], 0.0, parts)]}, {"u": "a"}, lambda t: "a", False)
    best, _, curves = script.scan(lists, weights)
    assert best == weights  # all are equal: the present ones
    for name, curve in curves.items():
        values = [value for value, _ in curve]
        assert weights[name] in values and values[0] == script.GRID[name][0][0]
    sizes = [len(curve) for curve in curves.values()]
    assert 20 < math.prod(sizes) <= 200


@pytest.mark.parametrize(
    "search",
    [
        "joint beam_size=4 max_decode_ratio=0.5",
        "rescore beam_size=4 ctc_weight=0.5 length_bonus=0.5",
        "ctc_beam beam_size=4 ngram_weight=1.0 ngram_file=",
    ],
)
def test_the_present_weights_choose_the_first(trained, manifest, command, tmp_path, search):
    folder, _ = trained()
    if search.endswith("="):
        arpa = tmp_path / "n.arpa"
        command("train_ngram", folder / "tokenizer.model", manifest, arpa, "--order=2")
        search += str(arpa)
    status, out, _ = command("tune_search", folder, manifest, "--search", search, "--confirm")
    assert status == 0
    assert "3 of which begin with what the present weights choose" in out
    lines = out.splitlines()
    best = next(line for line in lines if line.startswith("best"))
    assert lines[-1].startswith("decoded again: WER ") and "errors), of " in best
    assert any(line.startswith("elsewhere: --search") for line in lines)


def test_an_n_gram_model_of_transcripts(trained, manifest, command, tmp_path):
    folder, _ = trained()
    tokenizer = folder / "tokenizer.model"
    text = tmp_path / "text.txt"
    text.write_text("one two\nsix\nzero and\n")
    printed = []
    for source in (text, manifest):
        status, out, _ = command(
            "train_ngram", tokenizer, source, tmp_path / "a.arpa", "--order=3", f"--valid={text}"
        )
        assert status == 0
        printed.append((out, (tmp_path / "a.arpa").read_bytes()))
    assert printed[0] == printed[1]
    pieces = load(folder).tokenizer
    model = NGram.read(tmp_path / "a.arpa", pieces.get_piece_size())
    sentences = [pieces.encode(line) for line in ("one two", "six", "zero and")]
    assert f"perplexity {model.perplexity(sentences):.2f} per token" in printed[0][0]
    assert model.order == 3


def test_loading_does_not_count(trained, manifest, load_script):
    script = load_script("evaluate_searches")
    recogniser, rows = load(trained()[0]), manifests.read(manifest)
    calls, first = [], itertools.chain([1.0], itertools.repeat(0.0))

    def slow_at_first(modules, encoded, lengths):
        time.sleep(next(first))
        calls.append(len(encoded))
        return [[] for _ in encoded]

    texts, (seconds,), _ = script.evaluate(recogniser, rows, [slow_at_first], 2)
    assert calls == [2, 2, 1] and seconds < 0.9 and len(texts[0]) == 3


def test_long_recordings_are_measured(trained, manifest, command, tmp_path):
    folder, _ = trained()
    seconds = 26000 / 16000
    status, out, _ = command(
        "measure_long", "wer", folder, manifest, f"--minutes={3 * seconds / 60}",
        f"--json={tmp_path}/a.json",
    )  # fmt: skip
    assert status == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert FACTS <= content.keys()
    assert content["seconds"] == seconds and content["words"] == 5
    rows, recogniser = list(manifests.read(manifest)), load(folder)
    references = {row["ID"]: row["wrd"] for row in rows}
    alone = transcribe(recogniser, [row["wav"] for row in rows])
    texts = {row["ID"]: result.text for row, result in zip(rows, alone)}
    assert content["errors_alone"] == metrics.count(references, texts).errors.sum()
    # What is joined is shorter than 20 s, and so one piece, in one of six orders.
    waveforms = {row["ID"]: manifests.read_audio(row) for row in rows}
    possible = set()
    for order in itertools.permutations(rows):
        soundfile.write(
            tmp_path / "all.wav",
            torch.cat([waveforms[row["ID"]] for row in order]).numpy(),
            16000,
            "FLOAT",
        )
        (result,) = transcribe(recogniser, [tmp_path / "all.wav"])
        reference = " ".join(row["wrd"] for row in order)
        possible.add(int(metrics.count({"all": reference}, {"all": result.text}).errors[0]))
    assert len(content["errors_joined"]) == 3 and set(content["errors_joined"]) <= possible
    assert f"({content['errors_alone']} of 5 words)" in out

    status, out, _ = command(
        "measure_long", "memory", folder, tmp_path / "none", "--minutes", 0.1,
        f"--json={tmp_path}/b.json",
    )  # fmt: skip
    assert status == 0
    content = json.loads((tmp_path / "b.json").read_text())
    assert FACTS <= content.keys()
    small, missing = content["rows"]
    assert 0 <= small["bytes"] < 1e9 and small["seconds"] > 0
    assert "none" in missing["error"]


def test_exported_models_are_measured(trained, manifest, command, tmp_path):
    pytest.importorskip("onnx", reason="pip install onnx onnxruntime")
    pytest.importorskip("onnxruntime", reason="pip install onnx onnxruntime")
    folder, _ = trained()
    status, out, _ = command(
        "measure_export", folder, manifest, "--turns=3", "--no_compile", f"--json={tmp_path}/a.json"
    )
    assert status == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert FACTS <= content.keys() and content["versions"]["onnxruntime"]
    assert list(content["sides"]) == ["PyTorch", "ONNX", "ONNX int8"]
    for side in content["sides"].values():
        assert len(side["seconds"]) == 3
        middle = sorted(side["seconds"])[1]
        assert side["real_time_factor"] == pytest.approx(middle / (26000 / 16000))
    status, _, last = command("measure_export", folder)
    assert status == 2 and "manifest" in last


@pytest.fixture
def streaming(load_script, make_recogniser, capsys, monkeypatch):
    """streaming(*arguments, kind=…) → exit status, last line of the error output."""
    script = load_script("measure_streaming")
    # A host of the recipe's size is of no account here.
    monkeypatch.setattr(script, "beside_speechbrain", lambda *_: ([1.0, 2.0], [3.0, 4.0]))

    def call(*arguments, kind="transducer"):
        recogniser = make_recogniser(kind=kind)
        monkeypatch.setattr(script, "build", lambda recipe: (recogniser, {}))
        status = 0
        try:
            script.main([*arguments])
        except SystemExit as stop:
            status = stop.code
        return status, (capsys.readouterr().err.splitlines() or [""])[-1]

    return call


def test_streaming_is_measured(streaming, tmp_path):
    assert streaming("--minutes=1", f"--json={tmp_path}/a.json")[0] == 0
    content = json.loads((tmp_path / "a.json").read_text())
    assert FACTS <= content.keys() and content["stream"]["minutes"] == 1
    assert content["encoder_chunk_seconds"]["ratio"] == 3.5 / 1.5


@pytest.mark.parametrize(
    "option, kind, message",
    (
        ("--chunk_ms=7", "transducer", "a chunk must be a multiple of"),
        ("--minutes=0", "transducer", "--minutes must be a positive integer, got 0"),
        ("--repeats=1", "transducer", "--repeats must be an integer of at least 2"),
        ("--left_chunks=-1", "transducer", "--left_chunks must be an integer of at least 0"),
        ("--recipe=a.yaml", "ctc", "--recipe must be that of a transducer, got a.yaml"),
    ),
)
def test_mistakes_in_measuring_streaming(streaming, option, kind, message):
    status, error = streaming(option, kind=kind)
    assert status == 2 and error.startswith(f"error: {message}")
