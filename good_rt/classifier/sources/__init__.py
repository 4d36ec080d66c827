"""Where classifiers come from: one file a kind of spec, and `registry` that lists them.

A source opens what a spec names and restores it from a classifier folder. Its file, and the library
that it needs, are imported when a spec asks for them.
"""
