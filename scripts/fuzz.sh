#!/bin/sh
# Runs every fuzz test of the module for FUZZTIME (default 30s), one after the
# other. An input that breaks something is left in the package's testdata/fuzz.
set -eu
packages=$(go list -f '{{if or .TestGoFiles .XTestGoFiles}}{{.ImportPath}}{{end}}' ./...)
for package in $packages; do
	tests=$(go test -list '^Fuzz' "$package")
	for name in $(echo "$tests" | grep '^Fuzz' || true); do
		echo "== $package $name"
		go test -run '^$' -fuzz "^$name\$" -fuzztime "${FUZZTIME:-30s}" "$package"
	done
done
