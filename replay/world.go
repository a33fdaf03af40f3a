package replay

import (
	"context"
	"strings"
	"sync"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
	"postern/resolver"
)

// World is what DNS and next hops are taken to have said. It is safe for
// concurrent use.
type World struct {
	// Live is asked for what was not recorded; nil: nobody is.
	Live resolver.Source

	mu         sync.Mutex
	records    map[string]resolver.Recorded
	recipients map[string]string // what was said, by address
	unrecorded map[string]bool   // questions
}

// NewWorld returns a world of which nothing is known.
func NewWorld() *World {
	return &World{records: make(map[string]resolver.Recorded), recipients: make(map[string]string), unrecorded: make(map[string]bool)}
}

// Record takes an answer; it holds until another one about the same comes.
func (w *World) Record(r *resolver.Recorded) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.records[r.Type+" "+r.Name] = *r
}

// Remember takes what was said of a recipient: "known", "unknown" or
// "temporary".
func (w *World) Remember(a policy.Address, said string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.recipients[addressKey(a)] = said
}

// suppose takes an answer about what nothing is recorded of.
func (w *World) suppose(r resolver.Recorded) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if key := r.Type + " " + r.Name; w.records[key].Name == "" {
		w.records[key] = r
	}
}

// Suppose makes up what nobody has recorded so that nothing speaks against a
// request: the names of the client and of HELO lead to its address, the
// sender's domain has an MX. What was recorded stays.
func (w *World) Suppose(req *policy.Request) {
	set := func(name, rrtype, data string) {
		if name != "" {
			w.suppose(resolver.Recorded{Name: name, Type: rrtype, Records: []string{data}, TTL: time.Hour})
		}
	}
	leads := func(name string) {
		if req.Client.Addr.Is6() {
			set(name, "AAAA", req.Client.Addr.String())
		} else if req.Client.Addr.IsValid() {
			set(name, "A", req.Client.Addr.String())
		}
	}
	leads(req.Client.Name)
	if !strings.HasPrefix(req.Helo, "[") {
		leads(mailaddr.Domain(req.Helo))
	}
	if d := req.Sender.Domain; d != "" {
		set(d, "MX", "10 "+d)
		leads(d)
	}
	if req.Client.ReverseName != "" {
		set(resolver.ReverseName(req.Client.Addr), "PTR", req.Client.ReverseName)
	}
}

// Answer implements [resolver.Source].
func (w *World) Answer(ctx context.Context, name, rrtype string) resolver.Recorded {
	key := rrtype + " " + name
	w.mu.Lock()
	r, ok := w.records[key]
	if !ok {
		w.unrecorded[key] = true
	}
	w.mu.Unlock()
	switch {
	case ok:
		return r
	case w.Live == nil:
		return resolver.Recorded{Name: name, Type: rrtype, TTL: time.Hour}
	}
	r = w.Live.Answer(ctx, name, rrtype)
	w.Record(&r)
	return r
}

// Recipient is what was said of a recipient, and in which words; "known" of
// one of whom nothing was.
func (w *World) Recipient(a policy.Address) (result, detail string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if said, ok := w.recipients[addressKey(a)]; ok {
		return said, "as recorded"
	}
	return "known", "supposed"
}

// Unrecorded is how many questions there were to which no answer was recorded.
func (w *World) Unrecorded() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.unrecorded)
}

func addressKey(a policy.Address) string { return strings.ToLower(a.Local) + "@" + a.Domain }
