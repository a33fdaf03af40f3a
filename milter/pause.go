package milter

import (
	"context"
	"net/netip"
	"time"

	gomilter "github.com/d--j/go-milter"
)

// knownTime is how long it may take to find out whether a client is known.
const knownTime = time.Second

// pause keeps the greeting of a client back that is not known good: Postfix
// greets when the connect event has been answered.
func (s *session) pause(m gomilter.Modifier) {
	d, addr := s.door, s.req.Client.Addr
	cfg := d.cfg.Load()
	if cfg.GreetPause == 0 || !addr.IsValid() || s.steps&gomilter.OptNoConnReply != 0 || cfg.greetAtOnce(addr) {
		return
	}
	if d.o.Known != nil {
		ctx, cancel := context.WithTimeout(d.ctx, knownTime)
		known := d.o.Known(ctx, s.req.Client)
		cancel()
		if known {
			return
		}
	}
	if int(d.paused.Add(1)) > cfg.GreetPauseMax {
		d.paused.Add(-1)
		d.metrics.pauses.full.Inc()
		return
	}
	d.metrics.paused.Inc()
	defer func() {
		d.paused.Add(-1)
		d.metrics.paused.Dec()
	}()
	end := time.NewTimer(cfg.GreetPause.D())
	defer end.Stop()
	sign := time.NewTicker(aliveEvery)
	defer sign.Stop()
	for {
		select {
		case <-end.C:
			d.metrics.pauses.whole.Inc()
			return
		case <-d.ctx.Done():
			d.metrics.pauses.cut.Inc()
			return
		case <-sign.C:
			if m.Version() >= 6 && m.Progress() != nil {
				d.metrics.pauses.cut.Inc()
				return // nobody waits any more
			}
		}
	}
}

func (c *Config) greetAtOnce(addr netip.Addr) bool {
	for _, p := range c.GreetPauseExcept {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
