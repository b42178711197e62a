#!/bin/bash
# Demonstrates the incident and its repair, with a real device file and the distribution's QEMU, without libvirtd:
#
#   sudo examples/incident.sh target/release/libvirt-kvm-init
#
# Everything happens in a private mount namespace; nothing on this machine is changed.
set -eu

if [ "${INCIDENT_INSIDE-}" != 1 ]; then
    [ $# -eq 1 ] || { echo "usage: $0 PATH-OF-libvirt-kvm-init" >&2; exit 1; }
    [ -x "$1" ] || { echo "$1 is not executable; build it first: cargo build --release" >&2; exit 1; }
    [ "$(id -u)" -eq 0 ] || { echo "This demonstration creates device files: run it as root." >&2; exit 1; }
    INCIDENT_INSIDE=1 exec unshare --mount --propagation private -- "$BASH" "$0" "$(realpath "$1")"
fi
program=$1

bold='' red='' green='' off=''
if [ -t 1 ] && [ -z "${NO_COLOR-}" ]; then
    bold=$'\e[1m' red=$'\e[31m' green=$'\e[32m' off=$'\e[0m'
fi
say() { printf '\n%s%s%s\n' "$bold" "$*" "$off"; }
show() { # pod|node, command
    local where=$1 run=''
    shift
    [ "$where" = pod ] || run=on_node
    printf '  %-4s $ %s\n' "$where" "$*"
    $run "$@" 2>&1 | sed 's/^/         /'
}

# The root of this namespace is the pod; a directory below it is the node. Both have the same /dev.
work=/mnt
exec 9<"$program"
mount -t tmpfs -o mode=755 tmpfs $work
node=$work/node
cat <&9 >$work/libvirt-kvm-init
exec 9<&-
chmod 755 $work/libvirt-kvm-init
mkdir -p $work/pod $node/etc $node/usr/bin $node/proc $node/dev
cp -a /etc/. $work/pod/
mount --bind $work/pod /etc
exec 8>/dev/null
while umount -l /dev 2>&8; do :; done # 2>/dev/null would create a regular file once /dev/null is gone
exec 8>&-
mount -t tmpfs -o mode=755 tmpfs /dev
mount --bind /dev $node/dev
mknod -m 666 /dev/null c 1 3
mknod -m 666 /dev/urandom c 1 9
ln -s /proc/self/fd /dev/fd
mknod -m 600 /dev/kvm c 10 232

without='' no_kvm=''
(: <>/dev/kvm) 2>/dev/null || no_kvm=1 without='this machine has no usable KVM'
[ "$(uname -m)" = x86_64 ] && command -v qemu-system-x86_64 >/dev/null ||
    without="${without:+$without, and }qemu-system-x86_64 is not installed"
if [ -n "$without" ]; then say "Note: $without. The demonstration continues without QEMU."; fi

strip() { grep -vE '^(kvm|nova):|^[^:]*:[^:]*:(108|424|42424):' "$1" || true; }
group=$(strip /etc/group) passwd=$(strip /etc/passwd)
printf '%s\n' "$group" 'kvm:x:424:nova' 'nova:x:42424:' >/etc/group
printf '%s\n' "$passwd" 'nova:x:42424:42424::/var/lib/nova:/bin/sh' >/etc/passwd
mkdir -p /etc/libvirt
printf '%s\n' 'user = "nova"' 'group = "kvm"' >/etc/libvirt/qemu.conf
printf '%s\n' 'root:x:0:' 'kvm:x:108:' >$node/etc/group
printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' >$node/etc/passwd

udev() { chown 0:108 /dev/kvm; chmod 660 /dev/kvm; }
kvm_gid() { awk -F: '$1 == "kvm" { print $3 }' /etc/group; }

# Starts QEMU with the IDs that libvirt sets: the user nova, the configured group, and the groups with nova as member.
qemu() {
    [ -z "$without" ] || { echo '  pod  (QEMU is skipped, see above)'; return 0; }
    echo "  pod  QEMU, as nova with groups $(kvm_gid) and 42424:"
    if out=$(echo quit | setpriv --reuid 42424 --regid "$(kvm_gid)" --groups "$(kvm_gid),42424" \
        --bounding-set=-all --inh-caps=-all timeout 20 \
        qemu-system-x86_64 -accel kvm -machine none -nodefaults -display none -S -monitor stdio 2>&1); then
        echo "         ${green}opens KVM${off}"
    else
        printf '%s\n' "$out" | grep -i kvm | sed "s/^/         $red/; s/\$/$off/"
        return 1
    fi
}
expect() { # opens|fails
    local got=opens
    qemu || got=fails
    [ -n "$without" ] || [ "$got" = "$1" ] || { echo "Unexpected result: QEMU $got." >&2; exit 1; }
}
on_node() { # runs a command with the node's group database
    # shellcheck disable=SC2016 # expanded by the inner shell
    unshare --mount sh -c 'mount --bind "$0" /etc/group; exec "$@"' "$node/etc/group" "$@"
}

# Runs the program and shows its output and exit code.
run() {
    [ -z "$no_kvm" ] || set -- "$@" --proof off
    echo "  pod  \$ libvirt-kvm-init $*"
    code=0
    $work/libvirt-kvm-init "$@" >$work/out 2>&1 || code=$?
    # Without the closing line on stderr, which repeats the summary of the report.
    grep -v '^libvirt-kvm-init: ' $work/out | sed 's/^/         /'
    echo "         exit code $code"
}

say "1. In the pod, group kvm has GID 424. The chart's libvirt.sh sets that GID on the device."
chmod 660 /dev/kvm
chown root:kvm /dev/kvm
show pod ls -ln /dev/kvm
show pod ls -l /dev/kvm
expect opens

say '2. On the node, group kvm has GID 108. udev handles an event. ls -l shows root:kvm for both.'
udev
show node ls -ln /dev/kvm
show node ls -l /dev/kvm
expect fails
run check --host-root $node

say "3. The repair: the pod's group gets the node's GID, and opening KVM as QEMU is tested."
run apply --host-root $node
if [ $code -eq 6 ] && [ -n "$no_kvm" ]; then
    say 'Without KVM there is nothing to repair, so the demonstration ends here.'
    exit 0
fi
[ $code -eq 0 ] || exit $code
show pod grep '^kvm:' /etc/group
expect opens

say '4. libvirt.sh runs again in the pod. It now sets the same GID as the node.'
chmod 660 /dev/kvm
chown root:kvm /dev/kvm
show pod ls -ln /dev/kvm
expect opens

say '5. udev handles another event on the node. It sets the same GID, too.'
udev
show pod ls -ln /dev/kvm
expect opens

say '6. Another process changes owner and mode. watch in the pod restores them.'
set -- watch --host-root $node --status-file $work/status
[ -z "$no_kvm" ] || set -- "$@" --proof off
$work/libvirt-kvm-init "$@" >$work/out 2>$work/log &
watch=$!
trap 'kill $watch' EXIT
for _ in $(seq 100); do [ -e $work/status ] || sleep 0.1; done
lines=$(wc -l <$work/log)
show pod chmod 600 /dev/kvm
show pod chown 0:0 /dev/kvm
sleep 0.5
tail -n "+$((lines + 1))" $work/log | sed 's/^/         watch: /'
show pod ls -ln /dev/kvm
expect opens
echo
