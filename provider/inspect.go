package provider

import (
	"context"
	"errors"
	"net/netip"
	"strings"
	"time"

	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/dkimverify"
	"postern/internal/mailaddr"
	"postern/policy"
)

// tenantField is where Exchange Online writes the id of the tenant that a
// message comes from. It takes such fields out of what it is given.
const tenantField = "X-MS-Exchange-CrossTenant-Id"

// maxSignatures is how many DKIM signatures of a message are looked at.
const maxSignatures = 5

// Inspector looks at messages from networks that may relay, and refuses those
// that do not meet the conditions on their content. The permit at RCPT was
// given before the message was there: whoever runs the inspector has to run it
// with [Set.InspectorStep], so that a message that could not be looked at is
// deferred, whatever the section says of errors.
type Inspector struct{ s *Set }

// Inspector returns the inspector of the set's relay sections.
func (s *Set) Inspector() *Inspector { return &Inspector{s} }

// InspectorStep returns how the inspector must be run: it is never off and
// never in shadow mode (it keeps to the section's mode itself, but for
// messages that were permitted on its word), and an error defers.
func (s *Set) InspectorStep() conf.Step {
	return conf.Step{Mode: policy.Enforce, OnError: policy.ErrorDefer, Timeout: s.cfg.ContentTimeout}
}

var _ policy.Inspector = (*Inspector)(nil)

// Name implements [policy.Inspector].
func (in *Inspector) Name() string { return "provider" }

// Inspects reports whether the inspector has to be run: some section has a
// condition on the content of messages, or had one before a reload, and a
// message that was permitted by it then may still come.
func (s *Set) Inspects() bool { return s.looks }

// WantsBody reports whether any section has a condition on DKIM signatures,
// which cover the body, or had one before a reload.
func (in *Inspector) WantsBody() bool { return in.s.bodies }

// Inspect implements [policy.Inspector]. A message is of interest when a
// recipient of it was permitted on a condition that it has to meet. That is
// remembered; and because what is remembered can be lost, a message is also of
// interest when its envelope is such that we would permit it.
func (in *Inspector) Inspect(req *policy.Request, to []policy.Address) policy.Inspection {
	s := in.s
	if s.allOwn(to) {
		return nil // nothing of it needed a permit
	}
	rules := s.memory.rules(req)
	shadow := false
	if len(rules) == 0 {
		if rules = s.candidates(req); len(rules) == 0 || s.cfg.Mode == policy.Off {
			return nil
		}
		shadow = s.cfg.Mode == policy.Shadow
	}
	m := &inspection{s: s, rules: rules, shadow: shadow, client: req.Client.Addr, sender: req.Sender.Raw, queueID: req.QueueID, hidden: req.BodyHidden, at: req.Time}
	for _, r := range rules {
		if len(r.dkim) > 0 {
			m.wantDKIM = true
		}
	}
	return m
}

func (s *Set) allOwn(to []policy.Address) bool {
	for i := range to {
		if !own(s.own, &to[i]) {
			return false
		}
	}
	return len(to) > 0
}

// candidates returns the rules by which the envelope would be permitted, none
// when one of them does not look at the message. What the milter is not told
// of a certificate does not rule out any: sections that share a sender ask for
// the same certificates (see validateOverlap).
func (s *Set) candidates(req *policy.Request) []*rule {
	var out []*rule
	for _, l := range s.lists {
		if len(l.rules) == 0 || l.snap.Load().find(req.Client.Addr) == nil {
			continue
		}
		for _, r := range l.rules {
			if !r.sender(req) || r.excluded(&req.TLS) {
				continue
			}
			if !r.content() {
				return nil
			}
			out = append(out, r)
		}
	}
	return out
}

// inspection looks at one message.
type inspection struct {
	s       *Set
	rules   []*rule
	shadow  bool
	client  netip.Addr
	sender  string
	queueID string
	hidden  bool // the body is not shown
	at      time.Time

	tenants  []string // values of the field, as they came
	from     int      // From fields
	header   dkimverify.Header
	wantDKIM bool
	dkim     *dkimverify.Message
}

// Header implements [policy.Inspection].
func (m *inspection) Header(f policy.Field) {
	name := strings.TrimRight(f.Name, " \t")
	switch {
	case strings.EqualFold(name, tenantField):
		if m.tenants = append(m.tenants, f.Value); len(m.tenants) > 2 {
			m.tenants = m.tenants[:2] // two are too many already
		}
	case strings.EqualFold(name, "From"):
		m.from++
	}
	if m.wantDKIM {
		m.header.Add(f.Name, f.Value)
	}
}

