package limit

import (
	"context"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"postern/internal/meter"
	"postern/policy"
)

// Bounds of what is kept of messages that are being handed in. What is dropped
// for others is counted as if its recipients were messages of their own, and is
// not given back.
const (
	maxMessages = 20_000
	maxTaken    = 1000 // meters of one message
	maxDoors    = 256
)

// message is what one message has taken so far. It is a value: what is kept is
// replaced, never changed.
type message struct {
	recipients int
	taken      []ask
	// last is what the last request has taken, with n and Add its own.
	last []ask
}

// counts reports whether the message has been counted by a rule.
func (m *message) counts(r *rule) bool {
	return slices.ContainsFunc(m.taken, func(a ask) bool { return a.rule.Name == r.Name })
}

// with returns m with what a request has taken besides: asks, in which what had
// been given back is included. Where DATA is not asked about only that is kept
// which the message's next recipients need.
func (m message) with(req *policy.Request, asks []ask, levels []meter.Level, data bool) message {
	if req.Stage == policy.StageRcpt {
		m.recipients++
	}
	kept := func(i int) bool {
		r := asks[i].rule
		return !levels[i].Over && (data || r.refunds || r.Unit == "messages" && !r.byRecipient)
	}
	n := len(m.taken)
	for i := range asks {
		if kept(i) {
			n++
		}
	}
	all := make([]ask, 0, n)
	for i := range asks {
		if kept(i) {
			all = append(all, asks[i])
		}
	}
	own := len(all)
	for i := range m.taken {
		old := &m.taken[i]
		if old.back {
			continue
		}
		if at := slices.IndexFunc(all[:own], func(b ask) bool { return b.Key == old.Key }); at >= 0 {
			all[at].Add, all[at].n = all[at].Add+old.Add, all[at].n+old.n
		} else if len(all) < maxTaken {
			all = append(all, *old)
		}
	}
	m.taken, m.last = all, nil
	for i := range asks {
		if !levels[i].Over && asks[i].own > 0 && asks[i].rule.refunds {
			a := asks[i]
			a.Add, a.n = a.own, a.ownUnits
			m.last = append(m.last, a)
		}
	}
	return m
}

// back returns what has been given back.
func (m *message) back() (out []ask) {
	for i := range m.taken {
		if m.taken[i].back {
			out = append(out, m.taken[i])
		}
	}
	return out
}

// without returns m with what is picked given back, and the takes for that.
func (m message) without(pick func(*ask) bool) (message, []meter.Take) {
	var back []meter.Take
	for i := range m.taken {
		if a := &m.taken[i]; a.Kind != meter.Distinct && !a.back && pick(a) {
			if back == nil {
				m.taken = slices.Clone(m.taken)
			}
			m.taken[i].back = true
			back = append(back, a.negative(a.Add))
		}
	}
	return m, back
}

// withoutLast returns m without its last recipient.
func (m message) withoutLast() (message, []meter.Take) {
	var back []meter.Take
	for i := range m.last {
		if last := &m.last[i]; last.Kind != meter.Distinct {
			back = append(back, last.negative(last.Add))
			m.taken = less(m.taken, last)
		}
	}
	m.recipients, m.last = m.recipients-1, nil
	return m, back
}

// withoutRefused returns m without the recipients that others have refused: by
// DATA it is known how many are left, and who, if it is one.
func (m message) withoutRefused(req *policy.Request, cfg *Config) (message, []meter.Take) {
	gone := m.recipients - req.RecipientCount
	if req.RecipientCount <= 0 || gone <= 0 {
		return m, nil
	}
	var back []meter.Take
	for _, a := range slices.Clone(m.taken) {
		part := ask{Take: a.Take}
		switch r := a.rule; {
		case !r.refunds || a.Kind == meter.Distinct || a.back:
			continue
		case r.byRecipient && req.RecipientCount == 1 && req.Recipient.Raw != "":
			who, ok := r.appendWho(nil, req, cfg)
			if !ok || whoOf(a.Key) == string(who) {
				continue
			}
			part.n = a.n
		case !r.byRecipient && r.Unit == "recipients" && a.n == int64(m.recipients):
			part.n, part.Add = int64(gone), a.Add/a.n*int64(gone)
		default: // whose they were is not known
			continue
		}
		back = append(back, part.negative(part.Add))
		m.taken = less(m.taken, &part)
	}
	m.recipients = req.RecipientCount
	return m, back
}

