"""Attacks. Imports no torch, because `--help` reads the names."""

# Each is a file of this folder with an `ENTRY`.
NAMES = (
    "badnets",
    "blended",
    "sig",
    "wanet",
    "bpp",
    "label_consistent",
    "input_aware",
    "trojannn",
    "adaptive_blend",
)
