#!/usr/bin/env bash
# run.sh PAIRS.jsonl.gz FOLDER: everything of this experiment, some 15 minutes on one core.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
before="$here/../001_three_references"
pairs=$1 out=$2
python=${PYTHON:-python}
"$python" "$before/split.py" "$pairs" "$out/data"
cd "$out"
export OMP_NUM_THREADS=1 LIT_PREF_CACHE="$PWD/cache"
fit() { "$python" -m lit_pref fit --print_summary false --run_dir "runs/$1" "${@:2}"; }

fit sft_all --config "$before/sft.yaml" --data.train data/train.jsonl
fit sft_a --config "$before/sft.yaml" --data.train data/half_a.jsonl --model.policy.tokenizer runs/sft_all/tokenizer
fit sft_own --config "$before/sft.yaml" --config "$here/own_tokenizer.yaml" --data.train data/half_b.jsonl

one="--config $before/preference.yaml --model.policy.path runs/sft_all/hf"
three="$one --config $here/references.yaml"

# Killed while the second reference is read, and again from the start: nothing that was stored is read twice.
"$python" -m lit_pref fit $three --model.objective MRPO --run_dir runs/mrpo > killed.log 2>&1 &
until grep -q "reference 1 .* computed first" killed.log; do sleep 0.2; done
sleep 5
kill -9 $!
fit mrpo $three --model.objective MRPO | tee resumed.log

# Five objectives on what is stored: no reference is read.
sweep() { fit "$1" $three --trainer.max_steps 20 --model.objective "${@:2}" | tee "$1.log"; }
sweep dpo_harmonic DPO --model.objective.reference Harmonic
sweep dpo_geometric DPO --model.objective.reference Geometric
sweep mrpo_beta MRPO --model.objective.beta 0.3
sweep mmpo MMPO --model.objective.gamma 0.5 --model.objective.reference Harmonic
sweep smoothed DPO --model.objective.reference Harmonic --model.objective.target Smoothed
grep -c "computed first" dpo_harmonic.log dpo_geometric.log mrpo_beta.log mmpo.log smoothed.log || true
"$python" -m lit_pref score --list
"$python" -m lit_pref score $three --model.objective MRPO --verify 16

# The same runs in both layouts.
for layout in prefix_shared padded; do
  fit dpo_$layout $one --model.layout $layout
  fit three_papers_$layout $three --model.layout $layout --model.objective MMPO --model.objective.gamma 0.5 \
    --model.objective.reference Harmonic --model.objective.temperature EpsilonStep
done
"$python" "$here/curves.py" runs curves.png | tee curves.txt
