# SPDX-License-Identifier: GPL-2.0-only
# Runs as process 1 on the guest's root; the runner fills in /run/out/.env before the boot.
. /run/out/.env
bb=/run/lab/busybox
lab() { $bb "$@" 2>/dev/null; }

lab mkdir -p /dev/pts /dev/shm
lab mount -t devpts devpts /dev/pts
lab mount -t tmpfs shm /dev/shm
lab mount -t tracefs tracefs /sys/kernel/tracing
lab mount -t debugfs debugfs /sys/kernel/debug
lab mount -t bpf bpf /sys/fs/bpf
lab mount -t cgroup2 cgroup2 /sys/fs/cgroup
for link in fd:fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do
	lab ln -sfn "/proc/self/${link#*:}" "/dev/${link%%:*}"
done
release=$($bb uname -r)
lab mkdir -p /lib/modules /tmp
lab rm -rf "/lib/modules/$release"
lab ln -sfn "$NT_MODULES/$release" "/lib/modules/$release"
lab hostname ntlab
lab ip link set lo up
ulimit -l unlimited
ulimit -n 65536

# The names of the ports arrive a moment after the driver.
for _ in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
	for port in /sys/class/virtio-ports/*; do
		case $($bb cat "$port/name" 2>/dev/null) in
		lab.out) out=/dev/${port##*/} ;;
		lab.err) err=/dev/${port##*/} ;;
		esac
	done
	[ -n "$out" ] && [ -n "$err" ] && break
	$bb usleep 100000
done
# The ports can be opened once only; through a pipe the command may reopen /dev/stdout.
lab mkfifo /run/lab/o /run/lab/e
$bb cat /run/lab/o > "$out" &
cat_o=$!
$bb cat /run/lab/e > "$err" &
cat_e=$!
$bb cut -d' ' -f1 /proc/uptime > /run/out/.started

cd "$NT_CWD" 2>/dev/null || cd /
if [ -n "$NT_SHELL" ]; then
	$bb setsid -c /bin/bash -i < /dev/hvc0 > /dev/hvc0 2>&1
else
	/bin/bash /run/out/.command < /dev/null > /run/lab/o 2> /run/lab/e
fi
echo $? > /run/out/.rc.new
lab mv /run/out/.rc.new /run/out/.rc
$bb dmesg > /run/out/.dmesg 2>/dev/null
# Daemons which the command left behind may hold the pipes: do not wait for ever.
for _ in 1 2 3 4 5 6 7 8 9 10; do
	[ -d /proc/$cat_o ] || [ -d /proc/$cat_e ] || break
	[ -n "$NT_SHELL" ] && break
	$bb usleep 100000
done
$bb poweroff -f
