package provider

import (
	"context"
	"errors"
	"time"

	"go.uber.org/zap"
)

// Shared is where the nodes of a fleet keep their lists in common. A node that
// cannot reach it goes on alone. All methods return by ctx's deadline and are
// safe for concurrent use. Documents are opaque and have at most 64 MiB; those
// of the large providers have some ten KiB.
type Shared interface {
	// LoadProvider returns the document of a list and its serial if that is
	// more than newer; else nil, or when there is none.
	LoadProvider(ctx context.Context, list string, newer uint64) (doc []byte, serial uint64, err error)
	// SaveProvider keeps the document of a list in one step, unless there is
	// one whose serial is not less. It reports whether it was kept.
	SaveProvider(ctx context.Context, list string, doc []byte, serial uint64) (bool, error)
	// LeaseProvider makes node the one that reads the records of a list, for
	// so long, and reports whether it is. Who has the lease may renew it.
	LeaseProvider(ctx context.Context, list, node string, d time.Duration) (bool, error)
}

const (
	// sharedPoll is how often a node looks for a list that another has read.
	sharedPoll = time.Minute
	// sharedFirst is how often it looks while it has no list at all and
	// another is reading the records.
	sharedFirst = 2 * time.Second
	// sharedTimeout bounds one operation of the shared store.
	sharedTimeout = 5 * time.Second
)

// lease is how long a node may take to read the records and publish them.
func (l *list) lease() time.Duration { return l.all.RefreshTimeout.D() + 2*sharedTimeout }

// turn is a node's time to read the records: it takes what another node has
// read meanwhile, else it reads them itself unless another is at it.
func (l *list) turn(ctx context.Context) {
	l.follow(ctx)
	l.mu.Lock()
	due := !l.next.After(time.Now())
	l.mu.Unlock()
	if !due {
		return
	}
	c, cancel := context.WithTimeout(ctx, sharedTimeout)
	mine, err := l.shared.LeaseProvider(c, l.cfg.Name, l.node, l.lease())
	cancel()
	if err != nil {
		l.alone(err)
	} else if !mine {
		pause := l.lease()
		if l.snap.Load() == nil {
			pause = sharedFirst
		}
		l.schedule(time.Now().Add(pause))
		return
	}
	_, _ = l.refresh(ctx) // it logs, counts and schedules
}

// alone notes that the shared store cannot be used: the node goes on by itself.
func (l *list) alone(err error) {
	l.log.Warn("the shared store cannot be used for this list; this node goes on alone", zap.Error(err))
}

// follow takes a newer list of another node.
func (l *list) follow(ctx context.Context) {
	if err := l.take(ctx); err != nil {
		return // we are being stopped
	}
	defer l.release()
	l.mu.Lock()
	own := max(l.doc.Serial, l.seen)
	l.mu.Unlock()
	c, cancel := context.WithTimeout(ctx, sharedTimeout)
	text, serial, err := l.shared.LoadProvider(c, l.cfg.Name, own)
	cancel()
	switch {
	case err != nil:
		if ctx.Err() == nil {
			l.alone(err)
		}
		return
	case text == nil:
		return
	}
	d, err := decode(text, l.cfg.Name, l.source)
	switch {
	case errors.Is(err, errOther):
		l.log.Warn("the list in the shared store is of other records: the nodes have different configurations")
		return
	case err != nil:
		l.log.Error("the list in the shared store cannot be used", zap.Error(err))
		return
	case d.Serial != serial || d.Serial <= own:
		return
	}
	l.mu.Lock()
	l.seen = serial
	l.mu.Unlock()
	l.fromPeer(d)
}

// fromPeer takes a document of another node, within our own guards unless an
// operator has accepted it there.
func (l *list) fromPeer(d *document) {
	now := time.Now()
	l.mu.Lock()
	was := prefixesOf(l.doc.Entries)
	first := l.doc.Serial == 0
	pending := l.doc.Pending
	l.mu.Unlock()
	is := prefixesOf(d.Entries)
	diff, id := diffOf(was, is), idOf(is)
	if d.How != ByHand {
		why := l.guard.absolute(is, l.cfg.AllowReserved)
		if !first && !diff.Empty() {
			why = append(why, l.guard.change(was, is)...)
		}
		if len(why) > 0 {
			rep := Report{List: l.cfg.Name, Reasons: why, ID: id, Networks: len(is), Diff: diff}
			l.refused(&reading{entries: d.Entries, records: d.Records, problems: d.Problems, ttl: d.TTL}, &rep, now)
			l.metrics.count(resultRefused)
			l.show()
			l.save()
			return
		}
	}
	d.Pending = nil
	if pending != nil && pending.ID != id && diff.Empty() {
		d.Pending = pending // the other node has not seen it
	}
	if diff.Empty() && !first {
		l.mu.Lock()
		d.Version, d.Name, d.Source = documentVersion, l.cfg.Name, l.source
		l.doc = *d
		l.mu.Unlock()
		l.install()
	} else {
		l.adopt(*d, diff, id, now)
		l.metrics.count(resultAdopted)
	}
	l.mu.Lock()
	l.failures = 0
	next := l.due(d.Checked, now)
	l.mu.Unlock()
	l.schedule(next)
	l.show()
	l.save()
	l.export()
}

// publish gives our list to the other nodes.
func (l *list) publish(ctx context.Context) {
	l.mu.Lock()
	doc := l.doc
	l.mu.Unlock()
	doc.Pending = nil
	if doc.Serial == 0 {
		return
	}
	text, err := doc.encode()
	if err == nil {
		c, cancel := context.WithTimeout(ctx, sharedTimeout)
		_, err = l.shared.SaveProvider(c, l.cfg.Name, text, doc.Serial)
		cancel()
	}
	if err != nil && ctx.Err() == nil {
		l.alone(err)
	}
}
