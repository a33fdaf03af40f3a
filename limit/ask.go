package limit

import (
	"crypto/sha256"
	"encoding/hex"
	"math"
	"slices"
	"strings"
	"sync"

	"postern/internal/meter"
	"postern/policy"
)

// ask is a take with the rule that it is for.
type ask struct {
	rule *rule
	meter.Take
	n int64 // units that it takes
	// own and ownUnits are Add and n without what the message takes again.
	own, ownUnits int64
	back          bool // it has been given back
	// perUnit is how many microseconds of a rate one unit takes.
	perUnit float64
}

// units returns an amount of the take in units of the rule. What is left of one
// counts whole: the place of it is not free yet.
func (a *ask) units(n int64) int64 {
	if a.Kind != meter.Rate {
		return n
	}
	return int64(math.Ceil(float64(n)/a.perUnit - 1e-6))
}

// limit sets what the take asks of its meter: n units of most, 0 for what the
// rule says.
func (a *ask) limit(q *quotaOf, n, most int64) {
	a.n, a.ownUnits = n, n
	if q != nil {
		a.Add, a.own, a.Most = n, n, max(q.Units, most)
		return
	}
	a.Most, a.perUnit = a.rule.full, a.rule.perUnit
	if most > a.rule.Burst { // as many more a second as at once
		a.perUnit *= float64(a.rule.Burst) / float64(most)
	}
	// What is more than may come at once passes when nothing has, and takes all.
	a.Add = min(microseconds(float64(n)*a.perUnit), a.Most)
	a.own = a.Add
}

// negative returns the take that gives so much back.
func (a *ask) negative(add int64) meter.Take {
	t := a.Take
	t.Add, t.Hard = -add, false
	return t
}

func microseconds(us float64) int64 { return int64(min(math.Ceil(us), maxInterval)) }

// scratch is the memory of one request.
type scratch struct {
	asks  []ask
	takes []meter.Take
	ends  []ends
	text  []byte // keys and members
	words []byte
}

// ends are where the key and the member of an ask end in the text.
type ends struct{ key, member int }

func (sc *scratch) release(to *sync.Pool) {
	clear(sc.asks)
	clear(sc.takes)
	sc.asks, sc.takes, sc.ends, sc.text = sc.asks[:0], sc.takes[:0], sc.ends[:0], sc.text[:0]
	to.Put(sc)
}

// merge adds what a message had given back, that of the same meter to what is
// asked of it.
func (sc *scratch) merge(more []ask) {
	for _, a := range more {
		a.own, a.ownUnits, a.back = 0, 0, false
		i := slices.IndexFunc(sc.asks, func(b ask) bool { return b.Key == a.Key })
		switch {
		case i < 0:
			sc.asks = append(sc.asks, a)
		case a.Kind != meter.Distinct:
			sc.asks[i].Add += a.Add
			sc.asks[i].n += a.n
		}
	}
}

// asks fills in what the request takes.
func (c *Check) asks(sc *scratch, req *policy.Request, m *message) {
	for i := range c.rules {
		r := &c.rules[i]
		n := r.cost(req, m)
		if n == 0 || !r.applies(req) {
			continue
		}
		member, ok := []byte(nil), true
		if r.distinct {
			if sc.words = r.appendMember(sc.words[:0], req, &c.cfg); len(sc.words) == 0 {
				continue
			}
			member = appendDigest(nil, sc.words)
		}
		if sc.words, ok = r.appendWho(sc.words[:0], req, &c.cfg); !ok {
			continue
		}
		if len(sc.words) > maxWho {
			sc.words = shortened(sc.words)
		}
		if r.rate != "" {
			sc.add(ask{rule: r, Take: meter.Take{Kind: meter.Rate, Hard: r.hard}}, r.rate, nil)
			sc.asks[len(sc.asks)-1].limit(nil, n, 0)
		}
		for j := range r.quotas {
			q := &r.quotas[j]
			a := ask{rule: r, Take: meter.Take{Kind: r.quotaKind(), Hard: r.hard}}
			a.Start, a.End = q.now(req.Time)
			sc.add(a, q.prefix, member)
			sc.asks[len(sc.asks)-1].limit(q, n, 0)
		}
	}
	// One string holds all keys.
	text, from := string(sc.text), 0
	for i := range sc.asks {
		a, e := &sc.asks[i], &sc.ends[i]
		a.Key, a.Member = text[from:e.key], text[e.key:e.member]
		from = e.member
	}
	c.shared.raises.apply(sc.asks, req.Time)
}

