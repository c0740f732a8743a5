#!/usr/bin/env bash
# run.sh PAIRS.jsonl.gz FOLDER: everything of this experiment, about an hour on one core.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
pairs=$1 out=$2
python=${PYTHON:-python}
"$python" "$here/split.py" "$pairs" "$out/data"
cd "$out"
export OMP_NUM_THREADS=1
fit() { "$python" -m lit_pref fit --run_dir "runs/$1" "${@:2}"; }

# The first one trains the tokenizer on its own data; the others share it, so that their scores can be compared.
fit sft_all --config "$here/sft.yaml" --data.train data/train.jsonl
for half in a b; do
  fit sft_$half --config "$here/sft.yaml" --data.train data/half_$half.jsonl --model.policy.tokenizer runs/sft_all/tokenizer
done

one="--model.policy.path runs/sft_all/hf --config $here/preference.yaml"
three="$one --config $here/references.yaml"
fit dpo $one
fit mmpo $one --model.objective MMPO --model.objective.gamma 0.5
fit epsilon_dpo $one --model.objective EpsilonDPO --model.objective.beta 0.1 --model.objective.epsilon 0.01
fit mrpo $three --model.objective MRPO
fit mmpo_three_references $three --model.objective MMPO --model.objective.gamma 0.5 --model.objective.reference Harmonic
fit three_papers $three --model.objective MMPO --model.objective.gamma 0.5 --model.objective.reference Harmonic \
  --model.objective.temperature EpsilonStep
"$python" "$here/report.py" runs | tee report.txt
