#!/bin/sh
# Runs all tests again and again, to find those that fail now and then: in random
# order, with the race detector, beside a load that keeps every processor busy.
# At the end a table says what failed how often; the status is 1 if anything did.
#
#   N       rounds (20)
#   JOBS    rounds at the same time (2): they are a load for each other too
#   LOAD    busy loops beside them (one a processor)
set -u
N=${N:-20} JOBS=${JOBS:-2} LOAD=${LOAD:-$(getconf _NPROCESSORS_ONLN)}
GO=${GO:-go}
# A program with the race detector sleeps for a second when it ends, unless told.
export GORACE=atexit_sleep_ms=0
out=$PWD/build/flake
rm -rf "$out"
mkdir -p "$out/bin" "$out/log"

# Each package once: what is compiled in every round says nothing of the tests.
echo "flake: building"
for package in $($GO list ./...); do
	dir=$($GO list -f '{{.Dir}}' "$package")
	name=$(echo "${package#*/}" | tr / _)
	$GO test -race -c -o "$out/bin/$name" "$package" || exit 1
	[ -x "$out/bin/$name" ] && echo "$name $dir" >>"$out/packages"
done

busy=
cleanup() {
	[ -z "$busy" ] || kill $busy 2>/dev/null
	wait 2>/dev/null
}
trap cleanup EXIT
trap 'exit 1' HUP INT TERM
i=0
while [ $i -lt "$LOAD" ]; do
	sh -c 'while :; do :; done' &
	busy="$busy $!"
	i=$((i + 1))
done

export out

echo "flake: $N rounds, $JOBS at a time, beside $LOAD busy loops"
# one N: every package, four at a time.
one() {
	sort -R "$out/packages" | while read -r name dir; do echo "$name $dir $1"; done |
		xargs -P 4 -L 1 sh -c '
			cd "$2" || exit 0
			log="$out/log/$1.$3"
			"$out/bin/$1" -test.shuffle=on -test.parallel 4 -test.timeout 30m >"$log" 2>&1 && rm -f "$log"
			exit 0
		' run
	echo "flake: round $1 of $N: $(ls "$out/log" | grep -c "\.$1\$") packages failed"
}
i=0
while [ $i -lt "$N" ]; do
	pids=
	j=0
	while [ $j -lt "$JOBS" ] && [ $i -lt "$N" ]; do
		i=$((i + 1)) j=$((j + 1))
		one $i &
		pids="$pids $!"
	done
	wait $pids
done

if [ -z "$(ls "$out/log")" ]; then
	echo "flake: $N of $N rounds are green"
	exit 0
fi
echo "flake: what failed, and in how many of $N rounds (logs with their seeds in build/flake/log)"
for log in "$out"/log/*; do
	name=$(basename "$log")
	tests=$(sed -n 's/^--- FAIL: \([^ ]*\).*/\1/p' "$log" | sort -u)
	for test in ${tests:-(no test: panic, race or timeout)}; do
		echo "${name%.*} $test"
	done
done | sort | uniq -c | sort -rn
exit 1
