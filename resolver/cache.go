package resolver

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"github.com/maypok86/otter/v2"
	"github.com/miekg/dns"
)

// key names a look-up.
type key struct {
	name  string // see normalize
	qtype uint16
}

// lookupTypes are the types that are ever asked for.
var lookupTypes = [...]uint16{dns.TypeA, dns.TypeAAAA, dns.TypeTXT, dns.TypePTR, dns.TypeMX}

// records are the data of those of a key. There are none of a negative answer.
type records struct {
	addrs []netip.Addr // A, AAAA
	texts []string     // TXT, PTR
	mx    []MX
}

// answer is what the servers have said about a key.
type answer struct {
	records
	failure *failure      // why there is nothing of the above
	ttl     time.Duration // as the servers said; clamped before it is kept
	expires time.Time     // then it is stale
}

// negative reports whether the answer is that there is nothing.
func (a *answer) negative() bool {
	return a.failure == nil && len(a.addrs)+len(a.texts)+len(a.mx) == 0
}

// entry is an answer as the cache holds it: small, since there are many, of
// which most are negative.
type entry struct {
	// times is until when the answer holds, in nanoseconds since
	// Resolver.epoch; once that is over and the servers have failed, until when
	// it is given stale, unasked, below 0.
	times atomic.Int64
	data  string // see pack
}

// left is for how long e holds; nothing or less when it is stale.
func (e *entry) left(now time.Duration) time.Duration {
	return max(time.Duration(e.times.Load()), 0) - now
}

// spared reports whether e, which is stale, is to be given without asking.
func (e *entry) spared(now time.Duration) bool { return now < -time.Duration(e.times.Load()) }

// spare has e, if it is stale, given without asking until then.
func (e *entry) spare(now, until time.Duration) {
	if e.left(now) <= 0 {
		e.times.Store(-int64(until))
	}
}

// kinds are the failures that are remembered. A packed failure begins with the
// index of its kind.
var kinds = [...]error{ErrTimeout, ErrServFail, ErrRefused, ErrUnreachable, ErrInvalidName}

// What packed data begins with, unless it is empty, as of a negative answer.
const (
	packedRecords = 0x80 // the data of each record follows, as its type has it
	packedFailure = 0x00 // + the index of its kind; the detail follows
)

// pack appends the data of an answer to b: addresses as they are, a text with
// its length before it, an exchanger as its preference and such a text. It
// reports false for a failure that is not to be remembered.
func pack(b []byte, a *answer) ([]byte, bool) {
	if a.failure != nil {
		i := slices.Index(kinds[:], a.failure.kind)
		if i < 0 {
			return b, false
		}
		return append(append(b, packedFailure+byte(i)), a.failure.detail...), true
	}
	if a.negative() {
		return b, true
	}
	b = append(b, packedRecords)
	for _, addr := range a.addrs {
		b = append(b, addr.AsSlice()...)
	}
	if n := len(a.texts) + len(a.mx); n > 0 {
		b = binary.AppendUvarint(b, uint64(n))
	}
	for _, t := range a.texts {
		b = append(binary.AppendUvarint(b, uint64(len(t))), t...)
	}
	for _, m := range a.mx {
		b = binary.BigEndian.AppendUint16(b, m.Pref)
		b = append(binary.AppendUvarint(b, uint64(len(m.Host))), m.Host...)
	}
	return b, true
}

// failure returns the failure that is packed in e, nil if there is none.
func (e *entry) failure(k key) *failure {
	if e.data == "" || e.data[0] == packedRecords {
		return nil
	}
	return &failure{name: k.name, qtype: k.qtype, kind: kinds[e.data[0]-packedFailure], detail: e.data[1:]}
}

// failed reports whether e is a failure.
func (e *entry) failed() bool { return e.data != "" && e.data[0] != packedRecords }

// listed are 127.0.0.0/24, of which DNS lists answer one (RFC 5782 section 2.1):
// the most frequent addresses by far need no memory.
var listed = func() (all [256]netip.Addr) {
	for i := range all {
		all[i] = netip.AddrFrom4([4]byte{127, 0, 0, byte(i)})
	}
	return all
}()

