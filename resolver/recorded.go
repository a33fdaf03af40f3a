package resolver

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/miekg/dns"
	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
)

// Recorded is what servers have said about a name, in a form that can be kept.
// Without records and failure it says that there are none.
type Recorded struct {
	Name string `json:"name"` // lower case, A-labels, no dot at the end
	Type string `json:"type"` // "A", "AAAA", "TXT", "PTR" or "MX"
	// Records are the data of each: an address, a text whole, a name, "10
	// mail.example.org".
	Records []string `json:"records,omitempty"`
	// Failure is "timeout", "servfail", "refused", "unreachable" or "".
	Failure string        `json:"failure,omitempty"`
	TTL     time.Duration `json:"ttl"`
}

// Failures as they are recorded.
var failureWords = map[string]error{
	"timeout": ErrTimeout, "servfail": ErrServFail, "refused": ErrRefused, "unreachable": ErrUnreachable,
}

// record writes an answer down.
func record(k key, a *answer) Recorded {
	out := Recorded{Name: k.name, Type: dns.TypeToString[k.qtype], TTL: a.ttl}
	if a.failure != nil {
		out.Failure = "unreachable"
		for word, kind := range failureWords {
			if errors.Is(a.failure.kind, kind) {
				out.Failure = word
			}
		}
		return out
	}
	for _, addr := range a.addrs {
		out.Records = append(out.Records, addr.String())
	}
	out.Records = append(out.Records, a.texts...)
	for _, mx := range a.mx {
		out.Records = append(out.Records, strconv.Itoa(int(mx.Pref))+" "+mx.Host)
	}
	return out
}

// Observe has f called with what servers have said, or that they have not; what
// the cache answers is not among it. f must not wait: look-ups do meanwhile. It is
// called by several goroutines. Observe itself is called before the first look-up.
func (r *Resolver) Observe(f func(Recorded)) { r.observe = f }

// tell tells who observes. A resolver that is closed has not asked.
func (r *Resolver) tell(k key, a *answer) {
	if a.failure != nil && errors.Is(a.failure.kind, ErrClosed) {
		return
	}
	r.observe(record(k, a))
}

// answer reads what record has written; what cannot be read of it is a failure
// of the server.
func (r *Recorded) answer(k key) *answer {
	if r.Failure != "" {
		kind, ok := failureWords[r.Failure]
		if !ok {
			kind = ErrServFail
		}
		return failed(k, kind, "as recorded")
	}
	a := &answer{ttl: r.TTL}
	for _, text := range r.Records {
		switch k.qtype {
		case dns.TypeA, dns.TypeAAAA:
			addr, err := netip.ParseAddr(text)
			if err != nil || addr.Is4() != (k.qtype == dns.TypeA) {
				return failed(k, ErrServFail, "a recorded address that is none")
			}
			a.addrs = append(a.addrs, addr)
		case dns.TypeMX:
			pref, host, _ := strings.Cut(text, " ")
			n, err := strconv.ParseUint(pref, 10, 16)
			if err != nil {
				return failed(k, ErrServFail, "a recorded MX that is none")
			}
			a.mx = append(a.mx, MX{uint16(n), textName(host)})
		default:
			a.texts = append(a.texts, text)
		}
	}
	return a
}

// Source answers in place of servers. It is safe for concurrent use.
type Source interface {
	// Answer returns what is recorded about a name, which is in lower case and
	// without a dot at the end, and a type ("TXT").
	Answer(ctx context.Context, name, rrtype string) Recorded
}

// Answer implements [Source]: what servers say now, or what is remembered of it.
func (r *Resolver) Answer(ctx context.Context, name, rrtype string) Recorded {
	out := Recorded{Name: name, Type: rrtype}
	qtype, ok := dns.StringToType[rrtype]
	if !ok {
		out.Failure = "refused"
		return out
	}
	rs, ttl, _, err := r.lookup(ctx, name, qtype)
	a := &answer{records: rs, ttl: ttl}
	if err != nil {
		if a.failure, ok = errors.AsType[*failure](err); !ok {
			a.failure = &failure{kind: ErrUnreachable}
		}
	}
	return record(key{name, qtype}, a)
}

// NewRecorded returns a resolver that asks nobody: src answers. All else is as
// with New.
func NewRecorded(cfg Config, src Source, log *zap.Logger, reg prometheus.Registerer) (*Resolver, error) {
	cfg.Servers = []string{"127.0.0.1:53"} // never asked; the host's own are not looked for
	r, err := New(cfg, log, reg)
	if err != nil {
		return nil, err
	}
	r.upstream = func(ctx context.Context, k key) *answer {
		said := src.Answer(ctx, k.name, dns.TypeToString[k.qtype])
		return said.answer(k)
	}
	return r, nil
}

// ParseRecord reads a record as a zone file has it: "mail.example.org A
// 192.0.2.1", "example.org 300 IN MX 10 mail.example.org", `example.org TXT
// "v=spf1 -all"`. In place of data a failure can stand ("example.org TXT
// servfail"), or "none" for a name without such a record. The text of a TXT
// record needs no quotes. All names are absolute.
func ParseRecord(line string) (Recorded, error) {
	words := strings.Fields(line)
	at := 1 // of the type
	for at < len(words) && (strings.EqualFold(words[at], "IN") || isNumber(words[at])) {
		at++
	}
	if at+1 >= len(words) {
		return Recorded{}, errors.New(`a record is "NAME TYPE DATA", such as "example.org A 192.0.2.1"`)
	}
	name, err := normalize(words[0])
	if err != nil {
		return Recorded{}, fmt.Errorf("%q is not a name", words[0])
	}
	rrtype := strings.ToUpper(words[at])
	qtype, ok := dns.StringToType[rrtype]
	if !ok || !asked(qtype) {
		return Recorded{}, fmt.Errorf("%q is none of A, AAAA, TXT, PTR, MX", words[at])
	}
	out := Recorded{Name: name, Type: rrtype, TTL: time.Hour}
	if len(words) == at+2 {
		word := strings.ToLower(words[at+1])
		if word == "none" {
			return out, nil
		}
		if _, ok := failureWords[word]; ok {
			out.Failure = word
			return out, nil
		}
	}
	data := strings.Join(words[at+1:], " ")
	if qtype == dns.TypeTXT && !strings.HasPrefix(data, `"`) {
		out.Records = []string{data}
		return out, nil
	}
	rr, err := dns.NewRR(". " + rrtype + " " + data)
	if err != nil || rr == nil {
		return Recorded{}, fmt.Errorf("%q is no data of a record %s", data, rrtype)
	}
	a := new(answer)
	a.add(rr)
	out.Records = record(key{name, qtype}, a).Records
	if len(out.Records) == 0 {
		return Recorded{}, fmt.Errorf("%q is no data of a record %s", data, rrtype)
	}
	return out, nil
}

func isNumber(s string) bool {
	_, err := strconv.ParseUint(s, 10, 32)
	return err == nil
}

// asked reports whether a type is ever asked for.
func asked(qtype uint16) bool {
	for _, t := range lookupTypes {
		if t == qtype {
			return true
		}
	}
	return false
}
