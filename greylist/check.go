// Package greylist is the check that defers the first contact of a sender
// with a recipient (RFC 6647). Who comes back after a while passes, and is
// known from then on; most that only ever try once do not.
//
// It must be the last check of its chain: the first contact is remembered
// when nothing else has refused.
package greylist

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/list"
	"postern/policy"
)

// Check greylists. It is safe for concurrent use.
type Check struct {
	cfg      Config
	rule     Rule
	reply    *policy.Template
	hostname string
	store    Store
	lists    *list.Live
	callouts map[string]bool // senders treated as the null sender, normalised
	hints    *hints          // nil: none
	counted  kindSet         // suspicions
	networks *networks
	saved    Networks // nil: none
	relist   Relist   // nil: lists are not asked anew
	memo     *memo
	metrics  *metrics
	admin    AdminStore
	voucher  Voucher // nil: none
	log      *zap.Logger
	spf      func(context.Context, *policy.Request) policy.SPF
	lessons  lessons
}

var _ policy.Hinter = (*Check)(nil)

// Options are what a check needs besides its settings.
type Options struct {
	Hostname string // written into headers
	Store    Store
	Admin    AdminStore // for the administrator's calls
	Names    Names
	Voucher  Voucher  // nil: nobody vouches for first contacts
	Networks Networks // nil: which networks have credit is forgotten at the end
	// Relist asks the DNS lists anew; nil: they are not.
	Relist Relist
	// SPF is asked about past mail that is learned; nil: requests have no result
	// either.
	SPF     func(context.Context, *policy.Request) policy.SPF
	Log     *zap.Logger
	Metrics prometheus.Registerer
	// Previous is the check that this one replaces after a reload, or nil: hit
	// counts, hints and what is known of networks move over.
	Previous *Check
}

// Relist asks the DNS lists about a request, past what is remembered of them.
// A verdict that refuses is the client's; an error says that none could be
// asked. It returns soon after ctx is done.
type Relist func(ctx context.Context, req *policy.Request) (policy.Verdict, error)

// New returns a check on validated settings.
func New(cfg Config, o Options) (*Check, error) {
	log, reg, prev := o.Log, o.Metrics, o.Previous
	reply, err := policy.ParseTemplate(cfg.Reply, defaultReply, replyVars...)
	if err != nil {
		return nil, fmt.Errorf("greylist: reply: %w", err)
	}
	log = log.Named("greylist")
	lists, faults := list.NewLive(cfg.sources(), cfg.listOptions("greylist"), log, list.NewMetrics(reg, "greylist"))
	if err := faults.Err(); err != nil {
		return nil, err
	}
	c := &Check{
		spf: o.SPF,
		cfg: cfg, reply: reply, hostname: o.Hostname, store: o.Store, lists: lists,
		rule: Rule{
			Delay: cfg.Delay.D(), Window: cfg.Window.D(), Keep: cfg.Keep.D(), MaxDelay: cfg.MaxDelay.D(),
			KnownAfter: cfg.KnownAfter, KnownAge: cfg.KnownAge.D(), CountEvery: cfg.CountEvery.D(),
		},
		callouts: make(map[string]bool, len(cfg.CalloutSenders)), memo: newMemo(o.Names), admin: o.Admin, voucher: o.Voucher, log: log,
		saved: o.Networks, relist: o.Relist,
	}
	c.counted, _ = kindsOf(cfg.Suspicions)
	for _, s := range cfg.CalloutSenders {
		a := mailaddr.Parse(s)
		c.callouts[strings.ToLower(a.Local)+"@"+a.Domain] = true
	}
	if prev != nil {
		c.metrics, c.networks = prev.metrics, prev.networks
		lists.Adopt(prev.lists)
	} else {
		c.metrics, c.networks = newMetrics(reg), newNetworks()
	}
	if prev != nil && prev.cfg.Hints == cfg.Hints {
		c.hints = prev.hints
	} else if cfg.Hints > 0 {
		c.hints = newHints(cfg.Hints)
	}
	return c, nil
}

// Start begins to watch the files of exceptions. A check that has been
// stopped is not started again.
func (c *Check) Start() { c.lists.Start(c.cfg.ReloadInterval.D()) }

// Stop ends what Start began. It can be called twice.
func (c *Check) Stop() { c.lists.Stop() }

