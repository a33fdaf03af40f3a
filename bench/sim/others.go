package main

import (
	"net/netip"
	"regexp"
	"strings"
	"time"

	"postern/policy"
)

// nothing lets everything in: what DNS lists alone leave.
type nothing struct{}

func (nothing) name() string              { return "no greylist" }
func (nothing) pass(*attempt) bool        { return true }
func (nothing) size(time.Time) (int, int) { return 0, 0 }
func (nothing) close()                    {}

// postgrey is postgrey 1.37 with its defaults, written from postgrey(8) and
// held against the program itself by a test:
//
//   - a triplet is network (/24), sender and recipient; it passes 300 s after
//     its first attempt (--delay), a retry within 2 days of it (--retry-window);
//   - a client (its address, not its network) with 5 triplets that have passed
//     for the first time is exempt (--auto-whitelist-clients), one counted an hour;
//   - both are kept for 35 days (--max-age);
//   - clients by name in the shipped whitelist_clients are exempt.
//
// Keys that are too old count as absent, though postgrey only takes them out at
// night.
type postgrey struct {
	whitelist bool
	triplets  map[greyKey]greyEntry
	clients   map[netip.Addr]greyClient
}

type greyKey struct {
	network   [3]byte
	from      string
	recipient string
}

type greyEntry struct{ first, last int64 }

type greyClient struct {
	count int
	last  int64
}

func newPostgrey(whitelist bool) *postgrey {
	return &postgrey{whitelist: whitelist, triplets: make(map[greyKey]greyEntry), clients: make(map[netip.Addr]greyClient)}
}

func (p *postgrey) name() string {
	if p.whitelist {
		return "postgrey"
	}
	return "postgrey, no list"
}
func (*postgrey) close() {}

const (
	greyDelay  = 300
	greyWindow = 2 * 86400
	greyMaxAge = 35 * 86400
	greyClear  = 5
)

// greyDigits are numbers that stand for themselves, which postgrey replaces.
var greyDigits = regexp.MustCompile(`\b\d+\b`)

// greySender is the form in which postgrey compares a sender.
func greySender(a policy.Address) string {
	user, _, _ := strings.Cut(strings.ToLower(a.Local), "+")
	return greyDigits.ReplaceAllString(user, "#") + "@" + a.Domain
}

func classC(a netip.Addr) [3]byte {
	b := a.As4()
	return [3]byte(b[:3])
}

func (p *postgrey) pass(a *attempt) bool {
	if p.whitelist && a.msg.sys.exempt {
		return true
	}
	now := a.at.Unix()
	c, seen := p.clients[a.from.addr]
	if seen && now-c.last > greyMaxAge {
		c, seen = greyClient{}, false
	}
	if c.count >= greyClear {
		if now >= c.last+3600 {
			p.clients[a.from.addr] = greyClient{c.count + 1, now}
		}
		return true
	}
	key := greyKey{classC(a.from.addr), a.msg.forms().grey, a.msg.to.Raw}
	e, found := p.triplets[key]
	if found && (now-e.last > greyMaxAge || e.last == e.first && now-e.last > greyWindow) {
		found = false // what the nightly cleaning takes out
	}
	passed := found && e.last-e.first >= greyDelay
	if !found || !passed && now-e.first > greyWindow {
		e.first = now
	}
	e.last = now
	p.triplets[key] = e
	if now-e.first < greyDelay {
		return false
	}
	if !passed && (!seen || now >= c.last+3600) {
		p.clients[a.from.addr] = greyClient{c.count + 1, now}
	}
	return true
}

func (p *postgrey) size(now time.Time) (records, bytes int) {
	for k, e := range p.triplets {
		if age := now.Unix() - e.last; age <= greyMaxAge && (e.last != e.first || age <= greyWindow) {
			records++
			bytes += len("192.0.2.0//") + len(k.from) + len(k.recipient) + len("1700000000,1700000000")
		}
	}
	for k, c := range p.clients {
		if now.Unix()-c.last <= greyMaxAge {
			records++
			bytes += len(k.String()) + len("5,1700000000")
		}
	}
	return records, bytes
}

// sqlgrey is sqlgrey 1.8 with its defaults, written from sqlgrey(1), its
// sqlgrey.conf and what its log says:
//
//   - a contact is client, sender and recipient; it passes 5 minutes after the
//     first attempt (reconnect_delay), within a day (max_connect_age);
//   - the client is its network /24, or its address where there is no name or
//     the name looks like an access network's (greymethod smart);
//   - a sender that has passed is exempt with that client from then on, and
//     its whole domain from the second sender (group_domain_level 2), for 60
//     days since last seen (awl_age).
type sqlgrey struct {
	connect map[sqlKey]int64
	senders map[sqlKey]int64 // when last seen
	domains map[sqlKey]int64
	count   map[sqlKey]int // users of a client and domain in senders
}

type sqlKey struct {
	client                  [4]byte
	domain, user, recipient string
}

func newSQLgrey() *sqlgrey {
	return &sqlgrey{connect: make(map[sqlKey]int64), senders: make(map[sqlKey]int64), domains: make(map[sqlKey]int64), count: make(map[sqlKey]int)}
}

func (*sqlgrey) name() string { return "sqlgrey" }
func (*sqlgrey) close()       {}

const (
	sqlDelay  = 5 * 60
	sqlWindow = 86400
	sqlAge    = 60 * 86400
)

