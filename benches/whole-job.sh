#!/bin/bash
# What `apply` does, as one would write it by hand: the node's number for the group, the user in it, the
# device as it shall be, and a proof by opening it as QEMU's user. Without reading udev's rules, qemu.conf
# or ACLs, and without a guard against what is in the device's place.
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

[ -c /dev/kvm ] || { echo "there is no /dev/kvm" >&2; exit 6; }
[ "$(stat -c %u:%g /dev/kvm)" = "0:$gid" ] || chown "0:$gid" /dev/kvm
[ "$(stat -c %a /dev/kvm)" = 660 ] || chmod 660 /dev/kvm

setpriv --reuid "$user" --regid kvm --init-groups sh -c 'exec 3<>/dev/kvm' ||
    { echo "$user cannot open /dev/kvm" >&2; exit 5; }
