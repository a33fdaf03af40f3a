package callout

import (
	"fmt"
	"sync"
	"time"

	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// hop is what is known of one next hop.
type hop struct {
	Hop
	slots chan struct{} // connections
	rate  *rate.Limiter

	mu      sync.Mutex
	waiting int
	limit   int // of waiting
	conns   []*connection
	health  health
	accepts map[string]acceptance // by domain
	senders map[string]string     // by configured sender: the one that works
}

type acceptance struct {
	all  bool
	vain bool // the test told nothing
	at   time.Time
}

// health is how a next hop has been lately.
type health struct {
	failures  int       // in a row
	until     time.Time // left alone until then
	refused   bool      // because it refuses us
	lastError string
	errorAt   time.Time
	lastOK    time.Time
	alarm     string // what it refuses us with
	alarmAt   time.Time
	asked     uint64
	failed    uint64
	took      time.Duration // rolling mean of an answer
	minute    [2]int        // asked in this minute and the one before
	minuteAt  time.Time     // when this one began
}

// tick begins a new minute when it is time.
func (st *health) tick(now time.Time) {
	switch past := now.Sub(st.minuteAt); {
	case past >= 2*time.Minute || past < 0:
		st.minute, st.minuteAt = [2]int{}, now
	case past >= time.Minute:
		st.minute, st.minuteAt = [2]int{0, st.minute[0]}, st.minuteAt.Add(time.Minute)
	}
}

// perMinute is about how many were asked in the last 60 seconds.
func (st *health) perMinute(now time.Time) int {
	st.tick(now)
	left := time.Minute - now.Sub(st.minuteAt)
	return st.minute[0] + int(int64(st.minute[1])*int64(left)/int64(time.Minute))
}

func newHop(h Hop, cfg *Config) *hop {
	return &hop{
		Hop: h, slots: make(chan struct{}, cfg.Connections), limit: cfg.Queue,
		rate: rate.NewLimiter(rate.Limit(cfg.Rate), cfg.Burst),
	}
}

func (p *Prober) hop(h Hop) *hop {
	key := h.String()
	p.mu.Lock()
	defer p.mu.Unlock()
	state := p.hops[key]
	if state == nil {
		if len(p.hops) >= maxHopStates {
			for k, old := range p.hops { // any that is at rest
				if old.atRest() {
					delete(p.hops, k)
					break
				}
			}
		}
		state = newHop(h, &p.cfg)
		p.hops[key] = state
	}
	return state
}

func (h *hop) atRest() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.waiting == 0 && len(h.slots) == 0 && len(h.conns) == 0
}

// leftAlone says why the next hop is not to be asked now.
func (h *hop) leftAlone(now time.Time) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !now.Before(h.health.until) {
		return nil
	}
	if h.health.refused {
		return fmt.Errorf("%w: %s", errRefusedPause, h.health.lastError)
	}
	return fmt.Errorf("the next hop is down: %s", h.health.lastError)
}

// note keeps what a result says of the next hop, and logs when it changes.
func (h *hop) note(p *Prober, res *Result, began time.Time) {
	now := time.Now()
	h.mu.Lock()
	st := &h.health
	st.asked++
	st.tick(now)
	st.minute[0]++
	was := st.failures
	alarm := Alarm(res.Stage, res.Reply) && res.Class != Undecided
	down, back := false, false
	if res.Class == Down {
		st.failed++
		st.failures++
		if st.refused {
			st.until = time.Time{} // that pause was for another reason
		}
		st.lastError, st.errorAt, st.refused = res.Stage.String()+": "+res.Text(), now, false
		if p.cfg.DownAfter > 0 && st.failures >= p.cfg.DownAfter {
			down = st.failures == p.cfg.DownAfter
			st.until = now.Add(p.cfg.DownPause.D())
		}
	} else {
		back = p.cfg.DownAfter > 0 && was >= p.cfg.DownAfter
		st.failures, st.lastOK, st.until = 0, now, time.Time{}
		st.took += (now.Sub(began) - st.took) / 8
	}
	loud := false
	if alarm {
		loud = now.Sub(st.alarmAt) > p.cfg.RefusedPause.D()
		st.alarm = res.Stage.String() + ": " + res.Reply.String()
		if loud {
			st.alarmAt = now
		}
		if res.Stage < StageRcpt { // it is not about one address
			st.until, st.refused = now.Add(p.cfg.RefusedPause.D()), res.Class == Refused
			st.lastError, st.errorAt = st.alarm, now
		}
	} else if res.Class == Known || res.Class == Unknown || res.Class == AcceptAll {
		st.alarm = ""
	}
	h.mu.Unlock()
	fields := []zap.Field{zap.String("next_hop", res.Hop), zap.String("host", res.Host), zap.Stringer("stage", res.Stage), zap.String("answer", res.Text())}
	switch {
	case loud:
		p.log.Error("the next hop refuses this host's probes: recipients cannot be verified there", fields...)
	case down:
		p.log.Error("the next hop is down", fields...)
	case back:
		p.log.Info("the next hop is back", fields...)
	}
}
