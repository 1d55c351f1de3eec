"""Measures this machine: its ceilings first, then every operator as a share of them.

``turbodiffusion bench ops`` is the entry. The room needs torch and nothing beyond the operators and
the network: no video library, no tokenizer, no checkpoint.

    machine.py    what is measured on: GPU, driver, versions, commit
    timing.py     cold cache, contestants in turn, medians
    ceilings.py   copy bandwidth and matrix products, measured on the spot
    shapes.py     the sizes of the released models, with the cost of every step
    cases.py      what a row is: our operator, its rivals, its error
    attention.py  linear.py  elementwise.py  network.py   the rows
    table.py      Markdown and JSON
"""