// records returns the records that are packed in e. Texts are parts of it.
func (e *entry) records(qtype uint16) (rs records) {
	if e.data == "" || e.failed() {
		return rs
	}
	data := e.data[1:]
	switch qtype {
	case dns.TypeA:
		if len(data) == 4 && data[:3] == "\x7f\x00\x00" {
			rs.addrs = listed[data[3] : int(data[3])+1 : int(data[3])+1]
			return rs
		}
		rs.addrs = make([]netip.Addr, 0, len(data)/4)
		for ; len(data) >= 4; data = data[4:] {
			rs.addrs = append(rs.addrs, netip.AddrFrom4([4]byte{data[0], data[1], data[2], data[3]}))
		}
	case dns.TypeAAAA:
		rs.addrs = make([]netip.Addr, 0, len(data)/16)
		for ; len(data) >= 16; data = data[16:] {
			rs.addrs = append(rs.addrs, netip.AddrFrom16([16]byte([]byte(data[:16]))))
		}
	case dns.TypeMX:
		n, data := cutLength(data)
		rs.mx = make([]MX, n)
		for i := range rs.mx {
			rs.mx[i].Pref = uint16(data[0])<<8 | uint16(data[1])
			rs.mx[i].Host, data = cutText(data[2:])
		}
	default:
		n, data := cutLength(data)
		rs.texts = make([]string, n)
		for i := range rs.texts {
			rs.texts[i], data = cutText(data)
		}
	}
	return rs
}

// cutLength takes a number from data that pack has written.
func cutLength(data string) (n int, rest string) {
	for shift := 0; ; shift += 7 {
		c := data[0]
		data = data[1:]
		if n |= int(c&0x7f) << shift; c < 0x80 {
			return n, data
		}
	}
}

func cutText(data string) (text, rest string) {
	n, rest := cutLength(data)
	return rest[:n], rest[n:]
}

// entryUnit is how many octets count as one entry of cache_size.
const entryUnit = 512

// weight estimates how much memory an entry needs, in units.
func weight(k key, e *entry) uint32 {
	const self = 160 // the entry, its key and the cache's own node
	return uint32((self + len(k.name) + len(e.data) + entryUnit - 1) / entryUnit)
}

// newCache makes the cache. An answer stays in it beyond its TTL for as long as
// it may be given stale.
func (r *Resolver) newCache() (*otter.Cache[key, *entry], error) {
	return otter.New(&otter.Options[key, *entry]{
		MaximumWeight: uint64(r.cfg.CacheSize),
		Weigher:       weight,
		ExpiryCalculator: otter.ExpiryWritingFunc(func(e otter.Entry[key, *entry]) time.Duration {
			keep := e.Value.left(r.now())
			if !e.Value.failed() {
				keep += r.cfg.StaleFor.D()
			}
			return keep
		}),
	})
}

// now is the clock of the cache's entries: it does not go back.
func (r *Resolver) now() time.Duration { return time.Since(r.epoch) }

// clamp bounds the time for which an answer may be kept.
func (c *Config) clamp(a *answer) {
	switch {
	case a.failure != nil:
		a.ttl = c.ServFailTTL.D()
	case a.negative():
		a.ttl = min(max(a.ttl, c.MinTTL.D()), c.NegativeTTL.D())
	default:
		a.ttl = min(max(a.ttl, c.MinTTL.D()), c.MaxTTL.D())
	}
}

// remember keeps a new answer. A failure does not replace an older answer that
// is still good enough to be given stale; it stops the asking for a while.
func (r *Resolver) remember(k key, a *answer) {
	r.cfg.clamp(a)
	a.expires = time.Now().Add(a.ttl)
	// Name and data are one piece of memory; a name that is part of a larger
	// text would keep all of that.
	var room [256]byte
	packed, ok := pack(append(room[:0], k.name...), a)
	if !ok {
		return
	}
	if a.failure != nil {
		if old, ok := r.cache.GetIfPresent(k); ok && !old.failed() {
			now := r.now()
			old.spare(now, now+r.cfg.StaleRetry.D())
			return
		}
	} else if a.ttl <= 0 { // valid for this once
		r.cache.Invalidate(k)
		return
	}
	text := string(packed)
	e := &entry{data: text[len(k.name):]}
	e.times.Store(int64(a.expires.Sub(r.epoch)))
	k.name = text[:len(k.name)]
	r.cache.Set(k, e)
}
