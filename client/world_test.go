package client

import (
	"context"
	"net/netip"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"postern/internal/conf"
	"postern/internal/dnstest"
	"postern/internal/mailaddr"
	"postern/names"
	"postern/policy"
	"postern/resolver"
)

var nopLog = zap.NewNop()

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// realResolver is the resolver in the form that the check wants.
type realResolver struct{ *resolver.Resolver }

func (r realResolver) LookupMX(ctx context.Context, name string) ([]string, time.Duration, bool, error) {
	mx, ttl, cached, err := r.Resolver.LookupMX(ctx, name)
	hosts := make([]string, len(mx))
	for i := range mx {
		hosts[i] = mx[i].Host
	}
	return hosts, ttl, cached, err
}

// world is a check on the real resolver, the real list of generic names and a
// DNS server.
type world struct {
	tb    testing.TB
	dns   *dnstest.Server
	res   realResolver
	reg   *prometheus.Registry
	check *Check
	now   time.Time
}

// newWorld starts a world. The settings are the defaults, changed by edit,
// which may be nil. The DNS knows a well-kept domain.
func newWorld(tb testing.TB, edit func(*Config)) *world {
	tb.Helper()
	w := &world{tb: tb, dns: dnstest.Start(tb), reg: prometheus.NewRegistry(), now: time.Unix(1.7e9, 0)}
	cfg := resolver.DefaultConfig()
	cfg.Servers = []string{w.dns.Addr()}
	cfg.StaleFor, cfg.Attempts, cfg.Timeout, cfg.ServFailTTL = 0, 1, conf.Duration(500*time.Millisecond), 0
	r, err := resolver.New(cfg, zaptest.NewLogger(tb), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	w.res = realResolver{r}
	w.dns.Add(
		"good.example. 3600 IN MX 10 mail.good.example.",
		"mail.good.example. 3600 IN A 192.0.2.7",
		"mail.good.example. 3600 IN AAAA 2001:db8::7",
		"7.2.0.192.in-addr.arpa. 3600 IN PTR mail.good.example.",
	)
	w.configure(edit)
	return w
}

// configure builds the check anew, as after a reload.
func (w *world) configure(edit func(*Config)) {
	w.tb.Helper()
	cfg := DefaultConfig()
	if edit != nil {
		edit(&cfg)
	}
	var fs conf.Faults
	if cfg.Validate("client", &fs); fs != nil {
		w.tb.Fatal(fs)
	}
	judge, err := names.New(names.DefaultConfig(), zaptest.NewLogger(w.tb))
	if err != nil {
		w.tb.Fatal(err)
	}
	prev := w.check
	w.check, err = New(cfg, Options{Hostname: "MX.example.org", Resolver: w.res, Names: judge, Log: zaptest.NewLogger(w.tb), Registry: w.reg}, prev)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.check.Start()
	if prev != nil {
		prev.Stop()
	}
	w.tb.Cleanup(w.check.Stop)
}

// mail is a request at RCPT from a client whose name Postfix has verified.
func (w *world) mail(helo, sender string) *policy.Request {
	return &policy.Request{
		Time: w.now, Stage: policy.StageRcpt, ServerAddr: netip.MustParseAddr("192.0.2.25"),
		Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.7"), Name: "mail.good.example", ReverseName: "mail.good.example"},
		Helo:   helo, Sender: mailaddr.ParsePath(sender), Recipient: mailaddr.Parse("user@example.org"),
	}
}

// from is mail of a good sender from a client as Postfix knows it.
func (w *world) from(addr, name, reverse string) *policy.Request {
	req := w.mail("mail.good.example", "ann@good.example")
	req.Client = policy.Client{Addr: netip.MustParseAddr(addr), Name: name, ReverseName: reverse}
	return req
}

// ask evaluates a request.
func (w *world) ask(req *policy.Request) policy.Verdict {
	w.tb.Helper()
	ctx, cancel := context.WithTimeout(w.tb.Context(), 30*time.Second)
	defer cancel()
	v, err := w.check.Evaluate(ctx, req)
	if err != nil {
		w.tb.Errorf("%s from %s: %v", req.Sender.Raw, req.Client.Addr, err)
	}
	return v
}

// all gives every condition an action.
func all(a conf.Action) func(*Config) {
	return func(c *Config) {
		for _, one := range c.all() {
			one.Action = a
		}
	}
}
