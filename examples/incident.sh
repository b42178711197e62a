#!/bin/bash
# The incident and its cure, with real nodes and the distribution's QEMU, and without libvirtd:
#
#   sudo examples/incident.sh target/release/libvirt-kvm-init
#
# All of it happens in a private mount namespace; nothing of this machine is changed.
set -eu

if [ "${INCIDENT_INSIDE-}" != 1 ]; then
    [ $# -eq 1 ] || { echo "usage: $0 PATH-OF-libvirt-kvm-init" >&2; exit 1; }
    [ -x "$1" ] || { echo "$1 is no program; build it first: cargo build --release" >&2; exit 1; }
    [ "$(id -u)" -eq 0 ] || { echo "This demonstration makes device nodes: run it as root." >&2; exit 1; }
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

# The pod is what this namespace calls /; the node is a folder. /dev is one and the same for both.
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
while umount -l /dev 2>&8; do :; done # not 2>/dev/null: that would make a file of this name
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
if [ -n "$without" ]; then say "Note: $without. The story goes on without QEMU."; fi

strip() { grep -vE '^(kvm|nova):|^[^:]*:[^:]*:(108|424|42424):' "$1" || true; }
group=$(strip /etc/group) passwd=$(strip /etc/passwd)
printf '%s\n' "$group" 'kvm:x:424:nova' 'nova:x:42424:' >/etc/group
printf '%s\n' "$passwd" 'nova:x:42424:42424::/var/lib/nova:/bin/sh' >/etc/passwd
mkdir -p /etc/libvirt
printf '%s\n' 'user = "nova"' 'group = "kvm"' >/etc/libvirt/qemu.conf
printf '%s\n' 'root:x:0:' 'kvm:x:108:' >$node/etc/group
printf '%s\n' 'root:x:0:0:root:/root:/bin/sh' >$node/etc/passwd

udev() { chown 0:108 /dev/kvm; chmod 660 /dev/kvm; }
number() { awk -F: '$1 == "kvm" { print $3 }' /etc/group; }

# As libvirt starts it: nova, the configured group, and the groups that list nova.
qemu() {
    [ -z "$without" ] || { echo '  pod  (QEMU is left out, see above)'; return 0; }
    echo "  pod  QEMU, as nova with groups $(number) and 42424:"
    if out=$(echo quit | setpriv --reuid 42424 --regid "$(number)" --groups "$(number),42424" \
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
    [ -n "$without" ] || [ "$got" = "$1" ] || { echo "Not what this story tells: QEMU $got." >&2; exit 1; }
}
on_node() { # the same command, with the node's group database
    # shellcheck disable=SC2016 # the inner shell's words
    unshare --mount sh -c 'mount --bind "$0" /etc/group; exec "$@"' "$node/etc/group" "$@"
}

# The program, with its output and exit code.
run() {
    [ -z "$no_kvm" ] || set -- "$@" --proof off
    echo "  pod  \$ libvirt-kvm-init $*"
    code=0
    $work/libvirt-kvm-init "$@" >$work/out 2>&1 || code=$?
    # Without the last line, which says the same again where the report is not seen.
    grep -v '^libvirt-kvm-init: ' $work/out | sed 's/^/         /'
    echo "         exit code $code"
}

say '1. In the pod, kvm is 424, and its libvirt.sh gives the device to that group.'
chmod 660 /dev/kvm
chown root:kvm /dev/kvm
show pod ls -ln /dev/kvm
show pod ls -l /dev/kvm
expect opens

say '2. On the node, kvm is 108, and its udev handles an event. Names look the same.'
udev
show node ls -ln /dev/kvm
show node ls -l /dev/kvm
expect fails
run check --host-root $node

say '3. The cure: the pod follows the node, and what QEMU will do is proven.'
run apply --host-root $node
if [ $code -eq 6 ] && [ -n "$no_kvm" ]; then
    say 'Without KVM there is nothing to mend, and the story ends here.'
    exit 0
fi
[ $code -eq 0 ] || exit $code
show pod grep '^kvm:' /etc/group
expect opens

say "4. The pod's libvirt.sh runs its lines again. Now they are harmless."
chmod 660 /dev/kvm
chown root:kvm /dev/kvm
show pod ls -ln /dev/kvm
expect opens

say "5. The node's udev handles another event. It and the pod agree."
udev
show pod ls -ln /dev/kvm
expect opens

say '6. Somebody takes it away all the same. A watch in the pod puts it back.'
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
