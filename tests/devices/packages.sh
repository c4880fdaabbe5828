#!/usr/bin/env bash
# Installs what the test devices are made of (Debian and Ubuntu, as root); does nothing when it is all there.
# With "browser": what the browser test of the HTML report needs, too.
set -euo pipefail
[ "$(id -u)" = 0 ] && command -v apt-get >/dev/null || { echo "packages.sh: not root or no apt-get: nothing is installed"; exit 0; }

packages=(openssh-server openssh-sftp-server iproute2 iptables util-linux)  # a fleet in network namespaces
packages+=(mmdebstrap arch-test qemu-user-static gcc libc6-dev)             # arm userlands
packages+=(g++-aarch64-linux-gnu)                                           # the native runner for them
packages+=(qemu-system-arm e2fsprogs kmod cpio)   # a virtual machine
[ "${1:-}" != browser ] || packages+=(chromium chromium-driver)

missing=()
for package in "${packages[@]}"; do
  dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2>/dev/null | grep -q '^ii' || missing+=("$package")
done
[ ${#missing[@]} != 0 ] || exit 0

export DEBIAN_FRONTEND=noninteractive
echo "apt-get install ${missing[*]}"
begin=$SECONDS
# No service of a test machine may start or restart because of this.
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then printf '#!/bin/sh\nexit 101\n' > $policy; chmod +x $policy; trap 'rm -f $policy' EXIT; fi
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
echo "packages ready after $((SECONDS - begin)) s"