// add adds an ask; sc.words are whose it is.
func (sc *scratch) add(a ask, prefix string, member []byte) {
	sc.asks = append(sc.asks, a)
	sc.text = append(append(sc.text, prefix...), sc.words...)
	key := len(sc.text)
	sc.text = append(sc.text, member...)
	sc.ends = append(sc.ends, ends{key, len(sc.text)})
}

func (r *rule) quotaKind() meter.Kind {
	if r.distinct {
		return meter.Distinct
	}
	return meter.Quota
}

// cost returns how many units the request takes of the rule, 0 for none.
func (r *rule) cost(req *policy.Request, m *message) int64 {
	switch {
	case r.Unit == "connections":
		if req.Stage != policy.StageConnect {
			return 0
		}
	case r.Unit == "bytes":
		if req.Stage != policy.StageEndOfMessage {
			return 0
		}
		return max(req.Size, 0)
	case req.Stage != policy.StageRcpt:
		return 0
	// A key with the recipient has a message of its own for each of them.
	case r.Unit == "messages" && !r.byRecipient && m.counts(r):
		return 0
	}
	return 1
}

// appendMember appends what is counted once, nothing when there is none.
func (r *rule) appendMember(b []byte, req *policy.Request, cfg *Config) []byte {
	switch r.Unit {
	case "distinct-recipients":
		return appendAddress(b, &req.Recipient)
	case "distinct-recipient-domains":
		return append(b, req.Recipient.Domain...)
	case "distinct-senders":
		if req.Sender.Raw == "" {
			return b
		}
		return appendAddress(b, &req.Sender)
	case "distinct-clients":
		return appendClient(b, req)
	default:
		return appendNetwork(b, req, cfg)
	}
}

// appendDigest appends 32 bits of what was hashed (FNV-1a), in hexadecimal.
func appendDigest(b, text []byte) []byte {
	sum := uint32(2166136261)
	for _, c := range text {
		sum = (sum ^ uint32(c)) * 16777619
	}
	return hex.AppendEncode(b, []byte{byte(sum >> 24), byte(sum >> 16), byte(sum >> 8), byte(sum)})
}

// appendWho appends whose meter the request is counted on; false when it has
// no such thing.
func (r *rule) appendWho(b []byte, req *policy.Request, cfg *Config) ([]byte, bool) {
	for i, k := range r.Key {
		if i > 0 {
			b = append(b, ' ')
		}
		at := len(b)
		switch k {
		case "client":
			b = appendClient(b, req)
		case "network":
			b = appendNetwork(b, req, cfg)
		case "login":
			b = appendWord(b, req.SASL.Username)
		case "sender":
			b = appendAddress(b, &req.Sender)
		case "sender-domain":
			b = appendWord(b, req.Sender.Domain)
		case "recipient":
			b = appendAddress(b, &req.Recipient)
		case "recipient-domain":
			b = appendWord(b, req.Recipient.Domain)
		case "helo":
			b = appendLower(b, req.Helo)
		}
		if len(b) == at {
			return b, false
		}
	}
	return b, true
}

// maxWho is the most bytes of whose a meter is. A longer one is cut and a
// digest put behind it, so that distinct ones stay distinct.
const maxWho = 200

func shortened(b []byte) []byte {
	sum := sha256.Sum256(b)
	return hex.AppendEncode(append(b[:maxWho-1-32], '~'), sum[:16])
}

// appendWord appends one word of a key: blanks stand between them.
func appendWord(b []byte, s string) []byte {
	if strings.IndexByte(s, ' ') >= 0 {
		s = strings.ReplaceAll(s, " ", "%20")
	}
	return append(b, s...)
}

func appendLower(b []byte, s string) []byte {
	at := len(b)
	b = appendWord(b, s)
	for i := at; i < len(b); i++ {
		switch c := b[i]; {
		case 'A' <= c && c <= 'Z':
			b[i] = c + 'a' - 'A'
		case c >= 0x80:
			return appendWord(b[:at], strings.ToLower(s))
		}
	}
	return b
}

// appendAddress appends an address as limits compare it: nobody escapes by
// writing it otherwise.
func appendAddress(b []byte, a *policy.Address) []byte {
	b = appendLower(b, a.Local)
	if a.Domain != "" {
		b = append(append(b, '@'), a.Domain...)
	}
	return b
}

func appendClient(b []byte, req *policy.Request) []byte {
	if req.Client.Addr.IsValid() {
		b = req.Client.Addr.AppendTo(b)
	}
	return b
}

func appendNetwork(b []byte, req *policy.Request, cfg *Config) []byte {
	bits := cfg.NetworkIPv6
	if req.Client.Addr.Is4() {
		bits = cfg.NetworkIPv4
	}
	p, err := req.Client.Addr.Prefix(bits)
	if err != nil || !p.IsValid() {
		return b
	}
	return p.AppendTo(b)
}
