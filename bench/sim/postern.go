package main

import (
	"context"
	"fmt"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/conf"
	"postern/names"
	"postern/policy"
	"postern/store/mem"
)

// change is one of a profile's settings.
type change struct {
	words string
	make  func(*greylist.Config)
}

func knownAfter(n int) change {
	return change{fmt.Sprintf("known_after=%d", n), func(c *greylist.Config) { c.KnownAfter = n }}
}

// ours makes the real check with a profile and changes of its settings.
func ours(profile string, changes ...change) func(*names.Judge) filter {
	called := "postern " + profile
	for _, c := range changes {
		called = profile + ", " + c.words
	}
	return func(j *names.Judge) filter {
		cfg := greylist.ProfileConfig(profile)
		for _, c := range changes {
			c.make(&cfg)
		}
		return newPostern(called, j, cfg)
	}
}

// postern is the real check over the real memory store.
type postern struct {
	called string
	check  *greylist.Check
	store  *mem.Store
	req    policy.Request
}

func newPostern(called string, judge *names.Judge, cfg greylist.Config) *postern {
	store := mem.New(10_000_000, 1_000_000)
	return &postern{called: called, store: store, check: newCheck(store, judge, cfg)}
}

func newCheck(store *mem.Store, judge *names.Judge, cfg greylist.Config) *greylist.Check {
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
	req.Facts.SPF, req.Facts.ListsAsked = m.spf, true
	switch m.spf.Result {
	case "fail", "softfail", "neutral", "permerror":
		req.Facts.Mark("spf-" + m.spf.Result)
	}
	if h.minor {
		req.Facts.RBLScore = 1
		req.Facts.Listings = append(req.Facts.Listings, policy.Listing{List: "minor.example", What: h.addr.String(), Weight: 1})
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
