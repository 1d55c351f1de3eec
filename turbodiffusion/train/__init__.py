"""Training: flow matching, sparse-attention fine-tuning, rCM distillation, and the loop for all.

An *objective* says what one iteration minimises (:mod:`.losses`, :mod:`.distill`); it knows nothing
of optimisers, processes or files. The trainer knows nothing of the mathematics.
"""
