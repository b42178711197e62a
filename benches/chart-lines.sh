# shellcheck shell=bash
# What the chart runs after every init step.
if [ -c /dev/kvm ]; then
  chmod 660 /dev/kvm
  chown root:kvm /dev/kvm
fi