// Reload reads the files of exceptions again, changed or not.
func (c *Check) Reload() conf.Faults { return c.lists.Reload() }

// Name implements [policy.Check].
func (c *Check) Name() string { return "greylist" }

// Traits implements [policy.Check].
func (c *Check) Traits() policy.Traits { return Traits }

// Traits are those of every greylist check.
var Traits = policy.Traits{Stages: policy.Stages(policy.StageRcpt, policy.StageData), Waits: true, Last: true}

// Reasons for not greylisting a request.
const (
	skipStage         = "greylist-other-stage"
	skipNull          = "greylist-null-sender"
	skipOwn           = "greylist-own-probe"
	skipAuthenticated = "greylist-authenticated"
	skipException     = "greylist-exception"
	skipSPF           = "greylist-spf-pass"
	skipTrusted       = "greylist-not-suspicious"
	skipUnknown       = "greylist-unknown-client"
)

// byGrade is the delay of a request that no exception has given one.
const byGrade time.Duration = -1

// passOver says why a request is not greylisted, "" when it is, and the delay
// that an exception gives it, else byGrade. An exception counts as hit unless
// peek is set.
func (c *Check) passOver(req *policy.Request, peek bool) (why, detail string, delay time.Duration) {
	delay = byGrade
	callout := req.NullSender() || len(c.callouts) > 0 && c.calloutSender(req.Sender)
	own := c.ownProbe(req.Sender)
	switch {
	case own && req.Stage == policy.StageRcpt:
		return skipOwn, "judged at DATA", 0
	case callout && c.cfg.NullSender == Never:
		return skipNull, "", 0
	case callout && c.cfg.NullSender == AtData && req.Stage != policy.StageData:
		return skipNull, "judged at DATA", 0
	case req.Stage == policy.StageData && !own && !(callout && c.cfg.NullSender == AtData):
		return skipStage, "", 0 // has been judged at RCPT
	case c.cfg.SkipAuthenticated && req.SASL.Username != "":
		return skipAuthenticated, "login " + req.SASL.Username, 0
	case c.cfg.SkipAuthenticated && req.TLS.CertSubject != "":
		return skipAuthenticated, "certificate " + req.TLS.CertSubject, 0
	case c.cfg.SkipSPFPass && req.Facts.SPF.Result == "pass":
		return skipSPF, req.Facts.SPF.Domain, 0
	}
	set := c.lists.Set()
	entry := set.Find(req)
	if entry != nil {
		if !peek && !req.DryRun {
			entry.Hit(req.Time)
		}
		if d, ok := entryDelay(entry); ok {
			delay = d
		} else if entry.Action == policy.Allow {
			return skipException, entry.Place(), 0
		}
	}
	return "", "", delay
}

// gradeOf says how long a request waits that is greylisted. ok is false when
// it is none of those that are.
func (c *Check) gradeOf(ctx context.Context, req *policy.Request, own time.Duration) (g grade, ok bool) {
	if c.cfg.When != Always {
		g.kinds = suspicionsOf(&req.Facts, c.counted)
	}
	switch {
	case own != byGrade:
		g.class = classOwn
		return g, c.cfg.When != Suspicious || g.kinds != 0
	case c.cfg.When == Graded:
		g.lists = g.kinds.has(kindList) && listed(&req.Facts)
		g.class = gradeOf(g.kinds, g.lists)
		c.burst(ctx, req, &g)
		return g, true
	}
	g.class = classShort
	return g, c.cfg.When == Always || g.kinds != 0
}

// delayOf returns the delay of a class; own is that of an exception.
func (c *Check) delayOf(k class, own time.Duration) time.Duration {
	switch k {
	case classNone:
		return 0
	case classShort:
		return c.rule.Delay
	case classLong:
		return c.cfg.LongDelay.D()
	default:
		return own
	}
}

func (c *Check) ownProbe(a policy.Address) bool {
	for _, s := range c.cfg.OwnProbes {
		if strings.EqualFold(s, a.Raw) {
			return true
		}
	}
	return false
}

func (c *Check) calloutSender(a policy.Address) bool {
	local := strings.ToLower(a.Local)
	return c.callouts[local+"@"] || c.callouts[local+"@"+a.Domain]
}

