"""The README's stream is run."""

import re
from pathlib import Path

import torch

import summarymixing.inference

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_example_of_a_stream(make_recogniser, monkeypatch, capsys):
    (example,) = (
        block
        for block in re.findall(r"```python\n(.*?)```", README, re.S)
        if "StreamingSession" in block
    )
    recogniser = make_recogniser()
    monkeypatch.setattr(summarymixing.inference, "load", {"folder": recogniser}.get)
    exec(example, {"run_folder": "folder", "samples": torch.randn(16000)})
    assert len(capsys.readouterr().out.split("\n")) > 3
