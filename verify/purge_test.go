package verify

import (
	"context"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/redistest"
	"postern/internal/smtptest"
	"postern/store"
	"postern/store/bolt"
	"postern/store/redis"
)

// stores are one of each kind.
func stores(t *testing.T) map[string]Store {
	t.Helper()
	cfg := store.DefaultConfig()
	cfg.Path = filepath.Join(t.TempDir(), "state.db")
	b, err := bolt.Open(cfg, zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	cfg.Kind, cfg.Redis.Addrs, cfg.Redis.Timeout = store.Redis, []string{redistest.Start(t).Addr()}, conf.Duration(5*time.Second)
	r, err := redis.Open(cfg, "", "", zap.NewNop(), prometheus.NewRegistry())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, s := range []store.Store{b, r} {
			if err := s.Close(context.Background()); err != nil {
				t.Error(err)
			}
		}
	})
	return map[string]Store{"memory": memory(t), "embedded": store.SpaceOf(b, "verify"), "Redis": store.SpaceOf(r, "verify")}
}

// held is a next hop that decides about a recipient, and then keeps the answer
// until it is released.
type held struct {
	*smtptest.Server
	known   atomic.Bool
	asked   chan struct{} // one for each answer that is ready
	release chan struct{} // one for each
}

func hold(t *testing.T) *held {
	h := &held{Server: smtptest.Start(t), asked: make(chan struct{}), release: make(chan struct{})}
	h.OnRcpt(func(string) string {
		reply := "550 5.1.1 no such mailbox"
		if h.known.Load() {
			reply = "250 2.1.5 Ok"
		}
		h.asked <- struct{}{}
		<-h.release
		return reply
	})
	return h
}

// patient waits for the next hop as long as a test may last.
func patient(c *Config) {
	c.PositiveRefresh, c.Wait, c.Timeout = conf.Duration(time.Minute), conf.Duration(50*time.Second), conf.Duration(time.Minute)
	c.Callout.ReplyTimeout, c.Callout.Timeout = conf.Duration(time.Minute), conf.Duration(90*time.Second)
}

// crowded is a store without room.
type crowded struct{ Store }

func (crowded) Count() int { return 1 << 30 }

// The answer to a question that was asked before a purge is not remembered,
// whichever gateway purges, with every store; who asks after the purge does not
// get it, but asks again.
func TestPurgeDuringAProbe(t *testing.T) {
	all := stores(t)
	const address = "x@example.com"
	for _, tt := range []struct {
		name   string
		known  bool // it is remembered, and is being asked about again
		forced bool // by the administrator
		full   bool // there is no room for a lease
		filter Filter
		other  bool // another gateway purges
		left   Result
	}{
		{name: "the first question"},
		{name: "the first question, by another gateway", other: true},
		{name: "one address", filter: Filter{Which: address}},
		{name: "one address, by another gateway", filter: Filter{Which: address}, other: true},
		{name: "a domain", filter: Filter{Which: "@example.com", Negative: true}},
		{name: "a refresh", known: true},
		{name: "a refresh, by another gateway", known: true, other: true},
		{name: "a refresh that the filter leaves", known: true, filter: Filter{Negative: true}, left: Known},
		{name: "a refresh that the filter leaves, by another gateway", known: true, filter: Filter{Negative: true}, other: true, left: Known},
		{name: "without a lease", full: true},
		{name: "by the administrator", forced: true},
		{name: "of something else", filter: Filter{Which: "@example.net"}, left: Unknown},
		{name: "of something else, by another gateway", filter: Filter{Which: "other@example.com"}, other: true, left: Unknown},
	} {
		for kind, st := range all {
			t.Run(tt.name+"/"+kind, func(t *testing.T) {
				h := hold(t)
				cfg := config(h.Server, patient)
				reason, result := reasonUnknown, Unknown
				if tt.full { // what is unknown is not remembered then
					st, reason, result = crowded{st}, reasonKnown, Known
					h.known.Store(true)
				}
				b := &bench{t: t, Check: open(t, cfg, st).Check, store: st}
				if _, err := b.Purge(t.Context(), Filter{}); err != nil { // of the case before
					t.Fatal(err)
				}
				q := &question{route: b.routes.all[0], key: address}
				if tt.known {
					b.update(t.Context(), q, func(Entry) (Entry, bool) { return Entry{Result: Known, At: time.Now().Add(-time.Hour)}, true })
				}
				var wg sync.WaitGroup
				switch {
				case tt.forced:
					wg.Go(func() { _, _ = b.Ask(t.Context(), address) })
				case tt.known:
					b.says(address, reasonKnown) // and asks in the background
				default:
					wg.Go(func() { b.says(address, reason) })
				}
				<-h.asked
				purger := b
				if tt.other {
					purger = open(t, cfg, st)
				}
				if n, err := purger.Purge(t.Context(), tt.filter); err != nil || n > 1 {
					t.Fatal(n, err)
				}
				h.release <- struct{}{}
				wg.Wait()
				b.settle()
				if e := b.remembers(address); e.Result != tt.left || e.Strikes != 0 || e.Holder != "" || e.Error != "" {
					t.Errorf("remembered is %+v, want %q", e, tt.left)
				}
				if tt.left != "" {
					return
				}
				wg.Go(func() { b.says(address, reason) })
				<-h.asked
				h.release <- struct{}{}
				wg.Wait()
				if e := b.remembers(address); e.Result != result {
					t.Errorf("the answer after the purge is not remembered: %+v", e)
				}
			})
		}
	}
}

// A request that comes after the purge, while the old answer is under way, asks
// by itself; the old answer does not take its lease away.
func TestPurgeParts(t *testing.T) {
	for kind, st := range stores(t) {
		t.Run(kind, func(t *testing.T) {
			h := hold(t)
			b := open(t, config(h.Server, patient), st)
			var wg sync.WaitGroup
			wg.Go(func() { b.says("x@example.com", reasonUnknown) })
			<-h.asked
			h.known.Store(true) // the mailbox is made, and the administrator purges
			if _, err := b.Purge(t.Context(), Filter{Which: "x@example.com"}); err != nil {
				t.Fatal(err)
			}
			wg.Go(func() { b.says("x@example.com", reasonKnown) })
			<-h.asked // both are being asked
			if st := b.Status(); st.Pending != 2 {
				t.Errorf("%d are pending", st.Pending)
			}
			h.release <- struct{}{}
			h.release <- struct{}{}
			wg.Wait()
			b.settle()
			if e := b.remembers("x@example.com"); e.Result != Known {
				t.Errorf("remembered is %+v", e)
			}
		})
	}
}
