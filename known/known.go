// Package known remembers who our users write to: what comes back from there is
// no first contact of a stranger.
//
// It learns from outgoing mail, at the end of a message where the milter door
// sees the content, else at RCPT. Greylisting asks it about mail that it would
// delay. Mail that somebody expects is remembered here too.
package known

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Check learns whom our users write to. It never objects. It is safe for
// concurrent use.
type Check struct {
	cfg        Config
	shared     *shared
	stores     Stores
	delimiters string
	watched    func(client *policy.Client, server netip.Addr) (open, content bool)
	expected   func()
	log        *zap.Logger
	*learned

	queue chan lesson
	once  sync.Once
	stop  chan struct{}
	done  sync.WaitGroup
}

var _ policy.Idler = (*Check)(nil)

// Options are what a check needs besides its settings.
type Options struct {
	Stores Stores
	// Delimiters part an extension from the user in an address.
	Delimiters string
	// Watched reports whether the milter door has a session open for a client
	// and is shown the content of its messages; nil: it never is.
	Watched func(client *policy.Client, server netip.Addr) (open, content bool)
	// Expected is called when mail is expected from now on; nil: nobody cares.
	Expected func()
	Log      *zap.Logger
	Metrics  prometheus.Registerer
}

// New returns a check on validated settings. prev, which may be nil, hands on
// what it remembers.
func New(cfg Config, o Options, prev *Check) (*Check, error) {
	s, err := newShared(&cfg)
	if err != nil {
		return nil, err
	}
	c := &Check{
		cfg: cfg, shared: s, stores: o.Stores, delimiters: o.Delimiters, watched: o.Watched, expected: o.Expected, log: o.Log.Named("known"),
		queue: make(chan lesson, queueSize), stop: make(chan struct{}),
	}
	if prev != nil {
		c.learned = prev.learned
	} else {
		c.learned = newLearned(o.Metrics, o.Stores)
	}
	return c, nil
}

// Name implements [policy.Check].
func (*Check) Name() string { return "known" }

// Traits are those of every such check: the recipient is known.
var Traits = policy.Traits{Stages: policy.Stages(policy.StageRcpt)}

// Traits implements [policy.Check].
func (*Check) Traits() policy.Traits { return Traits }

// Idle implements [policy.Idler].
func (c *Check) Idle() bool { return !c.cfg.learns() }

// Reasons.
const (
	reasonLearned   = "known-learned"   // the recipient is a correspondent
	reasonAtEnd     = "known-at-end"    // will be, when the message has been seen
	reasonAutomatic = "known-automatic" // the message was not written by a person
)

// Evaluate implements [policy.Check]. A message that the milter door will see
// is learned from there, when its content is known.
func (c *Check) Evaluate(_ context.Context, req *policy.Request) (policy.Verdict, error) {
	why := c.own(req)
	if why == "" {
		if req.Probe != nil {
			req.Probe.Add("learns", "nothing: not mail of our users", "", 0)
		}
		return policy.Verdict{}, nil
	}
	l, ok := c.lesson(req, req.Recipient)
	if !ok {
		if req.Probe != nil {
			req.Probe.Add("learns", "nothing: no correspondence of two people", "", 0)
		}
		return policy.Verdict{}, nil
	}
	if req.Probe != nil {
		req.Probe.Add("learns", l.user+" writes to "+l.outside+" ("+why+")", "", 0)
	}
	if c.watched != nil {
		if _, content := c.watched(&req.Client, req.ServerAddr); content || req.Door == "milter" {
			return policy.Verdict{Reason: reasonAtEnd}, nil
		}
	}
	if !req.DryRun {
		c.note(l)
	}
	return policy.Verdict{Reason: reasonLearned, Detail: why}, nil
}

// own says what makes a request one of our users' mail, "" when nothing does.
// A client's certificate does not: Postfix trusts one of any public authority
// if it is told to, and the sender is the stranger's word.
func (c *Check) own(req *policy.Request) string {
	switch {
	case c.cfg.Authenticated && req.SASL.Username != "":
		return "login " + req.SASL.Username
	case c.inNetworks(req.Client.Addr):
		return "network"
	case len(c.cfg.Chains) > 0:
		chain := req.Context
		if chain == "" {
			chain = req.Chain
		}
		if slices.Contains(c.cfg.Chains, chain) {
			return "chain " + chain
		}
	}
	return ""
}

func (c *Check) inNetworks(addr netip.Addr) bool {
	for _, p := range c.cfg.OwnNetworks {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}

// lesson is one thing to learn: a user of ours has written there.
type lesson struct {
	user, outside string // as [mailaddr.Correspondent] has them, both with a domain
	at            time.Time
}

// lesson returns what a message of our users to a recipient teaches; false for
// nothing.
func (c *Check) lesson(req *policy.Request, to policy.Address) (l lesson, ok bool) {
	if req.NullSender() || slices.ContainsFunc(c.cfg.OwnProbes, func(s string) bool { return strings.EqualFold(s, req.Sender.Raw) }) {
		return l, false
	}
	return c.pair(req.Sender, to, req.Time)
}

// pair is lesson for addresses.
func (c *Check) pair(sender, to policy.Address, at time.Time) (l lesson, ok bool) {
	if sender.Domain == "" || to.Domain == "" || sender.Domain == to.Domain || to.Local == "" || literal(to.Domain) || literal(sender.Domain) ||
		len(sender.Raw) > maxAddress || len(to.Raw) > maxAddress || !c.cfg.ownDomain(sender.Domain) {
		return l, false
	}
	l = lesson{mailaddr.Correspondent(sender, c.delimiters), mailaddr.Correspondent(to, c.delimiters), at}
	local := strings.TrimSuffix(l.user, "@"+sender.Domain)
	return l, !machine(local) && !strings.ContainsAny(l.user+l.outside, "\n\x00")
}

// maxAddress is the most bytes of an address (RFC 5321 section 4.5.3.1: a path
// has 256, two of them brackets).
const maxAddress = 254

func literal(domain string) bool { return strings.HasPrefix(domain, "[") }

// machine reports whether a local part, in the compared form, is one that
// programs send with: nobody reads what comes back, or a stranger can have it
// write to him.
func machine(local string) bool {
	switch local {
	case "", "mailer-daemon", "postmaster", "double-bounce", "bounce", "bounces", "noreply", "no-reply", "no_reply", "donotreply", "do-not-reply",
		"nobody", "daemon", "listserv", "majordomo", "mailman", "autoreply", "auto-reply", "vacation":
		return true
	}
	for _, p := range [...]string{"owner-", "bounce-", "bounces-", "noreply-", "no-reply-", "srs0=", "srs1="} {
		if strings.HasPrefix(local, p) {
			return true
		}
	}
	for _, s := range [...]string{"-request", "-bounces", "-bounce", "-owner", "-noreply", "-no-reply"} {
		if strings.HasSuffix(local, s) {
			return true
		}
	}
	return strings.Contains(local, "#") // the number of a message
}