// Evaluate implements [policy.Check].
func (c *Check) Evaluate(ctx context.Context, req *policy.Request) (policy.Verdict, error) {
	why, detail, own := c.passOver(req, false)
	var match, credit string
	var g grade
	if why == "" {
		var ok bool
		if match, credit, ok = c.memo.identities(req, c.cfg.IPv4Prefix, c.cfg.IPv6Prefix); !ok {
			why = skipUnknown
		} else if g, ok = c.gradeOf(ctx, req, own); !ok {
			why = skipTrusted
		}
	}
	if why != "" {
		if req.Probe != nil {
			req.Probe.Add("passed over", strings.TrimPrefix(why, "greylist-")+" "+detail, "", 0)
		}
		if !req.DryRun {
			c.metrics.passedOver.Inc()
		}
		return policy.Verdict{Reason: why, Detail: detail}, nil
	}
	contact := Contact{
		Match: match, Credit: credit, Sender: mailaddr.Correspondent(req.Sender, c.cfg.Delimiters), Recipient: recipient(req.Recipient),
		Addr: req.Client.Addr, Time: req.Time, Rule: c.rule, DryRun: req.DryRun,
		Hold: g.class == classLong && c.relist != nil && req.Facts.ListsAsked,
	}
	contact.Rule.Delay = c.delayOf(g.class, own)
	contact.Rule.MaxDelay = max(contact.Rule.MaxDelay, contact.Rule.Delay)
	var began time.Time
	if req.Probe != nil {
		began = time.Now()
	}
	out, err := c.store.TouchGreylist(ctx, &contact)
	if req.Probe != nil {
		c.explain(req, &contact, &g, &out, err, time.Since(began))
	}
	if err == nil && contact.Hold && out.State.firstPass() {
		v, refused := c.askAnew(ctx, req, match, &g, &out)
		if refused {
			return v, nil
		}
		if !req.DryRun {
			contact.Hold = false
			out, err = c.store.TouchGreylist(ctx, &contact)
		}
	}
	if err != nil {
		return policy.Verdict{}, fmt.Errorf("greylist: %w", err)
	}
	if out.State.Delays() {
		if v, ok := c.vouched(ctx, req, &contact, own); ok {
			return v, nil
		}
	}
	if !req.DryRun {
		c.count(&g, &out)
		if c.cfg.When == Graded && own == byGrade {
			c.settle(ctx, req, &out)
		}
		c.remember(req, &contact, &out, own)
	}
	return c.decide(req, match, &g, &out), nil
}

// askLeast is the time that is left for the store when lists are asked anew.
const askLeast = 250 * time.Millisecond

// askAnew asks the DNS lists past what is remembered of them: what has spammed
// elsewhere in the long delay is on them by now. Their refusal is the client's
// answer, and what was held stays as it was. Lists that do not answer refuse
// nobody.
func (c *Check) askAnew(ctx context.Context, req *policy.Request, match string, g *grade, out *Outcome) (v policy.Verdict, refused bool) {
	if deadline, ok := ctx.Deadline(); ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithDeadline(ctx, deadline.Add(-min(askLeast, time.Until(deadline)/2)))
		defer cancel()
	}
	// A request of its own: facts are for later checks, and there are none.
	again := *req
	again.Facts = policy.Facts{SPF: req.Facts.SPF, Provider: req.Facts.Provider, MarkScore: req.Facts.MarkScore}
	v, err := c.relist(ctx, &again)
	result := askedClean
	switch {
	case err != nil:
		result = askedInVain
		c.log.Debug("DNS lists could not be asked anew", zap.Stringer("client", req.Client.Addr), zap.Error(err))
	case v.Action.Refuses():
		result = askedRefused
		v.Detail = v.Detail + "; asked anew after " + req.Time.Sub(out.First).Round(time.Second).String() + ", " + match + c.because(g, req)
	}
	if req.Probe != nil {
		req.Probe.Add("DNS lists asked anew", askedNames[result], "", 0)
	}
	if !req.DryRun {
		c.metrics.asked[result].Inc()
	}
	return v, result == askedRefused
}

// because says for what a contact waits, behind other words of the log.
func (c *Check) because(g *grade, req *policy.Request) string {
	if c.cfg.When != Graded || g.class == classNone || g.class == classOwn {
		return ""
	}
	return ", " + classNames[g.class] + " for " + g.words(&req.Facts)
}

