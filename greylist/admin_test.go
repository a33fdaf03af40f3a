package greylist_test

import (
	"context"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"

	"postern/greylist"
	"postern/internal/admintest"
)

// unwell is an AdminStore whose calls fail.
type unwell struct{}

func (unwell) ListGreylist(context.Context, greylist.Filter, time.Time, func(greylist.Entry) bool) error {
	return errBroken
}

func (unwell) ForgetGreylist(context.Context, greylist.Filter) (int, error) { return 0, errBroken }

func (unwell) CountGreylist(context.Context, time.Time) (greylist.Counts, error) {
	return greylist.Counts{}, errBroken
}

func (unwell) MergeGreylist(context.Context, []greylist.Entry, *greylist.Rule, time.Time) (greylist.Merged, error) {
	return greylist.Merged{}, errBroken
}

// asWanted is an AdminStore that keeps the filter.
type asWanted struct {
	unwell
	got greylist.Filter
}

func (s *asWanted) ListGreylist(_ context.Context, f greylist.Filter, _ time.Time, _ func(greylist.Entry) bool) error {
	s.got = f
	return nil
}

func admin(t *testing.T, store greylist.Store, a greylist.AdminStore) greylist.Admin {
	t.Helper()
	c, err := greylist.New(config(t, nil), greylist.Options{Store: store, Admin: a, Names: judge(t), Log: zap.NewNop(), Metrics: prometheus.NewRegistry()})
	if err != nil {
		t.Fatal(err)
	}
	return greylist.Admin{Client: admintest.Serve(t, c.Calls())}
}

func TestCalls(t *testing.T) {
	w := newWorld(t, nil)
	for _, sender := range []string{"ann@example.org", "bob@example.org", "carl@example.net"} {
		w.ask(w.request("192.0.2.7", "", sender, "dora@example.com"))
	}
	a := admin(t, w.store, w.store)
	list := func(f greylist.Filter) (senders []string) {
		t.Helper()
		if err := a.List(t.Context(), f, func(e greylist.Entry) bool {
			senders = append(senders, e.Sender)
			return true
		}); err != nil {
			t.Error(err)
		}
		return senders
	}
	if n, err := a.Stats(t.Context()); err != nil || n != (greylist.Counts{Waiting: 3}) {
		t.Errorf("stats: %+v, %v", n, err)
	}
	if got := list(greylist.Filter{}); len(got) != 3 {
		t.Errorf("all: %v", got)
	}
	if got := list(greylist.Filter{Kind: greylist.KindWaiting, Sender: "bob@"}); !reflect.DeepEqual(got, []string{"bob@example.org"}) {
		t.Errorf("one sender: %v", got)
	}
	if err := a.List(t.Context(), greylist.Filter{Kind: "all"}, nil); err == nil || !strings.Contains(err.Error(), "one of triplet") {
		t.Errorf("an unknown kind: %v", err)
	}
	if err := a.List(t.Context(), greylist.Filter{Limit: 1 << 62}, func(greylist.Entry) bool { return true }); err != nil {
		t.Errorf("a high limit: %v", err)
	}

	// What picks everything is not meant by accident.
	for _, f := range []greylist.Filter{{}, {Kind: greylist.KindWaiting}, {Limit: 1}} {
		if _, err := a.Forget(t.Context(), f, false); err == nil || !strings.Contains(err.Error(), "say what to forget") {
			t.Errorf("forget %+v: %v", f, err)
		}
	}
	if _, err := a.Forget(t.Context(), greylist.Filter{Kind: "all", Sender: "x"}, false); err == nil || !strings.Contains(err.Error(), "one of triplet") {
		t.Errorf("forget an unknown kind: %v", err)
	}
	for _, f := range []greylist.Filter{{Who: "192.0.9"}, {Recipient: "nobody@"}, {Sender: "bob@"}} {
		want := 0
		if f.Sender != "" {
			want = 1
		}
		if n, err := a.Forget(t.Context(), f, false); err != nil || n != want {
			t.Errorf("forget %+v: %d, %v", f, n, err)
		}
	}
	if n, err := a.Forget(t.Context(), greylist.Filter{}, true); err != nil || n != 2 {
		t.Errorf("forget all: %d, %v", n, err)
	}
	if got := list(greylist.Filter{}); got != nil {
		t.Errorf("left: %v", got)
	}
}

func TestFiltersTravel(t *testing.T) {
	store := new(asWanted)
	a := admin(t, broken{}, store)
	for _, f := range []greylist.Filter{
		{},
		{Limit: 1},
		{Kind: greylist.KindTriplet, Who: "192.0.2.0/24", Sender: "a+b@example.org", Recipient: "c&d@example.com", Limit: 7},
	} {
		if err := a.List(t.Context(), f, nil); err != nil || store.got != f {
			t.Errorf("%+v arrived as %+v, %v", f, store.got, err)
		}
	}
	if err := a.Call(t.Context(), "GET", "/v1/greylist?limit=many", nil, nil); err == nil || !strings.Contains(err.Error(), "limit") {
		t.Errorf("limit=many: %v", err)
	}
}

func TestCallsOfAStoreThatFails(t *testing.T) {
	a := admin(t, broken{}, unwell{})
	_, err := a.Stats(t.Context())
	_, err2 := a.Forget(t.Context(), greylist.Filter{Sender: "x"}, false)
	for _, err := range []error{err, err2, a.List(t.Context(), greylist.Filter{}, nil)} {
		if err == nil || !strings.Contains(err.Error(), errBroken.Error()) {
			t.Errorf("%v", err)
		}
	}
}

func TestStatusLines(t *testing.T) {
	w := newWorld(t, nil)
	w.ask(w.request("192.0.2.7", "", "ann@example.org", "bob@example.com"))
	var b strings.Builder
	w.check.Status().WriteStatus(&b, w.now)
	if want := "greylist  strict: delay 2m, always; 1 early retries can be answered from memory\n"; !strings.Contains(b.String(), want) {
		t.Errorf("%q", &b)
	}
}
