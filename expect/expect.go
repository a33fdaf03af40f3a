// Package expect holds the tests that an administrator writes into the
// configuration: a request, what is to be found out about it, and what is to
// come of it. It knows no check; who runs the chains hands in decisions.
package expect

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"postern/internal/conf"
	"postern/internal/mailaddr"
	"postern/policy"
	"postern/resolver"
)

// Case is one expectation, [[expect]] in the configuration.
type Case struct {
	// Name says what is expected, for messages about it.
	Name string `toml:"name"`

	// Client is the address of the client.
	Client string `toml:"client"`
	// ClientName is its verified reverse name.
	ClientName string `toml:"client_name"`
	// ReverseName is its reverse name where that does not lead back to the address.
	// Default: client_name.
	ReverseName string `toml:"reverse_name"`
	// Helo is the HELO name, "" for none. Default: client_name, else the address in
	// brackets.
	Helo *string `toml:"helo"`
	// Sender is the envelope sender, "" for the null sender.
	Sender string `toml:"sender"`
	// Recipient is the envelope recipient.
	Recipient string `toml:"recipient"`
	// Login is what the client has authenticated as.
	Login string `toml:"login"`
	// Context is the policy_context, which picks a chain.
	Context string `toml:"context"`
	// Stage is the SMTP stage, "rcpt" unless it is given.
	Stage policy.Stage `toml:"stage"`
	// Size is the size of the message in bytes as the client declares it.
	Size int64 `toml:"size"`
	// Message is a file with a message, which is looked at when the recipient has
	// been accepted: header rules, authentication.
	Message string `toml:"message"`

	// DNS are records as a zone file has them: "example.org TXT v=spf1 -all". In
	// place of data "none", "timeout", "servfail" or "refused" can stand. What is not given: the names of the
	// client and of HELO lead to the client, the sender's domain has an MX, and
	// nothing else is there.
	DNS []string `toml:"dns"`
	// Listed are DNS lists that have the client: "zen.spamhaus.org=127.0.0.2".
	Listed []string `toml:"listed"`
	// SPF is the result for the sender's domain, or for HELO where there is no
	// sender: "pass", "fail", "softfail", "neutral", "none", "temperror" or
	// "permerror".
	SPF string `toml:"spf"`
	// RecipientIs is what directories and next hops say of the recipient: "known",
	// "unknown" or "temporary"; "known" unless it is given.
	RecipientIs string `toml:"recipient_is"`
	// RetryAfter has the client come a second time, so much later; the second
	// answer counts.
	RetryAfter conf.Duration `toml:"retry_after"`
	// Times is how often the client comes within a moment; the last answer counts.
	// Once unless it is given.
	Times int `toml:"times"`
	// Live asks the DNS servers of [dns] for what dns, listed and spf do not give.
	// Only `postern check` runs such a case, a reload does not.
	Live bool `toml:"live"`

	// Action is what is to come of it: "accept", "permit", "reject", "defer",
	// "hold", "discard" or "redirect".
	Action string `toml:"action"`
	// Check is whose verdict it is to be.
	Check string `toml:"check"`
	// Reason is the reason of that verdict, as the log has it.
	Reason string `toml:"reason"`
	// Reply is what the reply is to hold.
	Reply string `toml:"reply"`
	// Header are fields that the message is to have in the end; each is the
	// beginning of one: "X-Greylist:".
	Header []string `toml:"header"`
}

// Limits of a case.
const (
	maxTimes   = 10_000
	maxMessage = 64 << 20
)

var (
	actions    = []string{"accept", "permit", "reject", "defer", "hold", "discard", "redirect"}
	results    = []string{"pass", "fail", "softfail", "neutral", "none", "temperror", "permerror"}
	recipients = []string{"known", "unknown", "temporary"}
)

