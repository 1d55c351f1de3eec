"""Many processes, one network: sharded parameters, split sequences, recomputed activations.

Everything here is applied from outside, by functions with keyword-only settings, to a network that
knows nothing of it, in this order: sequence, then activations, then shards.
"""
