"""Makes ``python -m turbodiffusion.inference.wan2.1_t2v_infer`` find the scripts of that name."""
