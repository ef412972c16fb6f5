#!/usr/bin/env bash
# Tries slurm.sbatch and slurm-array.sbatch with a real Slurm of one node on this machine. As root, on Debian or Ubuntu:
#
#     apt-get install slurmctld slurmd slurm-client munge
#     bash scripts/launch/try_slurm.sh [FOLDER]
#
# In a new folder below FOLDER (/tmp) lie the daemons' files, the logs of the jobs and their runs. What it tries:
#   mistake   two tasks end with status 1: the job ends, once
#   crash     two tasks end with status 70: the job is put back as often as RESTARTS says
#   signal    two tasks that count seconds go back into the queue before their time is up, and count on
#   array     three tasks make one Grow step, whose files are those of a single process, byte for byte
#   requeue   a run of two processes goes back into the queue before its time is up, goes on, and ends with the summary
#             of two that nothing disturbed
# ONLY="array requeue" tries some; on a slow machine MINUTES=10 gives the last more time before it is put back, and
# STEPS=60 less to do. Nothing is left running at the end. Slurm gives no GPUs here: --gres=none.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/../.."
scratch="$(mkdir -p "${1:-/tmp}" && cd "${1:-/tmp}" && mktemp -d "$PWD/slurm.XXXXXX")"
only="${ONLY:-mistake crash signal array requeue}"
python=.venv/bin/python
rest=.venv/bin/rest
export SLURM_CONF="$scratch/slurm.conf" JAX_PLATFORMS=cpu
daemons=()

fail() {
    echo "error: $*; see $scratch" >&2
    exit 1
}