// Validate reports what is wrong with a case; prefix is its key.
func (c *Case) Validate(prefix string, fs *conf.Faults) {
	among := func(key, value string, words []string) {
		if value != "" && !slices.Contains(words, value) {
			fs.Keyf(prefix+"."+key, "%q is none of %s", value, strings.Join(words, ", "))
		}
	}
	if c.Client == "" {
		fs.Keyf(prefix, "client is missing: the address of the client")
	} else if _, err := netip.ParseAddr(c.Client); err != nil {
		fs.Keyf(prefix+".client", "%q is not an IP address", c.Client)
	}
	if c.Action == "" {
		fs.Keyf(prefix, "action is missing: one of %s", strings.Join(actions, ", "))
	}
	among("action", c.Action, actions)
	among("spf", c.SPF, results)
	among("recipient_is", c.RecipientIs, recipients)
	for i, line := range c.DNS {
		if _, err := resolver.ParseRecord(line); err != nil {
			fs.Keyf(fmt.Sprintf("%s.dns[%d]", prefix, i), "%v", err)
		}
	}
	for i, entry := range c.Listed {
		if _, _, err := listing(entry); err != nil {
			fs.Keyf(fmt.Sprintf("%s.listed[%d]", prefix, i), "%v", err)
		}
	}
	if c.SPF != "" && c.spfDomain() == "" {
		fs.Keyf(prefix+".spf", "there is neither a sender with a domain nor a HELO name that could have a record")
	}
	if c.Times < 0 || c.Times > maxTimes {
		fs.Keyf(prefix+".times", "%d is out of range: 1 to %d", c.Times, maxTimes)
	}
	if c.RetryAfter < 0 {
		fs.Keyf(prefix+".retry_after", "%v is negative", c.RetryAfter)
	}
	if c.Message == "" {
		if len(c.Header) > 0 {
			fs.Keyf(prefix+".header", "there is no message that could have it")
		}
	} else if _, err := c.read(); err != nil {
		fs.Keyf(prefix+".message", "%v", err)
	}
	if c.Stage > policy.StageRcpt && c.Message != "" {
		fs.Keyf(prefix+".stage", "a message is looked at behind stage rcpt")
	}
	for i, f := range c.Header {
		if name, _, ok := strings.Cut(f, ":"); !ok || !policy.UsableName(name) {
			fs.Keyf(fmt.Sprintf("%s.header[%d]", prefix, i), "%q is not the beginning of a header field, such as \"Subject: [spam]\"", f)
		}
	}
	if c.Reply != "" && c.Action != "reject" && c.Action != "defer" {
		fs.Keyf(prefix+".reply", "only who is refused gets a reply")
	}
}

// Key is the key of the i-th case, from 0.
func Key(i int) string { return fmt.Sprintf("expect[%d]", i) }

// Title names the case in messages; n counts from 1.
func (c *Case) Title(n int) string {
	if c.Name != "" {
		return fmt.Sprintf("%q", c.Name)
	}
	return fmt.Sprintf("number %d", n)
}

func (c *Case) read() ([]byte, error) {
	st, err := os.Stat(c.Message)
	switch {
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular() || st.Size() > maxMessage:
		return nil, fmt.Errorf("%s is not a file of at most %d MB", c.Message, maxMessage>>20)
	}
	return os.ReadFile(c.Message)
}

// ReadMessage reads the message, in the parts that inspectors are shown.
func (c *Case) ReadMessage() (fields []policy.Field, body []byte, err error) {
	text, err := c.read()
	if err != nil {
		return nil, nil, err
	}
	fields, body = policy.CutMessage(text)
	return fields, body, nil
}

func (c *Case) addr() netip.Addr {
	addr, _ := netip.ParseAddr(c.Client) // validated
	return addr.Unmap().WithZone("")
}

func (c *Case) helo() string {
	switch {
	case c.Helo != nil:
		return *c.Helo
	case c.ClientName != "":
		return c.ClientName
	}
	if addr := c.addr(); addr.Is6() {
		return "[IPv6:" + addr.String() + "]"
	}
	return "[" + c.addr().String() + "]"
}

// Request is the request of the case, made at the time at.
func (c *Case) Request(at time.Time) *policy.Request {
	name, reverse := mailaddr.Domain(c.ClientName), mailaddr.Domain(c.ReverseName)
	if reverse == "" {
		reverse = name
	}
	stage := c.Stage
	if stage == policy.StageUnknown {
		stage = policy.StageRcpt
	}
	return &policy.Request{
		Time: at, Stage: stage, Door: "expect", Context: c.Context, ESMTP: true,
		Client: policy.Client{Addr: c.addr(), Port: 40_000, Name: name, ReverseName: reverse},
		Helo:   c.helo(), Sender: mailaddr.Parse(c.Sender), Recipient: mailaddr.Parse(c.Recipient), Size: c.Size,
		SASL: policy.SASL{Username: c.Login},
	}
}

// Runs is how often the client comes, and Wait how much earlier than the last
// time it came first.
func (c *Case) Runs() (times int, wait time.Duration) { return max(c.Times, 1), c.RetryAfter.D() }

// Recipient is what is said of the recipient.
func (c *Case) RecipientSaid() string {
	if c.RecipientIs == "" {
		return recipients[0]
	}
	return c.RecipientIs
}

