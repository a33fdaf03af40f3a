package dkim

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/dkimsig"
	"postern/internal/mailaddr"
	"postern/policy"
)

// Config is the [dkim] section.
type Config struct {
	conf.Step
	// By is whose domain a message is signed for: "from", the one author in
	// From, or "sender", the Sender field where there is one. Default "from".
	By string `toml:"by"`
	// Authenticated signs mail of clients that have logged in. Default true.
	Authenticated bool `toml:"authenticated"`
	// Networks are your own: mail of their clients is signed, and what this host
	// hands in without SMTP. Behind a client of this host (127.0.0.0/8, ::1), such
	// as a content filter, it is looked whom the message came from. Default
	// ["127.0.0.0/8", "::1/128"].
	Networks []netip.Prefix `toml:"networks"`
	// Chains sign all mail that they judge, such as that of a listener with
	// chain=NAME. Default none.
	Chains []string `toml:"chains"`
	// Canonicalization is how header and body are brought into the form that is
	// signed: "relaxed" or "simple" each. Default "relaxed/relaxed".
	Canonicalization string `toml:"canonicalization"`
	// Headers are the fields that are signed, all of each name; "List-*" stands
	// for all that begin so. Default ["From", "Reply-To", "Subject", "Date", "To",
	// "Cc", "Message-ID", "In-Reply-To", "References", "MIME-Version",
	// "Content-*", "Resent-*", "List-*"].
	Headers []string `toml:"headers"`
	// Oversign are those of headers of which none can be added without breaking
	// the signature. Default ["From"].
	Oversign []string `toml:"oversign"`
	// Expire is how long a signature is valid (x=). Default "0s": for ever.
	Expire conf.Duration `toml:"expire"`
	// Subdomains signs mail of all domains below a configured one with its key,
	// unless the domain says otherwise. Default true.
	Subdomains bool `toml:"subdomains"`
	// CheckDNS leaves out a key whose record is missing in the DNS or is of
	// another key. Default true.
	CheckDNS bool `toml:"check_dns"`
	// CheckInterval is how often the records are asked for; one that was not good
	// is asked for every minute. Default "15m".
	CheckInterval conf.Duration `toml:"check_interval"`
	// LookupTime is the most time for one question to the DNS. Default "5s".
	LookupTime conf.Duration `toml:"lookup_time"`
	// KeyTable is opendkim's: "file:/etc/opendkim/key.table", or the path.
	// Default none.
	KeyTable string `toml:"keytable"`
	// SigningTable is opendkim's, "refile:/etc/opendkim/signing.table" or
	// "file:...", for authors of no [[dkim.domain]]. Default none.
	SigningTable string `toml:"signingtable"`
	// MultipleSignatures signs by every entry of the signing table that matches,
	// up to ten, not only by the first. Default false.
	MultipleSignatures bool `toml:"multiple_signatures"`
	// Seal is a domain of [[dkim.domain]] as which mail from elsewhere is sealed
	// (ARC), with its RSA key: for hosts that forward mail, or change it. It needs
	// [auth]. Default none.
	Seal string `toml:"seal"`
	// Domains are those whose mail is signed. Default none.
	Domains []DomainConfig `toml:"domain"`
}

// DomainConfig is a domain whose mail is signed.
type DomainConfig struct {
	// Domain is d= of the signatures.
	Domain string `toml:"domain"`
	// Subdomains signs mail of all domains below it, too. Default: dkim.subdomains.
	Subdomains *bool `toml:"subdomains"`
	// Keys are at least one. Of those of one kind, RSA or Ed25519, one signs: the
	// latest whose time has come and whose record is good.
	Keys []KeyConfig `toml:"key"`
}

// KeyConfig is a private key of a domain.
type KeyConfig struct {
	// Selector is s= of the signatures: the record stands at
	// SELECTOR._domainkey.DOMAIN.
	Selector string `toml:"selector"`
	// File holds the key: PEM, PKCS#1 or PKCS#8. A name without directory is
	// looked for among systemd's credentials. Nobody but its owner may be able to
	// write it, and nobody but its owner and a group of the daemon's to read it.
	File string `toml:"file"`
	// From is when it begins to sign, as "2026-03-01" (UTC) or
	// "2026-03-01T06:00:00+01:00". Default: at once.
	From Date `toml:"from"`
	// To is when it ends. Default: never.
	To Date `toml:"to"`
}

