#!/bin/sh
# After unpacking: deb calls it with "configure [OLD]", rpm with 1 (new) or 2 (upgrade).
set -e
case "${1:-}" in
configure) upgrade=${2:-} ;;
2) upgrade=yes ;;
1) upgrade= ;;
*) exit 0 ;;
esac

if command -v systemd-sysusers >/dev/null 2>&1; then
	systemd-sysusers postern.conf || :
fi
if ! getent passwd postern >/dev/null; then
	useradd --system --user-group --home-dir /var/lib/postern --no-create-home --shell /usr/sbin/nologin --comment 'postern mail policy daemon' postern
fi
install -d -o postern -g postern -m 0750 /var/lib/postern /var/log/postern
# The sockets inside of Postfix's queue directory belong to Postfix's group.
if getent group postfix >/dev/null && [ -d /var/spool/postfix ]; then
	install -d -o postern -g postfix -m 2750 /var/spool/postfix/postern
fi
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload
	if [ -n "$upgrade" ]; then
		systemctl try-restart postern.service || :
	fi
fi
if [ -z "$upgrade" ]; then
	echo 'postern: edit /etc/postern/postern.toml, then: postern check && systemctl enable --now postern.socket postern.service && postern postfix setup'
fi
