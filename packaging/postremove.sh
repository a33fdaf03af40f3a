#!/bin/sh
# After files have gone. Configuration and state stay, unless deb says "purge".
set -e
if [ -d /run/systemd/system ]; then
	systemctl daemon-reload || :
fi
if [ "${1:-}" = purge ]; then
	rm -rf /etc/postern /var/lib/postern /var/log/postern /var/spool/postfix/postern
	if getent passwd postern >/dev/null; then
		userdel postern || :
	fi
fi
