"""Exported models at work: with numpy, onnxruntime and soundfile, without torch."""

from summarymixing.runtime.choice import choose
from summarymixing.runtime.exported import Exported, is_exported, load_exported

__all__ = ["Exported", "choose", "is_exported", "load_exported"]