// less returns asks without a part of one of them.
func less(asks []ask, part *ask) []ask {
	i := slices.IndexFunc(asks, func(a ask) bool { return a.Key == part.Key })
	if i < 0 {
		return asks
	}
	asks = slices.Clone(asks)
	asks[i].Add, asks[i].n = asks[i].Add-part.Add, asks[i].n-part.n
	if asks[i].n <= 0 {
		asks = slices.Delete(asks, i, i+1)
	}
	return asks
}

// messageKey is one mail transaction.
type messageKey struct {
	instance string
	client   netip.Addr
	port     uint16
}

func keyOf(req *policy.Request) messageKey {
	k := messageKey{req.Instance, req.Client.Addr, req.Client.Port}
	if req.Joined != "" {
		k.instance = req.Joined
	}
	return k
}

// door is where the requests of a message come from. Services of one Postfix
// that ask the same listener are told apart by the address that their clients
// connect to.
type door struct {
	listener, context string
	server            netip.AddrPort
}

func doorOf(req *policy.Request) door {
	return door{req.Listener, req.Context, netip.AddrPortFrom(req.ServerAddr, req.ServerPort)}
}

// messages are those that are being handed in. It is safe for concurrent use;
// the requests of one message come one after another.
type messages struct {
	most int

	mu    sync.Mutex
	byKey map[messageKey]message
	ring  []messageKey // in the order in which they came, from next on
	next  int
	data  map[door]bool // where DATA or the end of a message is asked about

	// Of the messages that may have to be refunded if nobody hears of them any
	// more: when they were last heard of, which one each client hands in, and
	// those that a later one of the same client has followed.
	waiting  map[messageKey]time.Time
	byClient map[netip.AddrPort]messageKey
	left     []messageKey
}

func newMessages(most int) *messages {
	return &messages{
		most: most, byKey: make(map[messageKey]message), data: make(map[door]bool),
		waiting: make(map[messageKey]time.Time), byClient: make(map[netip.AddrPort]messageKey),
	}
}

// of returns what a message has taken before.
func (s *messages) of(key messageKey) message {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.byKey[key]
}

// heard is called for each recipient: a message of the same client that has not
// come to DATA, where that is asked about, has been given up.
func (s *messages) heard(req *policy.Request, key messageKey) {
	if key.port == 0 {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	client := netip.AddrPortFrom(key.client, key.port)
	if before, ok := s.byClient[client]; ok && before != key {
		s.left = append(s.left, before)
		delete(s.byClient, client)
	}
}

// took keeps what a request has taken; m is what its message had before.
func (s *messages) took(req *policy.Request, key messageKey, m *message, asks []ask, levels []meter.Level) {
	if key.instance == "" || req.Stage == policy.StageConnect {
		return // it cannot be told from others, or there is none
	}
	next := m.with(req, asks, levels, s.seesData(req))
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(&key, next)
	if req.Stage != policy.StageRcpt {
		s.settled(key)
	} else if s.data[doorOf(req)] && slices.ContainsFunc(next.taken, func(a ask) bool { return a.rule.refunds && !a.back }) {
		s.waiting[key] = req.Time
		if key.port != 0 {
			s.byClient[netip.AddrPortFrom(key.client, key.port)] = key
		}
	}
}

// settled forgets that a message may have to be refunded. The lock is held.
func (s *messages) settled(key messageKey) {
	if _, ok := s.waiting[key]; !ok {
		return
	}
	delete(s.waiting, key)
	if client := netip.AddrPortFrom(key.client, key.port); s.byClient[client] == key {
		delete(s.byClient, client)
	}
}

// keep keeps what a message has taken by now.
func (s *messages) keep(key messageKey, m message) {
	if key.instance == "" {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(&key, m)
}

// put is keep; the lock is held. The key becomes one that may be kept.
func (s *messages) put(key *messageKey, m message) {
	if _, there := s.byKey[*key]; !there {
		key.instance = strings.Clone(key.instance) // a door uses the memory of a request again
		if len(s.ring) < s.most {
			s.ring = append(s.ring, *key)
		} else {
			s.settled(s.ring[s.next])
			delete(s.byKey, s.ring[s.next])
			s.ring[s.next] = *key
			s.next = (s.next + 1) % s.most
		}
	}
	s.byKey[*key] = m
}

// idle is how long nothing is heard of a message before it has been given up:
// longer than Postfix waits for a command. One that comes back pays again.
const idle = 10 * time.Minute

// abandoned returns the messages that have been given up before DATA, each
// once.
func (s *messages) abandoned(now time.Time) (keys []messageKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range s.left {
		if _, ok := s.waiting[key]; ok {
			keys = append(keys, key)
		}
		s.settled(key)
	}
	s.left = nil
	for key, at := range s.waiting {
		if now.Sub(at) > idle || at.Sub(now) > idle {
			keys = append(keys, key)
			s.settled(key)
		}
	}
	return keys
}

// sawData notes that DATA or the end of a message is asked about where a
// request comes from.
func (s *messages) sawData(req *policy.Request, key messageKey) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.settled(key)
	if d := doorOf(req); !s.data[d] && len(s.data) < maxDoors {
		d.listener, d.context = strings.Clone(d.listener), strings.Clone(d.context)
		s.data[d] = true
	}
}

// seesData tells whether it is.
func (s *messages) seesData(req *policy.Request) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.data[doorOf(req)]
}

