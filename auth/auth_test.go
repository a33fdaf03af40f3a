package auth

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"encoding/base64"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/emersion/go-msgauth/dkim"
	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/internal/aggregate"
	"postern/internal/conf"
	"postern/internal/dkimsig"
	"postern/internal/dkimverify"
	"postern/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// world is an inspector with its DNS and keys.
type world struct {
	*zone
	check *Check
	keys  map[string]ed25519.PrivateKey
	spf   policy.SPF // what is found when no chain has asked
	asked int
	told  []told // for reports
}

type told struct {
	policy aggregate.Policy
	rua    string
	rec    aggregate.Record
}

func newWorld(t testing.TB, edit func(*Config)) *world {
	t.Helper()
	w := &world{zone: &zone{txt: map[string][]string{}, exists: map[string]bool{}, fails: map[string]bool{}}, keys: map[string]ed25519.PrivateKey{}}
	cfg := DefaultConfig()
	cfg.Mode = policy.Enforce
	if edit != nil {
		edit(&cfg)
	}
	var fs conf.Faults
	if cfg.Validate("auth", &fs); fs.Err() != nil {
		t.Fatal(fs.Err())
	}
	var err error
	w.check, err = New(cfg, Options{
		Hostname: "mx.example.net", Resolver: w.zone, Log: zap.NewNop(), Registry: prometheus.NewRegistry(),
		SPF: func(context.Context, *policy.Request) policy.SPF { w.asked++; return w.spf },
		Report: func(_ time.Time, p aggregate.Policy, rua string, rec aggregate.Record) {
			w.told = append(w.told, told{p, rua, rec})
		},
	}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return w
}

// sign signs a message as a domain, whose key is published.
func (w *world) sign(t testing.TB, domain, message string) string {
	t.Helper()
	if w.keys[domain] == nil {
		public, private, err := ed25519.GenerateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		w.keys[domain] = private
		w.txt["sel._domainkey."+domain] = []string{"v=DKIM1; k=ed25519; p=" + base64.StdEncoding.EncodeToString(public)}
	}
	var b strings.Builder
	err := dkim.Sign(&b, strings.NewReader(message), &dkim.SignOptions{Domain: domain, Selector: "sel", Signer: w.keys[domain]})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// seal puts an ARC set on top of a message: results, "id; what", of the host
// whose name is the sealer's.
func (w *world) seal(t testing.TB, results, message string) string {
	t.Helper()
	domain, _, _ := strings.Cut(results, ";")
	if w.keys[domain] == nil {
		w.sign(t, domain, message)
	}
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	fields := dkimsig.NewFields(header + "\r\n")
	n := fields.Count("ARC-Seal") + 1
	sign := func(hash [32]byte) string {
		sig, err := dkimsig.Sign(w.keys[domain], hash)
		if err != nil {
			t.Fatal(err)
		}
		return base64.StdEncoding.EncodeToString(sig) + "\r\n"
	}
	sum := dkimsig.NewBody(dkimsig.Relaxed, -1)
	sum.Write([]byte(body))
	hash := sum.Sum()
	aar := fmt.Sprintf("ARC-Authentication-Results: i=%d; %s\r\n", n, results)
	ams := fmt.Sprintf("ARC-Message-Signature: i=%d; a=ed25519-sha256; c=relaxed/relaxed; d=%s; s=sel; h=From; bh=%s; b=", n, domain, base64.StdEncoding.EncodeToString(hash[:]))
	ams += sign(fields.Hash([]string{"From"}, dkimsig.Relaxed, dkimsig.Field(ams+"\r\n")))
	var sealed []dkimsig.Field
	for i := n - 2; i >= 0; i-- { // the newest stands on top
		for _, name := range []string{"ARC-Authentication-Results", "ARC-Message-Signature", "ARC-Seal"} {
			sealed = append(sealed, fields.Named(name)[i])
		}
	}
	cv := "pass"
	if n == 1 {
		cv = "none"
	}
	seal := fmt.Sprintf("ARC-Seal: i=%d; a=ed25519-sha256; cv=%s; d=%s; s=sel; b=", n, cv, domain)
	seal += sign(dkimsig.HashSeal(append(sealed, dkimsig.Field(aar), dkimsig.Field(ams)), dkimsig.Field(seal+"\r\n")))
	return seal + ams + aar + message
}

func envelope(sender string) *policy.Request {
	local, domain, _ := strings.Cut(sender, "@")
	return &policy.Request{
		Time: time.Now(), Stage: policy.StageData, QueueID: "4abc",
		Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Name: "mail.example.org", ReverseName: "mail.example.org"},
		Sender: policy.Address{Raw: sender, Local: local, Domain: domain},
	}
}

// outcome is what the inspector made of a message.
type outcome struct {
	policy.Judgement
	looked  bool
	results string // the field that was written, unfolded
}

// show shows the inspector a message.
func (w *world) show(t testing.TB, req *policy.Request, message string) outcome {
	t.Helper()
	in := w.check.Inspect(req, nil)
	if in == nil {
		return outcome{}
	}
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	header = strings.ReplaceAll(header, "\r\n", "\n")
	for header != "" {
		end := 0
		for {
			i := strings.IndexByte(header[end:], '\n')
			if i < 0 {
				end = len(header)
				break
			}
			if end += i + 1; header[end] != ' ' && header[end] != '\t' {
				break
			}
		}
		name, value, _ := strings.Cut(strings.TrimSuffix(header[:end], "\n"), ":")
		in.Header(policy.Field{Name: name, Value: value})
		header = header[end:]
	}
	in.EndOfHeaders()
	for body != "" {
		n := min(7, len(body))
		in.Body([]byte(body[:n]))
		body = body[n:]
	}
	j, err := in.End(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	o := outcome{Judgement: j, looked: true}
	for _, e := range j.Edits {
		if e.Kind == policy.InsertField {
			o.results = strings.ReplaceAll(strings.TrimPrefix(e.Value, " "), "\n\t", " ")
		}
	}
	return o
}

const letter = "From: Ann <ann@example.org>\r\nTo: bob@example.com\r\nSubject: hello\r\n\r\nHello Bob,\r\nhow are you?\r\n"

func TestMessages(t *testing.T) {
	reject := func(w *world) { w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=reject"} }
	quarantine := func(w *world) { w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=quarantine"} }
	spf := func(result, domain, identity string) func(*policy.Request) {
		return func(r *policy.Request) { r.Facts.SPF = policy.SPF{Result: result, Domain: domain, Identity: identity} }
	}
	for _, tt := range []struct {
		name   string
		edit   func(*Config)
		dns    func(*world)
		req    func(*policy.Request)
		signed string // by this domain
		change func(string) string
		action policy.Action
		reason string
		marks  string
		has    string // in the results
	}{
		{name: "signed", dns: reject, signed: "example.org", reason: "dmarc-pass", has: "dkim=pass header.d=example.org header.s=sel header.a=ed25519-sha256 header.b="},
		{name: "signed, for the log and readers", dns: reject, signed: "example.org", reason: "dmarc-pass", has: "dmarc=pass (p=reject) header.from=example.org; iprev=pass policy.iprev=192.0.2.7"},
		{name: "not signed, no SPF", dns: reject, action: policy.Reject, reason: "dmarc-reject"},
		{name: "changed", dns: reject, signed: "example.org", change: func(s string) string { return strings.Replace(s, "Hello", "Hullo", 1) }, action: policy.Reject, reason: "dmarc-reject"},
		{name: "changed, without a policy", signed: "example.org", change: func(s string) string { return s + "more\r\n" }, reason: "dmarc-none", has: "dkim=fail (the body has been changed) header.d=example.org"},
		{name: "signed by another", dns: reject, signed: "example.com", action: policy.Reject, reason: "dmarc-reject"},
		{name: "SPF of the sender", dns: reject, req: spf("pass", "bounce.example.org", "mailfrom"), reason: "dmarc-pass", has: "spf=pass smtp.mailfrom=bounce.example.org; dkim=none; dmarc=pass"},
		{name: "SPF of another", dns: reject, req: spf("pass", "example.com", "mailfrom"), action: policy.Reject, reason: "dmarc-reject"},
		{name: "SPF pass that does not count", dns: reject, req: spf("policy", "example.org", "mailfrom"), action: policy.Reject, reason: "dmarc-reject"},
		{name: "SPF of HELO for the null sender", dns: reject, req: spf("pass", "mail.example.org", "helo"), reason: "dmarc-pass", has: "spf=pass smtp.helo=mail.example.org"},
		{name: "SPF asked here", dns: func(w *world) { reject(w); w.spf = policy.SPF{Result: "pass", Domain: "example.org"} }, reason: "dmarc-pass"},
		{name: "SPF cannot be asked", dns: reject, req: spf("temperror", "example.org", "mailfrom"), reason: "dmarc-temperror", has: "dmarc=temperror"},
		{name: "a key cannot be looked up", dns: func(w *world) { reject(w); w.fails["sel._domainkey.example.org"] = true }, signed: "example.org", reason: "dmarc-temperror", has: "dkim=temperror (the key cannot be asked for"},
		{name: "a key that is gone", dns: func(w *world) { reject(w); delete(w.txt, "sel._domainkey.example.org") }, signed: "example.org", action: policy.Reject, reason: "dmarc-reject"},
		{name: "a policy cannot be looked up", dns: func(w *world) { w.fails["_dmarc.example.org"] = true }, reason: "dmarc-temperror"},
		{name: "quarantine marks", dns: quarantine, reason: "dmarc-marked", marks: "dmarc-fail", has: "dmarc=fail (p=quarantine) header.from=example.org"},
		{name: "quarantine holds", dns: quarantine, edit: func(c *Config) { c.DMARC.Quarantine = Quarantine }, action: policy.Hold, reason: "dmarc-quarantine"},
		{name: "quarantine does nothing", dns: quarantine, edit: func(c *Config) { c.DMARC.Quarantine = None }, reason: "dmarc-fail"},
		{name: "reject marks", dns: reject, edit: func(c *Config) { c.DMARC.Reject = Mark }, reason: "dmarc-marked", marks: "dmarc-fail"},
		{name: "p=none", dns: func(w *world) { w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=none"} }, reason: "dmarc-fail"},
		{name: "pct=0", dns: func(w *world) { w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=reject; pct=0"} }, reason: "dmarc-marked", marks: "dmarc-fail", has: "dmarc=fail (p=reject, here quarantine)"},
		{name: "exempt", dns: reject, edit: func(c *Config) { c.DMARC.Exempt = []string{"192.0.2.0/24"} }, reason: "dmarc-exempt", has: "dmarc=fail"},
		{name: "others are exempt", dns: reject, edit: func(c *Config) { c.DMARC.Exempt = []string{"192.0.2.0/24", "192.0.2.7 dunno"} }, action: policy.Reject, reason: "dmarc-reject"},

		{name: "no From", change: func(s string) string { return strings.Replace(s, "From:", "X:", 1) }, reason: "dmarc-marked", marks: "dmarc-bad-from", has: "dmarc=permerror (there is no From field)"},
		{name: "two From", dns: reject, signed: "example.com", change: func(s string) string { return "From: eve@example.com\r\n" + s }, action: policy.Reject, reason: "dmarc-reject"},
		{name: "two From, of which one passes", dns: func(w *world) { w.txt["_dmarc.example.com"] = []string{"v=DMARC1; p=reject"} }, signed: "example.com", change: func(s string) string { return "From: eve@example.com\r\n" + s }, reason: "dmarc-marked", marks: "dmarc-bad-from", has: "dmarc=pass (p=reject) header.from=example.com"},
		{name: "two addresses, SPF and DKIM speak for the second", dns: reject, req: spf("pass", "example.com", "mailfrom"), change: func(s string) string {
			return strings.Replace(s, "<ann@example.org>", "<ann@example.org>, eve@example.com", 1)
		}, action: policy.Reject, reason: "dmarc-reject"},
		{name: "a From that cannot be read", change: func(s string) string { return strings.Replace(s, "<ann@example.org>", "<ann@example.org", 1) }, reason: "dmarc-marked", marks: "dmarc-bad-from"},
		{name: "a From that cannot be read, refused", edit: func(c *Config) { c.DMARC.BadFrom = Reject }, change: func(s string) string { return strings.Replace(s, "<ann@example.org>", "<ann@example.org", 1) }, action: policy.Reject, reason: "dmarc-bad-from"},
		{name: "signed in the future", dns: reject, req: func(r *policy.Request) { r.Time = r.Time.Add(-2 * time.Hour); r.Facts.SPF.Result = "none" }, signed: "example.org", action: policy.Reject, reason: "dmarc-reject"},
		{name: "a clock that is behind", dns: reject, req: func(r *policy.Request) { r.Time = r.Time.Add(-50 * time.Minute); r.Facts.SPF.Result = "none" }, signed: "example.org", reason: "dmarc-pass"},
		{name: "a session in which bodies are not shown", dns: reject, req: func(r *policy.Request) { r.BodyHidden = true; r.Facts.SPF.Result = "none" }, signed: "example.org", reason: "dmarc-temperror", has: "dkim=temperror (this session is older"},
		{name: "a body length", dns: reject, signed: "example.org", change: func(s string) string { return strings.Replace(s, "v=1;", "v=1; l=5;", 1) }, action: policy.Reject, reason: "dmarc-reject"},
		{name: "a body length, without a policy", signed: "example.org", change: func(s string) string { return strings.Replace(s, "v=1;", "v=1; l=5;", 1) }, reason: "dmarc-none", has: "dkim=fail (the body has been changed)"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, tt.edit)
			message := letter
			if tt.signed != "" {
				message = w.sign(t, tt.signed, message)
			}
			if tt.change != nil {
				message = tt.change(message)
			}
			if tt.dns != nil {
				tt.dns(w)
			}
			req := envelope("bounce@bounce.example.org")
			if tt.req != nil {
				tt.req(req)
			}
			o := w.show(t, req, message)
			if v := o.Verdict; v.Action != tt.action || v.Reason != tt.reason || v.Action.Refuses() != (v.Reply.Text != "") {
				t.Errorf("%v %s %q (%s)", v.Action, v.Reason, v.Reply, v.Detail)
			}
			if got := strings.Join(req.Facts.Marks, " "); got != tt.marks {
				t.Errorf("marks %q", got)
			}
			if tt.action.Refuses() != (len(o.Edits) == 0) || !strings.Contains(o.results, tt.has) {
				t.Errorf("written: %s", o.results)
			}
			if o.results != "" && !strings.HasPrefix(o.results, "mx.example.net; spf=") {
				t.Errorf("written: %s", o.results)
			}
			if (w.asked > 0) != (tt.req == nil) {
				t.Errorf("SPF was asked %d times", w.asked)
			}
		})
	}
}

// Whose mail is not looked at: own users and networks.
func TestSkip(t *testing.T) {
	for name, edit := range map[string]func(*policy.Request){
		"a login":       func(r *policy.Request) { r.SASL.Username = "ann" },
		"a certificate": func(r *policy.Request) { r.TLS.CertSubject = "client.example.org" },
		"this host":     func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("127.0.0.1") },
		"an entry":      func(r *policy.Request) { r.Client.Addr = netip.MustParseAddr("198.51.100.9") },
	} {
		w := newWorld(t, func(c *Config) { c.Skip = append(c.Skip, "198.51.100.0/24") })
		req := envelope("a@example.org")
		if !w.show(t, req, letter).looked {
			t.Fatal("a stranger is not looked at")
		}
		edit(req)
		if w.show(t, req, letter).looked {
			t.Errorf("%s is looked at", name)
		}
	}
	w := newWorld(t, func(c *Config) { c.SkipAuthenticated = false })
	req := envelope("a@example.org")
	req.SASL.Username = "ann"
	if !w.show(t, req, letter).looked {
		t.Error("a login is not looked at though it should be")
	}
}

// What is written into mail of our own when that is wanted.
func TestOwnResults(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.OwnResults = true })
	w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=reject"}
	forged := "Authentication-Results: mx.example.net; dkim=pass\r\nAuthentication-Results: other.example; dkim=pass\r\n" + w.sign(t, "example.org", letter)
	req := envelope("a@example.org")
	req.SASL.Username = "ann"
	o := w.show(t, req, forged)
	if o.Verdict.Action != policy.Continue || o.results != `mx.example.net; auth=pass smtp.mailfrom="example.org"` || len(o.Edits) != 2 || o.Edits[1].Kind != policy.DeleteField || o.Edits[1].At != 0 {
		t.Errorf("a login: %+v", o)
	}
	req = envelope("a@example.org")
	req.Client.Addr = netip.MustParseAddr("127.0.0.1")
	if o = w.show(t, req, forged); o.results != "" || len(o.Edits) != 1 || w.asked != 0 {
		t.Errorf("our network: %+v", o)
	}
	w = newWorld(t, func(c *Config) { c.SkipAuthenticated = false })
	req.SASL.Username, req.Client.Addr = "ann", netip.MustParseAddr("192.0.2.7")
	if o = w.show(t, req, letter); !strings.HasSuffix(o.results, `; auth=pass smtp.mailfrom="example.org"`) {
		t.Errorf("a login that is looked at: %s", o.results)
	}
}

// A trusted sealer that has seen a message pass vouches for it, another does not.
func TestTrustedSealers(t *testing.T) {
	const pass = "lists.example; dmarc=pass (p=reject; a comment) header.from=example.org"
	for _, tt := range []struct {
		name    string
		trusted []string
		sets    []string // sealer and what it says
		change  bool     // after the last one
		down    bool     // the DNS does not answer for the sealers
		reason  string
	}{
		{"nobody is trusted", nil, []string{pass}, false, false, "dmarc-reject"},
		{"another is trusted", []string{"s.example"}, []string{pass}, false, false, "dmarc-reject"},
		{"trusted", []string{"Lists.Example"}, []string{pass}, false, false, "dmarc-arc"},
		{"trusted with all below", []string{"other.example", ".lists.example"}, []string{pass}, false, false, "dmarc-arc"},
		{"changed since", []string{"lists.example"}, []string{pass}, true, false, "dmarc-reject"},
		{"keys cannot be asked for", []string{"lists.example"}, []string{pass}, false, true, "dmarc-temperror"},
		{"keys of a stranger cannot be asked for", nil, []string{pass}, false, true, "dmarc-reject"},
		{"it failed there", []string{"lists.example"}, []string{"lists.example; dmarc=fail header.from=example.org"}, false, false, "dmarc-reject"},
		{"another author passed there", []string{"lists.example"}, []string{"lists.example; dmarc=pass header.from=example.com"}, false, false, "dmarc-reject"},
		{"nobody says for whom", []string{"lists.example"}, []string{"lists.example; dmarc=pass"}, false, false, "dmarc-reject"},
		{"aligned DKIM", []string{"lists.example"}, []string{"lists.example; dmarc=none; dkim=pass header.d=mail.example.org"}, false, false, "dmarc-arc"},
		{"aligned DKIM by identity", []string{"lists.example"}, []string{"lists.example; dkim=pass header.i=@example.org"}, false, false, "dmarc-arc"},
		{"DKIM of another", []string{"lists.example"}, []string{"lists.example; dkim=pass header.d=example.com"}, false, false, "dmarc-reject"},
		{"DKIM failed", []string{"lists.example"}, []string{"lists.example; dkim=fail header.d=example.org"}, false, false, "dmarc-reject"},
		{"aligned SPF", []string{"lists.example"}, []string{"lists.example; spf=pass smtp.mailfrom=bounce@mail.example.org"}, false, false, "dmarc-arc"},
		{"SPF of HELO", []string{"lists.example"}, []string{"lists.example; spf=pass smtp.helo=mail.example.org"}, false, false, "dmarc-reject"},
		{"a trusted one behind a trusted one", []string{"lists.example", "relay.example"}, []string{pass, "relay.example; dmarc=fail header.from=example.org; arc=pass"}, false, false, "dmarc-arc"},
		{"a trusted one behind a stranger", []string{"lists.example"}, []string{pass, "relay.example; dmarc=fail header.from=example.org; arc=pass"}, false, false, "dmarc-reject"},
		{"a comment is no result", []string{"lists.example"}, []string{"lists.example; spf=none (; dmarc=pass header.from=example.org)"}, false, false, "dmarc-reject"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := newWorld(t, func(c *Config) { c.ARC.TrustedSealers = tt.trusted })
			w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=reject"}
			message := letter
			for _, results := range tt.sets {
				message = w.seal(t, results, message)
			}
			if tt.change {
				message += "more\r\n"
			}
			if tt.down {
				w.fails["sel._domainkey.lists.example"] = true
			}
			req := envelope("list@lists.example")
			o := w.show(t, req, message)
			if o.Verdict.Reason != tt.reason {
				t.Errorf("%+v", o.Verdict)
			}
			if f := req.Facts.Auth; (f.Override == "arc") != (tt.reason == "dmarc-arc") || f.Override != "" && (f.DMARC != "fail" || f.Policy != "reject" || f.ARC != "pass") {
				t.Errorf("%+v", f)
			}
			if tt.reason == "dmarc-arc" && !strings.Contains(o.results, "; arc=pass (sealed by "+map[bool]string{true: "lists", false: "relay"}[len(tt.sets) == 1]+".example) smtp.remote-ip=192.0.2.7; dmarc=fail (p=reject, passed at lists.example)") &&
				!strings.Contains(o.results, "sealed by") {
				t.Error(o.results)
			}
		})
	}
}

// What an upstream of ours has found out is believed when it comes from there.
func TestUpstream(t *testing.T) {
	for _, tt := range []struct {
		name, client, field string
		sender              string
		reason              string
		removed             int
	}{
		{"SPF", "10.1.2.3", "MX1.example.net; spf=pass smtp.mailfrom=ann@example.org", "a@example.org", "dmarc-pass", 0},
		{"DKIM", "10.1.2.3", "mx1.example.net (x); dkim=fail header.d=example.org; dkim=pass reason=\"good; (really\" header.d = mail.example.org", "a@example.org", "dmarc-pass", 0},
		{"SPF of HELO", "10.1.2.3", "mx1.example.net; spf=pass smtp.helo=mail.example.org", "a@example.org", "dmarc-reject", 0},
		{"SPF of HELO for the null sender", "10.1.2.3", "mx1.example.net; spf=pass smtp.helo=mail.example.org", "", "dmarc-pass", 0},
		{"it could not tell", "10.1.2.3", "mx1.example.net; spf=temperror smtp.mailfrom=example.org", "a@example.org", "dmarc-temperror", 0},
		{"another's", "10.1.2.3", "mx1.example.net; dkim=pass header.d=example.com", "a@example.org", "dmarc-reject", 0},
		{"forged", "192.0.2.7", "mx1.example.net; dkim=pass header.d=example.org", "a@example.org", "dmarc-reject", 1},
		{"of nobody known", "10.1.2.3", "mx2.example.net; dkim=pass header.d=example.org", "a@example.org", "dmarc-reject", 0},
	} {
		w := newWorld(t, func(c *Config) {
			c.DMARC.Reject = Mark
			c.Upstream = []UpstreamConfig{{"mx1.example.net", []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
		})
		w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=reject"}
		req := envelope(tt.sender)
		req.Client.Addr = netip.MustParseAddr(tt.client)
		o := w.show(t, req, "Authentication-Results: "+tt.field+"\r\n"+letter)
		if reason := strings.Replace(o.Verdict.Reason, "marked", "reject", 1); reason != tt.reason || len(o.Edits) != 1+tt.removed {
			t.Errorf("%s: %+v %d", tt.name, o.Verdict, len(o.Edits))
		}
	}
}

func TestParseResults(t *testing.T) {
	id, claims, ok := parseResults(" Mx.Example.NET 1 (c;x); dkim/1 = pass (a) reason = \"x;y\"\r\n\theader.D=Example.org header.b=\"ab=\" header.a=rsa-sha256; spf=Fail;; none; iprev=pass policy.iprev=192.0.2.7 (x")
	want := []claim{
		{"dkim", "pass", []prop{{"reason", "x;y"}, {"header.d", "Example.org"}, {"header.b", "ab="}, {"header.a", "rsa-sha256"}}},
		{"spf", "fail", nil},
	}
	if !ok || id != "mx.example.net" || !reflect.DeepEqual(claims, want) {
		t.Errorf("%q %+v %v", id, claims, ok)
	}
	if c := parseClaims(strings.Repeat("a=b;", 1000)); len(c) != maxClaims {
		t.Errorf("%d claims", len(c))
	}
	if _, _, ok := parseResults(";x=y"); ok {
		t.Error("results of nobody")
	}
}

func FuzzParseResults(f *testing.F) {
	f.Add("mx.example.net; dkim=pass (c) header.d=example.org; spf=none")
	f.Add("(a\"b) \"x\\\"y\" ; a = b = c \" ;d=e")
	f.Fuzz(func(t *testing.T, s string) {
		_, claims, _ := parseResults(s)
		if len(claims) > maxClaims {
			t.Fatal(len(claims))
		}
		for _, c := range claims {
			if strings.ContainsAny(c.method, " \t\r\n;") {
				t.Fatalf("%+v", c)
			}
		}
	})
}

// Fields that claim to be ours are taken out, those of others stay.
func TestForgedResults(t *testing.T) {
	for value, ours := range map[string]bool{
		" mx.example.net; dkim=pass header.d=example.org":        true,
		" MX.Example.NET; dkim=pass":                             true,
		"mx.example.net;dkim=pass":                               true,
		"\n\tmx.example.net;\n\tdkim=pass":                       true,
		" (a (nested) comment) mx.example.net (x); none":         true,
		" \"mx.example.net\"; none":                              true,
		" \"mx\\.example.net\"; none":                            true,
		" mx.example.net 1; none":                                true,
		" mx.example.net. ; none":                                true,
		" mx.example.net":                                        true,
		" mail.mx.example.net; dkim=pass":                        false,
		" mx.example.net.evil.example; dkim=pass":                false,
		" mx.example.com; dkim=pass (mx.example.net; dkim=pass)": false,
		" (mx.example.net) other.example; none":                  false,
		" (mx.example.net; none":                                 false,
		" \"mx.example.net; none":                                false,
		"":                                                       false,
		" ;none":                                                 false,
	} {
		w := newWorld(t, nil)
		message := "Received: x\r\nAuthentication-Results:" + strings.ReplaceAll(value, "\n", "\r\n") + "\r\n" + letter
		o := w.show(t, envelope("a@example.org"), message)
		var removed []int
		for _, e := range o.Edits {
			if e.Kind == policy.DeleteField {
				removed = append(removed, e.At)
			}
		}
		if want := map[bool][]int{true: {1}}[ours]; !slices.Equal(removed, want) {
			t.Errorf("%q: removed %v", value, removed)
		}
	}
	// Several, and a name of our own.
	w := newWorld(t, func(c *Config) { c.AuthservID = "gate.example" })
	o := w.show(t, envelope("a@example.org"), "authentication-results : gate.example; none\r\nAuthentication-Results: mx.example.net; none\r\n"+letter)
	if len(o.Edits) != 2 || o.Edits[1].At != 0 || !strings.HasPrefix(o.results, "gate.example; ") {
		t.Errorf("%+v", o.Edits)
	}
}

// No more signatures are looked at than is said, and what a stranger wrote
// cannot break the field.
func TestHostileSignatures(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.MaxSignatures = 2 })
	message := w.sign(t, "example.org", letter)
	w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=reject"}
	bad := "DKIM-Signature: v=1; a=rsa-sha256\"; d=ex(ample.org; s=\xff\x01; b=;;; h=From\r\n"
	o := w.show(t, envelope("a@example.org"), bad+message)
	if o.Verdict.Reason != "dmarc-pass" {
		t.Errorf("%+v", o.Verdict)
	}
	if !strings.Contains(o.results, `header.d="ex(ample.org" header.s="??" header.a="rsa-sha256\""`) {
		t.Errorf("written: %s", o.results)
	}
	o = w.show(t, envelope("a@example.org"), strings.Repeat(bad, 1000)+message)
	if o.Verdict.Action != policy.Reject || strings.Contains(o.results, "dkim=pass") {
		t.Errorf("behind a thousand others: %+v", o.Verdict)
	}
	o = w.show(t, envelope("a@example.org"), "X: a\r\n"+strings.Repeat("Y: "+strings.Repeat("y", 60000)+"\r\n", 20)+message)
	if o.Verdict.Action != policy.Reject || !strings.Contains(o.Verdict.Detail, "the header is too large") {
		t.Errorf("a huge header: %+v", o.Verdict)
	}
	for line := range strings.SplitSeq(o.results, "\n") {
		if len(line) > 998 {
			t.Errorf("a line of %d octets", len(line))
		}
	}
}

func TestMetrics(t *testing.T) {
	w := newWorld(t, nil)
	w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=reject"}
	w.show(t, envelope("a@example.org"), w.sign(t, "example.org", letter))
	w.show(t, envelope("a@example.org"), letter)
	for labels, want := range map[[2]string]float64{{"dkim", "pass"}: 1, {"dkim", "none"}: 1, {"dmarc", "pass"}: 1, {"dmarc", "fail"}: 1, {"spf", "none"}: 2} {
		if got := testutil.ToFloat64(w.check.shared.results.WithLabelValues(labels[0], labels[1])); got != want {
			t.Errorf("%v: %v, want %v", labels, got, want)
		}
	}
}

// A message that is given up leaves nothing behind (goleak), and a reload keeps
// metrics.
func TestAbandonAndReload(t *testing.T) {
	w := newWorld(t, nil)
	in := w.check.Inspect(envelope("a@example.org"), nil)
	in.Header(policy.Field{Name: "DKIM-Signature", Value: " v=1; d=example.org"})
	in.EndOfHeaders()
	in.Body([]byte("x"))
	next, err := New(w.check.cfg, Options{Hostname: "mx.example.net", Resolver: w.zone, Log: zap.NewNop()}, w.check)
	if err != nil || next.shared != w.check.shared {
		t.Errorf("%v", err)
	}
	next.Start()
	next.Stop()
	next.Stop()
}

func TestValidate(t *testing.T) {
	for want, edit := range map[string]func(*Config){
		"auth.max_signatures: 0 is out of range":             func(c *Config) { c.MaxSignatures = 0 },
		"auth.lookup_time: 20s is not less than timeout":     func(c *Config) { c.LookupTime = c.Timeout },
		"auth.authserv_id: \"a b\" is no host name":          func(c *Config) { c.AuthservID = "a b" },
		"auth.min_rsa_bits: 1023 is out of range":            func(c *Config) { c.MinRSABits = 1023 },
		"auth.min_rsa_bits: 8192 is out of range":            func(c *Config) { c.MinRSABits = 8192 },
		"auth.arc.trusted_sealers[1]: \"a b\" is no domain":  func(c *Config) { c.ARC.TrustedSealers = []string{".example.org", "a b"} },
		"auth.upstream[0].authserv_id: \"\" is no host name": func(c *Config) { c.Upstream = []UpstreamConfig{{Clients: []netip.Prefix{{}}}} },
		"auth.upstream[0].authserv_id: \"mx.example.org\" is our own name": func(c *Config) {
			c.AuthservID, c.Upstream = "MX.example.org", []UpstreamConfig{{"mx.example.org", []netip.Prefix{{}}}}
		},
		"auth.upstream[0].clients: no network is given":     func(c *Config) { c.Upstream = []UpstreamConfig{{AuthservID: "mx1.example.org"}} },
		"auth.dmarc.discovery: unknown value \"x\"":         func(c *Config) { c.DMARC.Discovery = "x" },
		"auth.dmarc.reply: ":                                func(c *Config) { c.DMARC.Reply = "450 later" },
		"auth.dmarc.bad_from_reply: ":                       func(c *Config) { c.DMARC.BadFromReply = "{what}" },
		"auth.skip[0]: ":                                    func(c *Config) { c.Skip = []string{"192.0.2.1/24"} },
		"auth.dmarc.exempt[1]: ":                            func(c *Config) { c.DMARC.Exempt = []string{"192.0.2.1", "/(/"} },
		"auth.dmarc.exceptions[0]: ":                        func(c *Config) { c.DMARC.Exceptions = []string{"/nonexistent/list"} },
		"auth.reload_interval: 1ms is out of range: 100ms ": func(c *Config) { c.ReloadInterval = conf.Duration(time.Millisecond) },
	} {
		cfg := DefaultConfig()
		edit(&cfg)
		var fs conf.Faults
		cfg.Validate("auth", &fs)
		if err := fs.Err(); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %s", err, want)
		}
	}
	var a Action
	if a.UnmarshalText([]byte("defer")) == nil || a.UnmarshalText([]byte("quarantine")) != nil {
		t.Error("actions")
	}
	cfg := DefaultConfig()
	if cfg.WithoutMilter("auth") != "" {
		t.Error("a section that is off misses a milter")
	}
	cfg.Mode = policy.Shadow
	if cfg.WithoutMilter("auth") == "" {
		t.Error("nothing is missed without a milter")
	}
}

func FuzzAuthservID(f *testing.F) {
	f.Add(" (c) mx.example.net 1; none")
	f.Add("\"a\\\"")
	f.Fuzz(func(t *testing.T, value string) {
		if id, ok := authservID(value); ok && len(id) > len(value) {
			t.Fatalf("%q: %q", value, id)
		}
	})
}

// What a test of a message tells.
func TestReport(t *testing.T) {
	w := newWorld(t, func(c *Config) { c.ARC.TrustedSealers = []string{"lists.example"}; c.DMARC.Quarantine = Quarantine })
	w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=quarantine"}
	w.spf = policy.SPF{Result: "fail", Domain: "bounce.example.org", Identity: "mailfrom"}
	message := "Authentication-Results: mx.example.net; dkim=pass\r\n" + w.sign(t, "example.org", letter)
	req := func() *policy.Request {
		r := envelope("a@bounce.example.org")
		r.DryRun = true
		return r
	}
	r := w.check.Test(t.Context(), req(), []byte("From someone Thu Jan  1\n"+strings.ReplaceAll(message, "\r\n", "\n")))
	if s := r.Signatures; len(s) != 1 || s[0].Result != "pass" || s[0].Canon != "simple/simple" || s[0].BodyHash != s[0].Claimed || len(s[0].Hash) != 64 || s[0].KeyName != "sel._domainkey.example.org" ||
		!strings.HasPrefix(s[0].Record, "v=DKIM1; k=ed25519; p=") || len(s[0].Signed) == 0 {
		t.Errorf("%+v", s)
	}
	want := []Author{{Domain: "example.org", Record: "example.org", Text: "v=DMARC1; p=quarantine", Result: "pass", Aligned: []string{"dkim"}}}
	if !reflect.DeepEqual(r.Authors, want) || r.SPF != w.spf || r.ARC.Result != "none" || r.Skipped != "" || r.Verdict.Reason != "dmarc-pass" {
		t.Errorf("%+v", r)
	}
	if len(r.Removed) != 1 || !strings.HasPrefix(r.Field, "Authentication-Results: mx.example.net;\n\tspf=fail") {
		t.Errorf("%q %q", r.Removed, r.Field)
	}
	changed := w.seal(t, "lists.example; dmarc=pass header.from=example.com", message+"more\r\n")
	own := req()
	own.SASL.Username = "ann"
	r = w.check.Test(t.Context(), own, []byte(changed))
	if r.Verdict.Action != policy.Hold || r.Skipped == "" || r.Authors[0].Wish != "quarantine" || r.Signatures[0].BodyHash == r.Signatures[0].Claimed ||
		len(r.ARC.Sets) != 1 || !r.ARC.Sets[0].Trusted || r.ARC.Result != "pass" {
		t.Errorf("%+v", r)
	}
	for _, odd := range []string{"", "\n", "\nFrom: x", "From: x", "From x\n", "\r\n\r\n"} {
		if r := w.check.Test(t.Context(), req(), []byte(odd)); len(r.Signatures) != 0 {
			t.Errorf("%q: %+v", odd, r)
		}
	}
	if n := testutil.CollectAndCount(w.check.shared.results); n != 0 {
		t.Errorf("%d results are counted", n)
	}
}

// What DMARC and the field cost beside the signature.
func BenchmarkMessage(b *testing.B) {
	w := newWorld(b, nil)
	w.txt["_dmarc.example.org"] = []string{"v=DMARC1; p=reject"}
	w.spf = policy.SPF{Result: "pass", Domain: "bounce.example.org", Identity: "mailfrom"}
	message := w.sign(b, "example.org", letter)
	header, body, _ := strings.Cut(message, "\r\n\r\n")
	header += "\r\n"
	var fields []policy.Field
	for _, f := range dkimsig.NewFields(header).All() {
		fields = append(fields, policy.Field{Name: f.Name(), Value: strings.ReplaceAll(f.Value(), "\r\n", "\n")})
	}
	b.Run("signature", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			m := dkimverify.Start(header, dkimverify.Options{LookupTXT: w.LookupTXT, Limit: time.Minute, Most: 8, ARC: true})
			m.Write([]byte(body))
			if found, err := m.Wait(b.Context()); err != nil || found[0].Result != dkimverify.Pass {
				b.Fatal(found, err)
			}
		}
	})
	b.Run("whole", func(b *testing.B) {
		b.ReportAllocs()
		req := envelope("a@bounce.example.org")
		for b.Loop() {
			req.Facts.Reset()
			in := w.check.Inspect(req, nil)
			for _, f := range fields {
				in.Header(f)
			}
			in.EndOfHeaders()
			in.Body([]byte(body))
			if j, err := in.End(b.Context()); err != nil || j.Verdict.Reason != "dmarc-pass" {
				b.Fatal(j, err)
			}
		}
	})
}

