#!/bin/sh
# Installs what the comparisons need into FOLDER: mergekit and its kin in FOLDER/venv, the official PCB-Merging programs in FOLDER/pcb-merging.
#
#     common/tests/compare-install.sh FOLDER
set -eu
[ $# -eq 1 ] || { echo "usage: $0 FOLDER" >&2; exit 2; }
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1"
python3 -m venv "$1/venv"
"$1/venv/bin/pip" install -r "$here/compare-requirements.txt"
[ -d "$1/pcb-merging" ] || git clone https://github.com/duguodong7/pcb-merging "$1/pcb-merging"
# The commit that the documented figures are from.
git -C "$1/pcb-merging" checkout --quiet 5897888
