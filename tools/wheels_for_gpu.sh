#!/usr/bin/env bash
# Gathers the wheels that tools/bench_gpu.py needs on a machine which has no package index, but Python 3.12, torch 2.11 or
# newer with Triton, lightning, accelerate, peft, pyarrow, pandas and matplotlib. 17 MB; torch and what it brings
# are never among them.
#
#   tools/wheels_for_gpu.sh [FOLDER]              download into FOLDER (.whl); needs a package index
#   tools/wheels_for_gpu.sh --try PYTHON [FOLDER] is anything missing? without an index, changing nothing
#   tools/wheels_for_gpu.sh --install [FOLDER]    on that machine: unpack into FOLDER/site, for PYTHONPATH
set -euo pipefail

wheels=(
  # trainers, and what they need
  trl==1.16.0 transformers==5.24.0 datasets==5.2.0 dill==0.4.1 multiprocess==0.70.19
  # TRL's kernels for layers
  liger-kernel==0.8.5
  # lit_pref's configurations
  jsonargparse==4.53.0 docstring_parser==0.18.0 typeshed_client==2.15.0
)

case ${1:-} in
--try)
  python=$2 folder=${3:-.whl}
  "$python" -m pip install --dry-run --no-index --find-links "$folder" "${wheels[@]}"
  ;;
--install)
  folder=${2:-.whl}
  # No dependencies: the packages of the machine stay as they are.
  python3 -m pip install -q --no-index --no-deps --no-compile --upgrade --target "$folder/site" "$folder"/*.whl
  ;;
*)
  folder=${1:-.whl}
  platforms=()
  for glibc in 2_34 2_31 2_28 2_27 2_24 2_17; do platforms+=(--platform "manylinux_${glibc}_x86_64"); done
  python3 -m pip download -q --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
    "${platforms[@]}" --platform manylinux2014_x86_64 -d "$folder" "${wheels[@]}"
  ls -l "$folder"
  du -sh "$folder"
  ;;
esac
