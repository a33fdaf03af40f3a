package journal

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"postern/internal/adminapi"
)

// serve serves a journal's calls.
func serve(t *testing.T, j *Journal) Admin {
	t.Helper()
	mux := http.NewServeMux()
	for pattern, handler := range j.Calls() {
		mux.Handle(pattern, handler)
	}
	s := httptest.NewUnstartedServer(mux)
	s.Config.ReadTimeout = 50 * time.Millisecond // listening takes longer
	s.Start()
	t.Cleanup(func() {
		j.Hush()
		s.Close()
		http.DefaultClient.CloseIdleConnections()
	})
	return Admin{adminapi.NewClient("tcp:"+s.Listener.Addr().String(), "")}
}

func TestTail(t *testing.T) {
	j := inMemory(config())
	a := serve(t, j)
	heard := make(chan string)
	ended := make(chan error, 1)
	go func() {
		ended <- a.Tail(t.Context(), &Filter{Domain: "example.org", Client: "192.0.2.0/28"}, func(h *Heard) bool {
			heard <- h.Sender
			return true
		})
	}()
	eventually(t, "somebody listens", func() bool { return j.tails.n.Load() == 1 })
	for i := range 3 {
		record(j, time.Now(), i)
		record(j, time.Now(), 16+i) // from elsewhere
		if got := <-heard; got != fmt.Sprintf("S%d@Example.ORG", i) {
			t.Errorf("heard of %s", got)
		}
	}
	j.Hush()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	eventually(t, "nobody listens", func() bool { return j.tails.n.Load() == 0 })
	for query, want := range map[string]string{"since=2026-01-01T00:00:00Z": "no since", "client=x": "neither", "what=x": "unknown filter"} {
		err := a.Call(t.Context(), http.MethodGet, "/v1/journal/tail?"+query, nil, &struct{}{})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", query, err)
		}
	}
}

// Who listens too slowly loses, and is told how much; nobody waits.
func TestSlowTail(t *testing.T) {
	j := inMemory(config())
	want, err := new(Filter).matcher(nil)
	if err != nil {
		t.Fatal(err)
	}
	one, leave, err := j.tails.listen(want)
	if err != nil {
		t.Fatal(err)
	}
	for i := range tailRoom + 7 {
		record(j, time.Now(), i%100)
	}
	if len(one.room) != tailRoom || one.lost.Load() != 7 {
		t.Errorf("%d wait, %d lost", len(one.room), one.lost.Load())
	}
	for range maxTails - 1 {
		_, l, err := j.tails.listen(want)
		if err != nil {
			t.Fatal(err)
		}
		defer l()
	}
	if _, _, err := j.tails.listen(want); !errors.Is(err, errTooManyTails) {
		t.Error(err)
	}
	leave()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	a := serve(t, j)
	n := 0
	go func() {
		eventually(t, "another listens", func() bool { return j.tails.n.Load() == maxTails })
		j.tails.mu.Lock()
		for l := range j.tails.all {
			l.lost.Store(5)
		}
		j.tails.mu.Unlock()
		record(j, time.Now(), 1)
	}()
	if err := a.Tail(ctx, &Filter{}, func(h *Heard) bool {
		if n++; n == 1 && (h.Lost != 5 || h.Record != nil) || n == 2 && (h.Record == nil || h.Sender != "S1@Example.ORG") {
			t.Errorf("line %d: %+v", n, h)
		}
		return n < 2
	}); err != nil || n != 2 {
		t.Error(n, err)
	}
}
