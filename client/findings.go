package client

import (
	"context"
	"strconv"
	"strings"
	"sync"
	"time"

	"postern/internal/conf"
	"postern/policy"
)

// findings are what is known of a request.
type findings struct {
	needed set  // conditions that are looked for
	fresh  bool // what is remembered of the DNS is not used

	helo    helo
	heloUse int // HELO names of the client lately, this one included
	found   set
	generic string // what makes the reverse name generic
	subject [questions]key
	pending asks // questions that memory does not answer
	answers [questions]answer
	unable  [questions]error
}

// look finds what can be found without the DNS, and which questions are left.
// With note the HELO name is remembered.
func (c *Check) look(req *policy.Request, f *findings, note bool) {
	c.lookAtHelo(req, f, note)
	c.lookAtReverse(req, f)
	c.lookAtSender(req, f)
	if !f.fresh {
		for q := range questions {
			if f.pending.has(q) {
				if a, ok := c.remembered(f.subject[q], req.Time); ok {
					if note {
						c.shared.metrics.memory.Inc()
					}
					c.take(req, f, q, a)
				}
			}
		}
	}
}

// ask puts a question on the list if a condition that is looked for needs it.
func (f *findings) ask(q question, k key) {
	if f.needed&needs[q] != 0 {
		k.question = q
		f.subject[q] = k
		f.pending |= 1 << q
	}
}

func (c *Check) lookAtHelo(req *policy.Request, f *findings, note bool) {
	f.helo = parseHelo(req.Helo)
	h := &f.helo
	switch h.form {
	case heloNone:
		if req.Stage >= policy.StageMail {
			f.found |= of(heloMissing)
		}
		return
	case heloBad:
		f.found |= of(heloInvalid)
	case heloLiteral:
		switch {
		case h.addr == req.Client.Addr:
		case h.addr == req.ServerAddr || c.ownAddr(h.addr):
			f.found |= of(heloOwn)
		default:
			f.found |= of(heloWrongAddress)
		}
	case heloName:
		if !h.full() {
			f.found |= of(heloNotFull)
		}
		switch {
		case h.name == req.Client.Name: // its own, as Postfix has verified
		case c.own[h.name] || c.domains[h.name]:
			f.found |= of(heloOwn)
		case h.full():
			f.ask(askHelo, key{name: h.name})
		}
	}
	if f.needed.has(heloChanges) {
		name := h.name
		if name == "" {
			name = req.Helo
		}
		f.heloUse = c.shared.changes.count(req.Client.Addr, name, req.Time, note)
		if f.heloUse > c.cfg.HeloNames {
			f.found |= of(heloChanges)
		}
	}
}

func (c *Check) lookAtReverse(req *policy.Request, f *findings) {
	if req.Client.Name != "" {
		c.judgeName(req, f, req.Client.Name)
		return
	}
	if name := req.Client.ReverseName; name != "" && f.needed&of(reverseMissing, reverseUnverified) == 0 {
		c.judgeName(req, f, name)
		return
	}
	// Postfix says "unknown" also when the DNS did not answer.
	f.ask(askReverse, key{addr: req.Client.Addr, name: req.Client.ReverseName})
}

func (c *Check) judgeName(req *policy.Request, f *findings, name string) {
	if !f.needed.has(reverseGeneric) {
		return
	}
	if f.generic = c.names.why(name, req.Client.Addr, req.Time); f.generic != "" {
		f.found |= of(reverseGeneric)
	}
}

func (c *Check) lookAtSender(req *policy.Request, f *findings) {
	if req.Stage < policy.StageMail || req.Sender.Raw == "" {
		return
	}
	domain := req.Sender.Domain
	// Postfix completes a sender without a domain with ours.
	if domain == "" && len(c.domains)+len(c.ownBelow) > 0 || domain != "" && c.ownDomain(domain) {
		if !c.ownHost(req) && req.SASL.Username == "" && req.TLS.CertSubject == "" {
			f.found |= of(senderOwn)
		}
		return
	}
	if domain != "" {
		f.ask(askSender, key{name: domain})
	}
}

// take uses an answer.
func (c *Check) take(req *policy.Request, f *findings, q question, a answer) {
	f.pending &^= 1 << q
	f.answers[q] = a
	f.found |= a.found
	if q == askReverse && a.name != "" {
		c.judgeName(req, f, a.name)
	}
}

// lookUp asks the DNS what is pending, all at once.
func (c *Check) lookUp(ctx context.Context, req *policy.Request, f *findings) {
	ctx, cancel := context.WithTimeout(ctx, c.cfg.LookupTime.D())
	defer cancel()
	type outcome struct {
		answer answer
		ttl    time.Duration
		cached bool
		err    error
		took   time.Duration
	}
	var out [questions]outcome
	hosts := f.needed.has(senderPrivateMX)
	one := func(q question, k key) {
		began := time.Now()
		o := &out[q]
		o.answer, o.ttl, o.cached, o.err = c.resolve(ctx, k, hosts)
		o.took = time.Since(began)
	}
	var others sync.WaitGroup
	left := f.pending
	for q := range questions {
		if !left.has(q) {
			continue
		}
		if left &^= 1 << q; left == 0 {
			one(q, f.subject[q])
			break
		}
		k := f.subject[q]
		others.Go(func() { one(q, k) })
	}
	others.Wait()
	for q := range questions {
		if !f.pending.has(q) {
			continue
		}
		o := &out[q]
		if !req.DryRun {
			c.shared.metrics.asked.Inc()
		}
		if o.err != nil {
			f.unable[q] = o.err
		} else {
			if f.needed == c.wanted {
				c.remember(f.subject[q], o.answer, o.ttl, req.Time)
			}
			c.take(req, f, q, o.answer)
		}
		if req.Probe != nil {
			source := "network"
			if o.cached {
				source = "cache"
			}
			req.Probe.Add(f.subject[q].what(req), f.says(q), source, o.took)
		}
	}
}

