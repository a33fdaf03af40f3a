package provider

import (
	"context"
	"math/rand/v2"
	"time"
)

// due says when the records are to be read again: when the shortest TTL ends,
// within refresh_min and refresh_every, up to a tenth earlier so that nodes
// and lists do not ask all at once. It is never later than refresh_every.
func (l *list) due(checked, now time.Time) time.Time {
	if checked.After(now) {
		checked = now // the clock was set back
	}
	d := min(max(l.doc.TTL, l.all.RefreshMin.D()), l.all.RefreshEvery.D())
	return checked.Add(d - rand.N(d/10+1))
}

// backoff is the pause after so many failures in a row.
func (l *list) backoff(failures int) time.Duration {
	d := l.all.RetryMin.D()
	for range failures - 1 {
		if d *= 2; d >= l.all.RetryMax.D() {
			d = l.all.RetryMax.D()
			break
		}
	}
	return d - rand.N(d/4+1)
}

// schedule sets the time of the next reading.
func (l *list) schedule(at time.Time) {
	l.mu.Lock()
	l.next = at
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// run keeps the list right until ctx ends.
func (l *list) run(ctx context.Context) {
	l.mu.Lock()
	if l.next.IsZero() {
		l.next = time.Now()
	} else if first := time.Now().Add(rand.N(startSpread)); l.next.Before(first) {
		l.next = first // there is a list: no hurry
	}
	l.mu.Unlock()
	l.export()
	refresh := time.NewTimer(0)
	defer refresh.Stop()
	files, peers := never, never
	if len(l.cfg.Files) > 0 {
		t := time.NewTicker(l.all.ReloadInterval.D())
		defer t.Stop()
		files = t.C
	}
	if l.shared != nil && len(l.domains) > 0 {
		t := time.NewTicker(sharedPoll)
		defer t.Stop()
		peers = t.C
	}
	for {
		if len(l.domains) > 0 {
			l.mu.Lock()
			refresh.Reset(time.Until(l.next))
			l.mu.Unlock()
		} else {
			refresh.Stop()
		}
		select {
		case <-ctx.Done():
			return
		case <-l.wake:
		case <-files:
			l.poll(ctx, time.Now())
		case <-peers:
			l.follow(ctx)
		case <-refresh.C:
			if l.shared != nil {
				l.turn(ctx)
			} else {
				_, _ = l.refresh(ctx) // it logs, counts and schedules
			}
		}
	}
}

var never <-chan time.Time

// startSpread is the time over which the first readings of lists that are
// there already are spread after a start.
const startSpread = 30 * time.Second

// poll looks at the files and reads them again when they have changed.
func (l *list) poll(ctx context.Context, now time.Time) {
	l.mu.Lock()
	due := false
	for i, path := range l.cfg.Files {
		due = due || l.tracks[i].Due(path, now)
	}
	l.mu.Unlock()
	if due {
		_ = l.reload(ctx, false) // it logs and counts
	}
}
