#!/bin/sh
# In the guest, or natively in a chroot: io.sh disk DEVICE | tcp HOST PORT | share DIR
# One line a figure: "io NAME VALUE [RESULT]".
set -eu
seconds=${SECONDS_EACH:-5}

fio_row() { # NAME FIELD RW SIZE DEPTH DEVICE: field of fio's terse output
	value=$(fio --name="$1" --filename="$6" --rw="$3" --bs="$4" --iodepth="$5" --ioengine=libaio --direct="$direct" --runtime="$seconds" \
		--time_based --size=100% --minimal 2>/dev/null | cut -d';' -f"$2")
	echo "io $1 $value"
}

now() { # hundredths of a second
	read -r up rest </proc/uptime
	echo "$up" | sed 's/\.//; s/^0*//'
}

timed() { # NAME COMMAND: its output is the result
	echo 3 >/proc/sys/vm/drop_caches 2>/dev/null || :
	begin=$(now)
	result=$(sh -c "$2" | md5sum | cut -d' ' -f1)
	end=$(now)
	echo "io $1 $((end - begin)) $result"
}

case $1 in
disk)
	direct=1
	fio_row randread-iops 8 randread 4k 32 "$2"
	fio_row read-kbs 7 read 1M 8 "$2"
	fio_row write-kbs 48 write 1M 8 "$2"
	;;
tcp)
	for way in up down; do
		[ $way = up ] && option= || option=-R
		value=$(iperf3 -c "$2" -p "$3" -t "$seconds" -f m $option | sed -n 's/.* \([0-9.]*\) Mbits\/sec.*receiver/\1/p')
		echo "io tcp-$way-mbits $value"
	done
	;;
share)
	# git must not write what it found out: the next one would find it.
	export HOME=/tmp GIT_OPTIONAL_LOCKS=0 GIT_CONFIG_COUNT=1 GIT_CONFIG_KEY_0=safe.directory GIT_CONFIG_VALUE_0='*'
	timed tar "cd $2 && /usr/bin/tar -c --sort=name --exclude=./.git . | cat"
	timed tar-again "cd $2 && /usr/bin/tar -c --sort=name --exclude=./.git . | cat"
	timed git-status "cd $2 && git status"
	timed git-status-again "cd $2 && git status"
	;;
esac
