package spf

import (
	"context"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap/zaptest"

	"postern/internal/conf"
	"postern/internal/dnstest"
	"postern/internal/mailaddr"
	"postern/policy"
	"postern/resolver"
)

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

// world is a check on the real resolver and a DNS server.
type world struct {
	tb    testing.TB
	dns   *dnstest.Server
	res   realResolver
	reg   *prometheus.Registry
	check *Check
	now   time.Time
}

// newWorld starts a world. The settings are the defaults, changed by edit,
// which may be nil.
func newWorld(tb testing.TB, edit func(*Config)) *world {
	tb.Helper()
	w := &world{tb: tb, dns: dnstest.Start(tb), reg: prometheus.NewRegistry(), now: time.Unix(1.7e9, 0)}
	cfg := resolver.DefaultConfig()
	cfg.Servers = []string{w.dns.Addr()}
	cfg.StaleFor, cfg.Attempts, cfg.Timeout = 0, 1, conf.Duration(500*time.Millisecond)
	r, err := resolver.New(cfg, zaptest.NewLogger(tb), nil)
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(r.Close)
	w.res = realResolver{r}
	w.configure(edit)
	return w
}

// configure builds the check anew, as after a reload.
func (w *world) configure(edit func(*Config)) {
	w.tb.Helper()
	cfg := DefaultConfig()
	cfg.MailFrom.Fail, cfg.Helo.Fail, cfg.Header = Reject, Reject, HeaderReceivedSPF
	if edit != nil {
		edit(&cfg)
	}
	var fs conf.Faults
	if cfg.Validate("spf", &fs); fs != nil {
		w.tb.Fatal(fs)
	}
	check, err := New(cfg, Options{Hostname: "mx1.example.org", Resolver: w.res, Log: zaptest.NewLogger(w.tb), Registry: w.reg}, w.check)
	if err != nil {
		w.tb.Fatal(err)
	}
	w.check = check
}

// txt adds a TXT record, cut into strings.
func (w *world) txt(name, text string) {
	w.tb.Helper()
	addTXT(w.dns, name, text)
}

func addTXT(srv *dnstest.Server, name string, strs ...string) {
	var b strings.Builder
	for _, text := range strs {
		for {
			n := min(len(text), 255)
			b.WriteString(` "`)
			for _, c := range []byte(text[:n]) {
				if c < ' ' || c > '~' || c == '"' || c == '\\' {
					b.WriteString(escaped(c))
				} else {
					b.WriteByte(c)
				}
			}
			b.WriteByte('"')
			if text = text[n:]; text == "" {
				break
			}
		}
	}
	srv.Add(owner(name) + " 3600 IN TXT" + b.String())
}

func escaped(c byte) string {
	s := strconv.Itoa(int(c))
	return `\` + strings.Repeat("0", 3-len(s)) + s
}

// owner writes a name as a zone file has it.
func owner(name string) string {
	var b strings.Builder
	for _, c := range []byte(strings.TrimSuffix(name, ".")) {
		switch {
		case strings.IndexByte(" '@;()\"\\", c) >= 0:
			b.WriteByte('\\') // as miekg/dns writes it, which the server compares by
			b.WriteByte(c)
		case c < ' ' || c > '~':
			b.WriteString(escaped(c))
		default:
			b.WriteByte(c)
		}
	}
	return b.String() + "."
}

// mail is a request at RCPT.
func (w *world) mail(client, helo, sender string) *policy.Request {
	return &policy.Request{
		Time: w.now, Stage: policy.StageRcpt, Client: policy.Client{Addr: netip.MustParseAddr(client).Unmap()}, Helo: helo,
		Sender: mailaddr.ParsePath(sender), Recipient: mailaddr.Parse("user@example.org"),
	}
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
