#!/usr/bin/env bash
# One run of rest on all hosts of a TPU slice that a queued resource brings, from any machine with gcloud:
#
#     bash scripts/launch/tpu-vm.sh create                   ask for the slice, and wait until it is there
#     bash scripts/launch/tpu-vm.sh install                  this checkout and its environment on every host
#     bash scripts/launch/tpu-vm.sh run experiments/multi30k_de_en.py --out /runs/multi30k --corpus.directory /runs/TEXT
#     bash scripts/launch/tpu-vm.sh delete
#
# What to edit: the settings below, or the variables of their names. SHARE is an NFS export (Filestore) that every host
# mounts at /runs: the run's folder must be shared by all, lock files for all of them, and let you write. PYTHON of the
# hosts must be 3.11 to 3.13, with its venv; some runtimes have an older one.
#
# On preemption of a spot slice: its hosts are gone, and `run` ends with an error. Then `delete`, `create`, `install`
# and the same `run` go on where the run was. Where one host's process fails, the others notice, and `run` ends all.
#
# How to follow it: `run` shows the output of all hosts; if the connection breaks it goes on, and `follow` shows it
# again; `rest report DIR --live 30` on any machine that mounts SHARE. `stop` ends it. Tried with a stand-in for gcloud
# that runs commands here, not on TPUs.
set -euo pipefail

name="${NAME:-rest}"
zone="${ZONE:-europe-west4-b}"
accelerator="${ACCELERATOR:-v5litepod-16}" # 16 chips, 4 hosts
runtime="${RUNTIME:-v2-alpha-tpuv5-lite}"
share="${SHARE:-}"          # such as 10.0.0.2:/runs
spot="${SPOT---spot}"       # SPOT= asks for chips that are not taken away
python="${PYTHON:-python3}" # of the hosts: 3.11 to 3.13

fail() {
    echo "error: $*" >&2
    exit 1
}

state() {
    gcloud compute tpus queued-resources describe "$name" --zone="$zone" --format="value(state.state)"
}

everywhere() { # everywhere COMMAND: on every host at once
    gcloud compute tpus tpu-vm ssh "$name" --zone="$zone" --worker=all --command="$1"
}

create() {
    gcloud compute tpus queued-resources create "$name" --node-id="$name" --zone="$zone" \
        --accelerator-type="$accelerator" --runtime-version="$runtime" ${spot:+"$spot"}
    local now
    until now="$(state)" && [[ "$now" == ACTIVE ]]; do
        if [[ "$now" == FAILED || "$now" == SUSPENDED ]]; then fail "$name is $now; look at gcloud, then delete it"; fi
        echo "$(date +%T) $name: $now"
        sleep 30
    done
}

install() {
    [[ -n "$share" ]] || fail "SHARE names no NFS export, such as SHARE=10.0.0.2:/runs"
    local archive
    archive="$(mktemp -t rest.XXXXXX.tar.gz)"
    tar -czf "$archive" pyproject.toml constraints.txt README.md LICENSE rest experiments
    gcloud compute tpus tpu-vm scp "$archive" "$name:rest.tar.gz" --zone="$zone" --worker=all
    rm "$archive"
    everywhere "set -e
        mountpoint -q /runs || { sudo mkdir -p /runs && sudo mount -t nfs $share /runs; }
        mkdir -p rest && tar -xzf rest.tar.gz -C rest && cd rest
        $python -m venv .venv
        .venv/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[tpu]'"
}

run() { # every host starts the same command, and JAX finds the others by the slice's own metadata
    (($#)) || fail "name an experiment, and --out /runs/NAME"
    local started
    started="$(printf '%q ' .venv/bin/rest run "$@" --distributed)"
    everywhere "cd rest && rm -f status
        nohup setsid sh -c $(printf %q "$started; echo \$? > status") > run.log 2>&1 < /dev/null & echo \$! > pid"
    follow
}

follow() { # until the process of every host has ended
    if ! everywhere "cd rest; tail -n +1 -f run.log & while kill -0 \$(cat pid) 2> /dev/null; do sleep 2; done
        kill \$!; [ -s status ] && exit \$(cat status); exit 143"; then
        stop
        fail "a host's process failed; once what it said is mended, the same command goes on"
    fi
}

stop() { # processes that have ended already are none
    everywhere "cd rest; kill -TERM -- -\$(cat pid); sleep 10; kill -KILL -- -\$(cat pid)" 2> /dev/null || true
}

delete() {
    gcloud compute tpus queued-resources delete "$name" --zone="$zone" --force --quiet
}

command="${1:-}"
shift || true
case "$command" in
create | install | run | follow | stop | delete) "$command" "$@" ;;
*) fail "name one of create, install, run, follow, stop, delete" ;;
esac