// Date is a point in time in a configuration; the zero value stands for none.
type Date struct{ time.Time }

// UnmarshalText implements [encoding.TextUnmarshaler].
func (d *Date) UnmarshalText(b []byte) error {
	if len(b) == 0 {
		*d = Date{}
		return nil
	}
	for _, layout := range []string{time.DateOnly, time.RFC3339} {
		if t, err := time.Parse(layout, string(b)); err == nil {
			d.Time = t
			return nil
		}
	}
	return fmt.Errorf("%q is no date, such as \"2026-03-01\" or \"2026-03-01T06:00:00+01:00\"", b)
}

// MarshalText implements [encoding.TextMarshaler].
func (d Date) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// String returns the date as it is written in the file, "" for none.
func (d Date) String() string {
	switch {
	case d.IsZero():
		return ""
	case d.UTC().Truncate(24 * time.Hour).Equal(d.Time):
		return d.UTC().Format(time.DateOnly)
	}
	return d.Format(time.RFC3339)
}

// Values of Config.By.
const (
	byFrom   = "from"
	bySender = "sender"
)

// DefaultConfig returns the values of an empty section.
func DefaultConfig() Config {
	return Config{
		Step: conf.Step{Mode: policy.Off, Timeout: conf.Duration(20 * time.Second)},
		By:   byFrom, Authenticated: true,
		Networks:         []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")},
		Canonicalization: "relaxed/relaxed",
		Headers: []string{
			"From", "Reply-To", "Subject", "Date", "To", "Cc", "Message-ID", "In-Reply-To", "References", "MIME-Version",
			"Content-*", "Resent-*", "List-*",
		},
		Oversign: []string{"From"}, Subdomains: true,
		CheckDNS: true, CheckInterval: conf.Duration(15 * time.Minute), LookupTime: conf.Duration(5 * time.Second),
	}
}

// unsignable are fields that change on the way or must not be signed (RFC 6376
// section 5.4), and why.
var unsignable = map[string]string{
	"received": "each host adds one", "return-path": "the last host replaces it", "dkim-signature": "a signature is not signed by another",
	"authentication-results": "each network removes and adds them", "arc-seal": "ARC seals come after it",
	"arc-message-signature": "ARC seals come after it", "arc-authentication-results": "ARC seals come after it", "bcc": "it is taken out",
}

// Validate reports what is wrong with the values, the keys and the tables;
// prefix is the section's key.
func (c *Config) Validate(prefix string, fs *conf.Faults) {
	if c.By != byFrom && c.By != bySender {
		fs.Keyf(prefix+".by", "unknown value %q (one of from, sender)", c.By)
	}
	if _, _, err := parseCanon(c.Canonicalization); err != nil {
		fs.Keyf(prefix+".canonicalization", "%v", err)
	}
	for _, d := range [...]struct {
		key       string
		value     conf.Duration
		low, high time.Duration
	}{
		{"timeout", c.Timeout, 100 * time.Millisecond, 2 * time.Minute},
		{"lookup_time", c.LookupTime, 50 * time.Millisecond, time.Minute},
		{"check_interval", c.CheckInterval, time.Second, 7 * 24 * time.Hour},
	} {
		if d.value.D() < d.low || d.value.D() > d.high {
			fs.Keyf(prefix+"."+d.key, "%v is out of range: %v to %v", d.value, conf.Duration(d.low), conf.Duration(d.high))
		}
	}
	if c.Expire != 0 && (c.Expire.D() < time.Hour || c.Expire.D() > 10*365*24*time.Hour) {
		fs.Keyf(prefix+".expire", "%v is out of range: 1h to 3650d, or 0 for never", c.Expire)
	}
	c.validateFields(prefix, fs)
	ring := newKeyring(c, prefix, fs)
	if c.Seal != "" {
		d := ring.domains[mailaddr.Domain(c.Seal)]
		switch {
		case d == nil:
			fs.Keyf(prefix+".seal", "%q is none of %s.domain", c.Seal, prefix)
		case !slices.ContainsFunc(d.keys, func(k *key) bool { return k.algorithm == "rsa" }):
			fs.Keyf(prefix+".seal", "%s has no RSA key, which all verifiers know", c.Seal)
		}
	}
}

