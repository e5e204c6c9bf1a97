"""Transcripts as text: lines, JSON, subtitles, CTM.

A writer takes a recording's name and its `Result`, and returns text that ends with a line. Those of
several recordings may stand in one file, but for subtitles, whose times are of one recording.
"""

import json
import textwrap

# Of subtitles, as television has them.
_LINE, _LINES = 42, 2  # characters, lines
_PAUSE, _LONGEST = 1.0, 6.0  # seconds: a pause begins a new one


def text(name, result):
    """``name <tab> words``."""
    return f"{name}\t{result.text}\n"


def jsonl(name, result):
    """An object a line: id, path, duration, text, and words with times and confidences."""
    words = [
        {
            "word": word.text,
            "start": round(word.start, 3),
            "end": round(word.end, 3),
            "confidence": round(word.confidence, 4),
        }
        for word in result.words
    ]
    found = {
        "id": name,
        "path": str(result.path),
        "duration": round(result.duration, 3),
        "text": result.text,
        "words": words,
    }
    return json.dumps(found, ensure_ascii=False) + "\n"


def ctm(name, result):
    """``name 1 start duration word confidence``, NIST's, a word a line."""
    return "".join(
        f"{name} 1 {word.start:.3f} {word.end - word.start:.3f} {word.text} {word.confidence:.4f}\n"
        for word in result.words
    )


def srt(name, result):
    """SubRip subtitles."""
    return "\n".join(
        f"{number}\n{_clock(start, ',')} --> {_clock(end, ',')}\n{lines}\n"
        for number, (start, end, lines) in enumerate(_cues(result.words), 1)
    )


def vtt(name, result):
    """WebVTT subtitles."""
    return "WEBVTT\n" + "".join(
        f"\n{_clock(start, '.')} --> {_clock(end, '.')}\n{_escaped(lines)}\n"
        for start, end, lines in _cues(result.words)
    )


WRITERS = {"text": text, "jsonl": jsonl, "srt": srt, "vtt": vtt, "ctm": ctm}
SUFFIXES = {"text": ".txt", "jsonl": ".jsonl", "srt": ".srt", "vtt": ".vtt", "ctm": ".ctm"}
ONE_RECORDING = ("srt", "vtt")


def _cues(words):
    """(start, end, lines) of subtitles."""
    cue = []
    for word in words:
        if cue and (
            word.start - cue[-1].end > _PAUSE
            or word.end - cue[0].start > _LONGEST
            or len(_wrapped([*cue, word])) > _LINES
        ):
            yield cue[0].start, cue[-1].end, "\n".join(_wrapped(cue))
            cue = []
        cue.append(word)
    if cue:
        yield cue[0].start, cue[-1].end, "\n".join(_wrapped(cue))


def _wrapped(words):
    joined = "".join(" " * word.spaced + word.text for word in words).strip()
    return textwrap.wrap(joined, _LINE, break_on_hyphens=False)


def _clock(seconds, point):
    milliseconds = round(1000 * seconds)
    minutes, milliseconds = divmod(milliseconds, 60000)
    return (
        f"{minutes // 60:02}:{minutes % 60:02}:{milliseconds // 1000:02}{point}"
        f"{milliseconds % 1000:03}"
    )


def _escaped(lines):
    return lines.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
