#!/bin/sh
# Prepares .venv for the Makefile: `venv` makes the environment, `install` fills it. Knows nothing of rendering.
set -eu

venv=${VENV:-.venv}
say() { printf '==> %s\n' "$*"; }
fail() { printf 'error: %s\n' "$*" >&2; exit 1; }

# The newest Python that pinned wheels exist for; the one the user named comes first and must do.
find_python() {
    supported='import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))'
    if [ -n "${PYTHON:-}" ]; then
        "$PYTHON" -c "$supported" 2>/dev/null || fail "PYTHON=$PYTHON is not Python 3.11, 3.12 or 3.13"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.13 python3.12 python3.11; do
        if "$candidate" -c "$supported" >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11, 3.12 or 3.13 was not found: install it (Debian: apt-get install -y python3 python3-venv) or name it: make PYTHON=/path/to/python"
}

make_venv() {
    python=$(find_python)
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    sudo=$([ "$(id -u)" = 0 ] || echo 'sudo ')
    # Debian splits the module that brings pip into a package of its own; without it `-m venv` stops half-way.
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python cannot make virtual environments; type: ${sudo}apt-get update && ${sudo}apt-get install -y python$version-venv"
    say "making $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
    touch "$venv/.made"
}

install() {
    say "installing $(grep -c '==' constraints.txt) pinned packages into $venv (torch is large: minutes the first time)"
    # The build tools come first and are the pinned ones: nothing is then built in an isolated, unpinned environment.
    "$venv/bin/python" -m pip install --disable-pip-version-check -q -c constraints.txt setuptools wheel
    "$venv/bin/python" -m pip install --disable-pip-version-check -c constraints.txt --no-build-isolation --editable '.[dev]'
    # dm-control's labmaze has no wheel for Python 3.13; the Control Suite needs no mazes.
    "$venv/bin/python" -c 'import dm_control' 2>/dev/null ||
        "$venv/bin/python" -m pip install --disable-pip-version-check -q -c constraints.txt --no-deps dm-control dm-env lxml
    touch "$venv/.installed"
}

case ${1:-} in
    venv) make_venv ;;
    install) install ;;
    *) fail "usage: sh setup.sh venv|install" ;;
esac
