package journal

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"postern/internal/mailaddr"
	"postern/internal/reference"
	"postern/policy"
)

// kind is what an entry of a block holds.
type kind byte

const (
	kindDecision kind = 1
	kindAnswer   kind = 2
)

// keys is what an entry can be found by without reading all of it. The
// texts belong to whoever made them.
type keys struct {
	kind   kind
	time   int64 // nanoseconds
	action policy.Action
	would  policy.Action
	stage  policy.Stage
	ref    reference.Ref
	client netip.Addr

	sender, recipient, queueID, login     []byte
	check, reason, wouldCheck, wouldCause []byte
}

// texts are the strings of keys, in the order in which they are written.
func (k *keys) texts() [8]*[]byte {
	return [8]*[]byte{&k.sender, &k.recipient, &k.queueID, &k.login, &k.check, &k.reason, &k.wouldCheck, &k.wouldCause}
}

// keysOf returns the keys of a decision.
func keysOf(r *Record, ref reference.Ref) keys {
	d := r.Decision
	k := keys{
		kind: kindDecision, time: r.Time.UnixNano(), action: d.Verdict.Action, would: d.Would.Action, stage: r.Stage, ref: ref,
		sender: []byte(r.Sender), recipient: []byte(r.Recipient), queueID: []byte(r.QueueID), login: []byte(r.Login),
		check: []byte(d.Check), reason: []byte(d.Verdict.Reason), wouldCheck: []byte(d.WouldCheck), wouldCause: []byte(d.Would.Reason),
	}
	k.client, _ = netip.ParseAddr(r.Client) // "unknown" is invalid
	return k
}

// hasSender reports whether the stage is one at which a sender is known.
func (k *keys) hasSender() bool {
	return k.stage >= policy.StageMail && k.stage <= policy.StageEndOfMessage
}

// maxEntry is the most bytes of one entry. What is longer is not kept: no
// request of Postfix makes it so long.
const maxEntry = 1 << 20

var (
	errTooLong = errors.New("journal: an entry is too long")
	errBroken  = errors.New("journal: an entry cannot be read")
)

// appendEntry appends an entry: its length, its keys, and the whole as JSON,
// which begins at text.
func appendEntry(b []byte, k *keys, v any) (out []byte, text int, err error) {
	start := len(b)
	b = append(b, 0, 0, 0, 0, byte(k.kind))
	b = binary.AppendVarint(b, k.time)
	if k.kind == kindDecision {
		b = append(b, byte(k.action), byte(k.would), byte(k.stage))
		b = binary.LittleEndian.AppendUint64(b, uint64(k.ref))
		addr := k.client.AsSlice()
		b = append(b, byte(len(addr)))
		b = append(b, addr...)
		for _, t := range k.texts() {
			b = binary.AppendUvarint(b, uint64(len(*t)))
			b = append(b, *t...)
		}
	}
	text = len(b)
	if b, err = appendJSON(b, v); err != nil {
		return b[:start], 0, err
	}
	size := len(b) - start - 4
	if size > maxEntry {
		return b[:start], 0, errTooLong
	}
	binary.LittleEndian.PutUint32(b[start:], uint32(size))
	return b, text, nil
}

// appendJSON appends v as JSON.
func appendJSON(b []byte, v any) ([]byte, error) {
	buf := bytes.NewBuffer(b)
	enc := json.NewEncoder(buf)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		return b, fmt.Errorf("journal: %w", err)
	}
	return bytes.TrimSuffix(buf.Bytes(), []byte("\n")), nil
}

// entry is one entry as it was read. Its bytes belong to the block.
type entry struct {
	keys
	json []byte
}

// cut makes e the first entry of b, and returns the rest.
func (e *entry) cut(b []byte) (rest []byte, err error) {
	*e = entry{}
	if len(b) < 5 {
		return nil, errBroken
	}
	size := int(binary.LittleEndian.Uint32(b))
	if size < 1 || size > maxEntry || size > len(b)-4 {
		return nil, errBroken
	}
	p, rest := b[4:4+size], b[4+size:]
	e.kind = kind(p[0])
	t, n := binary.Varint(p[1:])
	if n <= 0 {
		return nil, errBroken
	}
	e.time = t
	if p = p[1+n:]; e.kind == kindDecision {
		if len(p) < 12 || len(p) < 12+int(p[11]) {
			return nil, errBroken
		}
		e.action, e.would, e.stage = policy.Action(p[0]), policy.Action(p[1]), policy.Stage(p[2])
		e.ref = reference.Ref(binary.LittleEndian.Uint64(p[3:]))
		n := int(p[11])
		e.client, _ = netip.AddrFromSlice(p[12 : 12+n]) // none is invalid
		p = p[12+n:]
		for _, to := range e.texts() {
			size, n := binary.Uvarint(p)
			if n <= 0 || size > uint64(len(p)-n) {
				return nil, errBroken
			}
			*to = p[n : n+int(size)]
			p = p[n+int(size):]
		}
	}
	e.json = p
	return rest, nil
}

