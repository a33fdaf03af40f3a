package dkim

import (
	"crypto/ed25519"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
)

// NewKey is what `postern dkim new` makes.
type NewKey struct {
	Domain, Selector string
	Ed25519          bool
	Bits             int    // of an RSA key; 0 stands for 2048
	Directory        string // where the file goes; it is made if it is not there
	UID, GID         int    // whose it is; -1 for the caller's
}

// Make makes a private key and writes it to a file of mode 0600, PEM of PKCS#8.
// It never replaces a file.
func (n NewKey) Make() (KeyReport, error) {
	n.Domain, n.Selector = mailaddr.Domain(n.Domain), strings.ToLower(n.Selector)
	switch {
	case !mailaddr.IsDomain(n.Domain):
		return KeyReport{}, fmt.Errorf("%q is no domain", n.Domain)
	case !properSelector(n.Selector):
		return KeyReport{}, fmt.Errorf("%q is no selector: letters, digits and hyphens, as \"s2026a\"", n.Selector)
	case n.Bits == 0:
		n.Bits = 2048
	}
	// The daemon has another working directory.
	dir, err := filepath.Abs(n.Directory)
	if err != nil {
		return KeyReport{}, err
	}
	n.Directory = dir
	k := &key{domain: n.Domain, selector: n.Selector, file: filepath.Join(n.Directory, n.Domain+"."+n.Selector+".pem")}
	if n.Ed25519 {
		_, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			return KeyReport{}, err
		}
		k.signer = private
	} else {
		if n.Bits < minBits || n.Bits > 4096 {
			return KeyReport{}, fmt.Errorf("%d bits are out of range: %d to 4096", n.Bits, minBits)
		}
		private, err := rsa.GenerateKey(rand.Reader, n.Bits)
		if err != nil {
			return KeyReport{}, err
		}
		k.signer = private
	}
	if err := k.describe(); err != nil {
		return KeyReport{}, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(k.signer)
	if err != nil {
		return KeyReport{}, err
	}
	if err := n.write(k.file, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})); err != nil {
		return KeyReport{}, err
	}
	return KeyReport{
		Domain: k.domain, Selector: k.selector, Algorithm: k.algorithm, Bits: k.bits, File: k.file, Name: k.name(k.domain), Record: k.text(),
		State: State{Standing: Unknown},
	}, nil
}

func (n *NewKey) write(path string, text []byte) (err error) {
	if err := os.Mkdir(n.Directory, 0o700); err == nil {
		if err := os.Chown(n.Directory, n.UID, n.GID); err != nil {
			return err
		}
	} else if !errors.Is(err, fs.ErrExist) {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		if errors.Is(err, fs.ErrExist) {
			return fmt.Errorf("%s is there already, and a key is never replaced: take another selector", path)
		}
		return err
	}
	defer func() {
		if err != nil {
			_ = os.Remove(path) // half a key is of no use
		}
	}()
	if err = f.Chown(n.UID, n.GID); err == nil {
		_, err = f.Write(text)
	}
	if err == nil {
		err = f.Sync()
	}
	return errors.Join(err, f.Close())
}

// Keys returns the keys of a configuration, of one domain or of all for "".
func Keys(cfg Config, domain string) ([]KeyReport, error) {
	var faults conf.Faults
	c := &Check{cfg: cfg, ring: newKeyring(&cfg, "dkim", &faults)}
	if err := faults.Err(); err != nil {
		return nil, err
	}
	var out []KeyReport
	for _, k := range c.ring.keys {
		if domain == "" || k.domain == mailaddr.Domain(domain) {
			out = append(out, c.report(k, time.Now()))
		}
	}
	if len(out) == 0 {
		if domain == "" {
			return nil, errors.New("no key is configured: [[dkim.domain]]")
		}
		return nil, fmt.Errorf("no key of %s is configured: [[dkim.domain]]", domain)
	}
	return out, nil
}

// mostText is how many octets one string of a TXT record has (RFC 1035 section
// 3.3.14).
const mostText = 255

// Strings cuts a record into the strings of a TXT record.
func Strings(record string) (out []string) {
	for len(record) > mostText {
		out, record = append(out, record[:mostText]), record[mostText:]
	}
	return append(out, record)
}