// Known reports whether an organisation's own hosts have credit, as far as a
// client's address and name tell: mail of its own domain would not be delayed.
// Nothing is written; a store that does not answer knows nobody.
func (c *Check) Known(ctx context.Context, client policy.Client, now time.Time) bool {
	org := orgOf(&client, c.memo.names)
	if org == "" || c.rule.KnownAfter == 0 {
		return false
	}
	out, err := c.store.TouchGreylist(ctx, &Contact{Match: "org:" + org, Credit: "org:" + org, Addr: client.Addr, Time: now, Rule: c.rule, DryRun: true})
	return err == nil && out.State == KnownClient
}

// decide turns an outcome into a verdict.
func (c *Check) decide(req *policy.Request, match string, g *grade, out *Outcome) policy.Verdict {
	v := policy.Verdict{Reason: reasons[out.State]}
	if out.State.Delays() {
		v.Action = policy.DeferIfPermit
		v.Reply = c.reply.Expand(func(name string) string { return placeholder(name, req, out.Wait) })
		v.Detail = match + ", attempt " + strconv.Itoa(out.Attempts) + c.because(g, req)
		return v
	}
	// Who is overdue has waited, if not from this client.
	if out.State == Overdue || out.State == FirstPass && out.Attempts > 0 {
		waited := int(req.Time.Sub(out.First).Round(time.Second).Seconds())
		v.Detail = match + ", delayed " + strconv.Itoa(waited) + " s" + c.because(g, req)
		if !c.cfg.Header {
			return v
		}
		value := fmt.Sprintf("delayed %d seconds by postern at %s; %s", waited, c.hostname, req.Time.Format("Mon, 2 Jan 2006 15:04:05 -0700"))
		if words := g.words(&req.Facts); words != "" && g.class != classOwn {
			value += " (" + words + ")"
		}
		v.Add = []policy.Header{{Name: "X-Greylist", Value: value}}
	}
	return v
}

// reasons are the states as they stand in logs and metrics, made once.
var reasons = func() (r [Overdue + 1]string) {
	for s := range r {
		r[s] = "greylist-" + State(s).String()
	}
	return r
}()

func placeholder(name string, req *policy.Request, wait time.Duration) string {
	switch name {
	case "wait":
		return strconv.FormatInt(int64((wait+time.Second-1)/time.Second), 10)
	case "client":
		if !req.Client.Addr.IsValid() {
			return "unknown"
		}
		return req.Client.Addr.String()
	case "helo":
		return req.Helo
	case "sender":
		return req.Sender.Raw
	case "recipient":
		return req.Recipient.Raw
	}
	return ""
}

// recipient returns the stored form of a recipient: greylisting compares it
// without case.
func recipient(a policy.Address) string {
	if a.Domain == "" {
		return strings.ToLower(a.Local)
	}
	if lower := strings.ToLower(a.Local); lower != a.Local || len(a.Raw) != len(a.Local)+1+len(a.Domain) {
		return lower + "@" + a.Domain
	}
	if strings.HasSuffix(a.Raw, a.Domain) {
		return a.Raw // as it came
	}
	return a.Local + "@" + a.Domain
}

// remember keeps a delayed contact for Hint, and forgets one that passes.
func (c *Check) remember(req *policy.Request, contact *Contact, out *Outcome, own time.Duration) {
	if c.hints == nil || !out.State.Delays() && out.State != FirstPass && out.State != Overdue {
		return
	}
	key := c.hints.key(req, contact.Sender, contact.Recipient, c.hintDelay(own))
	if out.State.Delays() {
		c.hints.set(key, req.Time, req.Time.Add(out.Wait), out.First)
	} else {
		c.hints.forget(key)
	}
}

// hintDelay is the delay that hints are told apart by. One that marks decide on
// is not known before they are: who was told to wait waits as long as he was
// told, even if there are fewer by now. Whoever gets more is told so then.
func (c *Check) hintDelay(own time.Duration) time.Duration {
	if own == byGrade && c.cfg.When == Always {
		return c.rule.Delay
	}
	return own
}

