#!/bin/sh
# Finds a Python 3.10 to 3.13 and starts turbo.py with it: ./turbo.sh generate "a red circle"
here=$(CDPATH= cd -- "$(dirname -- "$0")" && pwd)
for python in python3.12 python3.11 python3.13 python3.10 python3 python; do
    if "$python" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null; then
        exec "$python" "$here/turbo.py" "$@"
    fi
done
echo "error [setup-python]: no Python 3.10 to 3.13 was found on PATH." >&2
echo "  fix: install Python 3.12 (64 bit) by the package manager or from python.org." >&2
exit 3
