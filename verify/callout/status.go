package callout

import (
	"slices"
	"strings"
	"time"
)

// Status is how one next hop is.
type Status struct {
	NextHop string `json:"next_hop"`
	// State is "up", "down", "refuses us" or "not asked yet".
	State       string          `json:"state"`
	Asked       uint64          `json:"asked"`
	Failed      uint64          `json:"failed"`
	PerMinute   int             `json:"per_minute"` // asked in the last minute, about
	MeanSeconds float64         `json:"mean_seconds"`
	Connections int             `json:"connections"` // in use
	Idle        int             `json:"idle"`
	Waiting     int             `json:"waiting"`
	LastOK      time.Time       `json:"last_ok,omitzero"`
	LastError   string          `json:"last_error,omitempty"`
	ErrorAt     time.Time       `json:"error_at,omitzero"`
	Until       time.Time       `json:"left_alone_until,omitzero"`
	Alarm       string          `json:"alarm,omitempty"`
	AcceptAll   map[string]bool `json:"accept_all,omitempty"` // by domain: tested, and what came out
}

// Status returns the next hops that have been asked, by name.
func (p *Prober) Status() []Status {
	p.mu.Lock()
	hops := make([]*hop, 0, len(p.hops))
	for _, h := range p.hops {
		hops = append(hops, h)
	}
	p.mu.Unlock()
	now := time.Now()
	out := make([]Status, 0, len(hops))
	for _, h := range hops {
		out = append(out, h.status(now))
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.NextHop, b.NextHop) })
	return out
}

func (h *hop) status(now time.Time) Status {
	h.mu.Lock()
	defer h.mu.Unlock()
	st := &h.health
	out := Status{
		NextHop: h.String(), State: "up", Asked: st.asked, Failed: st.failed, PerMinute: st.perMinute(now), MeanSeconds: st.took.Seconds(),
		Connections: len(h.slots), Idle: len(h.conns), Waiting: h.waiting, LastOK: st.lastOK, LastError: st.lastError, ErrorAt: st.errorAt, Alarm: st.alarm,
	}
	switch {
	case now.Before(st.until) && st.refused:
		out.State, out.Until = "refuses us", st.until
	case now.Before(st.until):
		out.State, out.Until = "down", st.until
	case st.asked == 0:
		out.State = "not asked yet"
	case st.failures > 0:
		out.State = "failing"
	}
	if st.alarm != "" && out.State == "up" {
		out.State = "refuses us"
	}
	for domain, a := range h.accepts {
		if now.Before(a.at) && !a.vain {
			if out.AcceptAll == nil {
				out.AcceptAll = make(map[string]bool)
			}
			out.AcceptAll[domain] = a.all
		}
	}
	return out
}
