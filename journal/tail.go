package journal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"postern/internal/adminapi"
	"postern/internal/reference"
	"postern/policy"
)

const (
	// maxTails is how many can listen at one time, tailRoom how many decisions wait
	// for each.
	maxTails = 8
	tailRoom = 1024
	// tailWrite is how long a listener may take to read what has been sent.
	tailWrite = 30 * time.Second
)

// tails are those who listen to decisions as they happen.
type tails struct {
	n   atomic.Int32 // who decides looks at this only
	mu  sync.RWMutex
	all map[*tail]struct{}
	end chan struct{} // closed when nobody may listen any more
}

// tail is one of them. What its room cannot hold is lost, and counted.
type tail struct {
	want *matcher
	room chan *Record
	lost atomic.Uint64
}

var errTooManyTails = fmt.Errorf("%d are listening already", maxTails)

// listen adds a listener until the returned function is called.
func (t *tails) listen(want *matcher) (*tail, func(), error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.all) == maxTails {
		return nil, nil, errTooManyTails
	}
	one := &tail{want: want, room: make(chan *Record, tailRoom)}
	if t.all == nil {
		t.all = make(map[*tail]struct{})
	}
	t.all[one] = struct{}{}
	t.n.Add(1)
	return one, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		delete(t.all, one)
		t.n.Add(-1)
	}, nil
}

// tell hands a decision to those who want it. It does not wait.
func (t *tails) tell(q *policy.Request, d *policy.Decision, ref reference.Ref) {
	var r Record
	r.fill(q, d)
	k := keysOf(&r, ref)
	var kept *Record
	t.mu.RLock()
	defer t.mu.RUnlock()
	for one := range t.all {
		if !one.want.wants(&k) {
			continue
		}
		if len(one.room) == cap(one.room) {
			one.lost.Add(1)
			continue
		}
		if kept == nil {
			kept = r.clone()
			if ref != 0 {
				kept.Decision.Reference = ref.String()
			}
		}
		select {
		case one.room <- kept:
		default:
			one.lost.Add(1)
		}
	}
}

// Heard is a line of a tail: a decision, or how many have been lost before the
// next one.
type Heard struct {
	*Record
	Lost uint64 `json:"lost,omitempty"`
}

// Hush ends all listening.
func (j *Journal) Hush() {
	j.tails.mu.Lock()
	defer j.tails.mu.Unlock()
	select {
	case <-j.tails.end:
	default:
		close(j.tails.end)
	}
}

// serveTail streams decisions, one JSON value a line.
func (j *Journal) serveTail(w http.ResponseWriter, r *http.Request) {
	f, err := filterOf(r)
	if err == nil && (!f.Since.IsZero() || !f.Until.IsZero()) {
		err = errors.New("what happens now has no since and until")
	}
	var want *matcher
	if err == nil {
		want, err = f.matcher(nil)
	}
	if err != nil {
		adminapi.Fail(w, err)
		return
	}
	one, leave, err := j.tails.listen(want)
	if err != nil {
		adminapi.Fail(w, adminapi.Unavailable(err))
		return
	}
	defer leave()
	c := http.NewResponseController(w)
	w.Header().Set("Content-Type", "application/jsonl")
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	flush := func() error {
		_ = c.SetWriteDeadline(time.Now().Add(tailWrite)) // then Flush fails
		return c.Flush()
	}
	if flush() != nil {
		return
	}
	for n := 0; f.Limit == 0 || n < f.Limit; n++ {
		select {
		case rec := <-one.room:
			if lost := one.lost.Swap(0); lost > 0 {
				err = enc.Encode(Heard{Lost: lost})
			}
			err = errors.Join(err, enc.Encode(Heard{Record: rec}))
			if len(one.room) == 0 {
				err = errors.Join(err, flush())
			}
			if err != nil {
				return // it is gone
			}
		case <-j.tails.end:
			return
		case <-r.Context().Done():
			return
		}
	}
}

// Tail calls yield with decisions as they happen, and how many were lost, until
// it returns false, ctx ends or the daemon stops.
func (a Admin) Tail(ctx context.Context, f *Filter, yield func(*Heard) bool) error {
	return adminapi.Each(ctx, a.Client, "/v1/journal/tail?"+f.Values().Encode(), func(h Heard) bool { return yield(&h) })
}
