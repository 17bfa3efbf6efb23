"""Other defences, each written from its paper: a model and clean images in, a purified model out.

Each module has `purify(model, clean, transform, seed)`. They take no trigger. Not part of the package.
"""