stop() {
    scancel --quiet --user=root 2>/dev/null || true
    sleep 2
    ((${#daemons[@]})) && kill "${daemons[@]}" 2>/dev/null
    wait
}

start() { # munge, the controller and the node's daemon, and waits until the node is there
    mkdir -p "$scratch"/{munge,state,spool,jobs}
    chmod 700 "$scratch/munge"
    dd if=/dev/urandom of="$scratch/munge/key" bs=128 count=1 status=none
    chmod 400 "$scratch/munge/key"
    chmod 711 "$scratch/munge"
    munged --force --foreground --key-file="$scratch/munge/key" --socket="$scratch/munge/socket" \
        --pid-file="$scratch/munge/pid" --log-file="$scratch/munge/log" --seed-file="$scratch/munge/seed" 2>/dev/null &
    daemons+=($!)
    local host
    host="$(hostname -s)"
    # cred_expire: a job that was put back waits as long, two minutes by default, before it starts again
    cat >"$SLURM_CONF" <<END
ClusterName=one
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$scratch/munge/socket,cred_expire=10
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
ReturnToService=2
SlurmdParameters=config_overrides
SlurmctldPort=16817
SlurmdPort=16818
SlurmctldPidFile=$scratch/slurmctld.pid
SlurmdPidFile=$scratch/slurmd.pid
StateSaveLocation=$scratch/state
SlurmdSpoolDir=$scratch/spool
SlurmctldLogFile=$scratch/slurmctld.log
SlurmdLogFile=$scratch/slurmd.log
MpiDefault=none
KillWait=20
JobRequeue=1
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
NodeName=$host CPUs=4 Boards=1 SocketsPerBoard=1 CoresPerSocket=4 ThreadsPerCore=1 RealMemory=4000 State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP
END
    until [[ -S "$scratch/munge/socket" ]]; do sleep 0.2; done
    slurmctld -D 2>/dev/null & # it has a log
    daemons+=($!)
    slurmd -D 2>/dev/null &
    daemons+=($!)
    for _ in {1..60}; do
        [[ "$(sinfo --noheader --format=%t 2>/dev/null)" == idle ]] && return
        sleep 1
    done
    fail "the node did not come up"
}

submitted() { # submitted NAME FLAGS-OF-SBATCH...: runs a job to its end, with its log in jobs/NAME*
    local name="$1" job
    shift
    job="$(sbatch --parsable --job-name="$name" --chdir="$PWD" --output="$scratch/jobs/$name-%j.log" \
        --gres=none --cpus-per-task=1 "$@")"
    while [[ -n "$(squeue --noheader --jobs="$job" 2>/dev/null)" ]]; do sleep 1; done
}

count() { # count NAME TEXT: lines of a job's logs with a text
    cat "$scratch/jobs/$1"-*.log | grep --count --fixed-strings -- "$2" || true
}

ending_with() { # ending_with STATUS: a command that ends so
    printf '#!/bin/sh\nexit %s\n' "$1" >"$scratch/status-$1"
    chmod +x "$scratch/status-$1"
    echo "$scratch/status-$1"
}

two=(--nodes=1 --ntasks-per-node=2 --time=10)

try_mistake() {
    REST="$(ending_with 1)" submitted mistake "${two[@]}" scripts/launch/slurm.sbatch any.py --out any
    [[ "$(count mistake 'ended with status 1')" == 1 && "$(count mistake 'start ')" == 1 ]] || fail "mistake"
}

try_crash() {
    export RESTARTS=1
    REST="$(ending_with 70)" submitted crash "${two[@]}" scripts/launch/slurm.sbatch any.py --out any
    unset RESTARTS
    [[ "$(count crash 'ended with status 70')" == 2 && "$(count crash 'start ')" == 2 ]] || fail "crash"
}

try_signal() { # the signal comes after 60 to 90 of 120 seconds
    cat >"$scratch/counting" <<'END'
#!/bin/sh
file="$0-$SLURM_PROCID"
[ -f "$file" ] || echo 0 >"$file"
echo "task $SLURM_PROCID begins at $(cat "$file")"
while [ "$(cat "$file")" -lt 150 ]; do
    sleep 1
    echo $(($(cat "$file") + 1)) >"$file.new" && mv "$file.new" "$file"
done
END
    chmod +x "$scratch/counting"
    REST="$scratch/counting" submitted signal --nodes=1 --ntasks-per-node=2 --time=2 --signal=B:USR1@30 \
        scripts/launch/slurm.sbatch any.py --out any
    [[ "$(count signal 'ended with status 0')" == 1 && "$(count signal 'begins at 0')" == 2 ]] || fail "signal"
    (($(count signal 'goes back into the queue') > 0)) || fail "signal: it was not put back"
}

try_array() {
    local grow=(tests/tiny.py:given --g 1 --grow.sources 0 --grow.sources-per-shard 4) run
    "$rest" bc tests/tiny.py:given --out "$scratch/array"
    cp -r "$scratch/array" "$scratch/alone"
    submitted array --array=0-2 --time=10 scripts/launch/slurm-array.sbatch grow "${grow[@]}" --out "$scratch/array"
    "$rest" grow "${grow[@]}" --out "$scratch/alone"
    [[ "$(count array 'ended with status 0')" == 3 ]] || fail "array"
    for run in "$scratch/alone/grow-1"/part-* "$scratch/alone/grow-1/manifest.json"; do
        cmp "$run" "$scratch/array/grow-1/$(basename "$run")" || fail "array"
    done
    wc -l "$scratch"/array/grow-1/journal*/metrics.jsonl # shards of each task
}

try_requeue() { # the signal comes up to a minute early: after one to two of three minutes
    local run=(tests/tiny.py:given --bc.train.max-steps "${STEPS:-400}" --bc.train.patience 99)
    submitted requeue --nodes=1 --ntasks-per-node=2 --time="${MINUTES:-3}" --signal=B:USR1@60 \
        scripts/launch/slurm.sbatch "${run[@]}" --out "$scratch/requeue"
    "$python" scripts/launch/local.py --processes 2 "$rest" run "${run[@]}" --out "$scratch/undisturbed" --distributed
    (($(count requeue 'goes back into the queue') > 0)) || fail "requeue: it was not put back"
    [[ "$(count requeue 'ended with status 0')" == 1 ]] || fail "requeue: it did not end well"
    "$python" - "$scratch/requeue/summary.json" "$scratch/undisturbed/summary.json" <<'END' || fail "requeue"
import json, math, sys

first, second = (json.load(open(path)) for path in sys.argv[1:])
worst = 0.0
for one, other in zip(first, second, strict=True):
    assert {**one, "metrics": 0, "wall_s": 0} == {**other, "metrics": 0, "wall_s": 0}, (one, other)
    for name, value in one["metrics"].items():
        if isinstance(value, float):
            worst = max(worst, abs(value - other["metrics"][name]))
print(f"{len(first)} rows of the summary, in which numbers differ by {worst:.2g} at most")
raise SystemExit(not math.isclose(worst, 0, abs_tol=1e-3))
END
}

trap stop EXIT
start
for each in $only; do
    echo "== $each"
    "try_$each"
done
echo "all as it should be; $scratch may be removed"
