package dkim

import (
	"bytes"
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/x509"
	"encoding/base64"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"postern/internal/conf"
	"postern/internal/dkimsig"
)

// minBits is the least length of an RSA key (RFC 8301 section 3.2).
const minBits = 1024

// maxKeyFile is the most bytes of a key file.
const maxKeyFile = 64 << 10

// key is a private key under a selector. Only state changes.
type key struct {
	domain    string // d=; "" for that of the author, as "%" in a key table
	selector  string
	key       string // in the configuration
	file      string // where it was read
	signer    crypto.Signer
	algorithm string // "rsa" or "ed25519"
	bits      int    // of an RSA key
	record    string // p= of the record
	from, to  time.Time

	state atomic.Pointer[State] // nil: not known
}

// name is where the record stands.
func (k *key) name(domain string) string { return k.selector + "._domainkey." + domain }

// on reports whether it is the key's time.
func (k *key) on(now time.Time) bool {
	return !now.Before(k.from) && (k.to.IsZero() || now.Before(k.to))
}

// text is the record (RFC 6376 section 3.6.1).
func (k *key) text() string { return "v=DKIM1; k=" + k.algorithm + "; p=" + k.record }

// Errors of key files.
var (
	errNoKey  = errors.New("there is no private key in it (PEM, PKCS#1 or PKCS#8)")
	errCipher = errors.New("the key is encrypted: the daemon has nobody who types a pass phrase")
)

// readKey reads the key file that the configuration names. The error says what
// is wrong without anything of its content.
func readKey(name string) (crypto.Signer, error) {
	path := conf.SecretPath(name)
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("%s cannot be read: %w", path, cause(err))
	}
	defer f.Close() //nolint:errcheck // only read
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s is not a regular file", path)
	}
	if err := safe(st, groups()); err != nil {
		return nil, fmt.Errorf("%s %w", path, err)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxKeyFile+1))
	if err != nil {
		return nil, err
	}
	if len(text) > maxKeyFile {
		return nil, fmt.Errorf("%s has more than %d bytes: it is no key", path, maxKeyFile)
	}
	signer, err := parseKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return signer, nil
}

// safe refuses a file that others could read or change: anybody, or a group
// that this process does not belong to. root cannot tell the daemon's groups.
func safe(st fs.FileInfo, groups []int) error {
	mode := st.Mode().Perm()
	switch {
	case mode&0o007 != 0:
		return fmt.Errorf("is open to everybody on this host (mode %04o): chmod 0600", mode)
	case mode&0o030 != 0:
		return fmt.Errorf("can be changed by its group (mode %04o): chmod 0600, or 0640", mode)
	case mode&0o040 != 0 && groups != nil:
		sys, ok := st.Sys().(*syscall.Stat_t)
		if ok && !slices.Contains(groups, int(sys.Gid)) {
			return fmt.Errorf("can be read by a group that is not the daemon's (mode %04o, group %d): chmod 0600", mode, sys.Gid)
		}
	}
	return nil
}

// groups returns those of this process, nil for root.
func groups() []int {
	if os.Geteuid() == 0 {
		return nil
	}
	all, err := os.Getgroups()
	if err != nil {
		all = nil
	}
	return append(all, os.Getegid())
}

// parseKey reads a private key: PEM of PKCS#1 or PKCS#8, RSA of at least 1024
// bits or Ed25519.
func parseKey(text []byte) (crypto.Signer, error) {
	for rest := bytes.TrimSpace(text); len(rest) > 0; {
		block, more := pem.Decode(rest)
		if block == nil {
			return nil, errNoKey
		}
		rest = more
		switch {
		case block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "":
			return nil, errCipher
		case strings.HasSuffix(block.Type, "PRIVATE KEY"):
			return parseDER(block.Bytes)
		}
	}
	return nil, errNoKey
}

// parseDER reads a private key in either form.
func parseDER(der []byte) (crypto.Signer, error) {
	if key, err := x509.ParsePKCS8PrivateKey(der); err == nil {
		switch key := key.(type) {
		case *rsa.PrivateKey:
			return checkRSA(key)
		case ed25519.PrivateKey:
			return key, nil
		}
		return nil, errors.New("the key is neither RSA nor Ed25519")
	}
	key, err := x509.ParsePKCS1PrivateKey(der)
	if err != nil {
		// What crypto/x509 says may be a short RSA key's.
		return nil, fmt.Errorf("the key cannot be read: it is neither PKCS#1 nor PKCS#8, or is an RSA key of less than %d bits", minBits)
	}
	return checkRSA(key)
}

func checkRSA(key *rsa.PrivateKey) (crypto.Signer, error) {
	switch bits := key.N.BitLen(); {
	case bits < minBits:
		return nil, fmt.Errorf("the RSA key has %d bits, at least %d are wanted (RFC 8301)", bits, minBits)
	case bits > dkimsig.MaxRSABits:
		return nil, fmt.Errorf("the RSA key has %d bits, at most %d are of use", bits, dkimsig.MaxRSABits)
	}
	return key, nil
}

// describe fills in what follows from the private key.
func (k *key) describe() error {
	switch public := k.signer.Public().(type) {
	case *rsa.PublicKey:
		der, err := x509.MarshalPKIXPublicKey(public)
		if err != nil {
			return err
		}
		k.algorithm, k.bits, k.record = "rsa", public.N.BitLen(), base64.StdEncoding.EncodeToString(der)
	case ed25519.PublicKey:
		k.algorithm, k.record = "ed25519", base64.StdEncoding.EncodeToString(public) // RFC 8463 section 4
	default:
		return errors.New("the key is neither RSA nor Ed25519")
	}
	return nil
}
