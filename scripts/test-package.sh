#!/bin/sh
# The .deb in a clean root made by debootstrap: installed, used, upgraded, removed, purged.
# Postfix runs in that root, too, in a network of its own. RELEASE names Debian's release, MIRROR where it comes from (default: as this host's apt).
set -eu
RELEASE=${RELEASE:-bookworm}
# A network of its own, so that port 25 is free; debootstrap needs this host's.
if [ "${1:-}" = apart ]; then
	ip link set lo up
fi
[ "$(id -u)" -eq 0 ] || { echo 'test-package: only root can make a root' >&2; exit 1; }
command -v swaks >/dev/null || { echo 'test-package: swaks is missing (make deps)' >&2; exit 1; }
command -v debootstrap >/dev/null || { echo 'test-package: debootstrap is missing (apt-get install debootstrap)' >&2; exit 1; }
MIRROR=${MIRROR:-$(cat /etc/apt/sources.list /etc/apt/sources.list.d/*.list /etc/apt/sources.list.d/*.sources 2>/dev/null |
	grep -oE 'https?://[^ ]+/debian/?( |$)' | head -n 1 | tr -d ' ')}

if [ "${1:-}" != apart ]; then
	rm -rf build/test-package && mkdir -p build/test-package
	make --no-print-directory build
	PKGVERSION=1~next scripts/package.sh >/dev/null
	cp build/postern_*.deb build/test-package/new.deb
	scripts/package.sh >/dev/null
	cp build/postern_*.deb build/test-package/old.deb
	# The root is kept as an archive: the second time takes seconds.
	if [ ! -e "build/$RELEASE.tar" ]; then
		base=$(mktemp -d)
		debootstrap --variant=minbase --include=postfix "$RELEASE" "$base" "$MIRROR" >build/test-package/log 2>&1 ||
			{ tail -n 20 build/test-package/log >&2; rm -rf "$base"; exit 1; }
		tar -C "$base" -cf "build/$RELEASE.tar.part" . && mv "build/$RELEASE.tar.part" "build/$RELEASE.tar"
		rm -rf "$base"
	fi
	exec unshare --net -- "$0" apart
fi

work=$(mktemp -d)
root=$work/root
pid=
cleanup() {
	[ -z "$pid" ] || kill "$pid" 2>/dev/null || :
	[ ! -s "$root/var/spool/postfix/pid/master.pid" ] || kill "$(tr -d ' ' <"$root/var/spool/postfix/pid/master.pid")" 2>/dev/null || :
	umount "$root/proc" 2>/dev/null || :
	rm -rf "$work"
}
trap cleanup EXIT
cp build/test-package/*.deb "$work/"
mkdir "$root" && tar -C "$root" -xf "build/$RELEASE.tar"
chmod 755 "$root"
mount -t proc proc "$root/proc"
cp "$work"/*.deb "$root/"
inside() { chroot "$root" env PATH=/usr/sbin:/usr/bin:/sbin:/bin LC_ALL=C DEBIAN_FRONTEND=noninteractive "$@"; }
say() { echo "test-package: $*"; }
fail() { echo "test-package: FAIL: $*" >&2; exit 1; }
is() { [ "$(inside stat -c '%U:%G %a' "$1")" = "$2" ] || fail "$1 is $(inside stat -c '%U:%G %a' "$1"), not $2"; }

inside dpkg -i /old.deb >/dev/null
inside getent passwd postern >/dev/null || fail 'there is no user'
is /var/lib/postern 'postern:postern 750'
is /etc/postern/postern.toml 'root:root 644'
is /usr/bin/postern 'root:root 755'
inside postern check | grep -q 'is good' || fail 'the configuration that is shipped is not good'
for f in man1/postern.1.gz man5/postern.toml.5.gz; do [ -s "$root/usr/share/man/$f" ] || fail "no $f"; done
grep -q '^ExecStart=/usr/bin/postern serve$' "$root/usr/lib/systemd/system/postern.service" || fail 'the unit starts another binary'
say 'installed'

start() {
	inside install -d -o postern -g postern -m 755 /run/postern
	chroot --userspec=postern:postern "$root" /usr/bin/postern serve >"$work/daemon.log" 2>&1 &
	pid=$!
	n=0
	until [ -S "$root/run/postern/admin.sock" ] && inside postern status >/dev/null 2>&1; do
		n=$((n + 1))
		[ $n -lt 100 ] && kill -0 "$pid" 2>/dev/null || { cat "$work/daemon.log" >&2; fail 'the daemon does not come up'; }
		sleep 0.1
	done
}
stop() {
	kill "$pid" && wait "$pid" || :
	pid=
}
start
# As a new administrator: Postfix is set up, and a mail is refused and explained.
printf '%s\n' 'compatibility_level = 3.6' 'myhostname = mx.example.org' 'mydestination = example.org' 'inet_interfaces = loopback-only' 'mynetworks = 127.0.0.2/32' \
	'smtpd_authorized_xclient_hosts = 127.0.0.1' 'maillog_file = /var/log/mail.log' 'local_recipient_maps =' >"$root/etc/postfix/main.cf"
grep -q '^postlog' "$root/etc/postfix/master.cf" || echo 'postlog unix-dgram n - n - 1 postlogd' >>"$root/etc/postfix/master.cf"
touch -d '1 minute ago' "$root/etc/postfix/main.cf" "$root/etc/postfix/master.cf"
inside postfix start 2>/dev/null || fail 'Postfix does not start'
inside postern postfix setup --yes >"$work/setup" 2>&1 || { cat "$work/setup" >&2; fail 'postern postfix setup'; }
grep -q 'postern was asked: it works' "$work/setup" || { cat "$work/setup" >&2; fail 'Postfix does not ask'; }
say "$(tail -n 1 "$work/setup")"
# It begins by watching; the administrator lets it refuse.
sed -i 's/^mode = "shadow"/mode = "enforce"/' "$root/etc/postern/postern.toml"
inside postern reload >/dev/null
answer=$(swaks --server 127.0.0.1 --helo nodot --from a@example.net --to b@example.org --xclient 'NAME=[UNAVAILABLE] ADDR=192.0.2.7' --quit-after RCPT 2>&1 | grep '\[ref ' || :)
ref=$(echo "$answer" | sed -n 's/.*\[ref \([0-9A-Z-]*\)\].*/\1/p')
[ -n "$ref" ] || fail "not refused: $answer"
inside postern explain "$ref" | grep -q 'client-helo-not-full' || fail "the refusal $ref is not explained"
say "refused and explained: $answer"
stop
[ -s "$root/var/lib/postern/state.db" ] || fail 'no state was written'

echo '# changed by the operator' >>"$root/etc/postern/postern.toml"
inside dpkg -i --force-confold /new.deb >/dev/null
grep -q 'changed by the operator' "$root/etc/postern/postern.toml" || fail 'an upgrade has lost the configuration'
[ -s "$root/var/lib/postern/state.db" ] || fail 'an upgrade has lost the state'
start
inside postern explain "$ref" | grep -q 'client-helo-not-full' || fail 'the refusal from before the upgrade is not known any more'
stop
say 'upgraded: configuration, state and journal are kept'

inside dpkg -r postern >/dev/null
[ ! -e "$root/usr/bin/postern" ] || fail 'the binary is still there'
[ -e "$root/etc/postern/postern.toml" ] && [ -e "$root/var/lib/postern/state.db" ] || fail 'removing has taken configuration or state'
inside dpkg -P postern >/dev/null
for left in /etc/postern /var/lib/postern /var/log/postern; do [ ! -e "$root$left" ] || fail "purging leaves $left"; done
! inside getent passwd postern >/dev/null || fail 'purging leaves the user'
say 'removed and purged'
if command -v rpm >/dev/null; then
	rpm -qpl build/postern-*.rpm 2>/dev/null | grep -qx /usr/bin/postern || fail 'the rpm has no binary'
	say 'the rpm holds the same'
fi
say 'all is well'