// Line returns the record as it stands in a zone file (RFC 1035 section 5.1).
func (k *KeyReport) Line() string {
	parts := Strings(k.Record)
	for i, p := range parts {
		parts[i] = `"` + p + `"`
	}
	value := parts[0]
	if len(parts) > 1 {
		value = "( " + strings.Join(parts, "\n\t") + " )"
	}
	return k.Name + ".\tIN\tTXT\t" + value
}

// Settings returns what has the key sign, for the configuration. With whole the
// domain's own section stands above it.
func (k *KeyReport) Settings(whole bool) string {
	var b strings.Builder
	if whole {
		fmt.Fprintf(&b, "[[dkim.domain]]\ndomain = %q\n", k.Domain)
	}
	fmt.Fprintf(&b, "[[dkim.domain.key]]\nselector = %q\nfile = %q\n", k.Selector, k.File)
	if !k.From.IsZero() {
		fmt.Fprintf(&b, "from = %q\n", Date{k.From})
	}
	if !k.To.IsZero() {
		fmt.Fprintf(&b, "to = %q\n", Date{k.To})
	}
	return b.String()
}

// NextSelector returns a selector that is not among the given: "s2026a", then
// "s2026b" and so on. Of an Ed25519 key it begins with "e".
func NextSelector(used []string, ed bool, now time.Time) string {
	first := "s"
	if ed {
		first = "e"
	}
	first += strconv.Itoa(now.Year())
	for c := 'a'; c <= 'z'; c++ {
		if s := first + string(c); !slices.Contains(used, s) {
			return s
		}
	}
	for n := 1; ; n++ {
		if s := first + "z" + strconv.Itoa(n); !slices.Contains(used, s) {
			return s
		}
	}
}

// Rotation is a change of keys that has been prepared.
type Rotation struct {
	// New are the keys that follow, one for each kind that signs; their From is
	// when they take over.
	New []KeyReport `json:"new"`
	// Old are those they follow, with the time until which they should sign: a
	// while longer, for when a record of the new ones is not seen everywhere yet.
	Old []KeyReport `json:"old"`
	// Revoke is when the old records can go.
	Revoke time.Time `json:"revoke"`
}

// overlap is how long an old key stays behind the new one.
const overlap = 14 * 24 * time.Hour

// Rotate makes the next key of each kind of a domain. selector names it, where
// there is one kind; "" finds a name. from is when it takes over.
func Rotate(cfg Config, domain, selector string, from time.Time, n NewKey) (r Rotation, err error) {
	keys, err := Keys(cfg, domain)
	if err != nil {
		return r, err
	}
	now := time.Now()
	var used []string
	planned := map[string]KeyReport{}
	current := map[string]KeyReport{}
	for _, k := range keys {
		used = append(used, k.Selector)
		switch {
		case k.From.After(now):
			planned[k.Algorithm] = k
		case k.Signs:
			current[k.Algorithm] = k
		}
	}
	if len(current) == 0 {
		return r, fmt.Errorf("no key of %s signs now, so there is none to follow: postern dkim new %s", domain, domain)
	}
	if selector != "" && len(current) > 1 {
		return r, fmt.Errorf("%s has an RSA and an Ed25519 key: leave the selectors to me", domain)
	}
	for kind := range current {
		if k, ok := planned[kind]; ok {
			return r, fmt.Errorf("%s is planned already: it takes over at %s", k.Selector, Date{k.From})
		}
	}
	r.Revoke = from.Add(overlap + keepRecord)
	for _, kind := range kinds {
		old, ok := current[kind]
		if !ok {
			continue
		}
		next := n
		next.Domain, next.Selector, next.Ed25519 = domain, selector, kind == "ed25519"
		if next.Selector == "" {
			next.Selector = NextSelector(used, next.Ed25519, from)
		}
		if next.Bits == 0 {
			next.Bits = max(old.Bits, 2048)
		}
		if next.Directory == "" {
			next.Directory = filepath.Dir(old.File)
		}
		made, err := next.Make()
		if err != nil {
			return r, err
		}
		used = append(used, made.Selector)
		made.From = from
		if old.To.IsZero() || old.To.After(from.Add(overlap)) {
			old.To = from.Add(overlap)
		}
		r.New, r.Old = append(r.New, made), append(r.Old, old)
	}
	return r, nil
}
