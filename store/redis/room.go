package redis

import (
	"sync"
	"time"

	"postern/greylist"
	"postern/store"
)

// room is what this gateway has seen of the room for those who wait. The room
// itself is on the server, in as many parts as the correspondences.
type room struct {
	most int

	mu     sync.Mutex
	part   int64 // how many waited in the part that was last seen
	out    uint64
	pushed time.Time // when somebody last had to go
	lived  time.Duration
	should time.Duration // how long it should have lived
	keep   time.Duration // Rule.Window
}

// usualRetry is how long after its delay a server that means it has come back.
const usualRetry = 30 * time.Minute

// note keeps what the script has told of a newcomer.
func (r *room) note(part, gone int64, age time.Duration, c *greylist.Contact) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.part, r.keep = part, c.Rule.Window
	if gone > 0 {
		r.out += uint64(gone)
		r.pushed, r.lived, r.should = c.Time, age, c.Rule.Delay+usualRetry
	}
}

// window returns for how long a first contact is of use.
func (r *room) window() time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.keep == 0 {
		return 1 << 62 // nothing is known yet; the server's expiry decides
	}
	return r.keep
}

// status tells how the room is, from what this gateway has seen of it. All
// parts are about as full as the one last seen.
func (r *room) status(now time.Time) store.Room {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := store.Room{Waiting: int(r.part) * parts, Most: r.most, PushedOut: r.out}
	if !r.pushed.IsZero() && now.Sub(r.pushed) < time.Minute {
		out.Pressed, out.Lives, out.TooShort = true, r.lived, r.lived < r.should
	}
	return out
}
