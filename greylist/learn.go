package greylist

import (
	"context"
	"errors"
	"hash/maphash"
	"net/netip"
	"sync"
	"time"

	"postern/internal/mailaddr"
	"postern/policy"
)

// Past is mail that was accepted before, as a log or another program tells of
// it. Without a recipient it tells of a sending side: that it has passed.
type Past struct {
	Time      time.Time  `json:"time"`
	Client    netip.Addr `json:"client"`
	Name      string     `json:"client_name,omitempty"` // verified
	Sender    string     `json:"sender"`
	Recipient string     `json:"recipient,omitempty"`
	// Passes and First are of a sending side: how often it has passed, and when
	// it was first seen. Without a sender it is the domain of its own name.
	Passes int       `json:"passes,omitempty"`
	First  time.Time `json:"first,omitzero"`
}

// Learned counts what became of past mail.
type Learned struct {
	Taken   int `json:"taken"`
	Known   int `json:"known"`    // the triplet or its side was known before
	Exempt  int `json:"exempt"`   // not greylisted: exceptions, logins, bounces
	TooOld  int `json:"too_old"`  // longer ago than keep
	Unknown int `json:"no_match"` // nobody who could be recognised
}

// Add adds counts.
func (l *Learned) Add(m Learned) {
	l.Taken += m.Taken
	l.Known += m.Known
	l.Exempt += m.Exempt
	l.TooOld += m.TooOld
	l.Unknown += m.Unknown
}

// Bounds of what is learned at once.
const (
	MaxPast      = 500       // in one call
	maxMemory    = 4_000_000 // triplets and sides in one session
	maxPastBytes = 1 << 20
)

// errLearned means that a session has more than is remembered of one.
var errLearned = errors.New("too much for one session: learn the logs in several")

// lessons remembers who was known before a session began, so that the past
// does not make the present older.
type lessons struct {
	mu      sync.Mutex
	seed    maphash.Seed
	session string
	known   map[uint64]bool
}

// before reports whether a key was known before the session; peek is asked
// once a session.
func (l *lessons) before(session, key string, peek func() (bool, error)) (bool, error) {
	if l.session != session || l.known == nil {
		l.seed, l.session, l.known = maphash.MakeSeed(), session, make(map[uint64]bool)
	}
	sum := maphash.String(l.seed, key)
	if known, ok := l.known[sum]; ok {
		return known, nil
	}
	if len(l.known) >= maxMemory {
		return false, errLearned
	}
	known, err := peek()
	if err == nil {
		l.known[sum] = known
	}
	return known, err
}

// Learn has mail of the past pass as if the greylist had been there, so that
// those who have written before are not delayed. Past mail comes in the order of its
// time; calls of one session are about the same logs. What the store knows
// already stays as it is.
func (c *Check) Learn(ctx context.Context, session string, past []Past, now time.Time) (out Learned, err error) {
	c.lessons.mu.Lock()
	defer c.lessons.mu.Unlock()
	defer c.ForgetHints() // who waits need not wait any longer
	for i := range past {
		if err := c.learn(ctx, session, &past[i], now, &out); err != nil {
			return out, err
		}
	}
	return out, nil
}

func (c *Check) learn(ctx context.Context, session string, p *Past, now time.Time, out *Learned) error {
	at := p.Time
	if at.After(now) {
		at = now
	}
	if now.Sub(at) > c.rule.Keep {
		out.TooOld++
		return nil
	}
	name := mailaddr.Domain(p.Name)
	sender := p.Sender
	if p.Recipient == "" && sender == "" {
		if name == "" {
			out.Unknown++
			return nil
		}
		sender = "postmaster@" + mailaddr.OrgDomain(name)
	}
	req := &policy.Request{
		Time: at, Stage: policy.StageRcpt, Helo: p.Name, Client: policy.Client{Addr: p.Client.Unmap().WithZone(""), Name: name, ReverseName: name},
		Sender: mailaddr.Parse(sender), Recipient: mailaddr.Parse(p.Recipient),
	}
	if why, _, _ := c.passOver(req, true); why != "" {
		out.Exempt++
		return nil
	}
	if c.spf != nil {
		req.Facts.SPF = c.spf(ctx, req)
	}
	match, credit, ok := c.memo.identities(req, c.cfg.IPv4Prefix, c.cfg.IPv6Prefix)
	if !ok {
		out.Unknown++
		return nil
	}
	if p.Recipient == "" {
		return c.learnSide(ctx, credit, p, at, now, out)
	}
	contact := Contact{
		Match: match, Credit: credit, Sender: mailaddr.Correspondent(req.Sender, c.cfg.Delimiters), Recipient: recipient(req.Recipient),
		Addr: req.Client.Addr, Time: at, Rule: c.rule,
	}
	side := contact // of nobody to nobody: only its credit can be known
	side.Sender, side.Recipient = "", ""
	known := false
	for _, k := range []struct {
		key   string
		peek  Contact
		state State
	}{{credit, side, KnownClient}, {match + "\x00" + contact.Sender + "\x00" + contact.Recipient, contact, KnownTriplet}} {
		before, err := c.lessons.before(session, k.key, func() (bool, error) {
			k.peek.Time, k.peek.DryRun = now, true
			o, err := c.store.TouchGreylist(ctx, &k.peek)
			return o.State == k.state, err
		})
		if err != nil {
			return err
		}
		known = known || before
	}
	if known {
		out.Known++
		return nil
	}
	contact.Rule.Delay = 0
	if _, err := c.store.TouchGreylist(ctx, &contact); err != nil {
		return err
	}
	out.Taken++
	return nil
}

// learnSide learns of a side that has passed, without a correspondence.
func (c *Check) learnSide(ctx context.Context, credit string, p *Past, at, now time.Time, out *Learned) error {
	if credit == "" || c.rule.KnownAfter == 0 || p.Passes <= 0 {
		out.Unknown++
		return nil
	}
	first := at
	if !p.First.IsZero() && p.First.Before(at) {
		first = p.First
	}
	e := Entry{Kind: KindCredit, Credit: credit, First: first, Last: at, Counted: at, Passes: min(p.Passes, c.rule.KnownAfter)}
	m, err := c.admin.MergeGreylist(ctx, []Entry{e}, &c.rule, now)
	out.Taken += m.Taken
	out.Known += m.Known
	out.TooOld += m.Old
	return err
}
