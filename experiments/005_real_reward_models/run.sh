#!/usr/bin/env bash
# Bradley-Terry and MMPO reward models of a real chat model: run.sh MODEL PAIRS.jsonl.gz PANDALM.jsonl.gz OUT
set -euo pipefail
here=$(dirname "$0"); model=$1; pairs=$2; pandalm=$3; out=$4; python=${PYTHON:-python}
export OMP_NUM_THREADS=1
"$python" "$here/choose.py" "$pairs" "$out"
common=(--config "$here/reward.yaml" --model.policy.path "$model" --data.train "$out/train.jsonl" --data.val "$out/held_out.jsonl")
"$python" -m lit_pref fit "${common[@]}" --run_dir "$out/bt"
"$python" -m lit_pref fit "${common[@]}" --run_dir "$out/mmpo" --model.objective MMPO --model.objective.beta 1.0 \
  --model.objective.gamma 0.3 --model.objective.reference NoReference
judge=("$python" -m lit_pref evaluate --protocol pairs --model "$out/mmpo" --against "$out/bt")
"${judge[@]}" --data "$out/held_out.jsonl" --mapping '{format: messages}' --out "$out/on_held_out"
votes='{format: messages, probability: {column: p_chosen, of: chosen}}'
"${judge[@]}" --data "$pandalm" --mapping "$votes" --votes 3 --group source --bad_rows lenient --out "$out/on_pandalm"
