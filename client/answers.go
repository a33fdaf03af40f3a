package client

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// key is a question about something. Of askHelo and askSender name is what is
// asked about; of askReverse it is the reverse name that Postfix has found, ""
// for none.
type key struct {
	question question
	addr     netip.Addr
	name     string
}

// what names the subject of a question.
func (k *key) what(req *policy.Request) string {
	switch k.question {
	case askHelo:
		return "HELO name " + k.name
	case askReverse:
		return "reverse name of " + req.Client.Addr.String()
	default:
		return "sender's domain " + k.name
	}
}

// answer is what the DNS says to a question.
type answer struct {
	found  set    // conditions that hold
	name   string // of askReverse: the reverse name, if there is one
	detail string
}

// kept is an answer in memory.
type kept struct {
	answer answer
	until  time.Time
}

// remembered returns an answer from memory. A clock that was set back makes
// none last longer.
func (c *Check) remembered(k key, now time.Time) (answer, bool) {
	v, ok := c.shared.answers.GetIfPresent(k)
	if !ok || !now.Before(v.until) || v.until.Sub(now) > c.shared.made.ttl {
		return answer{}, false
	}
	return v.answer, true
}

func (c *Check) remember(k key, a answer, ttl time.Duration, now time.Time) {
	if ttl = min(ttl, c.shared.made.ttl); ttl < time.Second || now.IsZero() {
		return
	}
	k.name = strings.Clone(k.name) // a part of the request's text, which is larger
	c.shared.answers.Set(k, kept{a, now.Add(ttl)})
}

// longest is the TTL of an answer that no record stands behind.
const longest = time.Duration(1<<63 - 1)

// resolve asks the DNS, with hosts also where mail exchangers are; cached says
// that nobody had to be asked. An error means that it did not answer.
func (c *Check) resolve(ctx context.Context, k key, hosts bool) (a answer, ttl time.Duration, cached bool, err error) {
	l := lookups{ctx: ctx, res: c.res, ttl: longest, cached: true}
	switch k.question {
	case askHelo:
		a = l.helo(k.name)
	case askReverse:
		a = l.reverse(k.addr, k.name)
	default:
		a = l.sender(k.name, hosts)
	}
	return a, l.ttl, l.cached, l.err
}

// lookups are the look-ups of one question. An error of one of them does not
// count when another has what was looked for.
type lookups struct {
	ctx    context.Context
	res    Resolver
	ttl    time.Duration // the least
	cached bool          // all of them
	err    error         // the first
}

// note takes what a look-up says besides its records.
func (l *lookups) note(ttl time.Duration, cached bool, err error) {
	l.cached = l.cached && cached
	if err == nil {
		l.ttl = min(l.ttl, ttl)
	} else if l.err == nil {
		l.err = err
	}
}

// certain forgets the failures: something else has told.
func (l *lookups) certain(a answer) answer {
	l.err = nil
	return a
}

// addrs returns the addresses of one family; none of what cannot be asked
// about.
func (l *lookups) addrs(name string, v6 bool) []netip.Addr {
	if !askable(name) {
		return nil
	}
	look := l.res.LookupA
	if v6 {
		look = l.res.LookupAAAA
	}
	addrs, ttl, cached, err := look(l.ctx, name)
	l.note(ttl, cached, err)
	return addrs
}

func (l *lookups) mx(name string) []string {
	hosts, ttl, cached, err := l.res.LookupMX(l.ctx, name)
	l.note(ttl, cached, err)
	return hosts
}

// helo asks whether a HELO name exists: an address, or a mail exchanger.
func (l *lookups) helo(name string) answer {
	for _, v6 := range [...]bool{false, true} {
		if addrs := l.addrs(name, v6); len(addrs) > 0 {
			return l.certain(answer{detail: "has address " + addrs[0].String()})
		}
	}
	if hosts := l.mx(name); len(hosts) > 0 {
		return l.certain(answer{detail: "has mail exchangers"})
	}
	return answer{found: of(heloUnresolved), detail: "no A, AAAA or MX record"}
}

// maxNames is how many reverse names of one address are looked at, as in RFC
// 7208 section 5.5.
const maxNames = 10

// reverse asks whether a reverse name leads back. What Postfix has found is not
// asked for again.
func (l *lookups) reverse(addr netip.Addr, known string) answer {
	names := []string{known}
	if known == "" {
		var ttl time.Duration
		var cached bool
		var err error
		names, ttl, cached, err = l.res.LookupPTR(l.ctx, addr)
		l.note(ttl, cached, err)
	}
	if len(names) == 0 {
		return answer{found: of(reverseMissing), detail: "no PTR record"}
	}
	for _, name := range names[:min(len(names), maxNames)] {
		if slices.Contains(l.addrs(name, addr.Is6()), addr) {
			return l.certain(answer{name: name, detail: name + " leads back"})
		}
	}
	return answer{found: of(reverseUnverified), name: names[0], detail: names[0] + " does not lead back"}
}

// maxExchangers is how many mail exchangers of one domain are looked at.
const maxExchangers = 10

// sender asks whether mail to a domain could be delivered (RFC 5321 section
// 5.1). With hosts it also asks where.
func (l *lookups) sender(domain string, hosts bool) answer {
	if domain[0] == '[' {
		return literalSender(domain)
	}
	if !askable(domain) {
		return answer{found: of(senderUnresolved), detail: "it is no name"}
	}
	exchangers := l.mx(domain)
	if len(exchangers) == 0 && l.err != nil {
		return answer{}
	}
	implicit := len(exchangers) == 0
	if implicit {
		exchangers = []string{domain} // RFC 5321 section 5.1: the domain itself
	}
	if !slices.ContainsFunc(exchangers, func(host string) bool { return host != "" }) {
		return answer{found: of(senderNullMX), detail: "null MX"}
	}
	if !implicit && !hosts {
		return answer{detail: "has mail exchangers"}
	}
	private := ""
	for _, host := range exchangers[:min(len(exchangers), maxExchangers)] {
		for _, v6 := range [...]bool{false, true} {
			for _, a := range l.addrs(host, v6) {
				if mailaddr.IsGlobal(a.Unmap()) {
					return l.certain(answer{detail: "mail exchanger " + host + ", " + a.String()})
				}
				private = "mail exchanger " + host + " has the address " + a.String()
			}
		}
	}
	switch {
	case l.err != nil:
		return answer{}
	case len(exchangers) > maxExchangers:
		return answer{detail: "more mail exchangers than are looked at"}
	case private != "" && hosts:
		return answer{found: of(senderPrivateMX), detail: private}
	case private != "":
		return answer{detail: private}
	case implicit:
		return answer{found: of(senderUnresolved), detail: "no MX, A or AAAA record"}
	default:
		return answer{found: of(senderUnresolved), detail: "none of its mail exchangers has an address"}
	}
}

// literalSender is sender for "user@[192.0.2.7]".
func literalSender(domain string) answer {
	h := parseLiteral(domain)
	switch {
	case h.form != heloLiteral:
		return answer{found: of(senderUnresolved), detail: h.fault}
	case !mailaddr.IsGlobal(h.addr):
		return answer{found: of(senderPrivateMX), detail: "not an address of the internet"}
	default:
		return answer{detail: "an address"}
	}
}
