package redis

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"postern/greylist"
	"postern/internal/redistest"
	"postern/store"
	"postern/store/storetest"
)

func clusterConfig(c *redistest.Cluster) store.RedisConfig {
	cfg := config("")
	cfg.Addrs, cfg.Cluster = c.Addrs(), true
	return cfg
}

// A Cluster behaves as one server does.
func TestCluster(t *testing.T) {
	c := redistest.StartCluster(t, 3)
	empty := func() {
		for _, s := range c.Servers {
			s.Command("flushall")
		}
	}
	storetest.Run(t, func(t testing.TB) store.Store {
		empty()
		return open(t, clusterConfig(c), "")
	})

	// Slots move under traffic, and nobody waits twice.
	empty()
	s := open(t, clusterConfig(c), "")
	const pairs = 300
	now := time.Now().Add(-time.Hour)
	touch := func(i int, at time.Time) greylist.Outcome {
		t.Helper()
		out, err := s.TouchGreylist(t.Context(), &greylist.Contact{
			Match: "net:1", Credit: fmt.Sprintf("net:%d x.example", i), Sender: fmt.Sprintf("s%d@x.example", i), Recipient: "r@b.example", Time: at, Rule: storetest.Rule,
		})
		if err != nil {
			t.Fatal(err)
		}
		return out
	}
	for i := range pairs {
		touch(i, now)
		if out := touch(i, now.Add(storetest.Rule.Delay)); out.State != greylist.FirstPass || out.Passes != 1 {
			t.Fatalf("%+v", out)
		}
	}
	moved := make(chan struct{})
	go func() {
		defer close(moved)
		c.Move(0, 1, 1500)
	}()
	for n := 0; ; n++ {
		if out := touch(n%pairs, now.Add(time.Minute*5)); out.State != greylist.KnownTriplet {
			t.Fatalf("while slots move: %+v", out)
		}
		select {
		case <-moved:
		default:
			continue
		}
		break
	}
	counts, err := s.CountGreylist(t.Context(), now.Add(time.Hour))
	if err != nil || counts.Triplets != pairs || counts.Credits != pairs || counts.Waiting != 0 {
		t.Errorf("%+v, %v", counts, err)
	}
	// The keys are spread.
	for i, server := range c.Servers {
		if size := strings.TrimSpace(server.Command("dbsize")); len(size) < 2 {
			t.Errorf("server %d holds %s keys", i, size)
		}
	}
}

// When the server is gone Sentinel names another, which knows what it knew.
func TestSentinel(t *testing.T) {
	w := redistest.StartSentinel(t)
	cfg := config("")
	cfg.Addrs, cfg.Master, cfg.Timeout = w.Addrs(), redistest.MasterName, store.DefaultConfig().Redis.Timeout
	s := open(t, cfg, "")
	c := greylist.Contact{Match: "net:1", Sender: "s@x.example", Recipient: "r@b.example", Time: time.Now().Add(-time.Hour), Rule: storetest.Rule}
	touch := func() (greylist.Outcome, error) {
		return s.TouchGreylist(context.Background(), &c)
	}
	if out, err := touch(); err != nil || out.State != greylist.FirstContact {
		t.Fatalf("%+v %v", out, err)
	}
	w.Servers[0].Command("wait", "1", "5000") // the replica has it
	w.Servers[0].Stop()
	c.Time = c.Time.Add(time.Minute)
	deadline := time.Now().Add(time.Minute)
	for {
		out, err := touch()
		if err == nil {
			if out.State != greylist.EarlyRetry {
				t.Errorf("after the failover: %+v", out)
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal(err)
		}
		time.Sleep(50 * time.Millisecond)
	}
}
