"""What is wrong with this machine, and the command that puts it right.

Facts and judgement are kept apart, so that a machine that is not here can be judged in a test:

- ``facts``: plain dataclasses that describe a machine. ``readings`` fills them from the real one;
  whatever loads native code runs in a child process with a time limit (``child``, ``children``).
- ``probes``: pure functions from facts to findings; ``verdict`` runs them in order.
- ``show``: the report as text and as JSON. ``shell``: commands for the user's own shell.
- ``setup``, ``undo``, ``wsl``, ``docker``: making and repairing the environment.
- ``bugreport``, ``redact``: one block for a maintainer, without names and secrets.
- ``catalogue``, ``explain``: the cause behind a pasted log.

Nothing here imports a third-party package at the top of a file: ``python turbo.py doctor`` runs
before anything is installed.
"""
