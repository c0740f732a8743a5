#!/usr/bin/env bash
# DPO and MMPO on a real chat model: run.sh MODEL PAIRS.jsonl.gz OUT
set -euo pipefail
here=$(dirname "$0"); model=$1; pairs=$2; out=$3; python=${PYTHON:-python}
export OMP_NUM_THREADS=1
mkdir -p "$out"
"$python" "$here/choose.py" "$pairs" "$out/pairs.jsonl"
common=(--config "$here/preference.yaml" --model.policy.path "$model" --data.train "$out/pairs.jsonl")
"$python" -m lit_pref check "${common[@]}" --model --html "$out/check.html"
"$python" -m lit_pref fit "${common[@]}" --run_dir "$out/dpo"
"$python" -m lit_pref fit "${common[@]}" --run_dir "$out/mmpo" --model.objective MMPO --model.objective.beta 0.1 --model.objective.gamma 0.3
"$python" "$here/answers.py" "$model" "$out/dpo/hf" "$out/mmpo/hf"