// says is what became of a question, in words.
func (f *findings) says(q question) string {
	if err := f.unable[q]; err != nil {
		return err.Error()
	}
	return f.answers[q].detail
}

func (f *findings) failed() (a asks) {
	for q, err := range f.unable {
		if err != nil {
			a |= 1 << q
		}
	}
	return a
}

// conclude leaves what was found in the facts, counts it, and says what to do.
func (c *Check) conclude(req *policy.Request, f *findings) policy.Verdict {
	f.found &= c.wanted
	unable := f.failed()
	r := decide(c.rules, f.found, unable)
	for i := range conditions {
		if !f.found.has(i) {
			continue
		}
		if !req.DryRun {
			c.shared.metrics.found[i].Inc()
		}
		if c.rules.actions[i] == conf.Mark {
			req.Facts.Weigh(reasons[i], c.rules.weights[i])
		}
		if req.Probe != nil {
			req.Probe.Add(slugs[i], c.verdictOf(i)+": "+c.detail(i, req, f), "", 0)
		}
	}
	for q := range questions {
		if !unable.has(q) {
			continue
		}
		if !req.DryRun {
			c.shared.metrics.unable[q].Inc()
		}
		req.Facts.Missing = append(req.Facts.Missing, "client: "+f.subject[q].what(req)+": "+f.unable[q].Error())
	}
	v := policy.Verdict{Reason: r.reason}
	switch r.action {
	case conf.Reject:
		v.Action = policy.Reject
	case conf.Defer:
		v.Action = policy.Defer
	default:
	}
	if r.reason != "" {
		v.Detail = c.line(&r, req, f)
	}
	if v.Action.Refuses() {
		v.Reply = c.reply(&r, req, f)
	}
	return v
}

// verdictOf is what a condition does, in words.
func (c *Check) verdictOf(i condition) string {
	a := c.rules.actions[i]
	if a == conf.Mark && c.rules.weights[i] > 0 {
		return "mark, weight " + strconv.Itoa(c.rules.weights[i])
	}
	return a.String()
}

// line is what was found, for the log.
func (c *Check) line(r *ruling, req *policy.Request, f *findings) string {
	if r.reason == reasonUnable {
		for q := range questions {
			if f.unable[q] != nil && (r.unable == questions || r.unable == q) {
				return f.unable[q].Error()
			}
		}
	}
	if r.by < conditions && f.found == of(r.by) {
		return c.detail(r.by, req, f)
	}
	b := make([]byte, 0, 256)
	for i := range conditions {
		if !f.found.has(i) {
			continue
		}
		if len(b) > 0 {
			b = append(b, "; "...)
		}
		b = append(append(append(b, slugs[i]...), ": "...), c.detail(i, req, f)...)
	}
	return string(b)
}

// detail says more of a condition that was found.
func (c *Check) detail(i condition, req *policy.Request, f *findings) string {
	switch i {
	case heloMissing:
		return "no HELO name"
	case heloInvalid:
		return f.helo.fault
	case heloNotFull:
		return "a single label"
	case heloWrongAddress:
		return "the client's address is another"
	case heloOwn:
		return "a name or an address of ours"
	case heloUnresolved:
		return f.answers[askHelo].detail
	case heloChanges:
		return c.tooMany
	case reverseMissing, reverseUnverified:
		return f.answers[askReverse].detail
	case reverseGeneric:
		return f.generic
	case senderOwn:
		return "a domain of ours"
	default:
		return f.answers[askSender].detail
	}
}

// reply fills the template of a ruling that refuses in.
func (c *Check) reply(r *ruling, req *policy.Request, f *findings) policy.Reply {
	var t *policy.Template
	switch {
	case r.by < conditions:
		t = c.replies[r.by]
	case r.unable < questions:
		t = c.unable
	case r.action == conf.Reject:
		t = c.score[0]
	default:
		t = c.score[1]
	}
	return t.Expand(func(name string) string {
		switch name {
		case "client":
			return req.Client.Addr.String()
		case "reverse_name":
			return c.reverseName(req, f)
		case "helo":
			return req.Helo
		case "sender":
			return req.Sender.Raw
		case "domain":
			if req.Sender.Domain == "" {
				return req.Sender.Raw
			}
			return req.Sender.Domain
		case "recipient":
			return req.Recipient.Raw
		case "score":
			return strconv.Itoa(r.score)
		case "conditions":
			return c.allWords(f)
		case "what":
			return f.subject[r.unable].what(req)
		default:
			if r.by < conditions {
				return c.detail(r.by, req, f)
			}
			return ""
		}
	})
}

// reverseName is the client's reverse name as far as it is known.
func (c *Check) reverseName(req *policy.Request, f *findings) string {
	for _, name := range [...]string{req.Client.Name, req.Client.ReverseName, f.answers[askReverse].name} {
		if name != "" {
			return name
		}
	}
	return "unknown"
}

// allWords are the marks in the words of a reply.
func (c *Check) allWords(f *findings) string {
	var all []string
	for i := range conditions {
		if f.found.has(i) && c.rules.actions[i] == conf.Mark {
			all = append(all, words[i])
		}
	}
	return strings.Join(all, ", ")
}
