"""Encoders on SpeechBrain's own layers: front end, Conformer, Branchformer, Transformer."""