// record reads the whole of a decision.
func (e *entry) record() (*Record, error) { return ReadRecord(e.json) }

// ReadRecord reads the JSON of a record.
func ReadRecord(text []byte) (*Record, error) {
	r := new(Record)
	if err := json.Unmarshal(text, r); err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	if r.Decision == nil {
		return nil, errBroken
	}
	return r, nil
}

// answer reads the whole of an answer.
func (e *entry) answer() (*Answer, error) {
	a := new(Answer)
	if err := json.Unmarshal(e.json, a); err != nil {
		return nil, fmt.Errorf("%w: %w", errBroken, err)
	}
	return a, nil
}

// Kinds of what a block's filter knows.
const (
	hasRef     = 'r'
	hasAddress = 'a'
	hasDomain  = 'd'
	hasQueueID = 'q'
	hasClient  = 'c' // with the network of a length that is in it
)

// nullSender stands for the null sender among addresses.
const nullSender = "<>"

// clientBits are the networks of a client that the filter knows, the longest
// first.
func clientBits(a netip.Addr) []int {
	if a.Is4() {
		return []int{32, 24, 16}
	}
	return []int{128, 64, 48, 32}
}

// eachHash calls f with the hash of all that a block's filter shall know of a
// decision.
func (k *keys) eachHash(f func(uint64)) {
	if k.kind != kindDecision {
		return
	}
	f(hashRef(k.ref))
	if len(k.queueID) > 0 {
		f(hashOf(hasQueueID, k.queueID))
	}
	if k.client.IsValid() {
		for _, bits := range clientBits(k.client) {
			p, _ := k.client.Prefix(bits) // it has that many
			f(hashPrefix(p))
		}
	}
	for i, raw := range [][]byte{k.sender, k.recipient} {
		if len(raw) == 0 {
			if i == 0 && k.hasSender() {
				f(hashOf(hasAddress, []byte(nullSender)))
			}
			continue
		}
		f(hashOf(hasAddress, bytes.ToLower(raw)))
		for d := domainOf(raw); d != ""; {
			f(hashOf(hasDomain, []byte(d)))
			_, d, _ = strings.Cut(d, ".")
		}
	}
}

// maxDomain is the most octets of a domain that is looked at, more than any in
// the DNS has as a stranger may write it. What is longer is nobody's.
const maxDomain = 1024

// domainOf returns the domain of an address in the form that is compared.
func domainOf(raw []byte) string {
	at := bytes.LastIndexByte(raw, '@')
	if at < 0 || len(raw)-at > maxDomain {
		return ""
	}
	return mailaddr.Domain(string(raw[at+1:]))
}

func hashRef(r reference.Ref) uint64 {
	return hashOf(hasRef, binary.LittleEndian.AppendUint64(nil, uint64(r)))
}

func hashPrefix(p netip.Prefix) uint64 {
	a := p.Masked().Addr().As16()
	return hashOf(hasClient, append(a[:], byte(p.Bits())))
}

// hashOf is FNV-1a with a last stirring, the same in every process.
func hashOf(kind byte, text []byte) uint64 {
	h := (uint64(14695981039346656037) ^ uint64(kind)) * 1099511628211
	for _, c := range text {
		h = (h ^ uint64(c)) * 1099511628211
	}
	h = (h ^ h>>31) * 0x9e3779b97f4a7c15
	return h ^ h>>29
}

// bloom is a filter that says of a hash "not here" or "perhaps".
type bloom []byte

// bloomBits is how many bits each hash gets, bloomProbes how many of them it
// sets: some 1 % of what is not there looks as if it were.
const (
	bloomBits   = 10
	bloomProbes = 6
)

func newBloom(hashes map[uint64]struct{}) bloom {
	if len(hashes) == 0 {
		return nil
	}
	f := make(bloom, (len(hashes)*bloomBits+7)/8)
	for h := range hashes {
		f.probe(h, func(i uint64) bool { f[i/8] |= 1 << (i % 8); return true })
	}
	return f
}

func (f bloom) probe(h uint64, visit func(bit uint64) bool) bool {
	step := h>>32 | 1
	for range bloomProbes {
		if !visit(h % (uint64(len(f)) * 8)) {
			return false
		}
		h += step
	}
	return true
}

// has reports whether the hash may be there.
func (f bloom) has(h uint64) bool {
	return len(f) > 0 && f.probe(h, func(i uint64) bool { return f[i/8]&(1<<(i%8)) != 0 })
}

func timeOf(nanos int64) time.Time { return time.Unix(0, nanos) }