// sqlHex are hexadecimal numbers between separators, and sqlBounce what stands
// behind the words of bounces: sqlgrey takes both out of a sender.
var (
	sqlHex    = regexp.MustCompile(`(^|[._/=-])[0-9a-f]+([._/=-]|$)`)
	sqlBounce = regexp.MustCompile(`((bo|bounce|notice-return|notice-reply)[._-])[0-9a-z_.-]+$`)
)

func sqlUser(from, to policy.Address) string {
	user, _, _ := strings.Cut(strings.ToLower(from.Local), "+")
	user = strings.ReplaceAll(user, to.Local+"="+to.Domain, "RCPT")
	user = sqlBounce.ReplaceAllString(user, "$1#")
	// The separators belong to two neighbours, so look twice.
	user = sqlHex.ReplaceAllString(user, "$1#$2")
	return sqlHex.ReplaceAllString(user, "$1#$2")
}

func (s *sqlgrey) pass(a *attempt) bool {
	now := a.at.Unix()
	key := sqlKey{client: a.from.addr.As4(), domain: a.msg.from.Domain}
	if a.from.name != "" && !a.from.generic {
		key.client[3] = 0
	}
	domain := key
	if last, ok := s.domains[domain]; ok && now-last < sqlAge {
		s.domains[domain] = now
		return true
	}
	key.user = a.msg.forms().sql
	sender := key
	if last, ok := s.senders[sender]; ok && now-last < sqlAge {
		s.senders[sender] = now
		return true
	}
	key.user, key.recipient = a.msg.from.Local, a.msg.to.Raw
	first, ok := s.connect[key]
	switch {
	case !ok || now-first >= sqlWindow:
		s.connect[key] = now
		return false
	case now-first < sqlDelay:
		return false
	}
	delete(s.connect, key)
	if s.count[domain]+1 >= 2 {
		s.domains[domain] = now
		return true
	}
	if _, ok := s.senders[sender]; !ok {
		s.count[domain]++
	}
	s.senders[sender] = now
	return true
}

func (s *sqlgrey) size(now time.Time) (records, bytes int) {
	for _, m := range []struct {
		of  map[sqlKey]int64
		age int64
	}{{s.connect, sqlWindow}, {s.senders, sqlAge}, {s.domains, sqlAge}} {
		for k, last := range m.of {
			if now.Unix()-last < m.age {
				records++
				bytes += len("192.0.2") + len(k.domain) + len(k.user) + len(k.recipient) + 16
			}
		}
	}
	return records, bytes
}

// rspamd is the greylist module of rspamd with its defaults, written from its
// documentation: only mail of 4 points or more (action "greylist") is deferred,
// until 5 minutes (timeout) after its text, or its envelope from the same
// network (/19), was first seen; both are forgotten a day (expire) after they
// were last of use.
//
// Points are given for the client's marks, with the shipped weights, and for
// the text, which is an assumption. That rspamd would refuse at 15 points is not
// counted: whatever reads texts stands behind every greylist alike.
type rspamd struct {
	seen map[rspamdKey]*greyEntry
}

// rspamdKey is a text by its number, or an envelope.
type rspamdKey struct {
	text            uint64
	network         [3]byte
	from, recipient string
}

func newRspamd() *rspamd { return &rspamd{seen: make(map[rspamdKey]*greyEntry)} }

func (*rspamd) name() string { return "rspamd, suspicious" }
func (*rspamd) close()       {}

const (
	rspamdPoints  = 4
	rspamdTimeout = 300
	rspamdExpire  = 86400
)

// points are rspamd's shipped scores for what is known of a client.
func points(a *attempt) float64 {
	score := a.msg.text
	switch h := a.from; {
	case h.name == "":
		score += 2.5 // HFILTER_HOSTNAME_UNKNOWN
	case h.generic:
		score += 2.5 // HFILTER_HOSTNAME_4
	}
	if a.from.badHelo {
		score += 2 // HFILTER_HELO_NOT_FQDN
	}
	if a.from.minor {
		score += 2 // RBL_SENDERSCORE and the like
	}
	switch a.msg.spf.Result {
	case "fail":
		score++ // R_SPF_FAIL
	case "pass":
		score -= 0.2 // R_SPF_ALLOW
	}
	return score
}

func (r *rspamd) pass(a *attempt) bool {
	now := a.at.Unix()
	envelope := rspamdKey{network: classC(a.from.addr), from: a.msg.from.Raw, recipient: a.msg.to.Raw}
	envelope.network[2] &^= 31
	text := rspamdKey{text: a.msg.body}
	find := func(key rspamdKey) *greyEntry {
		e := r.seen[key]
		if e != nil && now-e.last > rspamdExpire {
			delete(r.seen, key)
			return nil
		}
		return e
	}
	byText, byEnvelope := find(text), find(envelope)
	old := func(e *greyEntry) bool { return e != nil && now-e.first >= rspamdTimeout }
	early := byText != nil || byEnvelope != nil
	switch {
	case old(byText) || old(byEnvelope):
		if points(a) >= rspamdPoints { // the life of both begins anew
			for _, e := range []*greyEntry{byText, byEnvelope} {
				if e != nil {
					e.last = now
				}
			}
		}
		return true
	case early:
		return false
	case points(a) < rspamdPoints:
		return true
	}
	r.seen[text], r.seen[envelope] = &greyEntry{now, now}, &greyEntry{now, now}
	return false
}

func (r *rspamd) size(now time.Time) (records, bytes int) {
	for _, e := range r.seen {
		if now.Unix()-e.last <= rspamdExpire {
			records++
			bytes += len("rgb") + 20 + len("1700000000") // a hash and a time
		}
	}
	return records, bytes
}
