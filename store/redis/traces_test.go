package redis

import (
	"errors"
	"fmt"
	"testing"
	"time"

	"postern/internal/redistest"
	"postern/store"
)

func TestTraces(t *testing.T) {
	server := redistest.Start(t)
	s := open(t, config(server.Addr()), "")
	flush(t, s)
	ctx := t.Context()
	now := time.Now()
	for i := range 350 {
		if err := s.PutTrace(ctx, 7, fmt.Sprintf("REF%d", i), []byte{0, byte(i), 0xff}, time.Hour); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.PutTrace(ctx, 8, "OTHER", []byte("x"), time.Hour); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		name, ref string
		node      uint8
		minute    time.Time
		want      string
	}{
		{"the first", "REF0", 7, now.Truncate(time.Minute), "\x00\x00\xff"},
		{"beyond a page", "REF317", 7, now.Truncate(time.Minute), string([]byte{0, 317 & 0xff, 0xff})},
		{"a clock that is wrong", "REF317", 7, now.Add(-48 * time.Hour), string([]byte{0, 317 & 0xff, 0xff})},
		{"a clock at its beginning", "REF1", 7, time.Unix(0, 0), "\x00\x01\xff"},
		{"another node", "OTHER", 7, now, ""},
		{"another node's", "OTHER", 8, now, "x"},
		{"nowhere", "REF999", 7, now, ""},
		{"no such node", "REF1", 9, now, ""},
	} {
		got, err := s.Trace(ctx, tt.node, tt.ref, tt.minute)
		if err != nil || string(got) != tt.want {
			t.Errorf("%s: %q %v, want %q", tt.name, got, err, tt.want)
		}
	}
	key := s.traceKey(7)
	if ttl, err := s.client.TTL(ctx, key).Result(); err != nil || ttl <= time.Hour || ttl > time.Hour+slack {
		t.Errorf("the stream expires in %v %v", ttl, err)
	}
	// What is too old is taken out, now and then.
	s.trims.at[7] = now.Add(-trimEvery)
	if err := s.PutTrace(ctx, 7, "LAST", nil, -time.Hour); err != nil {
		t.Fatal(err)
	}
	if n, err := s.client.XLen(ctx, key).Result(); err != nil || n > 100 { // nodes of the stream go whole
		t.Errorf("%d traces are left %v", n, err)
	}
	server.Stop()
	if err := s.PutTrace(ctx, 7, "X", nil, time.Hour); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("without a server: %v", err)
	}
	if _, err := s.Trace(ctx, 7, "X", now); !errors.Is(err, store.ErrUnavailable) {
		t.Errorf("without a server: %v", err)
	}
}