// Judge says what of a decision is not as expected; nothing when all is. header
// are the fields of the message as it would be delivered.
func (c *Case) Judge(d *policy.Decision, header []policy.Field) error {
	var wrong []string
	said := func(what, want, got string) {
		if got == "" {
			got = "none"
		}
		wrong = append(wrong, fmt.Sprintf("%s %s was expected, it is %s", what, want, got))
	}
	if got := word(d.Verdict.Action); got != c.Action {
		said("action", c.Action, got)
	}
	if c.Check != "" && d.Check != c.Check {
		said("check", c.Check, d.Check)
	}
	reason := d.Verdict.Reason
	for i := len(d.Steps) - 1; reason == "" && i >= 0; i-- { // as in the log
		if d.Steps[i].Outcome != policy.Skipped {
			reason = d.Steps[i].Verdict.Reason
		}
	}
	if c.Reason != "" && reason != c.Reason {
		said("reason", c.Reason, reason)
	}
	if c.Reply != "" {
		reply := ""
		if d.Verdict.Action.Refuses() {
			reply = d.Verdict.Reply.String()
		}
		if !strings.Contains(reply, c.Reply) {
			said("a reply with", fmt.Sprintf("%q", c.Reply), fmt.Sprintf("%q", reply))
		}
	}
	for _, want := range c.Header {
		if !slices.ContainsFunc(header, func(f policy.Field) bool { return begins(f, want) }) {
			wrong = append(wrong, fmt.Sprintf("a header field %q was expected, there is none", want))
		}
	}
	if wrong == nil {
		return nil
	}
	return errors.New(strings.Join(wrong, "; ") + explain(d))
}

// begins reports whether a field begins with want, however it is folded.
func begins(f policy.Field, want string) bool {
	name, value, _ := strings.Cut(want, ":")
	return strings.EqualFold(strings.TrimRight(f.Name, " \t"), name) &&
		strings.HasPrefix(strings.Join(strings.Fields(f.Value), " "), strings.Join(strings.Fields(value), " "))
}

// explain says by whom a decision is, in brackets.
func explain(d *policy.Decision) string {
	var parts []string
	if d.Check != "" {
		parts = append(parts, "by "+d.Check)
	}
	if d.Verdict.Reason != "" {
		parts = append(parts, d.Verdict.Reason)
	}
	if d.Verdict.Detail != "" {
		parts = append(parts, d.Verdict.Detail)
	}
	if d.Verdict.Action.Refuses() {
		parts = append(parts, d.Verdict.Reply.String())
	}
	if d.WouldCheck != "" {
		parts = append(parts, fmt.Sprintf("in shadow %s would %s", d.WouldCheck, d.Would.Action))
	}
	if parts == nil {
		return ""
	}
	return " (" + strings.Join(parts, ", ") + ")"
}

// word is the action as cases name it.
func word(a policy.Action) string {
	switch a {
	case policy.Continue, policy.Allow:
		return "accept"
	case policy.Defer, policy.DeferIfPermit:
		return "defer"
	}
	return a.String()
}

// World is what DNS says in a case. It implements [resolver.Source].
type World struct {
	records map[string]resolver.Recorded // by name and type
	listed  []listed
	live    resolver.Source // nil: there is nothing else
}

// World returns what DNS says. live is asked for the rest where the case wants
// that; nil: nobody is.
func (c *Case) World(live resolver.Source) *World {
	w := &World{records: make(map[string]resolver.Recorded)}
	addr := c.addr()
	name, reverse := mailaddr.Domain(c.ClientName), mailaddr.Domain(c.ReverseName)
	if c.Live {
		w.live = live
	} else {
		for _, name := range []string{name, hostOf(c.helo())} {
			w.leads(name, addr)
		}
		if domain := mailaddr.Parse(c.Sender).Domain; domain != "" {
			w.set(domain, "MX", "10 "+domain)
			w.leads(domain, addr)
		}
	}
	if reverse == "" {
		reverse = name
	}
	if reverse != "" {
		w.set(resolver.ReverseName(addr), "PTR", reverse)
	}
	for _, entry := range c.Listed {
		zone, answer, _ := listing(entry) // validated
		w.listed = append(w.listed, listed{ListedName(addr, ""), zone, answer})
	}
	if domain := c.spfDomain(); c.SPF != "" && domain != "" {
		r := resolver.Recorded{Name: domain, Type: "TXT", TTL: time.Hour}
		text, failure, _ := SPFAnswer(c.SPF, addr) // validated
		if r.Failure = failure; text != "" {
			r.Records = []string{text}
		}
		w.records[key(r.Name, r.Type)] = r
	}
	given := make(map[string]bool)
	for _, line := range c.DNS {
		r, _ := resolver.ParseRecord(line) // validated
		k := key(r.Name, r.Type)
		if !given[k] { // what is given takes the place of what is made up
			given[k] = true
			delete(w.records, k)
		}
		w.add(r)
	}
	return w
}

