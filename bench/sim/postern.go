package main

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/conf"
	"postern/names"
	"postern/policy"
	"postern/store/mem"
)

// Profiles are changes of the default settings.
func strict(*greylist.Config)      {}
func strictOne(c *greylist.Config) { c.KnownAfter = 1 }
func gentle(c *greylist.Config)    { c.When = greylist.Suspicious }

// postern is the real check over the real memory store.
type postern struct {
	called string
	check  *greylist.Check
	store  *mem.Store
	req    policy.Request
}

func newPostern(called string, judge *names.Judge, edit func(*greylist.Config)) *postern {
	store := mem.New(10_000_000, 1_000_000)
	return &postern{called: called, store: store, check: newCheck(store, judge, edit)}
}

func newCheck(store *mem.Store, judge *names.Judge, edit func(*greylist.Config)) *greylist.Check {
	cfg := greylist.DefaultConfig()
	edit(&cfg)
	var fs conf.Faults
	cfg.Validate("greylist", &fs)
	if err := fs.Err(); err != nil {
		panic(err) // a profile of ours
	}
	check, err := greylist.New(cfg, greylist.Options{
		Hostname: "mx.example.net", Store: store, Admin: store, Names: judge, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		panic(err)
	}
	return check
}

func (p *postern) name() string { return p.called }

func (p *postern) close() {
	p.check.Stop()
	_ = p.store.Close(context.Background()) // nothing is pending
}

// request fills in what Postfix would say and what the checks before would
// have found.
func request(req *policy.Request, a *attempt) {
	h, m := a.from, a.msg
	facts := &req.Facts
	facts.Reset()
	*req = policy.Request{
		Time: a.at, Stage: policy.StageRcpt, Door: "policy", ESMTP: true, Helo: h.helo, Sender: m.from, Recipient: m.to, Facts: *facts,
		Client: policy.Client{Addr: h.addr, Name: h.name, ReverseName: h.name},
	}
	req.Facts.SPF = m.spf
	switch m.spf.Result {
	case "fail", "softfail", "neutral", "permerror":
		req.Facts.Mark("spf-" + m.spf.Result)
	}
	if h.minor {
		req.Facts.RBLScore = 1
		req.Facts.Mark("rbl-listed")
	}
	if h.name == "" {
		req.Facts.Mark("client-reverse-missing")
	} else if h.generic {
		req.Facts.Mark("client-reverse-generic")
	}
	if h.badHelo {
		req.Facts.Mark("client-helo-unresolved")
	}
}

func (p *postern) pass(a *attempt) bool {
	request(&p.req, a)
	return !evaluate(p.check, &p.req).Action.Refuses()
}

// evaluate asks the check as the pipeline does: first for a hint.
func evaluate(check *greylist.Check, req *policy.Request) policy.Verdict {
	if v, early := check.Hint(req); early {
		return v
	}
	v, err := check.Evaluate(context.Background(), req)
	if err != nil {
		panic(err) // memory does not fail
	}
	return v
}

// recordSize is what a record takes beside its text: times and counters.
const recordSize = 48

func (p *postern) size(now time.Time) (records, bytes int) { return storeSize(p.store, now) }

func storeSize(store *mem.Store, now time.Time) (records, bytes int) {
	err := store.ListGreylist(context.Background(), greylist.Filter{}, now, func(e greylist.Entry) bool {
		records++
		bytes += recordSize + len(e.Match) + len(e.Credit) + len(e.Sender) + len(e.Recipient)
		return true
	})
	if err != nil {
		panic(err)
	}
	return records, bytes
}

// balanced is the rule of a profile that greylist does not have yet, made of
// real checks over one store: what speaks against a client decides how long it
// waits. Nothing: not at all. One mark: delay. Two, or a burst of
// correspondences from a network in which nobody has credit: long.
type balanced struct {
	none, short, long *greylist.Check
	store             *mem.Store
	req               policy.Request
	networks          map[[3]byte]*network
}

// network is what is known of one.
type network struct {
	pairs map[string]int64 // correspondence, when last tried
	known int64            // when somebody with credit last came from there
}

const (
	longDelay   = 40 * time.Minute
	burstPairs  = 3
	burstWithin = 6 * time.Hour
)

func newBalanced(judge *names.Judge) *balanced {
	store := mem.New(10_000_000, 1_000_000)
	delay := func(d time.Duration) *greylist.Check {
		return newCheck(store, judge, func(c *greylist.Config) { c.Delay = conf.Duration(d) })
	}
	return &balanced{store: store, networks: make(map[[3]byte]*network), none: delay(0), short: delay(2 * time.Minute), long: delay(longDelay)}
}

func (b *balanced) name() string { return "balanced (prototype)" }

func (b *balanced) close() {
	b.none.Stop()
	b.short.Stop()
	b.long.Stop()
	_ = b.store.Close(context.Background()) // nothing is pending
}

func (b *balanced) pass(a *attempt) bool {
	request(&b.req, a)
	net := b.networks[classC(a.from.addr)]
	if net == nil {
		net = &network{pairs: make(map[string]int64)}
		b.networks[classC(a.from.addr)] = net
	}
	check := b.none
	switch marks := len(b.req.Facts.Marks); {
	case marks >= 2 || net.burst(a):
		check = b.long
	case marks == 1:
		check = b.short
	}
	v := evaluate(check, &b.req)
	if v.Reason == "greylist-known-client" {
		net.known = a.at.UnixMilli()
	}
	return !v.Action.Refuses()
}

// burst notes a correspondence and reports whether its network has tried too
// many of late.
func (n *network) burst(a *attempt) bool {
	now := a.at.UnixMilli()
	if n.known != 0 && now-n.known <= (36*day).Milliseconds() {
		return false
	}
	n.pairs[a.msg.from.Domain+" "+a.msg.to.Raw] = now
	if len(n.pairs) <= burstPairs {
		return false
	}
	for pair, last := range n.pairs {
		if now-last > burstWithin.Milliseconds() {
			delete(n.pairs, pair)
		}
	}
	return len(n.pairs) > burstPairs
}

func (b *balanced) size(now time.Time) (records, bytes int) { return storeSize(b.store, now) }
