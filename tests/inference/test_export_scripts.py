"""Commands with an exported model, in a Python that has neither torch nor SpeechBrain."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

pytest.importorskip("onnx", reason="pip install onnx onnxruntime")
pytest.importorskip("onnxruntime", reason="pip install onnx onnxruntime")

from summarymixing.inference.loading import load
from summarymixing.inference.streaming import Stream
from summarymixing.inference.transcribe import transcribe

ROOT = Path(__file__).parents[2]
_WITHOUT = """
import runpy, sys
for name in "torch torchaudio speechbrain sentencepiece hyperpyyaml scipy tqdm".split():
    sys.modules[name] = None  # an import raises
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def _command(script, *arguments):
    """Exit status, standard output and the last line of the standard error."""
    done = subprocess.run(
        [sys.executable, "-c", _WITHOUT, str(ROOT / "scripts" / script), *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
    )
    return done.returncode, done.stdout, (done.stderr.splitlines() or [""])[-1]


def test_commands_without_torch(trained, noise, tmp_path, load_script, capsys):
    run, _ = trained()
    out, recording = tmp_path / "exported", tmp_path / "a.wav"
    soundfile.write(recording, noise(40000).numpy(), 16000)
    load_script("export").main([str(run), str(out), "--chunk_ms=160", "--left_chunks=2"])
    assert "chunks of 160 ms and 2 before each" in capsys.readouterr().out
    model = load(run)
    (expected,) = transcribe(model, [recording])
    assert expected.text

    status, said, last = _command(
        "transcribe.py", out, recording, tmp_path / "no.wav", "--format=jsonl", "--threads=1"
    )
    assert status == 1 and last.startswith("1 of 2 files")
    found = json.loads(said)
    assert found["text"] == expected.text
    assert [w["word"] for w in found["words"]] == [word.text for word in expected.words]
    assert found["words"][-1]["end"] == round(expected.words[-1].end, 3)

    stream = Stream(model, 4, 2)
    samples, _ = soundfile.read(recording, dtype="float32")
    events = [e for e in stream.push(samples) + stream.finish() if e.stable]
    status, said, last = _command("stream.py", out, recording, "--threads=1")
    assert (status, said) == (0, "".join(event.text for event in events) + "\n")
    assert "a chunk of 160 ms" in last

    for script, model, options, message in (
        ("transcribe.py", out, ["--search=joint"], "searched with ctc_greedy"),
        ("transcribe.py", out, ["--device=cuda"], "works on the CPU"),
        ("transcribe.py", out, ["--int8"], "no int8 graphs"),
        ("transcribe.py", run, [], "without torch"),
        ("stream.py", out, ["--chunk_ms=320"], "exported for chunk_size=4, got 8"),
    ):
        status, _, last = _command(script, model, recording, *options)
        assert status == 2 and last.startswith("error: ") and message in last