// giveBack returns what a message has taken so far and is picked.
func (c *Check) giveBack(ctx context.Context, now time.Time, key messageKey, m message, pick func(*ask) bool) error {
	m, back := m.without(pick)
	return c.returned(ctx, now, key, m, back)
}

// returned gives takes back; m is what is left of their message.
func (c *Check) returned(ctx context.Context, now time.Time, key messageKey, m message, back []meter.Take) error {
	if len(back) == 0 {
		return nil
	}
	c.shared.messages.keep(key, m)
	_, _, err := c.store.TakeMeters(ctx, now, back, false)
	return err
}

func everything(*ask) bool { return true }

func refundable(a *ask) bool { return a.rule.refunds }

// Refund implements [policy.Refunder]: what a request has taken that is refused
// after all, or a message that is refused as a whole, is given back by the
// rules that count what is accepted.
func (c *Check) Refund(ctx context.Context, req *policy.Request, d *policy.Decision) {
	if !c.refunds {
		return
	}
	key := keyOf(req)
	m := c.shared.messages.of(key)
	var err error
	switch {
	case req.Stage == policy.StageRcpt && c.passed(d):
		var back []meter.Take
		m, back = m.withoutLast()
		if len(back) == 0 {
			c.shared.messages.keep(key, m)
		}
		err = c.returned(ctx, req.Time, key, m, back)
	case req.Stage == policy.StageData || req.Stage == policy.StageEndOfMessage:
		err = c.giveBack(ctx, req.Time, key, m, refundable)
	}
	if err != nil {
		c.log.Warn("what was refused stays counted", zap.Error(err))
	}
}

// passed reports whether this check was asked and had no objection.
func (c *Check) passed(d *policy.Decision) bool {
	for i := range d.Steps {
		if s := &d.Steps[i]; s.Check == c.Name() {
			return (s.Outcome == policy.Ran || s.Outcome == policy.Shadowed) && !s.Verdict.Action.Refuses()
		}
	}
	return false
}

// refundEvery is how often messages are looked for that were given up.
const refundEvery = 5 * time.Second

// refundAbandoned gives back what messages have taken that were given up
// before DATA, now and then until ctx ends.
func (c *Check) refundAbandoned(ctx context.Context) {
	tick := time.NewTicker(refundEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case now := <-tick.C:
			c.sweep(ctx, now)
		}
	}
}

func (c *Check) sweep(ctx context.Context, now time.Time) {
	for _, key := range c.shared.messages.abandoned(now) {
		one, cancel := context.WithTimeout(ctx, c.cfg.Timeout.D())
		err := c.giveBack(one, now, key, c.shared.messages.of(key), refundable)
		cancel()
		if err != nil && ctx.Err() == nil {
			c.log.Warn("what was given up stays counted", zap.Error(err))
		}
	}
}

// maxWarned is of how many meters it is known that they have been warned about.
const maxWarned = 10_000

// warned are the meters that have been warned about.
type warned struct {
	mu   sync.Mutex
	keys map[string]bool
}

func newWarned() *warned { return &warned{keys: make(map[string]bool)} }

// first reports whether a meter is to be warned about: when it is not below
// the mark and was when it was last looked at.
func (w *warned) first(key string, below bool) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if below {
		delete(w.keys, key)
		return false
	}
	if w.keys[key] {
		return false
	}
	if len(w.keys) >= maxWarned {
		clear(w.keys)
	}
	w.keys[strings.Clone(key)] = true
	return true
}
