#!/usr/bin/env bash
# What to run first on a machine with a GPU: is it right, how fast is it, and a study. Each part takes at most ten minutes and may be
# repeated: it goes on where it stopped, and measures what is missing. From the top of a checkout:
#
#   sweeps/cluster/first_gpu.sh PART OUT
#
#   check     tests/gpu: compiled steps against eager ones, no step waits for the device, out of memory, resuming
#   b         a training step of size B, all arms, and in two micro-batches -> OUT/train_cuda.json
#   large     a training step of sizes L and XL              -> OUT/train_cuda.json
#   sample    sampling at size B, by batch and guidance      -> OUT/sample_cuda.json
#   evaluate  an evaluation of 50,000 images of size B       -> OUT/evaluate_cuda.json
#   study     sweeps/real_images.yaml, cell by cell          -> OUT/data/real_images_PROFILE.jsonl
#
# MINUTES   of a part; default 9
# PEERS     checkouts of Mirai and LlamaGen, separated by a colon, whose steps and sampler alternate with ours; default none
# DATA      for study: the images (cifar10.npz); default data
# ASSETS    for study: weights that do not ship (mirai-bench assets); default assets
# PROFILE   for study; default cifar10_cpu, a model of a million parameters that every card holds many times
# SEEDS     for study; default 10 to 15, its first look. Cells that reports/data has are not trained again
# AT_A_TIME for study: trainings that share the card; default 4. With CUDA's multi-process service (nvidia-cuda-mps-control -d) a core
#           for each is about right: sixteen trained 99 cells in eleven minutes on an H100
#
# What it must show is in reports/benchmarks/README.md (the targets), and `report` makes its tables from OUT:
#
#   python -m mirai_bench.benchmark report OUT
set -euo pipefail
cd "$(dirname "$0")/../.."

if [ $# -ne 2 ]; then
    sed -n '2,/^set/{/^#/s/^# \{0,1\}//p}' "$0"
    exit 2
fi
part=$1 out=$2
seconds=$((60 * ${MINUTES:-9}))
device=${DEVICE:-cuda}
mkdir -p "$out"
export OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE

peers=()
IFS=: read -ra folders <<<"${PEERS:-}"
for folder in "${folders[@]}"; do
    peers+=(--peer "$folder")
done

# A cell is begun only if there is time for it, and what has been measured is written at once.
measure() {
    python -m mirai_bench.benchmark "$@" --device "$device" --seconds $((seconds - 120 - SECONDS))
}

case $part in
check)
    timeout "$seconds" pytest -q tests/gpu
    ;;
b)
    measure train --sizes B "${peers[@]}" --out "$out/train_cuda.json"
    measure train --sizes B --arms ntp --micro-batches 2 "${peers[@]}" --out "$out/train_cuda.json"
    ;;
large)
    measure train --sizes L XL --arms ntp mirai-e-k3 "${peers[@]}" --out "$out/train_cuda.json"
    ;;
sample)
    measure sample --sizes B --cfg-scales 2 "${peers[@]}" --out "$out/sample_cuda.json"
    ;;
evaluate)
    measure evaluate --rounds 3 --memory --out "$out/evaluate_cuda.json"
    ;;
study)
    profile=${PROFILE:-cifar10_cpu}
    places=(--set "machine.data=${DATA:-data}" --set "machine.assets=${ASSETS:-assets}" --set "machine.runs=$out/runs")
    read -ra seeds <<<"${SEEDS:-10 11 12 13 14 15}"
    known=reports/data/real_images_$profile.jsonl
    [ ! -f "$known" ] || places+=(--records "$known")
    python -m mirai_bench.data.prepare "$profile" --data "${DATA:-data}" --set "machine.runs=$out/runs"
    # A training that is stopped by the time saves a checkpoint, from which the next call goes on.
    python -m mirai_bench.sweep sweeps/real_images.yaml --profile "$profile" --seeds "${seeds[@]}" "${places[@]}" \
        --set "machine.device=$device" --commands >"$out/cells.txt"
    timeout --signal=TERM --kill-after=60 "$seconds" xargs -P "${AT_A_TIME:-4}" -I CELL sh -c CELL <"$out/cells.txt" || true
    python analysis/fid_table.py --runs "$out/runs" --axis real_images --profile "$profile" --freeze --no-timing --out "$out"
    ;;
*)
    echo "error: $part is none of check, b, large, sample, evaluate and study" >&2
    exit 2
    ;;
esac
