package journal

import (
	"bytes"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/internal/reference"
	"postern/policy"
)

// Filter says which decisions are wanted: those for which all that is given
// holds. The zero Filter wants all.
type Filter struct {
	Address   string    // sender or recipient, whole, without regard to case; "<>" for the null sender
	Domain    string    // of sender or recipient, or one above it
	Client    string    // an address or a network
	QueueID   string    //
	Login     string    //
	Reference string    //
	Reason    string    // of the verdict, or of what shadow mode kept from counting
	Check     string    // whose verdict it is, likewise
	Verdict   string    // an action; "refused" for all that refuse, "would" for what shadow mode kept from counting
	Since     time.Time // inclusive, as Until
	Until     time.Time
	Limit     int // the most; 0: no limit
}

// Values returns the filter as the query of a URL.
func (f *Filter) Values() url.Values {
	v := url.Values{}
	for name, text := range f.texts() {
		if *text != "" {
			v.Set(name, *text)
		}
	}
	for name, t := range map[string]time.Time{"since": f.Since, "until": f.Until} {
		if !t.IsZero() {
			v.Set(name, t.Format(time.RFC3339Nano))
		}
	}
	if f.Limit > 0 {
		v.Set("limit", strconv.Itoa(f.Limit))
	}
	return v
}

func (f *Filter) texts() map[string]*string {
	return map[string]*string{
		"address": &f.Address, "domain": &f.Domain, "client": &f.Client, "queue_id": &f.QueueID, "login": &f.Login,
		"ref": &f.Reference, "reason": &f.Reason, "check": &f.Check, "verdict": &f.Verdict,
	}
}

// filterOf reads the filter of a request.
func filterOf(r *http.Request) (*Filter, error) {
	f := &Filter{}
	texts := f.texts()
	for name, values := range r.URL.Query() {
		value := values[0] // there is one
		var err error
		switch name {
		case "since":
			f.Since, err = time.Parse(time.RFC3339Nano, value)
		case "until":
			f.Until, err = time.Parse(time.RFC3339Nano, value)
		case "limit":
			f.Limit, err = strconv.Atoi(value)
		default:
			to := texts[name]
			if to == nil {
				return nil, fmt.Errorf("unknown filter %q", name)
			}
			*to = value
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
	}
	return f, nil
}

// ParseTime reads a time as people write it: how long ago ("90m", "7d"), a
// date, or date and time, with a zone or in that of now.
func ParseTime(text string, now time.Time) (time.Time, error) {
	if d, err := conf.ParseDuration(text); err == nil {
		return now.Add(-d), nil
	}
	for _, layout := range []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02T15:04", "2006-01-02 15:04", time.DateOnly} {
		if t, err := time.ParseInLocation(layout, text, now.Location()); err == nil {
			return t, nil
		}
	}
	return time.Time{}, fmt.Errorf("%q is not a time: write how long ago (90m, 7d), a date (2026-01-31) or date and time (2026-01-31 12:00)", text)
}

// matcher is a filter in the form that is compared.
type matcher struct {
	address, addressHash []byte // lower case; nil: any
	domain               string
	client               netip.Prefix // invalid: any
	ref                  reference.Ref
	action               policy.Action
	by                   struct{ ref, action, refused, would bool }

	queueID, login, reason, check []byte

	hashes []uint64 // that the filter of a block must have
}

// errNothing is returned for a filter that can match nothing.
var errNothing = errors.New("nothing can match")

