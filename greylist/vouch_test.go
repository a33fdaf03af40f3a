package greylist_test

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/policy"
)

// vouchFor vouches for a sender, and counts how often it is asked.
type vouchFor struct {
	sender string
	err    error
	asked  int
}

func (v *vouchFor) Vouch(_ context.Context, req *policy.Request) (why, detail string, err error) {
	v.asked++
	if v.err != nil || req.Sender.Raw != v.sender {
		return "", "", v.err
	}
	return "expected", "until noon", nil
}

// vouchedWorld has a voucher that knows nobody yet.
func vouchedWorld(t *testing.T) (*world, *vouchFor) {
	t.Helper()
	v := &vouchFor{}
	w := newWorld(t, nil)
	w.voucher = v
	w.check = w.make(nil, w.check)
	return w, v
}

func TestWhoIsVouchedForPasses(t *testing.T) {
	w, v := vouchedWorld(t)
	v.sender = "ann@example.org"
	req := func() *policy.Request { return w.request("192.0.2.7", "", "ann@example.org", "bob@example.com") }

	dry := req()
	dry.DryRun, dry.Probe = true, new(policy.Probe)
	w.want("a question", "greylist-expected", dry)
	if !slices.ContainsFunc(dry.Probe.Notes, func(n policy.Note) bool { return n.What == "vouched for" && n.Value == "expected: until noon" }) {
		t.Errorf("%v", dry.Probe.Notes)
	}
	got := w.want("first contact", "greylist-expected", req())
	if got.Action != policy.Continue || got.Add != nil || got.Detail != "until noon" {
		t.Errorf("%+v", got)
	}
	v.sender = ""
	w.now = w.now.Add(time.Second)
	w.want("the triplet is known", known, req())
	if v.asked != 2 {
		t.Errorf("asked %d times: not about what is known", v.asked)
	}
	w.want("another recipient", first, w.request("192.0.2.7", "", "ann@example.org", "eve@example.com"))
	if n, _ := w.store.CountGreylist(t.Context(), w.now); n.Credits != 0 {
		t.Errorf("%+v: who has not waited earns nothing", n)
	}
	if err := testutil.GatherAndCompare(w.reg, strings.NewReader(`
# HELP postern_greylist_vouched_total Contacts that would have been delayed and were not, by who vouches.
# TYPE postern_greylist_vouched_total counter
postern_greylist_vouched_total{by="correspondent"} 0
postern_greylist_vouched_total{by="correspondent-domain"} 0
postern_greylist_vouched_total{by="expected"} 1
`), "postern_greylist_vouched_total"); err != nil {
		t.Error(err)
	}
}

// Whoever waits passes at the next retry after somebody has vouched, whatever
// this node remembers.
func TestWhoWaitsAndIsVouchedFor(t *testing.T) {
	for name, tt := range map[string]struct {
		forget bool
		after  time.Duration
		hinted bool
	}{
		"told here":                      {forget: true},
		"told elsewhere":                 {after: 31 * time.Second},
		"told elsewhere, moments ago":    {after: 30 * time.Second, hinted: true},
		"a clock that has been set back": {forget: true, after: -time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			w, v := vouchedWorld(t)
			req := func() *policy.Request { return w.request("192.0.2.7", "", "ann@example.org", "bob@example.com") }
			w.want("first contact", first, req())
			if _, ok := w.check.Hint(req()); !ok {
				t.Fatal("no hint")
			}
			v.sender = "ann@example.org"
			if tt.forget {
				w.check.ForgetHints()
			}
			w.now = w.now.Add(tt.after)
			if _, ok := w.check.Hint(req()); ok != tt.hinted {
				t.Fatalf("hint %v", ok)
			}
			if got := w.want("the retry", "greylist-expected", req()); got.Add != nil {
				t.Errorf("%v: it was let past", got.Add)
			}
			if _, ok := w.check.Hint(req()); ok {
				t.Error("a hint is left")
			}
		})
	}
}

// Without a voucher hints hold for the whole delay.
func TestHintsWithoutVoucher(t *testing.T) {
	w := newWorld(t, nil)
	req := func() *policy.Request { return w.request("192.0.2.7", "", "ann@example.org", "bob@example.com") }
	w.want("first contact", first, req())
	w.now = w.now.Add(119 * time.Second)
	if _, ok := w.check.Hint(req()); !ok {
		t.Error("no hint")
	}
}

// A voucher that cannot tell leaves the contact delayed, and recorded.
func TestVoucherFails(t *testing.T) {
	w, v := vouchedWorld(t)
	v.err = errors.New("no store")
	req := w.request("192.0.2.7", "", "ann@example.org", "bob@example.com")
	w.want("first contact", first, req)
	if !slices.Equal(req.Facts.Missing, []string{"correspondents"}) {
		t.Errorf("missing %v", req.Facts.Missing)
	}
	w.now = w.now.Add(2 * time.Minute)
	w.want("the retry", passes, w.request("192.0.2.7", "", "ann@example.org", "bob@example.com"))
}

// half is a store that breaks after one call.
type half struct {
	greylist.Store
	calls int
}

func (h *half) TouchGreylist(ctx context.Context, c *greylist.Contact) (greylist.Outcome, error) {
	if h.calls++; h.calls > 1 {
		return greylist.Outcome{}, errBroken
	}
	return h.Store.TouchGreylist(ctx, c)
}

// It passes, too, when it cannot be recorded that it has.
func TestVouchedForAndNotRecorded(t *testing.T) {
	w, v := vouchedWorld(t)
	v.sender = "ann@example.org"
	c, err := greylist.New(config(t, nil), greylist.Options{
		Hostname: "mx", Store: &half{Store: w.store}, Names: judge(t), Voucher: v, Log: zap.NewNop(), Metrics: prometheus.NewRegistry(),
	})
	if err != nil {
		t.Fatal(err)
	}
	w.check = c
	req := w.request("192.0.2.7", "", "ann@example.org", "bob@example.com")
	w.want("first contact", "greylist-expected", req)
	if !slices.Equal(req.Facts.Missing, []string{"greylist"}) {
		t.Errorf("missing %v", req.Facts.Missing)
	}
}
