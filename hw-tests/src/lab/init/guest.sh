#!/bin/sh
# First process of a guest: loads the virtio drivers, then goes on to the disk named by root=, or stays here with a
# shell when there is none.
mount -t proc proc /proc; mount -t sysfs sys /sys; mount -t devtmpfs dev /dev
root=
for word in $(cat /proc/cmdline); do case $word in root=*) root=${word#root=} ;; esac; done
while read -r module; do insmod "/modules/$module" || echo "basalt-guest: module $module failed"; done </modules/order
if [ -n "$root" ]; then
    mkdir -p /disk; tries=0
    while [ ! -b "$root" ] && [ $tries -lt 50 ]; do sleep 0.1; tries=$((tries + 1)); done
    if mount -o noatime "$root" /disk; then
        mount -o bind /dev /disk/dev
        exec switch_root /disk /sbin/init
    fi
    echo "basalt-guest: cannot mount $root"
fi
echo "basalt-guest: ready"
while :; do setsid cttyhack sh; sleep 1; done
