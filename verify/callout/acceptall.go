package callout

import (
	"time"

	"go.uber.org/zap"
)

// acceptAll returns whether the next hop takes every address of the domain;
// nil when that is not known.
func (h *hop) acceptAll(domain string, now time.Time) *bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, ok := h.accepts[domain]
	if !ok || a.vain || !now.Before(a.at) {
		return nil
	}
	return &a.all
}

// untested reports whether it is time to find out.
func (h *hop) untested(domain string, now time.Time) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	a, ok := h.accepts[domain]
	return !ok || !now.Before(a.at)
}

// vainPause is how long a test that told nothing is not repeated: each shows
// the next hop one more address that nobody has.
const vainPause = 10 * time.Minute

func (h *hop) testedInVain(p *Prober, domain string) {
	if h.untested(domain, time.Now()) {
		h.remember(domain, acceptance{vain: true, at: time.Now().Add(min(vainPause, p.cfg.AcceptAllKeep.D()))})
	}
}

func (h *hop) remember(domain string, a acceptance) (old acceptance) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.accepts == nil {
		h.accepts = make(map[string]acceptance)
	}
	old = h.accepts[domain]
	if len(h.accepts) >= maxDomains {
		clear(h.accepts)
	}
	h.accepts[domain] = a
	return old
}

// maxDomains bounds the domains remembered of one next hop.
const maxDomains = 100_000

func (h *hop) setAcceptAll(p *Prober, domain string, all bool) {
	// at is the end: a check that changes its settings asks anew soon enough.
	old := h.remember(domain, acceptance{all: all, at: time.Now().Add(p.cfg.AcceptAllKeep.D())})
	switch {
	case all && !old.all:
		p.log.Warn("the next hop takes every address of a domain: its recipients cannot be verified",
			zap.String("next_hop", h.String()), zap.String("domain", domain))
	case !all && old.all:
		p.log.Info("the next hop does tell unknown recipients of a domain now", zap.String("next_hop", h.String()), zap.String("domain", domain))
	}
}

// AcceptsAll reports whether one of the hops is known to take every address
// of the domain. It does no I/O.
func (p *Prober) AcceptsAll(hops []Hop, domain string, now time.Time) bool {
	for _, h := range hops {
		p.mu.Lock()
		state := p.hops[h.String()]
		p.mu.Unlock()
		if state == nil {
			continue
		}
		if a := state.acceptAll(domain, now); a != nil {
			return *a
		}
	}
	return false
}
