"""scripts/download.py: what it says, and what it refuses."""

import pytest

from summarymixing.dataio import downloads


@pytest.fixture
def main(load_script):
    return load_script("download").main


def test_options(main, monkeypatch):
    calls = []
    monkeypatch.setattr(downloads, "download", lambda *arguments: calls.append(arguments))
    main(["LibriSpeech", "data", "dev-clean", "dev-other", "--delete_archive"])
    main(["AN4", "data"])
    assert calls == [
        ("LibriSpeech", "data", ["dev-clean", "dev-other"], True),
        ("AN4", "data", [], False),
    ]


def test_help_names_all_there_is(main, capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["--help"])
    lines = capsys.readouterr().out.splitlines()
    for name, corpus in downloads.CORPORA.items():
        assert f"  {name}: {corpus.licence}, {corpus.page}" in lines
        for part, archive in corpus.parts.items():
            assert any(line.split() == [part, f"{archive.gigabytes:g}", "GB"] for line in lines)


def test_errors_are_one_line(main, tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["CommonVoice", str(tmp_path)])
    output = capsys.readouterr()
    assert not output.out and output.err.count("\n") == 1
    assert output.err.startswith("error: CommonVoice is not fetched from here: ")


def test_interruption(main, monkeypatch, capsys):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(downloads, "download", stop)
    with pytest.raises(SystemExit, match="130"):
        main(["AN4", "data"])
    assert capsys.readouterr().err == "interrupted; the same command goes on from here\n"
