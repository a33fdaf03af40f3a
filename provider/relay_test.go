package provider

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"encoding/base64"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"

	"postern/internal/mailaddr"
	"postern/policy"
)

const (
	tenantA = "01234567-89ab-cdef-0123-456789abcdef"
	tenantB = "fedcba98-7654-3210-fedc-ba9876543210"
)

// request is one at RCPT from a client of the list.
func request(sender, recipient string) *policy.Request {
	return &policy.Request{
		Time: time.Unix(1e9, 0), Stage: policy.StageRcpt, Door: "policy",
		Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Port: 40211},
		Sender: mailaddr.Parse(sender), Recipient: mailaddr.Parse(recipient),
	}
}

// atData is the same session as the milter door sees it.
func atData(req *policy.Request) *policy.Request {
	d := *req
	d.Time = time.Now() // when it was signed
	d.Stage, d.Door, d.Recipient, d.TLS.CertFingerprint, d.TLS.PubkeyFingerprint = policy.StageData, "milter", policy.Address{}, "", ""
	return &d
}

// relaySet has the list "p" (192.0.2.0/24, 2001:db8::/32) with relay sections.
func relaySet(t testing.TB, edit func(*Config), relay ...RelayConfig) (*Set, *zone) {
	t.Helper()
	z := newZone(map[string]string{"p.example": good})
	cfg := testConfig(t)
	cfg.Lists[0].Relay = relay
	if edit != nil {
		edit(&cfg)
	}
	s, _ := newSet(t, cfg, Options{Resolver: z, Milter: func(*policy.Client, netip.Addr) (open, content bool) { return true, true }})
	if rep, err := s.Refresh(context.Background(), "p", false); err != nil || rep.Result != resultChanged {
		t.Fatalf("%+v %v", rep, err)
	}
	return s, z
}

