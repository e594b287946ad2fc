#!/usr/bin/env bash
# A real SLURM on this machine, for tests and for play: slurmctld, slurmdbd on MariaDB and two slurmd,
# all on loopback, with partitions main, low (preemptible) and high, and two fake GPUs a node.
#
#   tests/slurm_cluster.sh install|start|stop|env
#
# install: the Debian packages that it needs. start, stop: the cluster. env: the line that makes
# sbatch and squeue use it; source it. Needs root; no systemd, no cgroups. Beside its folder,
# $SLURM_CLUSTER, it changes one marked line of /etc/hosts: node names must resolve, as a job's
# master address is one.
set -euo pipefail
umask 022

ROOT=${SLURM_CLUSTER:-${TMPDIR:-/tmp}/forge-slurm}
PORT=${SLURM_CLUSTER_PORT:-16800} # and the next four, on 127.0.0.1
NODES=(n1 n2)
PACKAGES=(munge slurmctld slurmd slurm-client slurmdbd mariadb-server-core mariadb-client-core)
MARK="# SLURM of $ROOT"
export SLURM_CONF=$ROOT/etc/slurm.conf
export MYSQL_UNIX_PORT=$ROOT/run/mysql.sock   # where slurmdbd looks for MariaDB
export DEBIAN_FRONTEND=noninteractive
unset ${!SLURM_JOB*} ${!SBATCH_*} 2>/dev/null || true   # when called inside a job

die() { echo "slurm_cluster: $*" >&2; exit 1; }

# until_true SECONDS COMMAND...
until_true() {
    local tries=$(($1 * 10))
    shift
    until "$@" >/dev/null 2>&1; do ((tries-- > 0)) || return 1; sleep 0.1; done
}

# pid NAME: of the daemon with this pid file, when it lives; a zombie does not
pid() {
    local p
    p=$(cat "$ROOT/run/$1.pid" 2>/dev/null) && [[ -n $p ]] &&
        grep -qs "^State:[[:space:]]*[^Z]" "/proc/$p/status" &&
        [[ ${1%-*} == "$(cut -c1-15 "/proc/$p/comm")"* ]] && echo "$p"
}
gone() { ! pid "$1"; }

install_packages() {
    # the packages' own services stay down: they have no configuration, and this is not their machine
    local policy=/usr/sbin/policy-rc.d made=
    [[ -e $policy ]] || { printf '#!/bin/sh\nexit 101\n' >$policy; chmod 755 $policy; made=1; }
    trap '[[ -z $made ]] || rm -f '$policy RETURN
    apt-get update -q && apt-get install -qy --no-install-recommends "${PACKAGES[@]}"
}

write_config() {
    local cgroups=cgroup/v1 i gpus="Gres=gpu:2" version
    version=$(slurmd -V | grep -oE '[0-9]+\.[0-9]+' | head -1)
    # slurmd loads a cgroup plugin that nothing uses; the default one fails where there are none
    [[ $(printf '%s\n' 23.11 "$version" | sort -V | head -1) != 23.11 ]] || cgroups=disabled
    echo "CgroupPlugin=$cgroups" >"$ROOT/etc/cgroup.conf"
    (umask 077; [[ -s $ROOT/etc/munge.key ]] || head -c 1024 /dev/urandom >"$ROOT/etc/munge.key")
    # a GPU must be a character device: /dev/null's twins
    for i in 0 1; do
        [[ -c $ROOT/dev/gpu$i ]] || mknod "$ROOT/dev/gpu$i" c 1 3 2>/dev/null || gpus=
    done
    echo ${gpus:+"Name=gpu File=$ROOT/dev/gpu[0-1]"} >"$ROOT/etc/gres.conf"
    # cred_expire: a requeued job waits as long before it may start again; 5 s is the least
    # linuxproc, task/none: no cgroups; OverMemoryKill: limits by polling
    # AccountingStoragePass: the munge socket, for sacct too
    # config_overrides: a node may claim more than the machine has
    # DefMemPerCPU: a job that names no memory does not take the node's
    # NoCtldInAddrAny: listen on loopback alone
    cat >"$SLURM_CONF" <<END
ClusterName=forge
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$PORT
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$ROOT/run/munge.socket,cred_expire=5
CredType=cred/munge
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmctldPidFile=$ROOT/run/slurmctld.pid
SlurmdPidFile=$ROOT/run/slurmd-%n.pid
SlurmdSpoolDir=$ROOT/spool/%n
StateSaveLocation=$ROOT/state
SlurmctldLogFile=$ROOT/log/slurmctld.log
SlurmdLogFile=$ROOT/log/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
PropagateResourceLimits=NONE
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
DefMemPerCPU=500
ReturnToService=2
MailProg=/bin/true
KillWait=5
MinJobAge=600
MaxArraySize=25
SlurmdTimeout=10
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePort=$((PORT + 1))
AccountingStoragePass=$ROOT/run/munge.socket
${gpus:+GresTypes=gpu}
NodeName=n1 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((PORT + 2)) CPUs=2 RealMemory=8000 $gpus
NodeName=n2 NodeHostname=localhost NodeAddr=127.0.0.1 Port=$((PORT + 3)) CPUs=2 RealMemory=8000 $gpus
PartitionName=main Nodes=ALL Default=YES PriorityTier=10 PreemptMode=OFF
PartitionName=low Nodes=ALL PriorityTier=1 PreemptMode=REQUEUE GraceTime=10
PartitionName=high Nodes=ALL PriorityTier=100 PreemptMode=OFF
END
    (umask 077; cat >"$ROOT/etc/slurmdbd.conf") <<END
AuthType=auth/munge
AuthInfo=socket=$ROOT/run/munge.socket
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort=$((PORT + 1))
SlurmUser=root
LogFile=$ROOT/log/slurmdbd.log
PidFile=$ROOT/run/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=slurm
StoragePass=slurm
StorageLoc=slurm_acct_db
CommitDelay=0
END
}

