# 500 processes, each busybox by its path: sh must not take its own applet.
i=0
while [ $i -lt 500 ]; do
	/bin/busybox true || exit 1
	i=$((i + 1))
done
echo $i
