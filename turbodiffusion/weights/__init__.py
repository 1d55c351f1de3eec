"""Checkpoints: find them, say what they are, read, convert and load them.

``header``, ``detect``, ``find`` and ``convert`` work without torch; ``read`` and ``load`` map files
into memory. Nothing here ever runs code from a file.
"""
