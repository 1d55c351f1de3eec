"""From a bare Python to a running command: what ``turbo.py`` does behind its door.

Only the standard library is imported here, because nothing else is installed yet.

- ``main``: the words after ``turbo.py`` and what each starts.
- ``environment``: the folder ``.venv``, its stamp, and whether it can be trusted.
- ``install``: the steps that make or repair it. ``pip`` runs pip and reads its failures.
- ``gpu`` and ``tags``: which GPU is here, and which build of torch suits it.
- ``places``: everything on this disk that is ours, for ``where`` and ``uninstall``.
"""
