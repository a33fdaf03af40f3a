package provider

import (
	"fmt"
	"strings"

	"postern/internal/mailaddr"
	"postern/policy"
)

// domainName is a domain that others are compared with: itself, or with a
// leading dot itself and all names below.
type domainName struct{ name string }

func domainSet(domains []string) []domainName {
	out := make([]domainName, len(domains))
	for i, d := range domains {
		rest, below := strings.CutPrefix(d, ".")
		out[i].name = mailaddr.Domain(rest)
		if below {
			out[i].name = "." + out[i].name
		}
	}
	return out
}

// holds reports whether the domain, in the compared form, is meant.
func (d domainName) holds(domain string) bool {
	if domain == "" {
		return false
	}
	if d.name[0] != '.' {
		return domain == d.name
	}
	return domain == d.name[1:] || strings.HasSuffix(domain, d.name)
}

func anyHolds(set []domainName, domain string) bool {
	for _, d := range set {
		if d.holds(domain) {
			return true
		}
	}
	return false
}

// fingerprint brings a fingerprint into the form that is compared: lower-case
// hexadecimal without colons.
func fingerprint(s string) (string, bool) {
	s = strings.ToLower(strings.ReplaceAll(s, ":", ""))
	switch len(s) {
	case 32, 40, 64, 96, 128: // md5, sha1, sha256, sha384, sha512
		return s, strings.Trim(s, "0123456789abcdef") == ""
	}
	return "", false
}

// tenantID brings the id of a tenant, a GUID, into the form that is compared.
func tenantID(s string) (string, bool) {
	s = strings.ToLower(s)
	if len(s) != 36 {
		return "", false
	}
	for i := range len(s) {
		if dash := i == 8 || i == 13 || i == 18 || i == 23; dash != (s[i] == '-') || !dash && !strings.Contains("0123456789abcdef", s[i:i+1]) {
			return "", false
		}
	}
	return s, true
}

// rule is a RelayConfig made ready. It does not change.
type rule struct {
	of            *list
	name          string // "office365 relay[0]", for traces
	senders       []domainName
	any           bool // any sender
	authenticated bool
	null          bool
	certNames     []domainName
	fingerprints  map[string]bool
	tenants       map[string]bool
	dkim          []domainName
}

func newRule(l *list, i int, c *RelayConfig) *rule {
	r := &rule{
		of: l, name: fmt.Sprintf("%s relay[%d]", l.cfg.Name, i), senders: domainSet(c.SenderDomains), any: c.anySender(),
		authenticated: c.Authenticated, null: c.NullSender, certNames: domainSet(c.CertNames), dkim: domainSet(c.DKIMDomains),
		fingerprints: make(map[string]bool), tenants: make(map[string]bool),
	}
	for _, s := range c.CertFingerprints {
		f, _ := fingerprint(s) // has been validated
		r.fingerprints[f] = true
	}
	for _, s := range c.TenantIDs {
		id, _ := tenantID(s) // has been validated
		r.tenants[id] = true
	}
	return r
}

// content reports whether the message must be looked at.
func (r *rule) content() bool { return len(r.tenants)+len(r.dkim) > 0 }

// sender reports whether the condition on the sender holds.
func (r *rule) sender(req *policy.Request) bool {
	switch {
	case r.any:
		return true
	case r.authenticated && req.SASL.Username != "":
		return true
	case req.Sender.Raw == "":
		return r.null
	}
	return anyHolds(r.senders, req.Sender.Domain)
}

// cert reports whether the conditions on the certificate hold.
func (r *rule) cert(tls *policy.TLS) bool {
	if len(r.certNames) > 0 && !anyHolds(r.certNames, mailaddr.Domain(tls.CertSubject)) {
		return false
	}
	if len(r.fingerprints) == 0 {
		return true
	}
	cert, ok := fingerprint(tls.CertFingerprint)
	if ok && r.fingerprints[cert] {
		return true
	}
	key, ok := fingerprint(tls.PubkeyFingerprint)
	return ok && r.fingerprints[key]
}

// excluded reports whether what is known of the certificate rules r out: the
// milter door knows no fingerprint, and the name only where Postfix sends it.
func (r *rule) excluded(tls *policy.TLS) bool {
	return len(r.certNames) > 0 && tls.CertSubject != "" && !anyHolds(r.certNames, mailaddr.Domain(tls.CertSubject))
}

// envelope reports whether all conditions hold that can be checked before the
// message is there, and if not, why.
func (r *rule) envelope(req *policy.Request) (ok bool, why string) {
	switch {
	case !r.sender(req):
		return false, "sender"
	case !r.cert(&req.TLS):
		return false, "certificate"
	}
	return true, ""
}

// own reports whether a recipient is ours for sure: not one that Postfix could
// rewrite into another domain ("user%example.net@example.org").
func own(domains []domainName, to *policy.Address) bool {
	if strings.ContainsAny(to.Local, "%!@") {
		return false
	}
	return to.Domain == "" || anyHolds(domains, to.Domain) // without a domain: postmaster, or a local user
}
