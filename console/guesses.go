package console

import (
	"net/netip"
	"sync"
	"time"
)

// guesses counts failed logins by the network they come from and by the name
// they are for, and says how long the next one has to wait.
type guesses struct {
	mu sync.Mutex
	by map[string]*guess
}

type guess struct {
	n    int
	last time.Time
}

const (
	// freeGuesses may be wrong without a wait; each further one doubles it.
	freeGuesses = 5
	// maxWait is the longest wait of a network, maxNameWait that of a name:
	// others must not be able to keep a user out for long.
	maxWait     = 15 * time.Minute
	maxNameWait = 20 * time.Second
	// forgetGuesses is after how long without one they are forgotten.
	forgetGuesses = time.Hour
	// maxGuesses is how many networks and names are counted.
	maxGuesses = 20_000
)

func (g *guess) wait(most time.Duration) time.Duration {
	if g.n < freeGuesses {
		return 0
	}
	return min(time.Second<<min(g.n-freeGuesses, 20), most)
}

func networkOf(addr netip.Addr) string {
	bits := 32
	if addr.Is6() {
		bits = 64
	}
	p, err := addr.Prefix(bits)
	if err != nil {
		return "address unknown"
	}
	return "address " + p.String()
}

// wait returns how long a login has to wait, 0 when it can be tried.
func (g *guesses) wait(addr netip.Addr, name string, now time.Time) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	left := func(key string, most time.Duration) time.Duration {
		one := g.by[key]
		if one == nil {
			return 0
		}
		return one.last.Add(one.wait(most)).Sub(now)
	}
	return max(left(networkOf(addr), maxWait), left("name "+name, maxNameWait), 0)
}

// failed counts a wrong login.
func (g *guesses) failed(addr netip.Addr, name string, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.by == nil {
		g.by = make(map[string]*guess)
	}
	for _, key := range []string{networkOf(addr), "name " + name} {
		one := g.by[key]
		if one == nil {
			if len(g.by) >= maxGuesses {
				g.makeRoom(now)
			}
			one = &guess{}
			g.by[key] = one
		}
		if now.Sub(one.last) > forgetGuesses {
			one.n = 0
		}
		one.n++
		one.last = now
	}
}

// makeRoom forgets what is old, and if that is not enough whoever has guessed
// least.
func (g *guesses) makeRoom(now time.Time) {
	for key, one := range g.by {
		if now.Sub(one.last) > forgetGuesses {
			delete(g.by, key)
		}
	}
	for n := 1; len(g.by) >= maxGuesses; n *= 2 {
		for key, one := range g.by {
			if one.n <= n {
				delete(g.by, key)
			}
		}
	}
}

// succeeded forgets what was counted against a network and a name.
func (g *guesses) succeeded(addr netip.Addr, name string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	delete(g.by, networkOf(addr))
	delete(g.by, "name "+name)
}