// matcher reads the filter. Addresses are compared as they are, and hashed as
// well if there is a key.
func (f *Filter) matcher(h *hasher) (*matcher, error) {
	m := &matcher{
		queueID: []byte(f.QueueID), login: []byte(f.Login), reason: []byte(f.Reason), check: []byte(f.Check), domain: mailaddr.Domain(strings.TrimPrefix(f.Domain, "@")),
	}
	if f.Limit < 0 {
		return nil, fmt.Errorf("limit %d is less than 0", f.Limit)
	}
	if !f.Since.IsZero() && !f.Until.IsZero() && f.Until.Before(f.Since) {
		return nil, fmt.Errorf("until (%s) is before since (%s): %w", f.Until.Format(time.RFC3339), f.Since.Format(time.RFC3339), errNothing)
	}
	if m.domain != "" {
		m.hashes = append(m.hashes, hashOf(hasDomain, []byte(m.domain)))
	}
	if f.QueueID != "" {
		m.hashes = append(m.hashes, hashOf(hasQueueID, m.queueID))
	}
	if f.Reference != "" {
		ref, err := reference.Parse(f.Reference)
		if err != nil {
			return nil, err
		}
		m.ref, m.by.ref = ref, true
		m.hashes = append(m.hashes, hashRef(ref))
	}
	if err := m.setClient(f.Client); err != nil {
		return nil, err
	}
	switch f.Verdict {
	case "":
	case "refused":
		m.by.refused = true
	case "would":
		m.by.would = true
	default:
		if err := m.action.UnmarshalText([]byte(f.Verdict)); err != nil {
			return nil, fmt.Errorf("unknown verdict %q (one of continue, allow, permit, reject, defer, defer-if-permit, hold, discard, redirect, refused, would)", f.Verdict)
		}
		m.by.action = true
	}
	if f.Address != "" {
		address := strings.TrimSpace(f.Address)
		if address != nullSender {
			address = strings.Trim(address, "<>")
		}
		m.address = []byte(strings.ToLower(address))
		if h != nil {
			m.addressHash = []byte(strings.ToLower(h.address(address)))
		}
	}
	return m, nil
}

func (m *matcher) setClient(text string) error {
	if text == "" {
		return nil
	}
	p, err := netip.ParsePrefix(text)
	if err != nil {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return fmt.Errorf("client %q is neither an IP address nor a network (192.0.2.0/24)", text)
		}
		a = a.Unmap().WithZone("")
		p = netip.PrefixFrom(a, a.BitLen())
	}
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	m.client = p.Masked()
	for _, bits := range clientBits(m.client.Addr()) {
		if bits <= m.client.Bits() {
			known, _ := m.client.Addr().Prefix(bits) // it has that many
			m.hashes = append(m.hashes, hashPrefix(known))
			break
		}
	}
	return nil
}

// may reports whether a block can hold what is wanted.
func (m *matcher) may(h *header) bool {
	for _, want := range m.hashes {
		if !h.filter.has(want) {
			return false
		}
	}
	return m.address == nil || h.filter.has(hashOf(hasAddress, m.address)) || m.addressHash != nil && h.filter.has(hashOf(hasAddress, m.addressHash))
}

// matches reports whether an entry is wanted.
func (m *matcher) matches(e *entry) bool { return m.wants(&e.keys) }

func (m *matcher) wants(k *keys) bool {
	if k.kind != kindDecision {
		return false
	}
	by := &m.by
	switch {
	case by.ref && k.ref != m.ref,
		by.action && k.action != m.action,
		by.refused && !k.action.Refuses(),
		by.would && len(k.wouldCheck) == 0,
		m.client.IsValid() && !m.client.Contains(k.client),
		len(m.queueID) > 0 && !bytes.Equal(k.queueID, m.queueID),
		len(m.login) > 0 && !bytes.EqualFold(k.login, m.login),
		len(m.reason) > 0 && !bytes.Equal(k.reason, m.reason) && !bytes.Equal(k.wouldCause, m.reason),
		len(m.check) > 0 && !bytes.Equal(k.check, m.check) && !bytes.Equal(k.wouldCheck, m.check):
		return false
	}
	if m.address != nil && !m.isAddress(k) {
		return false
	}
	return m.domain == "" || below(domainOf(k.sender), m.domain) || below(domainOf(k.recipient), m.domain)
}

func (m *matcher) isAddress(k *keys) bool {
	if string(m.address) == nullSender {
		return len(k.sender) == 0 && k.hasSender()
	}
	for _, raw := range [][]byte{k.sender, k.recipient} {
		if bytes.EqualFold(raw, m.address) || m.addressHash != nil && bytes.EqualFold(raw, m.addressHash) {
			return true
		}
	}
	return false
}

// below reports whether a domain is another or below it.
func below(domain, other string) bool {
	rest, ok := strings.CutSuffix(domain, other)
	return ok && (rest == "" || rest[len(rest)-1] == '.')
}