// Hint implements [policy.Hinter]: a contact from the very same client that
// this process has delayed is still too early. The attempt is not counted in
// the store: nothing but the log would ever show it.
func (c *Check) Hint(req *policy.Request) (policy.Verdict, bool) {
	if c.hints == nil || c.hints.empty(req.Time) {
		return policy.Verdict{}, false
	}
	why, _, own := c.passOver(req, true)
	if why != "" {
		return policy.Verdict{}, false
	}
	key := c.hints.key(req, mailaddr.Correspondent(req.Sender, c.cfg.Delimiters), recipient(req.Recipient), c.hintDelay(own))
	until, first, ok := c.hints.get(key, req.Time, c.hintAge())
	if !ok {
		return policy.Verdict{}, false
	}
	if !req.DryRun {
		c.metrics.hinted.Inc()
	}
	if req.Probe != nil {
		req.Probe.Add("retry too early", "first contact "+req.Time.Sub(first).Round(time.Second).String()+" ago", "memory", 0)
	}
	return policy.Verdict{
		Action: policy.DeferIfPermit, Reason: reasons[EarlyRetry], Detail: "answered from memory",
		Reply: c.reply.Expand(func(name string) string { return placeholder(name, req, until.Sub(req.Time)) }),
	}, true
}

func (c *Check) explain(req *policy.Request, contact *Contact, g *grade, out *Outcome, err error, took time.Duration) {
	p := req.Probe
	sender := contact.Sender
	if sender == "" {
		sender = "<>"
	}
	p.Add("match", contact.Match, "", 0)
	if contact.Credit != "" {
		p.Add("credit", contact.Credit, "", 0)
	} else {
		p.Add("credit", "none can be earned", "", 0)
	}
	p.Add("sender", sender, "", 0)
	p.Add("recipient", contact.Recipient, "", 0)
	c.explainGrade(req, contact, g)
	if err != nil {
		p.Add("store", err.Error(), "store", took)
		return
	}
	text := out.State.String()
	if !out.First.IsZero() && out.State != FirstContact {
		text += ", first contact " + req.Time.Sub(out.First).Round(time.Second).String() + " ago"
	}
	if out.State.Delays() {
		text += ", would pass in " + out.Wait.Round(time.Second).String()
	}
	p.Add("state", text, "store", took)
	if contact.Earns() && out.State != KnownTriplet {
		p.Add("passes counted for credit", strconv.Itoa(out.Passes)+" of "+strconv.Itoa(c.rule.KnownAfter), "store", 0)
	}
}

// explainGrade notes what speaks against the client, and what delay that
// makes.
func (c *Check) explainGrade(req *policy.Request, contact *Contact, g *grade) {
	p := req.Probe
	if c.cfg.When == Always {
		return
	}
	for _, mark := range req.Facts.Marks {
		k, ok := kindOf(mark, &req.Facts.SPF)
		switch {
		case !ok || !c.counted.has(k):
			p.Add("mark", mark+": does not count", "", 0)
		case g.forwarded:
			p.Add("mark", mark+": does not count by itself, somebody in the client's network has credit: it may forward", "", 0)
		default:
			p.Add("mark", mark+": suspicion \""+kindNames[k]+"\"", "", 0)
		}
	}
	if g.lists {
		p.Add("lists", "several DNS lists have it, or they would refuse it", "", 0)
	}
	if g.burst {
		p.Add("burst", fmt.Sprintf("more than %d correspondences within %v from %v, in which nobody has credit", c.cfg.Burst, c.cfg.BurstWithin,
			c.networkPrefix(req.Client.Addr)), "", 0)
	}
	p.Add("delay", conf.Duration(contact.Rule.Delay).String()+" ("+classNames[g.class]+")", "", 0)
}

// Status is what `postern status` shows of greylisting.
type Status struct {
	Profile  string        `json:"profile"`
	Delay    conf.Duration `json:"delay"`
	Long     conf.Duration `json:"long_delay,omitzero"` // with when = "graded"
	When     string        `json:"when"`
	Hints    int           `json:"hints"`
	Skipping []list.Status `json:"exceptions"`
}

// Rule returns the arithmetic in force, for who is delayed as long as the most.
func (c *Check) Rule() Rule { return c.rule }

