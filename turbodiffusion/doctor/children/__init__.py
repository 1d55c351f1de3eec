"""Programs that ``child`` starts in a process of their own. Each prints one JSON line.

They begin with the standard library alone and import what they examine inside ``main``.
"""
