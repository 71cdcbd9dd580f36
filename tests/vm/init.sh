#!/bin/busybox sh
# SPDX-License-Identifier: GPL-2.0-only
# First process of the guest: host root (read-only 9p) under an overlay, then the boot script.
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev 2>/dev/null
while read -r m; do insmod "/modules/$m"; done < /modules/order

opt=trans=virtio,version=9p2000.L,msize=262144
mount -t 9p -o $opt,ro,cache=loose root /lower || exec poweroff -f
mount -t tmpfs -o size=75% tmpfs /upper
mkdir /upper/data /upper/scratch
mount -t overlay -o lowerdir=/lower,upperdir=/upper/data,workdir=/upper/scratch root /new
for d in proc sys dev run; do [ -d /new/$d ] || mkdir /new/$d; done
mount -t tmpfs -o mode=755 run /new/run
mkdir /new/run/out /new/run/lab
cp /bin/busybox /new/run/lab/busybox
mount -t 9p -o $opt,cache=none out /new/run/out || exec poweroff -f
for share in $(cat /new/run/out/.shares); do
	tag=${share%:*}
	mkdir -p /new/run/$tag
	case $share in
	*:ro) mount -t 9p -o $opt,ro,cache=loose $tag /new/run/$tag ;;
	*) mount -t 9p -o $opt,cache=none $tag /new/run/$tag ;;
	esac
done
for d in proc sys dev; do mount --move /$d /new/$d; done
exec switch_root /new /run/lab/busybox sh /run/out/.boot
