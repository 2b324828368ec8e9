#!/bin/sh
# First process of a lab host: reaches the outer machine's root, makes it writable in memory, sets up what a Basalt host
# has, and hands over to the exec server. Parameters come on the kernel command line as lab.NAME=VALUE.
say() { echo "basalt-lab: $*" >/dev/console; }
die() { say "FAILED: $*"; poweroff -f; }
mount -t proc proc /proc && mount -t sysfs sys /sys && mount -t devtmpfs dev /dev || die "first mounts"
for word in $(cat /proc/cmdline); do
    case $word in lab.*=*) name=${word%%=*}; eval "lab_${name#lab.}='${word#*=}'" ;; esac
done
while read -r module; do
    # The KVM module of the other processor maker refuses to load; that is its way of saying so.
    case $module in
    kvm-amd.ko | kvm-intel.ko) insmod "/modules/$module" 2>/dev/null || true ;;
    *) insmod "/modules/$module" || die "module $module" ;;
    esac
done </modules/order
if [ -n "$lab_probe" ]; then
    [ -c /dev/kvm ] && say "probe: kvm works inside" || say "probe: no kvm inside"
    poweroff -f
fi

mkdir -p /lower /memory /root
mount -t 9p -o trans=virtio,version=9p2000.L,cache=loose,msize=512000,ro root /lower || die "the outer root over 9p"
mount -t tmpfs -o mode=755 memory /memory && mkdir /memory/upper /memory/work || die "tmpfs"
mount -t overlay -o lowerdir=/lower,upperdir=/memory/upper,workdir=/memory/work overlay /root || die "overlay"
mount -t tmpfs -o mode=755 run /root/run && mount -t tmpfs -o mode=1777 tmp /root/tmp || die "tmpfs"
mkdir -p /root/run/lock /root/run/netns /root/var/lib/basalt "/root$lab_target"
# The target directory once more without caching: what is built while the host runs is seen at once.
mount -t 9p -o "trans=virtio,version=9p2000.L,cache=mmap,msize=512000,ro" target "/root$lab_target" || die "target over 9p"
mount -t ext4 -o noatime /dev/vda /root/var/lib/basalt || die "the data disk"
mount -o bind /proc /root/proc && mount -o bind /sys /root/sys && mount -o bind /dev /root/dev || die "system mounts"
mkdir -p /root/dev/pts /root/dev/shm
mount -t devpts -o gid=5,mode=620,ptmxmode=666 devpts /root/dev/pts
mount -t tmpfs -o mode=1777 shm /root/dev/shm
ln -sf /proc/self/fd /root/dev/fd; ln -sf fd/0 /root/dev/stdin; ln -sf fd/1 /root/dev/stdout; ln -sf fd/2 /root/dev/stderr
mount -t cgroup2 cgroup2 /root/sys/fs/cgroup || die "cgroup v2"
mount -t debugfs debugfs /root/sys/kernel/debug
mount -t bpf bpf /root/sys/fs/bpf 2>/dev/null

hostname "$lab_name"
echo "$lab_name" >/root/etc/hostname
printf '127.0.0.1 localhost\n127.0.1.1 %s\n%s outer\n' "$lab_name" "$lab_outer" >/root/etc/hosts
echo "$lab_machine" >/root/etc/machine-id
# Inside there is no outer world: no name service, and no mount list but the kernel's.
rm -f /root/etc/resolv.conf 2>/dev/null; : >/root/etc/resolv.conf
mkdir -p /root/lib/modules && ln -sfn "$lab_modules" "/root/lib/modules/$(uname -r)"
ip link set lo up
ip addr add "$lab_management" dev eth0 && ip link set eth0 up || die "management network"
ip link set eth1 mtu "$lab_mtu" && ip addr add "$lab_underlay" dev eth1 && ip link set eth1 up || die "underlay network"
# A wire for the bridge of virtual machines: the host has no address there.
echo 1 >/proc/sys/net/ipv6/conf/eth2/disable_ipv6 && ip link set eth2 up || die "physical network"
echo 1 >/proc/sys/vm/overcommit_memory
say "root is ready"
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=linux LANG=C.UTF-8 PS1='\h:\w# '
exec switch_root /root /bin/sh -c "
    while :; do setsid -c /bin/sh -c 'exec bash --norc --noprofile' </dev/ttyS0 >/dev/ttyS0 2>&1; sleep 1; done &
    while :; do $lab_hand serve $lab_port; echo 'basalt-lab: exec server ended' >/dev/console; sleep 1; done"
