#!/bin/sh
# The tests beside real Postfix and Redis, on each of RELEASES (bookworm trixie): in a root made by debootstrap, kept in build/matrix/_RELEASE for the
# next time, with a network and processes of its own. They are compiled here and run there. The table is in build/matrix/table.md; what failed, with its
# output, in build/matrix/RELEASE.log.
#
#   RELEASES   Debian's releases, of which each is a line
#   PACKAGES   directories of the tests
#   RUN        only tests that match it
#   MIRROR     where Debian comes from (default: as this host's apt)
set -eu
RELEASES=${RELEASES:-bookworm trixie} PACKAGES=${PACKAGES:-integration configs postfix store/redis} RUN=${RUN:-.} GO=${GO:-go} CI=${CI:-}
export RUN PACKAGES CI
here=$PWD/build/matrix

# Within the namespaces, as process 1: all that is started here ends with it.
if [ "${1:-}" = inside ]; then
	root=$2
	ip link set lo up
	for d in proc dev src; do mkdir -p "$root/$d"; done
	mount -t proc proc "$root/proc"
	mount --rbind /dev "$root/dev"
	mount --bind "$PWD" "$root/src"
	mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
	status=0
	for package in $PACKAGES; do
		echo "=== $package"
		chroot "$root" env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C CI="$CI" POSTERN_BINARY=/src/build/matrix/bin/postern \
			sh -c 'cd "/src/$1" && exec "/src/build/matrix/bin/$2.test" -test.v -test.run "$3" -test.parallel 4 -test.timeout 30m' \
			- "$package" "$(echo "$package" | tr / _)" "$RUN" || status=1
	done
	exit $status
fi

[ "$(id -u)" -eq 0 ] || { echo 'matrix: only root can make a root' >&2; exit 1; }
command -v debootstrap >/dev/null || { echo 'matrix: debootstrap is missing (apt-get install debootstrap)' >&2; exit 1; }
MIRROR=${MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
	grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')}

mkdir -p "$here/bin"
echo 'matrix: compiling'
CGO_ENABLED=0 $GO build -trimpath -o "$here/bin/postern" ./cmd/postern
for package in $PACKAGES; do
	CGO_ENABLED=0 $GO test -c -o "$here/bin/$(echo "$package" | tr / _).test" "./$package"
done

failed=
rows=
for release in $RELEASES; do
	root=$here/_$release # as Go passes over it: there are sources of Go in it
	if [ ! -e "$root/made" ]; then
		echo "matrix: making a root of $release"
		rm -rf --one-file-system "$root"
		mkdir -p "$root"
		debootstrap --variant=minbase "$release" "$root" "$MIRROR" >"$here/$release.log" 2>&1 || { tail -n 20 "$here/$release.log" >&2; exit 1; }
		: >"$root/made"
	fi
	chmod 755 "$root"
	# What the tests need can have become more.
	mkdir -p "$root/deps/scripts" && cp scripts/deps.sh "$root/deps/scripts/"
	chroot "$root" env CI=true LC_ALL=C /deps/scripts/deps.sh >"$here/$release.log" 2>&1 || { tail -n 20 "$here/$release.log" >&2; exit 1; }
	# Debian 13 leaves it empty where nobody answers debconf: postmap finds no host then.
	chroot "$root" postconf -e 'inet_protocols = all'
	postfix=$(chroot "$root" postconf -dh mail_version)
	redis=$(chroot "$root" redis-server --version | grep -o 'v=[0-9.]*' | cut -d= -f2)
	echo "matrix: $release, Postfix $postfix, Redis $redis"
	result=green
	unshare --net --mount --pid --fork --kill-child -- "$0" inside "$root" >"$here/$release.log" 2>&1 || result=red failed=yes
	passed=$(grep -c '^--- PASS' "$here/$release.log" || :)
	skipped=$(grep -c '^--- SKIP' "$here/$release.log" || :)
	names=$(grep '^--- FAIL' "$here/$release.log" | awk '{print $3}' | tr '\n' ' ')
	rows="$rows| Debian $release | $postfix | $redis | $result: $passed passed, $skipped skipped${names:+, failed: $names}|
"
done
{
	echo '| release | Postfix | Redis | result |'
	echo '|---|---|---|---|'
	printf %s "$rows"
} | tee "$here/table.md"
[ -z "$failed" ]