// EndOfHeaders implements [policy.Inspection].
func (m *inspection) EndOfHeaders() {
	if !m.wantDKIM || m.hidden || m.header.Hostile() != "" {
		return
	}
	m.dkim = dkimverify.Start(m.header.Take(), dkimverify.Options{
		LookupTXT: func(ctx context.Context, name string) ([]string, error) {
			texts, _, _, err := m.s.res.LookupTXT(ctx, name)
			return texts, err
		},
		Limit: m.s.cfg.ContentTimeout.D(), Most: maxSignatures, Now: m.at,
	})
}

// Body implements [policy.Inspection].
func (m *inspection) Body(p []byte) bool { return m.dkim != nil && m.dkim.Write(p) }

// errUnknown is for what DNS could not answer.
var errUnknown = errors.New("a signature could not be checked now")

// End implements [policy.Inspection].
func (m *inspection) End(ctx context.Context) (policy.Judgement, error) {
	var signed []string
	var undecided error
	switch {
	case m.dkim != nil:
		signed, undecided = m.signed(ctx)
	case m.wantDKIM && m.hidden: // the session is older than the condition
		undecided = errUnknown
	}
	hostile := m.header.Hostile()
	why := hostile
	deferred := false
	for _, r := range m.rules {
		bad, unsure := m.meets(r, signed, undecided)
		if bad == "" {
			m.count(messagePassed)
			return policy.Judgement{}, nil
		}
		deferred = deferred || unsure
		if why == "" || hostile == "" && unsure {
			why = r.name + ": " + bad
		}
	}
	m.log(why, deferred)
	v := policy.Verdict{Detail: why}
	t := m.s.relayReply
	v.Action, v.Reason = policy.Reject, "provider-relay-refused"
	if deferred {
		v.Action, v.Reason = policy.Defer, "provider-relay-undecided"
		t = m.s.deferReply
	}
	v.Reply = t.Expand(func(name string) string {
		if name == "client" {
			return m.client.String()
		}
		return m.sender
	})
	switch {
	case m.shadow:
		m.count(messageShadow)
		return policy.Judgement{}, nil
	case deferred:
		m.count(messageDeferred)
	default:
		m.count(messageRefused)
	}
	return policy.Judgement{Verdict: v}, nil
}

// signed returns the domains that signed the message, in the compared form; err
// says that others may have done so too. What is valid counts, nothing else
// does.
func (m *inspection) signed(ctx context.Context) (domains []string, err error) {
	found, err := m.dkim.Wait(ctx)
	if err != nil {
		return nil, errUnknown
	}
	for _, s := range found {
		switch s.Result {
		case dkimverify.Pass:
			domains = append(domains, mailaddr.Domain(s.Domain))
		case dkimverify.TempError:
			err = errUnknown
		}
	}
	return domains, err
}

// meets says what a message lacks that r asks for, "" for nothing. unsure is
// set when a later attempt may turn out differently.
func (m *inspection) meets(r *rule, signed []string, undecided error) (bad string, unsure bool) {
	if why := m.header.Hostile(); why != "" {
		return why, false
	}
	if len(r.tenants) > 0 {
		switch len(m.tenants) {
		case 0:
			return "there is no " + tenantField, false
		case 1:
		default:
			return "there is more than one " + tenantField, false
		}
		id, ok := tenantID(strings.TrimSpace(m.tenants[0]))
		switch {
		case !ok:
			return tenantField + " holds no tenant id", false
		case !r.tenants[id]:
			return "tenant " + id + " is not allowed", false
		}
	}
	if len(r.dkim) == 0 {
		return "", false
	}
	if m.from != 1 {
		// A signature covers one of several only, and not the one that is shown.
		return "there is not exactly one From field", false
	}
	for _, domain := range signed {
		if anyHolds(r.dkim, domain) {
			return "", false
		}
	}
	if undecided != nil {
		return undecided.Error(), true
	}
	return "no valid DKIM signature of an allowed domain", false
}

func (m *inspection) count(what messageResult) { m.rules[0].of.metrics.messages[what].Inc() }

func (m *inspection) log(why string, deferred bool) {
	m.s.log.Info("a message from a network that may relay does not meet the conditions",
		zap.Stringer("client", m.client), zap.String("sender", m.sender), zap.String("queue_id", m.queueID),
		zap.String("why", why), zap.Bool("deferred", deferred), zap.Bool("shadow", m.shadow))
}
