#!/usr/bin/env bash
# Installs this project with its pinned packages on one machine of a cluster; `ray up` runs it on each.
#
#   bash ~/drqn-dist/install.sh [EXTRA]    EXTRA: cluster (default), aws or gcp, as named in pyproject.toml
#
# Run again it only changes what is not yet as it should be. PYTHON names the interpreter; Ray wants the same version
# of it, to the last digit, on all machines of a cluster.
set -euo pipefail

extra=${1:-cluster}
python=${PYTHON:-python3}
project=$HOME/drqn-dist
venv=$HOME/drqn-venv

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "Python 3.11 or newer is needed, but '$python' is missing or older" >&2
  exit 2
}
[ -x "$venv/bin/pip" ] || "$python" -m venv "$venv"
install=("$venv/bin/pip" install --quiet --disable-pip-version-check --constraint "$project/constraints.txt")

# The pin torch==X is met by two builds of X. PyPI's own for Linux on x86-64 has CUDA, and names the CUDA libraries that
# belong to it, so constraints.txt does not. A machine without a GPU takes the build for CPUs, from PyTorch's index: it
# saves some gigabytes and minutes on every spot worker. Alone and without its dependencies, so that nothing else comes
# from that index.
if ! nvidia-smi --list-gpus 2>/dev/null | grep --quiet '^GPU'; then
  "${install[@]}" --no-deps --index-url https://download.pytorch.org/whl/cpu torch
fi
"${install[@]}" "$project[$extra]"

# Where login shells look: `ray down` and `ray exec` call ray by its name. Links, because a changed PATH would give the
# machine's user another python.
links=/usr/local/bin
[ -w "$links" ] || links=$HOME/.local/bin
mkdir -p "$links"
ln -sf "$venv/bin/ray" "$venv/bin/drqn-dist" "$links/"
