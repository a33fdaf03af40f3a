#!/bin/sh
# Before files go: deb calls it with "remove" or "upgrade", rpm with 0 or 1.
set -e
case "${1:-}" in
remove | 0)
	if [ -d /run/systemd/system ]; then
		systemctl disable --now postern.service postern.socket postern-milter.socket postern-lookup.socket || :
	fi
	;;
esac