start_database() {
    local ask=(mariadb --no-defaults -uroot -S "$MYSQL_UNIX_PORT")
    [[ -d $ROOT/db/mysql ]] || mariadb-install-db --no-defaults --user=root --datadir="$ROOT/db" \
        --auth-root-authentication-method=normal --skip-test-db --innodb-log-file-size=8M \
        >"$ROOT/log/mariadb-install.log" 2>&1 || die "see $ROOT/log/mariadb-install.log"
    # not `pid … || setsid … &`: a shell that waits for it would keep the caller's pipe open
    if ! pid mariadbd >/dev/null; then
        setsid mariadbd --no-defaults --user=root --datadir="$ROOT/db" \
            --socket="$MYSQL_UNIX_PORT" --pid-file="$ROOT/run/mariadbd.pid" --skip-networking \
            --innodb-buffer-pool-size=32M --innodb-log-file-size=8M --innodb-lock-wait-timeout=900 \
            --innodb-flush-log-at-trx-commit=0 --log-error="$ROOT/log/mariadb.log" \
            </dev/null >/dev/null 2>&1 &
    fi
    until_true 30 "${ask[@]}" -e 'select 1' || die "no MariaDB, see $ROOT/log/mariadb.log"
    "${ask[@]}" -e "create database if not exists slurm_acct_db;
        create user if not exists slurm@localhost identified by 'slurm';
        grant all on slurm_acct_db.* to slurm@localhost;"
    daemon slurmdbd slurmdbd
    until_true 30 sacctmgr -n show cluster || die "no slurmdbd, see $ROOT/log/slurmdbd.log"
}

# daemon NAME COMMAND...: start it unless it runs; it goes to the background by itself
daemon() {
    local out=$ROOT/log/$1.out
    pid "$1" >/dev/null || "${@:2}" </dev/null >"$out" 2>&1 || die "$(cat "$out")"
}

remove_from_hosts() { # in place: in a container the file is a mount
    local kept
    kept=$(grep -vF "$MARK" /etc/hosts || true)
    printf '%s\n' "$kept" >/etc/hosts
}

all_idle() { [[ $(sinfo -hp main -o '%T %D') == "idle ${#NODES[@]}" ]]; }

start() {
    [[ $(id -u) == 0 ]] || die "needs root"
    local name
    for name in munged slurmctld slurmd sbatch slurmdbd mariadbd my_print_defaults; do
        command -v "$name" >/dev/null || die "no $name here; $0 install brings it"
    done
    mkdir -p "$ROOT"/{etc,run,log,state,dev,db,spool}
    write_config
    remove_from_hosts
    echo "127.0.0.1 ${NODES[*]} $MARK" >>/etc/hosts
    daemon munged munged --force --num-threads=4 --key-file="$ROOT/etc/munge.key" \
        --socket="$ROOT/run/munge.socket" --pid-file="$ROOT/run/munged.pid" \
        --log-file="$ROOT/log/munged.log" --seed-file="$ROOT/run/munged.seed"
    start_database
    daemon slurmctld slurmctld
    # a slurmd that does not find its controller at once waits for seconds
    until_true 30 scontrol show config || die "no slurmctld, see $ROOT/log/slurmctld.log"
    for name in "${NODES[@]}"; do
        mkdir -p "$ROOT/spool/$name"
        daemon "slurmd-$name" slurmd -N "$name"
    done
    until_true 30 all_idle || die "$(sinfo -Nl; tail -3 "$ROOT"/log/slurmd-*.log)"
    until_true 15 sacct -n || die "sacct does not answer"
}

stop() {
    local name p
    if pid slurmctld >/dev/null; then
        scancel --user=root 2>/dev/null || true
        until_true 8 eval '[[ -z $(squeue -h) ]]' || true
    fi
    # the controller first: it looks for its nodes for seconds when they went before it
    for name in slurmctld slurmd-n1 slurmd-n2 slurmdbd mariadbd munged; do
        p=$(pid "$name") || continue
        kill "$p"
        until_true 15 gone "$name" || kill -9 "$p"
    done
    grep -qF "$MARK" /etc/hosts && remove_from_hosts
    rm -rf "${ROOT:?}"/{etc,run,log,state,dev,db,spool}
    rmdir "$ROOT" 2>/dev/null || true
}

case ${1:-} in
install) install_packages ;;
start) start ;;
stop) stop ;;
env) echo "export SLURM_CONF=$SLURM_CONF" ;;
*) die "usage: $0 install|start|stop|env" ;;
esac