// Status returns the present state.
func (c *Check) Status() Status {
	st := Status{Profile: c.cfg.Profile, Delay: c.cfg.Delay, When: c.cfg.When, Skipping: c.lists.Status()}
	if c.cfg.When == Graded {
		st.Long = c.cfg.LongDelay
	}
	if c.hints != nil {
		st.Hints = c.hints.count(time.Now())
	}
	return st
}

// Lists returns the exceptions, for listings of their entries and hits.
func (c *Check) Lists() *list.Live { return c.lists }

// listOptions says how exceptions are read: an entry exempts unless it says
// "on" (greylist after all) or gives a delay of its own.
func (c *Config) listOptions(prefix string) list.Options {
	return list.Options{
		Key: prefix + ".exceptions", Default: policy.Allow,
		KeyAt: func(i int) string { // sources puts the two into one list
			if i < len(c.Skip) {
				return indexed(prefix+".skip", i)
			}
			return indexed(prefix+".exceptions", i-len(c.Skip))
		},
		Params: map[string]func(string) error{
			"delay": func(v string) error {
				d, err := conf.ParseDuration(v)
				switch {
				case err != nil:
				case d > c.MaxDelay.D():
					err = fmt.Errorf("%s is more than max_delay (%v)", v, c.MaxDelay)
				case d >= c.Window.D():
					err = fmt.Errorf("%s is not less than window (%v): no retry would ever pass", v, c.Window)
				}
				return err
			},
		},
		Delimiters: "+",
	}
}

// entryDelay returns the delay that an exception asks for.
func entryDelay(e *list.Entry) (time.Duration, bool) {
	v, ok := e.Params["delay"]
	if !ok {
		return 0, false
	}
	d, err := conf.ParseDuration(v)
	return d, err == nil
}

func indexed(key string, i int) string { return key + "[" + strconv.Itoa(i) + "]" }

type metrics struct {
	states     [Overdue + 1]prometheus.Counter
	passedOver prometheus.Counter
	hinted     prometheus.Counter
	vouched    map[string]prometheus.Counter
	graded     [classes]prometheus.Counter
	bursts     prometheus.Counter
	asked      [askedResults]prometheus.Counter
}

// What came of asking DNS lists anew.
const (
	askedClean = iota
	askedRefused
	askedInVain
	askedResults
)

var askedNames = [askedResults]string{"clean", "refused", "unanswered"}

// count counts an outcome, and of a contact that was not known what it waits.
func (c *Check) count(g *grade, out *Outcome) {
	c.metrics.states[out.State].Inc()
	if out.State == FirstContact || out.State == FirstPass && out.Attempts == 0 {
		c.metrics.graded[g.class].Inc()
		if g.burst {
			c.metrics.bursts.Inc()
		}
	}
}

func newMetrics(reg prometheus.Registerer) *metrics {
	states := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_greylist_contacts_total", Help: "Contacts by what the store knew of them.",
	}, []string{"state"})
	m := &metrics{
		passedOver: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_greylist_passed_over_total", Help: "Requests that are not greylisted: exceptions, logins, other stages.",
		}),
		hinted: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "postern_greylist_hints_total", Help: "Retries that came too early and were answered from memory.",
		}),
		vouched: make(map[string]prometheus.Counter, len(vouchedReasons)),
	}
	vouched := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_greylist_vouched_total", Help: "Contacts that would have been delayed and were not, by who vouches.",
	}, []string{"by"})
	for by := range vouchedReasons {
		m.vouched[by] = vouched.WithLabelValues(by)
	}
	for s := range m.states {
		m.states[s] = states.WithLabelValues(State(s).String())
	}
	graded := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_greylist_grades_total", Help: "First contacts by how long they wait.",
	}, []string{"delay"})
	for k, name := range classNames {
		m.graded[k] = graded.WithLabelValues(name)
	}
	m.bursts = prometheus.NewCounter(prometheus.CounterOpts{
		Name: "postern_greylist_bursts_total", Help: "First contacts that wait for long_delay for what else came from their network.",
	})
	asked := prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "postern_greylist_asked_anew_total", Help: "Contacts about which DNS lists were asked anew after long_delay.",
	}, []string{"result"})
	for r, name := range askedNames {
		m.asked[r] = asked.WithLabelValues(name)
	}
	reg.MustRegister(states, m.passedOver, m.hinted, vouched, graded, m.bursts, asked)
	return m
}