// WithoutAuth says what does not happen when nothing is authenticated.
func (c *Config) WithoutAuth(prefix string) string {
	if c.Mode == policy.Off || c.Seal == "" {
		return ""
	}
	return prefix + `.seal: auth.mode is "off": nothing is sealed`
}

func (c *Config) validateFields(prefix string, fs *conf.Faults) {
	if !slices.ContainsFunc(c.Headers, func(h string) bool { return strings.EqualFold(h, "From") }) {
		fs.Keyf(prefix+".headers", "From must be signed (RFC 6376 section 5.4)")
	}
	for key, names := range map[string][]string{"headers": c.Headers, "oversign": c.Oversign} {
		seen := map[string]bool{}
		for i, h := range names {
			at := prefix + "." + key + "[" + strconv.Itoa(i) + "]"
			name := strings.ToLower(h)
			bare := name
			if key == "headers" {
				bare = strings.TrimSuffix(name, "*")
			}
			switch why := unsignable[name]; {
			case !policy.UsableName(bare) || strings.ContainsAny(bare, "*;"):
				fs.Keyf(at, "%q is no name of a header field", h)
			case why != "":
				fs.Keyf(at, "%s cannot be signed: %s", h, why)
			case seen[name]:
				fs.Keyf(at, "%s stands there twice", h)
			case key == "oversign" && !slices.ContainsFunc(c.Headers, func(o string) bool { return covers(o, h) }):
				fs.Keyf(at, "%s is not among headers", h)
			}
			seen[name] = true
		}
	}
}

// covers reports whether an element of Headers stands for a name.
func covers(pattern, name string) bool {
	if begin, ok := strings.CutSuffix(pattern, "*"); ok {
		return len(name) > len(begin) && strings.EqualFold(name[:len(begin)], begin) && unsignable[strings.ToLower(name)] == ""
	}
	return strings.EqualFold(pattern, name)
}

func parseCanon(s string) (header, body dkimsig.Canon, err error) {
	if h, b, ok := strings.Cut(s, "/"); !ok || h == "" || b == "" {
		return 0, 0, fmt.Errorf("%q is not two of relaxed and simple, as \"relaxed/simple\"", s)
	}
	if header, body, err = dkimsig.ParseCanon(s); err != nil {
		err = fmt.Errorf("%q is not two of relaxed and simple, as \"relaxed/simple\"", s)
	}
	return header, body, err
}

// Warnings are settings that are no faults and hardly meant.
func (c *Config) Warnings(prefix string) (fs conf.Faults) {
	if c.Mode == policy.Off {
		return nil
	}
	var ignored conf.Faults
	ring := newKeyring(c, prefix, &ignored)
	if len(ring.keys) == 0 && len(ignored) == 0 {
		fs.Keyf(prefix, "there is no [[%s.domain]] and no signing table: nothing is signed", prefix)
	}
	for _, k := range ring.keys {
		if k.bits > 0 && k.bits < 2048 {
			fs.Keyf(k.key, "the RSA key has %d bits: some hosts take less than 2048 for too weak", k.bits)
		}
	}
	fs = append(fs, ring.warnings...)
	for i, p := range c.Networks {
		if p.Bits() == 0 {
			fs.Keyf(prefix+".networks["+strconv.Itoa(i)+"]", "%v is everybody: whoever claims to be of your domains would be signed for", p)
		}
	}
	return fs
}

// WithoutMilter says what does not happen when there is no milter door.
func (c *Config) WithoutMilter(prefix string) string {
	if c.Mode == policy.Off {
		return ""
	}
	return prefix + ": milter.listen is empty: messages are not seen, nothing is signed"
}

// NamesChains returns the chains that the section names, by their keys.
func (c *Config) NamesChains(prefix string) map[string]string {
	out := make(map[string]string, len(c.Chains))
	for i, name := range c.Chains {
		out[prefix+".chains["+strconv.Itoa(i)+"]"] = name
	}
	return out
}

// properSelector reports whether s can be s= (RFC 6376 section 3.1).
func properSelector(s string) bool {
	return s != "" && s == strings.ToLower(s) && mailaddr.IsDomain(s+".example")
}
