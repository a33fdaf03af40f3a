#!/bin/sh
# Installs what the tests run against: Postfix, Redis, unbound, OpenLDAP, postgrey, Chromium and a few tools,
# from Debian's archive. Only what is missing is installed, and none of it is
# started, now or at the next boot. With CI=true a failure is an error;
# otherwise the tests that need what is missing are skipped, and say so.
set -u

# program package: the program is there when the package is.
wanted='
postconf postfix
redis-server redis-server
swaks swaks
miltertest miltertest
unbound unbound
slapd slapd
dig dnsutils
postgrey postgrey
db_dump db-util
sqlite3 sqlite3
systemd-analyze systemd
gcc gcc
dkimsign python3-dkim
/usr/lib/python3/dist-packages/authres/__init__.py python3-authres
dkimproxy-sign libmail-dkim-perl
opendkim opendkim
opendkim-testmsg opendkim-tools
xmllint libxml2-utils
promtool prometheus
chromium chromium
/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf fonts-dejavu-core
'
PATH=$PATH:/usr/sbin:/sbin

# missing prints the packages that are not there.
missing() {
	echo "$wanted" | while read -r program package; do
		[ -z "$program" ] || [ -e "$program" ] || command -v "$program" >/dev/null || echo "$package"
	done
	postconf -m 2>/dev/null | grep -qx pcre || echo postfix-pcre
	[ -e /usr/include/stdio.h ] || echo libc6-dev
	# Without it smtp(8) knows no mechanism to log in with.
	ls /usr/lib/*/sasl2/libplain.so >/dev/null 2>&1 || echo libsasl2-modules
}

give_up() {
	echo "deps: $1" >&2
	echo "deps: missing:" $(missing) >&2
	if [ "${CI:-}" = true ]; then
		exit 1
	fi
	echo "deps: the tests that need them are skipped" >&2
	exit 0
}

packages=$(missing)
[ -n "$packages" ] || exit 0

command -v apt-get >/dev/null || give_up "there is no apt-get here"
root=
if [ "$(id -u)" -ne 0 ]; then
	command -v sudo >/dev/null || give_up "neither root nor sudo"
	# Without a terminal nobody can type a password.
	if ! [ -t 0 ]; then
		sudo -n true 2>/dev/null || give_up "sudo wants a password"
	fi
	root=sudo
fi

echo "deps: installing" $packages
# invoke-rc.d(8) and deb-systemd-invoke(1p) ask this program before they start
# a service. One that the administrator has put there stays.
policy=/usr/sbin/policy-rc.d
ours=
if ! [ -e $policy ]; then
	ours=yes
	trap '$root rm -f $policy' EXIT
	trap 'exit 1' HUP INT TERM
	printf '#!/bin/sh\nexit 101\n' | $root tee $policy >/dev/null && $root chmod 755 $policy || give_up "$policy cannot be written"
fi

apt() { $root env DEBIAN_FRONTEND=noninteractive apt-get -q -o Acquire::Retries=3 -o DPkg::Lock::Timeout=120 "$@"; }

case " $packages " in
*postfix*) echo 'postfix postfix/main_mailer_type select Local only' | $root debconf-set-selections 2>/dev/null ;;
esac
# --no-remove: another mail server on this machine is not ours to take away.
for pause in 5 15 0; do
	apt update && apt install -y --no-install-recommends --no-remove $packages && break
	sleep $pause
done

# What was installed for tests must not run after the next boot either.
if [ -n "$ours" ] && [ -d /run/systemd/system ]; then
	for package in $packages; do
		case $package in
		postfix | redis-server | unbound | slapd | postgrey | opendkim | prometheus) $root systemctl disable --quiet "$package" 2>/dev/null ;;
		esac
	done
fi

[ -z "$(missing)" ] || give_up "not everything could be installed"