// What is told of a message to whoever reports.
func TestTell(t *testing.T) {
	const record = "v=DMARC1; p=reject; aspf=s; rua=mailto:rua@example.org; fo=1"
	row := func(disposition, dkim, spf string, reasons ...aggregate.Reason) aggregate.Evaluated {
		return aggregate.Evaluated{Disposition: disposition, DKIM: dkim, SPF: spf, Reasons: reasons}
	}
	for _, tt := range []struct {
		name    string
		edit    func(*Config)
		record  string
		message func(w *world) string
		want    aggregate.Evaluated
	}{
		{"passes", nil, record, func(w *world) string { return w.sign(t, "example.org", letter) }, row("none", "pass", "fail")},
		{"refused", nil, record, func(*world) string { return letter }, row("reject", "fail", "fail")},
		{"marked", func(c *Config) { c.DMARC.Reject = Mark }, record, func(*world) string { return letter }, row("none", "fail", "fail", aggregate.Reason{Type: "local_policy"})},
		{"held", func(c *Config) { c.DMARC.Reject = Quarantine }, record, func(*world) string { return letter }, row("quarantine", "fail", "fail", aggregate.Reason{Type: "local_policy"})},
		{"exempt", func(c *Config) { c.DMARC.Exempt = []string{"192.0.2.7"} }, record, func(*world) string { return letter }, row("none", "fail", "fail", aggregate.Reason{Type: "trusted_forwarder"})},
		{"sealed", func(c *Config) { c.ARC.TrustedSealers = []string{"lists.example"} }, record, func(w *world) string {
			return w.seal(t, "lists.example; dmarc=pass header.from=example.org", letter)
		}, row("none", "fail", "fail", aggregate.Reason{Type: "local_policy", Comment: "arc=pass as.d=lists.example"})},
		{"not of the share", func(c *Config) { c.DMARC.Quarantine = Quarantine }, record + "; pct=0", func(*world) string { return letter }, row("quarantine", "fail", "fail", aggregate.Reason{Type: "sampled_out", Comment: "quarantine instead of reject: pct=0"})},
		{"p=none", nil, "v=DMARC1; p=none; rua=mailto:rua@example.org", func(*world) string { return letter }, row("none", "fail", "fail")},
	} {
		w := newWorld(t, tt.edit)
		w.txt["_dmarc.example.org"] = []string{tt.record}
		w.spf = policy.SPF{Result: policy.SPFTooWide, Domain: "bounce.example.org", Identity: "mailfrom"}
		req := envelope("a@bounce.example.org")
		w.show(t, req, tt.message(w))
		if len(w.told) != 1 || !reflect.DeepEqual(w.told[0].rec.Row.Evaluated, tt.want) {
			t.Errorf("%s: %+v", tt.name, w.told)
			continue
		}
		got := w.told[0]
		if got.rua != "mailto:rua@example.org" || got.policy.Domain != "example.org" || got.rec.Row.SourceIP != "192.0.2.7" || got.rec.Row.Count != 1 ||
			got.rec.Identifiers != (aggregate.Identifiers{EnvelopeFrom: "bounce.example.org", HeaderFrom: "example.org"}) ||
			!reflect.DeepEqual(got.rec.Results.SPF, []aggregate.SPF{{Domain: "bounce.example.org", Scope: "mfrom", Result: "neutral"}}) {
			t.Errorf("%s: %+v", tt.name, got)
		}
		if tt.name == "passes" && (got.policy != (aggregate.Policy{Domain: "example.org", ADKIM: "r", ASPF: "s", P: "reject", SP: "reject", Pct: "100", FO: "1"}) ||
			!reflect.DeepEqual(got.rec.Results.DKIM, []aggregate.DKIM{{Domain: "example.org", Selector: "sel", Result: "pass"}})) {
			t.Errorf("%+v", got)
		}
	}
	w := newWorld(t, nil)
	w.txt["_dmarc.example.org"] = []string{record}
	req := envelope("a@example.org")
	req.Shadow = true
	if w.show(t, req, letter); len(w.told) != 1 || !reflect.DeepEqual(w.told[0].rec.Row.Evaluated, row("none", "fail", "fail", aggregate.Reason{Type: "local_policy"})) {
		t.Errorf("%+v", w.told)
	}
	req = envelope("a@example.org")
	req.Client.Addr = netip.Addr{} // a local client
	if w.show(t, req, letter); len(w.told) != 1 {
		t.Errorf("%+v", w.told)
	}
	for name, record := range map[string]string{"no address": "v=DMARC1; p=reject", "no record": "v=spf1 -all"} {
		w := newWorld(t, nil)
		w.txt["_dmarc.example.org"] = []string{record}
		if w.show(t, envelope("a@example.org"), letter); len(w.told) != 0 {
			t.Errorf("%s: %+v", name, w.told)
		}
	}
}
