package dkimsig

import (
	"crypto"
	"crypto/ed25519"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// MaxRSABits bounds the keys that are used: verifying costs time by the square
// of their length.
const MaxRSABits = 8192

// Key is a public key with what its record says of it (RFC 6376 section 3.6.1).
type Key struct {
	Public  crypto.PublicKey // *rsa.PublicKey or ed25519.PublicKey
	Hashes  []string         // h=: which are allowed, nil for all
	Testing bool             // t=y
	Strict  bool             // t=s: i= is of the very domain
}

// Errors of records.
var (
	ErrNoKey   = errors.New("it is no key record")
	ErrRevoked = errors.New("the key is revoked")
)

// ParseKey reads a key record, its strings joined. The error wraps [ErrNoKey]
// for a text that does not look like one.
func ParseKey(record string) (*Key, error) {
	t, err := ParseTags(record)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoKey, err)
	}
	if v, ok := t.Get("v"); ok && (v != "DKIM1" || t.list[0].name != "v") {
		return nil, fmt.Errorf("%w: v= is not DKIM1", ErrNoKey)
	}
	if _, ok := t.Get("p"); !ok {
		return nil, fmt.Errorf("%w: there is no p=", ErrNoKey)
	}
	if services := t.List("s"); services != nil && !slices.Contains(services, "*") && !slices.Contains(services, "email") {
		return nil, errors.New("the key is not for mail (s=)")
	}
	k := &Key{Hashes: t.List("h")}
	for _, flag := range t.List("t") {
		k.Testing = k.Testing || flag == "y"
		k.Strict = k.Strict || flag == "s"
	}
	p := t.Bare("p")
	if p == "" {
		return nil, ErrRevoked
	}
	der, err := base64.StdEncoding.DecodeString(p)
	if err != nil {
		return nil, errors.New("the key record is malformed: p= is no base64")
	}
	kind := "rsa"
	if v, ok := t.Get("k"); ok {
		kind = strings.ToLower(v)
	}
	switch kind {
	case "rsa":
		k.Public, err = parseRSA(der)
	case "ed25519":
		if len(der) != ed25519.PublicKeySize {
			return nil, errors.New("the key record is malformed: an Ed25519 key has 32 bytes")
		}
		k.Public = ed25519.PublicKey(der)
	default:
		return nil, errors.New("the key is of an unknown kind (k=)")
	}
	return k, err
}

// parseRSA reads a key in either of the two forms that are in use (erratum 3017
// of RFC 6376).
func parseRSA(der []byte) (*rsa.PublicKey, error) {
	if len(der) > MaxRSABits/8+256 {
		return nil, errors.New("the RSA key is too long")
	}
	public, err := x509.ParsePKIXPublicKey(der)
	if err != nil {
		if public, err = x509.ParsePKCS1PublicKey(der); err != nil {
			return nil, errors.New("the key record is malformed: p= is no RSA key")
		}
	}
	key, ok := public.(*rsa.PublicKey)
	if !ok {
		return nil, errors.New("the key record is malformed: p= is no RSA key")
	}
	if key.N.BitLen() > MaxRSABits {
		return nil, errors.New("the RSA key is too long")
	}
	return key, nil
}

// Bits returns the length of an RSA key, 0 for another.
func (k *Key) Bits() int {
	if key, ok := k.Public.(*rsa.PublicKey); ok {
		return key.N.BitLen()
	}
	return 0
}

// Algorithm returns the first half of a=: "rsa" or "ed25519".
func (k *Key) Algorithm() string {
	if _, ok := k.Public.(*rsa.PublicKey); ok {
		return "rsa"
	}
	return "ed25519"
}

// Verify reports whether sig signs a hash. Ed25519 signs the hash as its message
// (RFC 8463 section 3).
func (k *Key) Verify(sum [sha256.Size]byte, sig []byte) bool {
	switch key := k.Public.(type) {
	case *rsa.PublicKey:
		return rsa.VerifyPKCS1v15(key, crypto.SHA256, sum[:], sig) == nil
	case ed25519.PublicKey:
		return ed25519.Verify(key, sum[:], sig)
	}
	return false
}

// Sign signs a hash with a private RSA or Ed25519 key.
func Sign(key crypto.Signer, sum [sha256.Size]byte) ([]byte, error) {
	opts := crypto.SignerOpts(crypto.SHA256)
	if _, ok := key.Public().(ed25519.PublicKey); ok {
		opts = crypto.Hash(0)
	}
	return key.Sign(nil, sum[:], opts)
}