func evaluate(t testing.TB, s *Set, req *policy.Request) policy.Verdict {
	t.Helper()
	v, err := s.Evaluate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestAllowedPastChecks(t *testing.T) {
	s, _ := relaySet(t, func(c *Config) {
		c.Lists = append(c.Lists, ListConfig{Name: "second", Domains: []string{"p.example"}, AllowReserved: true, Skip: new([]string)})
	})
	if _, err := s.Refresh(t.Context(), "second", false); err != nil {
		t.Fatal(err)
	}
	req := request("a@example.net", "b@example.com")
	v := evaluate(t, s, req)
	if v.Action != policy.Allow || strings.Join(v.Skip, " ") != "rbl greylist" || v.Reason != "provider-allowed" || req.Facts.Provider != "p" ||
		v.Detail != "p 192.0.2.0/24 p.example" {
		t.Errorf("%+v, provider %q", v, req.Facts.Provider)
	}
	req = request("a@example.net", "b@example.com")
	req.Client.Addr = netip.MustParseAddr("198.51.100.1")
	if v := evaluate(t, s, req); v.Action != policy.Continue || v.Reason != "" || req.Facts.Provider != "" {
		t.Errorf("a stranger: %+v", v)
	}
	req.Client.Addr = netip.Addr{}
	if v := evaluate(t, s, req); v.Action != policy.Continue {
		t.Errorf("an unknown client: %+v", v)
	}
	s, _ = relaySet(t, func(c *Config) { c.Lists[0].Skip = new([]string) })
	req = request("a@example.net", "b@example.com")
	if v := evaluate(t, s, req); v.Action != policy.Continue || v.Reason != "provider-listed" || req.Facts.Provider != "p" {
		t.Errorf("nothing to skip: %+v", v)
	}
	req.Probe = new(policy.Probe)
	evaluate(t, s, req)
	if n := req.Probe.Notes; len(n) != 1 || n[0].Value != "p 192.0.2.0/24" || n[0].Source != "p.example ip4:192.0.2.0/24" {
		t.Errorf("notes %+v", n)
	}
}

func TestRelayConditionsOfTheEnvelope(t *testing.T) {
	const sha256 = "AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99:AA:BB:CC:DD:EE:FF:00:11:22:33:44:55:66:77:88:99"
	for _, tt := range []struct {
		name string
		c    RelayConfig
		edit func(*policy.Request)
		want bool
	}{
		{"sender", RelayConfig{SenderDomains: []string{"Example.org"}}, nil, true},
		{"sender in a sub-domain", RelayConfig{SenderDomains: []string{"example.org"}}, func(r *policy.Request) { r.Sender = mailaddr.Parse("a@x.example.org") }, false},
		{"sender in a sub-domain, meant", RelayConfig{SenderDomains: []string{".example.org"}}, func(r *policy.Request) { r.Sender = mailaddr.Parse("a@x.EXAMPLE.org") }, true},
		{"sender that ends alike", RelayConfig{SenderDomains: []string{".example.org"}}, func(r *policy.Request) { r.Sender = mailaddr.Parse("a@notexample.org") }, false},
		{"sender, U-label", RelayConfig{SenderDomains: []string{"bücher.example"}}, func(r *policy.Request) { r.Sender = mailaddr.Parse("a@xn--bcher-kva.example") }, true},
		{"another sender", RelayConfig{SenderDomains: []string{"example.com"}}, nil, false},
		{"null sender", RelayConfig{SenderDomains: []string{"example.org"}}, func(r *policy.Request) { r.Sender = policy.Address{} }, false},
		{"sender without domain", RelayConfig{SenderDomains: []string{"example.org"}}, func(r *policy.Request) { r.Sender = mailaddr.Parse("example.org") }, false},
		{"logged in", RelayConfig{SenderDomains: []string{"example.com"}, Authenticated: true}, func(r *policy.Request) { r.SASL.Username = "u" }, true},
		{"not logged in", RelayConfig{SenderDomains: []string{"example.com"}, Authenticated: true}, nil, false},
		{"logged in, not asked for", RelayConfig{SenderDomains: []string{"example.com"}}, func(r *policy.Request) { r.SASL.Username = "u" }, false},
		{"certificate name", RelayConfig{CertNames: []string{"mail.example.org"}}, func(r *policy.Request) { r.TLS.CertSubject = "Mail.Example.ORG" }, true},
		{"another certificate name", RelayConfig{CertNames: []string{"mail.example.org"}}, func(r *policy.Request) { r.TLS.CertSubject = "mail.example.com" }, false},
		{"no certificate", RelayConfig{CertNames: []string{".example.org"}}, nil, false},
		{"fingerprint", RelayConfig{CertFingerprints: []string{strings.ToLower(sha256)}}, func(r *policy.Request) { r.TLS.CertFingerprint = sha256 }, true},
		{"fingerprint of the key", RelayConfig{CertFingerprints: []string{strings.ReplaceAll(sha256, ":", "")}}, func(r *policy.Request) { r.TLS.PubkeyFingerprint = sha256 }, true},
		{"another fingerprint", RelayConfig{CertFingerprints: []string{sha256}}, func(r *policy.Request) { r.TLS.CertFingerprint = strings.Replace(sha256, "AA", "AB", 1) }, false},
		{"no fingerprint", RelayConfig{CertFingerprints: []string{sha256}}, nil, false},
		{"name without fingerprint", RelayConfig{CertNames: []string{"m.example"}, CertFingerprints: []string{sha256}}, func(r *policy.Request) { r.TLS.CertSubject = "m.example" }, false},
		{"sender without certificate", RelayConfig{SenderDomains: []string{"example.org"}, CertNames: []string{"m.example"}}, nil, false},
		{"certificate without sender", RelayConfig{SenderDomains: []string{"example.com"}, CertNames: []string{"m.example"}}, func(r *policy.Request) { r.TLS.CertSubject = "m.example" }, false},
		{"open", RelayConfig{OpenToAllCustomers: true}, nil, true},
		{"open, another client", RelayConfig{OpenToAllCustomers: true}, func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("198.51.100.1") }, false},
		{"own recipient", RelayConfig{OpenToAllCustomers: true}, func(r *policy.Request) { r.Recipient = mailaddr.Parse("b@OWN.example") }, false},
		{"postmaster", RelayConfig{OpenToAllCustomers: true}, func(r *policy.Request) { r.Recipient = mailaddr.Parse("postmaster") }, false},
		{"routed through us", RelayConfig{OpenToAllCustomers: true}, func(r *policy.Request) { r.Recipient = mailaddr.Parse("b%example.com@own.example") }, true},
		{"not at RCPT", RelayConfig{OpenToAllCustomers: true}, func(r *policy.Request) { r.Stage = policy.StageMail }, false},
	} {
		s, _ := relaySet(t, func(c *Config) { c.OwnDomains = []string{"own.example"} }, tt.c)
		req := request("a@example.org", "b@example.com")
		if tt.edit != nil {
			tt.edit(req)
		}
		v := evaluate(t, s, req)
		if (v.Action == policy.Permit) != tt.want {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if v.Action == policy.Permit && (v.Reason != "provider-relay" || len(v.Skip) != 2) {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if s.Inspector().Inspect(atData(req), []policy.Address{req.Recipient}) != nil {
			t.Errorf("%s: the message is looked at", tt.name)
		}
	}
}

// A permit that depends on the message is given only while our milter sees
// the session.
func TestNoPermitWithoutTheMilter(t *testing.T) {
	z := newZone(map[string]string{"p.example": good})
	cfg := testConfig(t)
	cfg.Lists[0].Relay = []RelayConfig{{SenderDomains: []string{"example.org"}, TenantIDs: []string{tenantA}}}
	var asked *policy.Client
	for _, tt := range []struct {
		name    string
		milter  func(*policy.Client, netip.Addr) (open, content bool)
		require bool
		want    bool
	}{
		{"no milter door", nil, true, false},
		{"no session", func(*policy.Client, netip.Addr) (open, content bool) { return false, false }, true, false},
		{"a session", func(c *policy.Client, _ netip.Addr) (open, content bool) { asked = c; return true, true }, true, true},
		{"not required", nil, false, true},
	} {
		cfg.RequireMilter = tt.require
		s, _ := newSet(t, cfg, Options{Resolver: z, Milter: tt.milter})
		if _, err := s.Refresh(t.Context(), "p", false); err != nil {
			t.Fatal(err)
		}
		v := evaluate(t, s, request("a@example.org", "b@example.com"))
		if (v.Action == policy.Permit) != tt.want {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if !tt.want && (!strings.Contains(v.Detail, "the milter has no session") || testutil.ToFloat64(s.metrics.relay.WithLabelValues("p", "no-milter")) != 1) {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
	if asked == nil || asked.Port != 40211 {
		t.Errorf("asked about %+v", asked)
	}
	if keys := cfg.NeedsMilter("provider"); len(keys) != 1 || keys[0] != "provider.list[0].relay[0].tenant_ids" {
		t.Errorf("%v", keys)
	}
}

// A session from before the first condition on content is not shown any: its
// recipients are told to come back, not that they are refused.
func TestNoRefusalForASessionThatIsTooOld(t *testing.T) {
	sees := false
	z := newZone(map[string]string{"p.example": good})
	cfg := testConfig(t)
	cfg.OwnDomains = []string{"ours.example"}
	cfg.Lists[0].Relay = []RelayConfig{{SenderDomains: []string{"example.org"}, TenantIDs: []string{tenantA}}}
	s, _ := newSet(t, cfg, Options{Resolver: z, Milter: func(*policy.Client, netip.Addr) (open, content bool) { return true, sees }})
	if _, err := s.Refresh(t.Context(), "p", false); err != nil {
		t.Fatal(err)
	}
	req := request("a@example.org", "b@example.com")
	v := evaluate(t, s, req)
	if v.Action != policy.Defer || v.Reply.Code != 451 || v.Reply.Enhanced != "4.7.1" || v.Reason != "provider-relay-undecided" || len(v.Skip) > 0 {
		t.Errorf("%+v", v)
	}
	if n := testutil.ToFloat64(s.metrics.relay.WithLabelValues("p", "deferred")); n != 1 {
		t.Errorf("%v counted", n)
	}
	for name, req := range map[string]*policy.Request{
		"our own recipient": request("a@example.org", "b@ours.example"), "the envelope does not match": request("a@example.net", "b@example.com"),
	} {
		if v := evaluate(t, s, req); v.Action.Refuses() || v.Action == policy.Permit {
			t.Errorf("%s: %+v", name, v)
		}
	}
	sees = true
	if v := evaluate(t, s, req); v.Action != policy.Permit {
		t.Errorf("a session that is shown the content: %+v", v)
	}
}

// show shows a message to an inspection and returns the verdict.
func show(t testing.TB, in policy.Inspection, message string) policy.Verdict {
	t.Helper()
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	for _, f := range fields(header) {
		in.Header(f)
	}
	in.EndOfHeaders()
	for i := 0; i < len(body); i += 7 {
		if !in.Body([]byte(body[i:min(i+7, len(body))])) {
			break
		}
	}
	j, err := in.End(t.Context())
	if err != nil || len(j.Edits) > 0 {
		t.Fatalf("%+v %v", j, err)
	}
	return j.Verdict
}

// fields cuts a header as a milter is shown it.
func fields(header string) []policy.Field {
	var out []policy.Field
	for line := range strings.SplitSeq(header, "\r\n") {
		if line != "" && (line[0] == ' ' || line[0] == '\t') && len(out) > 0 {
			out[len(out)-1].Value += "\n" + line
			continue
		}
		name, value, _ := strings.Cut(line, ":")
		out = append(out, policy.Field{Name: name, Value: value})
	}
	return out
}

const body = "\r\n\r\nHello\r\n"

func TestTenants(t *testing.T) {
	const from = "From: a@example.org\r\n"
	for _, tt := range []struct {
		name, header string
		want         policy.Action
		why          string
	}{
		{"the one", from + "X-MS-Exchange-CrossTenant-Id: " + tenantA, policy.Continue, ""},
		{"in other letters, folded", "x-ms-exchange-crosstenant-ID:\r\n\t" + strings.ToUpper(tenantA) + " \r\n" + from, policy.Continue, ""},
		{"another one", "X-MS-Exchange-CrossTenant-Id: " + tenantB, policy.Reject, "tenant " + tenantB + " is not allowed"},
		{"none", from + "X-MS-Exchange-CrossTenant-Network: " + tenantA, policy.Reject, "there is no X-MS-Exchange"},
		{"twice", "X-MS-Exchange-CrossTenant-Id: " + tenantA + "\r\nX-MS-Exchange-CrossTenant-Id: " + tenantA, policy.Reject, "more than one"},
		{"forged above", "X-MS-Exchange-CrossTenant-Id: " + tenantA + "\r\nX-MS-Exchange-CrossTenant-Id: " + tenantB, policy.Reject, "more than one"},
		{"forged below, with a blank", "X-MS-Exchange-CrossTenant-Id: " + tenantB + "\r\nX-MS-Exchange-CrossTenant-Id : " + tenantA, policy.Reject, "more than one"},
		{"two in one", "X-MS-Exchange-CrossTenant-Id: " + tenantA + ", " + tenantB, policy.Reject, "holds no tenant id"},
		{"empty", "X-MS-Exchange-CrossTenant-Id:", policy.Reject, "holds no tenant id"},
		{"with more behind", "X-MS-Exchange-CrossTenant-Id: " + tenantA + "\r\n " + tenantB, policy.Reject, "holds no tenant id"},
	} {
		s, _ := relaySet(t, nil, RelayConfig{SenderDomains: []string{"example.org"}, TenantIDs: []string{strings.ToUpper(tenantA)}})
		req := request("a@example.org", "b@example.com")
		if v := evaluate(t, s, req); v.Action != policy.Permit {
			t.Fatalf("%s: at RCPT %+v", tt.name, v)
		}
		in := s.Inspector().Inspect(atData(req), []policy.Address{req.Recipient})
		if in == nil {
			t.Fatalf("%s: not looked at", tt.name)
		}
		v := show(t, in, tt.header+body)
		if v.Action != tt.want || !strings.Contains(v.Detail, tt.why) {
			t.Errorf("%s: %+v", tt.name, v)
		}
		if tt.want == policy.Reject && (v.Reply.String() != "550 5.7.1 Relaying denied: this message does not come from an allowed customer" || v.Reason != "provider-relay-refused") {
			t.Errorf("%s: %+v", tt.name, v)
		}
	}
	s, _ := relaySet(t, nil, RelayConfig{SenderDomains: []string{"example.org"}, TenantIDs: []string{tenantA}})
	if s.Inspector().WantsBody() {
		t.Error("a body is wanted for nothing")
	}
}

// Which messages are held to the conditions.
func TestWhichMessagesAreLookedAt(t *testing.T) {
	rule := RelayConfig{SenderDomains: []string{"example.org"}, NullSender: true, TenantIDs: []string{tenantA}}
	outside, inside := mailaddr.Parse("b@example.com"), mailaddr.Parse("b@own.example")
	for _, tt := range []struct {
		name   string
		edit   func(*policy.Request)
		to     []policy.Address
		looked bool
	}{
		{"permitted", nil, []policy.Address{outside}, true},
		{"permitted, and one of ours", nil, []policy.Address{inside, outside}, true},
		{"ours only", nil, []policy.Address{inside, mailaddr.Parse("postmaster")}, false},
		{"ours, routed on", nil, []policy.Address{mailaddr.Parse("b%example.com@own.example")}, true},
		{"ours, with a path", nil, []policy.Address{mailaddr.Parse("example.com!b@own.example")}, true},
		{"routed on without a domain", nil, []policy.Address{mailaddr.Parse("b%example.com")}, true},
		{"recipients not known", nil, nil, true},
		{"null sender", func(r *policy.Request) { r.Sender = policy.Address{} }, []policy.Address{outside}, true},
		{"null sender to us", func(r *policy.Request) { r.Sender = policy.Address{} }, []policy.Address{inside}, false},
		{"another sender", func(r *policy.Request) { r.Sender = mailaddr.Parse("a@example.net") }, []policy.Address{outside}, false},
		{"another client", func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("198.51.100.1") }, []policy.Address{outside}, false},
		{"IPv6", func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("2001:db8::7") }, []policy.Address{outside}, true},
		{"dry run", func(r *policy.Request) { r.DryRun = true }, []policy.Address{outside}, true},
	} {
		for _, remembered := range []bool{true, false} {
			s, _ := relaySet(t, func(c *Config) { c.OwnDomains = []string{"own.example"} }, rule)
			req := request("a@example.org", "b@example.com")
			if tt.edit != nil {
				tt.edit(req)
			}
			if remembered {
				evaluate(t, s, req)
			}
			if got := s.Inspector().Inspect(atData(req), tt.to) != nil; got != tt.looked {
				t.Errorf("%s (remembered %v): looked at: %v", tt.name, remembered, got)
			}
		}
	}
}

// What was permitted on a condition stays bound to it whatever happens before
// the end of the message.
func TestPermitsOutliveTheirReasons(t *testing.T) {
	rule := RelayConfig{SenderDomains: []string{"example.org"}, TenantIDs: []string{tenantA}}
	allowed, forged := "X-MS-Exchange-CrossTenant-Id: "+tenantA+body, "X-MS-Exchange-CrossTenant-Id: "+tenantB+body
	outside := []policy.Address{mailaddr.Parse("b@example.com")}
	for _, tt := range []struct {
		name   string
		change func(*testing.T, *Set, *zone) *Set
	}{
		{"nothing happens", func(_ *testing.T, s *Set, _ *zone) *Set { return s }},
		{"the client leaves the list", func(t *testing.T, s *Set, z *zone) *Set {
			z.set("p.example", "v=spf1 ip4:198.51.100.0/24 -all")
			rep, err := s.Refresh(t.Context(), "p", false)
			if err == nil {
				_, err = s.Accept(t.Context(), "p", rep.ID)
			}
			if err != nil || len(s.Whois(netip.MustParseAddr("192.0.2.7"))) > 0 {
				t.Fatal(err)
			}
			return s
		}},
		{"a reload without the section", func(t *testing.T, s *Set, z *zone) *Set {
			cfg := s.cfg
			cfg.Lists = []ListConfig{{Name: "p", Domains: []string{"p.example"}, AllowReserved: true}}
			next, _ := newSet(t, cfg, Options{Resolver: z, Previous: s})
			return next
		}},
		{"a reload that switches it off", func(t *testing.T, s *Set, z *zone) *Set {
			cfg := s.cfg
			cfg.Mode = policy.Off
			next, _ := newSet(t, cfg, Options{Resolver: z, Previous: s})
			return next
		}},
		{"a reload to shadow mode", func(t *testing.T, s *Set, z *zone) *Set {
			cfg := s.cfg
			cfg.Mode = policy.Shadow
			next, _ := newSet(t, cfg, Options{Resolver: z, Previous: s})
			return next
		}},
	} {
		s, z := relaySet(t, nil, rule)
		req := request("a@example.org", "b@example.com")
		if v := evaluate(t, s, req); v.Action != policy.Permit {
			t.Fatal(v)
		}
		s = tt.change(t, s, z)
		if !s.Inspects() {
			t.Errorf("%s: the inspector is not run", tt.name)
		}
		for message, want := range map[string]policy.Action{allowed: policy.Continue, forged: policy.Reject} {
			in := s.Inspector().Inspect(atData(req), outside)
			if in == nil {
				t.Errorf("%s: not looked at", tt.name)
				continue
			}
			if v := show(t, in, message); v.Action != want {
				t.Errorf("%s: %+v, want %v", tt.name, v, want)
			}
		}
	}
}

func TestMemoryOfPermitsIsBounded(t *testing.T) {
	m := new(memory)
	r := &rule{name: "x"}
	req := request("a@example.org", "b@example.com")
	m.permit(req, []*rule{r})
	m.permit(req, []*rule{r})
	if got := m.rules(req); len(got) != 1 {
		t.Errorf("%d rules", len(got))
	}
	other := *req
	for i := range 3 * memorySize {
		other.Client.Port, other.Client.Addr = uint16(i), netip.AddrFrom4([4]byte{192, 0, 2, byte(i >> 16)})
		m.permit(&other, []*rule{r})
	}
	if n := len(m.now) + len(m.past); n > 2*memorySize {
		t.Errorf("%d permits are remembered", n)
	}
	m = new(memory)
	m.permit(req, []*rule{r})
	other.Time = req.Time.Add(memoryTurn - time.Second)
	m.permit(&other, []*rule{r})
	other.Time = req.Time.Add(memoryTurn + time.Second)
	m.permit(&other, []*rule{r})
	if len(m.rules(req)) != 1 {
		t.Error("forgotten too early")
	}
	other.Time = req.Time.Add(2*memoryTurn + 2*time.Second)
	m.permit(&other, []*rule{r})
	other.Time = other.Time.Add(memoryTurn + time.Second)
	m.permit(&other, []*rule{r})
	if len(m.rules(req)) != 0 {
		t.Error("never forgotten")
	}
}

// Sections are alternatives, and each stands for itself: the tenant of one
// does not open the domain of another.
func TestSectionsStandForThemselves(t *testing.T) {
	s, _ := relaySet(t, nil,
		RelayConfig{SenderDomains: []string{"a.example"}, TenantIDs: []string{tenantA}},
		RelayConfig{SenderDomains: []string{"b.example"}, TenantIDs: []string{tenantB}},
		RelayConfig{SenderDomains: []string{"c.example"}})
	out := []policy.Address{mailaddr.Parse("x@example.com")}
	for _, tt := range []struct {
		sender, tenant string
		want           policy.Action
	}{
		{"x@a.example", tenantA, policy.Continue},
		{"x@a.example", tenantB, policy.Reject},
		{"x@b.example", tenantB, policy.Continue},
		{"x@b.example", tenantA, policy.Reject},
	} {
		req := request(tt.sender, "x@example.com")
		if v := evaluate(t, s, req); v.Action != policy.Permit {
			t.Errorf("%s: %+v", tt.sender, v)
		}
		if v := show(t, s.Inspector().Inspect(atData(req), out), "X-MS-Exchange-CrossTenant-Id: "+tt.tenant+body); v.Action != tt.want {
			t.Errorf("%s from %s: %+v", tt.sender, tt.tenant, v)
		}
	}
	req := request("x@c.example", "x@example.com")
	if v := evaluate(t, s, req); v.Action != policy.Permit || s.Inspector().Inspect(atData(req), out) != nil {
		t.Errorf("without a condition on the content: %+v", v)
	}
}

func TestModes(t *testing.T) {
	rule := RelayConfig{SenderDomains: []string{"example.org"}, TenantIDs: []string{tenantA}}
	out := []policy.Address{mailaddr.Parse("x@example.com")}
	for mode, want := range map[policy.Mode]string{policy.Enforce: "refused", policy.Shadow: "shadow", policy.Off: ""} {
		s, _ := relaySet(t, func(c *Config) { c.Mode = mode }, rule)
		req := request("a@example.org", "x@example.com")
		evaluate(t, s, req) // the pipeline would not let a permit in shadow mode count
		in := s.Inspector().Inspect(atData(req), out)
		if (in != nil) != (want != "") {
			t.Errorf("%v: looked at: %v", mode, in != nil)
		}
		if in == nil {
			continue
		}
		v := show(t, in, "Subject: x"+body)
		if (v.Action == policy.Reject) != (mode == policy.Enforce) || testutil.ToFloat64(s.metrics.messages.WithLabelValues("p", want)) != 1 {
			t.Errorf("%v: %+v", mode, v)
		}
		if st := s.InspectorStep(); st.Mode != policy.Enforce || st.OnError != policy.ErrorDefer || st.Timeout != s.cfg.ContentTimeout {
			t.Errorf("step %+v", st)
		}
	}
}

// signer makes a key, puts it into the zone and returns what signs.
func signer(t testing.TB, z *zone, domain string) func(message string) string {
	t.Helper()
	seed := bytes.Repeat([]byte(domain), 32)[:ed25519.SeedSize]
	private := ed25519.NewKeyFromSeed(seed)
	public := base64.StdEncoding.EncodeToString(private.Public().(ed25519.PublicKey))
	z.set("sel._domainkey."+domain, "v=DKIM1; k=ed25519; p="+public)
	return func(message string) string {
		var out bytes.Buffer
		err := dkim.Sign(&out, strings.NewReader(message), &dkim.SignOptions{
			Domain: domain, Selector: "sel", Signer: private, HeaderCanonicalization: dkim.CanonicalizationRelaxed, BodyCanonicalization: dkim.CanonicalizationRelaxed,
		})
		if err != nil {
			t.Fatal(err)
		}
		return out.String()
	}
}

func TestDKIM(t *testing.T) {
	const plain = "From: a@example.org\r\nTo: b@example.com\r\nSubject: a long\r\n\tsubject\r\n\r\nHello\r\nthere\r\n"
	for _, tt := range []struct {
		name    string
		message func(sign, other func(string) string) string
		edit    func(*zone)
		want    policy.Action
		why     string
	}{
		{"signed", func(sign, _ func(string) string) string { return sign(plain) }, nil, policy.Continue, ""},
		{"signed by another too", func(sign, other func(string) string) string { return other(sign(plain)) }, nil, policy.Continue, ""},
		{"signed by another", func(_, other func(string) string) string { return other(plain) }, nil, policy.Reject, "no valid DKIM signature"},
		{"not signed", func(_, _ func(string) string) string { return plain }, nil, policy.Reject, "no valid DKIM signature"},
		{"body changed", func(sign, _ func(string) string) string { return sign(plain) + "more\r\n" }, nil, policy.Reject, "no valid DKIM signature"},
		{"subject changed", func(sign, _ func(string) string) string { return strings.Replace(sign(plain), "long", "short", 1) }, nil, policy.Reject, "no valid"},
		{"two From fields", func(sign, _ func(string) string) string { return "From: x@example.net\r\n" + sign(plain) }, nil, policy.Reject, "not exactly one From"},
		{"a body length", func(sign, _ func(string) string) string { return strings.Replace(sign(plain), "v=1;", "v=1; l=5;", 1) }, nil, policy.Reject, "no valid"},
		{"no key", func(sign, _ func(string) string) string { return sign(plain) }, func(z *zone) { z.set("sel._domainkey.example.org", "") }, policy.Reject, "no valid"},
		{"no DNS", func(sign, _ func(string) string) string { return sign(plain) }, func(z *zone) { z.fail("sel._domainkey.example.org", true) }, policy.Defer, "could not be checked now"},
		{"no DNS for the other", func(sign, other func(string) string) string { return other(sign(plain)) }, func(z *zone) { z.fail("sel._domainkey.example.net", true) }, policy.Continue, ""},
		{"a sixth signature", func(sign, other func(string) string) string {
			m := sign(plain)
			for range 5 {
				m = other(m)
			}
			return m
		}, nil, policy.Reject, "no valid"},
		{"a line that belongs to no field", func(sign, _ func(string) string) string { return sign(plain) }, nil, policy.Reject, "does not belong"},
		{"a header without end", func(sign, _ func(string) string) string {
			return "X: " + strings.Repeat("x", 1<<20) + "\r\n" + sign(plain)
		}, nil, policy.Reject, "too large"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
			s, z := relaySet(t, nil, RelayConfig{SenderDomains: []string{"example.org"}, DKIMDomains: []string{".example.org"}})
			if !s.Inspector().WantsBody() {
				t.Error("no body is wanted")
			}
			message := tt.message(signer(t, z, "example.org"), signer(t, z, "example.net"))
			if tt.edit != nil {
				tt.edit(z)
			}
			req := request("a@example.org", "b@example.com")
			evaluate(t, s, req)
			in := s.Inspector().Inspect(atData(req), []policy.Address{req.Recipient})
			if strings.HasPrefix(tt.name, "a line") {
				in.Header(policy.Field{Name: "X", Value: " y\n\nFrom: evil@example.net"})
			}
			v := show(t, in, message)
			if v.Action != tt.want || !strings.Contains(v.Detail, tt.why) {
				t.Errorf("%+v", v)
			}
			if tt.want == policy.Defer && (v.Reply.Code != 451 || v.Reason != "provider-relay-undecided") {
				t.Errorf("%+v", v)
			}
		})
	}
}

// A session that is older than the first condition on signatures may be shown
// header fields, for others, and no bodies: its messages have to come again.
func TestBodiesThatAreNotShown(t *testing.T) {
	s, z := relaySet(t, nil, RelayConfig{SenderDomains: []string{"example.org"}, DKIMDomains: []string{"example.org"}})
	header, _, _ := strings.Cut(signer(t, z, "example.org")("From: a@example.org\r\n\r\nHello\r\n"), "Hello")
	for hidden, want := range map[bool]policy.Action{true: policy.Defer, false: policy.Reject} {
		req := request("a@example.org", "b@example.com")
		evaluate(t, s, req)
		at := atData(req)
		at.BodyHidden = hidden
		if v := show(t, s.Inspector().Inspect(at, []policy.Address{req.Recipient}), header); v.Action != want {
			t.Errorf("hidden %v: %+v", hidden, v)
		}
	}
}

// Both kinds of conditions in one section must hold.
func TestTenantAndDKIM(t *testing.T) {
	s, z := relaySet(t, nil, RelayConfig{SenderDomains: []string{"example.org"}, TenantIDs: []string{tenantA}, DKIMDomains: []string{"example.org"}})
	sign := signer(t, z, "example.org")
	const plain = "From: a@example.org\r\nSubject: x\r\n\r\nHello\r\n"
	for message, want := range map[string]policy.Action{
		"X-MS-Exchange-CrossTenant-Id: " + tenantA + "\r\n" + sign(plain): policy.Continue,
		"X-MS-Exchange-CrossTenant-Id: " + tenantB + "\r\n" + sign(plain): policy.Reject,
		"X-MS-Exchange-CrossTenant-Id: " + tenantA + "\r\n" + plain:       policy.Reject,
		sign(plain): policy.Reject,
	} {
		req := request("a@example.org", "b@example.com")
		evaluate(t, s, req)
		if v := show(t, s.Inspector().Inspect(atData(req), []policy.Address{req.Recipient}), message); v.Action != want {
			t.Errorf("%.60q...: %+v", message, v)
		}
	}
}

func TestKeysThatTakeTooLong(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s, z := relaySet(t, nil, RelayConfig{SenderDomains: []string{"example.org"}, DKIMDomains: []string{"example.org"}})
		message := signer(t, z, "example.org")("From: a@example.org\r\n\r\nHello\r\n")
		header, _, _ := strings.Cut(message, "\r\n\r\n")
		req := request("a@example.org", "b@example.com")
		// A key that takes too long: deferred, at the caller's time.
		z.mu.Lock()
		z.delay = time.Hour
		z.mu.Unlock()
		in := s.Inspector().Inspect(atData(req), []policy.Address{req.Recipient})
		for _, f := range fields(header) {
			in.Header(f)
		}
		in.EndOfHeaders()
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		start := time.Now()
		j, err := in.End(ctx)
		if took := time.Since(start); err != nil || j.Verdict.Action != policy.Defer || took != 3*time.Second {
			t.Errorf("%+v %v after %v", j.Verdict, err, took)
		}
		if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
			t.Error("the deadline was not used")
		}
	})
}

func FuzzInspect(f *testing.F) {
	f.Add("X-MS-Exchange-CrossTenant-Id", " "+tenantA, "DKIM-Signature", " v=1; a=rsa-sha256; d=example.org; s=sel; h=From; b=x; bh=y", []byte("body"))
	f.Add("From", "a\n\nb", "DKIM-Signature", "v=1;l=1", []byte("\r\n.\r\n"))
	s, _ := relaySet(f, nil, RelayConfig{SenderDomains: []string{"example.org"}, TenantIDs: []string{tenantA}, DKIMDomains: []string{"example.org"}})
	f.Fuzz(func(t *testing.T, n1, v1, n2, v2 string, content []byte) {
		req := request("a@example.org", "b@example.com")
		in := s.Inspector().Inspect(atData(req), []policy.Address{req.Recipient})
		in.Header(policy.Field{Name: n1, Value: v1})
		in.Header(policy.Field{Name: n2, Value: v2})
		in.EndOfHeaders()
		in.Body(content)
		j, err := in.End(context.Background())
		if err != nil || !j.Verdict.Action.Refuses() || j.Verdict.Reply.Text == "" {
			t.Fatalf("%+v %v", j.Verdict, err)
		}
	})
}
