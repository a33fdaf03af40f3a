#!/bin/sh
# Makes build/postern_*.deb and build/postern-*.rpm of what make install puts together.
set -eu
GO=${GO:-go}
rm -rf build/pkg build/postern_*.deb build/postern-*.rpm
make --no-print-directory install DESTDIR=build/pkg PREFIX=/usr SYSCONFDIR=/etc

mkdir -p build/pkg/usr/share/man/man1 build/pkg/usr/share/man/man5 build/pkg/usr/share/bash-completion/completions \
	build/pkg/usr/share/zsh/vendor-completions build/pkg/usr/share/fish/vendor_completions.d
bin/postern man --configuration docs/configuration.md build/man
gzip -9nc build/man/postern.1 >build/pkg/usr/share/man/man1/postern.1.gz
gzip -9nc build/man/postern.toml.5 >build/pkg/usr/share/man/man5/postern.toml.5.gz
bin/postern completion bash >build/pkg/usr/share/bash-completion/completions/postern
bin/postern completion zsh >build/pkg/usr/share/zsh/vendor-completions/_postern
bin/postern completion fish >build/pkg/usr/share/fish/vendor_completions.d/postern.fish

# The time of the commit and its name: later ones are later, and the same commit gives the same packages.
SOURCE_DATE_EPOCH=$(git log -1 --format=%ct)
PKGVERSION=${PKGVERSION:-$(TZ=UTC git log -1 --date=format-local:%Y%m%d.%H%M%S --format='0~%cd.%h')}
ARCH=$($GO env GOARCH)
export SOURCE_DATE_EPOCH PKGVERSION ARCH
for format in deb rpm; do
	$GO tool -modfile=tools/go.mod nfpm package --config packaging/nfpm.yaml --packager $format --target build/
done
