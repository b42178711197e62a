# shellcheck shell=bash
# The lines of the chart's libvirt.sh that run after every init step.
if [ -c /dev/kvm ]; then
  chmod 660 /dev/kvm
  chown root:kvm /dev/kvm
fi
