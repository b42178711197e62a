#!/bin/bash
# The job of `apply` as a short shell script: sets the pod's group to the node's GID, adds the user to it, sets
# owner and mode of the device, and opens the device as the QEMU user. It reads no udev rules, qemu.conf or
# ACLs, and does not check whether /dev/kvm is the KVM device.
#
#   whole-job.sh HOST-ROOT [USER]
set -eu

user=${2:-nova}
gid=$(awk -F: '$1 == "kvm" { print $3; exit }' "$1/etc/group")
[ -n "$gid" ] || { echo "the node has no group kvm" >&2; exit 3; }

if ! getent group kvm >/dev/null; then
    groupadd -g "$gid" kvm
elif [ "$(getent group kvm | cut -d: -f3)" != "$gid" ]; then
    groupmod -g "$gid" kvm
fi
id -nG "$user" | tr ' ' '\n' | grep -qx kvm || usermod -aG kvm "$user"

[ -c /dev/kvm ] || { echo "/dev/kvm is missing" >&2; exit 6; }
[ "$(stat -c %u:%g /dev/kvm)" = "0:$gid" ] || chown "0:$gid" /dev/kvm
[ "$(stat -c %a /dev/kvm)" = 660 ] || chmod 660 /dev/kvm

setpriv --reuid "$user" --regid kvm --init-groups sh -c 'exec 3<>/dev/kvm' ||
    { echo "$user cannot open /dev/kvm" >&2; exit 5; }
