#!/bin/sh
# The same commit gives the same binary, wherever it is built: two clones, two directories, two sums.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
for dir in one two/deeper; do
	mkdir -p "$work/$(dirname "$dir")"
	git clone --quiet . "$work/$dir"
	make --no-print-directory -C "$work/$dir" build >/dev/null
	(cd "$work/$dir/bin" && sha256sum postern)
done >"$work/sums"
cat "$work/sums"
[ "$(sort -u "$work/sums" | wc -l)" -eq 1 ] || { echo 'they differ' >&2; exit 1; }