// SPFAnswer is what the DNS says of a domain for which SPF has a result: a
// record, "" for none, or a failure as in [resolver.Recorded]. ok is false for what is
// no result.
func SPFAnswer(result string, addr netip.Addr) (record, failure string, ok bool) {
	switch result {
	case "fail":
		return "v=spf1 -all", "", true
	case "softfail":
		return "v=spf1 ~all", "", true
	case "neutral":
		return "v=spf1 ?all", "", true
	case "permerror":
		return "v=spf1 nonsense -all", "", true
	case "temperror":
		return "", "servfail", true
	case "none":
		return "", "", true
	case policy.SPFTooWide:
		return "v=spf1 +all", "", true
	case "pass":
		if addr.Is6() {
			return "v=spf1 ip6:" + addr.String() + " -all", "", true
		}
		return "v=spf1 ip4:" + addr.String() + " -all", "", true
	}
	return "", "", false
}

func (c *Case) spfDomain() string {
	if domain := mailaddr.Parse(c.Sender).Domain; domain != "" || c.Sender != "" {
		return domain
	}
	return hostOf(c.helo())
}

// hostOf is the name of HELO, "" for an address literal or none.
func hostOf(helo string) string {
	if strings.HasPrefix(helo, "[") {
		return ""
	}
	return mailaddr.Domain(helo)
}

// leads has a name lead to an address, "" none.
func (w *World) leads(name string, addr netip.Addr) {
	switch {
	case name == "":
	case addr.Is4():
		w.set(name, "A", addr.String())
	default:
		w.set(name, "AAAA", addr.String())
	}
}

func (w *World) set(name, rrtype, data string) {
	w.records[key(name, rrtype)] = resolver.Recorded{Name: name, Type: rrtype, Records: []string{data}, TTL: time.Hour}
}

func (w *World) add(r resolver.Recorded) {
	k := key(r.Name, r.Type)
	r.Records = append(slices.Clone(w.records[k].Records), r.Records...)
	w.records[k] = r
}

func key(name, rrtype string) string { return rrtype + " " + name }

// Answer implements [resolver.Source].
func (w *World) Answer(ctx context.Context, name, rrtype string) resolver.Recorded {
	if r, ok := w.records[key(name, rrtype)]; ok {
		return r
	}
	var found []string
	for _, l := range w.listed {
		if l.has(name, rrtype) {
			found = append(found, l.answer)
		}
	}
	if found != nil {
		return resolver.Recorded{Name: name, Type: rrtype, Records: found, TTL: time.Hour}
	}
	if w.live != nil {
		return w.live.Answer(ctx, name, rrtype)
	}
	return resolver.Recorded{Name: name, Type: rrtype, TTL: time.Hour}
}

// listing reads an entry of listed.
func listing(entry string) (zone, answer string, err error) {
	zone, answer, found := strings.Cut(entry, "=")
	if !found {
		answer = "127.0.0.2"
	}
	zone = mailaddr.Domain(strings.TrimSpace(zone))
	addr, err := netip.ParseAddr(strings.TrimSpace(answer))
	if err != nil || !addr.Is4() || zone == "" || !strings.Contains(zone, ".") {
		return "", "", fmt.Errorf("%q is not a DNS list with an answer, such as \"zen.spamhaus.org=127.0.0.2\"", entry)
	}
	return zone, addr.String(), nil
}

// listed is an address on a DNS list.
type listed struct {
	reversed     string // the address in the name that is asked for, with a dot
	zone, answer string
}

// has reports whether a query asks the list for the address. A secret key may
// stand in front of the zone.
func (l *listed) has(name, rrtype string) bool {
	rest, ok := strings.CutPrefix(name, l.reversed)
	return ok && rrtype == "A" && (rest == l.zone || strings.HasSuffix(rest, "."+l.zone))
}

// ListedName is the name under which a DNS list has an address (RFC 5782
// sections 2.1 and 2.4).
func ListedName(addr netip.Addr, zone string) string {
	name := resolver.ReverseName(addr)
	for _, suffix := range []string{"in-addr.arpa", "ip6.arpa"} {
		name = strings.TrimSuffix(name, suffix)
	}
	return name + zone
}
