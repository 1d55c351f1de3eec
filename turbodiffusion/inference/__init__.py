"""The released command lines, unchanged: ``wan2.1_t2v_infer.py`` and ``wan2.2_i2v_infer.py``.

The two scripts with the dotted names can be run as files; as their names are no module names,
``wan2/`` lends them to ``python -m turbodiffusion.inference.wan2.1_t2v_infer``.
"""
