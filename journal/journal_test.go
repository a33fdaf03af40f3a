package journal

import (
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"time"

	"postern/policy"
)

func record(j *Journal, i int) {
	req := &policy.Request{Time: time.Unix(int64(i), 0), Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}}
	j.Record(req, &policy.Decision{Reference: fmt.Sprint("R", i), Steps: []policy.Step{{Check: "rbl"}}})
}

func TestNewestDecisionsAreKept(t *testing.T) {
	j := New(3)
	for i := range 5 {
		record(j, i)
	}
	for i, want := range []bool{false, false, true, true, true} {
		if _, ok := j.Find(fmt.Sprint("R", i)); ok != want {
			t.Errorf("Find(R%d) = %v, want %v", i, ok, want)
		}
	}
	var got []string
	for _, r := range j.Recent(10) {
		got = append(got, r.Decision.Reference)
	}
	if fmt.Sprint(got) != "[R4 R3 R2]" {
		t.Errorf("Recent = %v, want newest first", got)
	}
	if n := len(j.refs); n != 3 || len(j.ring) != 3 {
		t.Errorf("index holds %d references, want 3", n)
	}
}

func TestRecentOfAPartlyFilledRing(t *testing.T) {
	j := New(10)
	if got := j.Recent(5); len(got) != 0 {
		t.Errorf("Recent of an empty journal = %v", got)
	}
	record(j, 1)
	record(j, 2)
	if got := j.Recent(1); len(got) != 1 || got[0].Decision.Reference != "R2" {
		t.Errorf("Recent(1) = %v, want R2", got)
	}
}

func TestRecordKeepsACopy(t *testing.T) {
	j := New(1)
	d := &policy.Decision{Reference: "R", Steps: []policy.Step{{Check: "rbl"}}}
	j.Record(&policy.Request{}, d)
	d.Steps[0].Check = "overwritten"
	r, _ := j.Find("R")
	if r.Decision.Steps[0].Check != "rbl" || r.Client != "unknown" {
		t.Errorf("kept %+v, want a copy and an unknown client", r)
	}
}

func TestAPlaceIsUsedAgain(t *testing.T) {
	j := New(1)
	long := &policy.Decision{
		Reference: "LONG", Steps: []policy.Step{{Check: "access", Error: "e"}, {Check: "rbl"}}, Headers: []policy.Header{{Name: "X", Value: "1"}},
	}
	j.Record(&policy.Request{Helo: "long", SASL: policy.SASL{Username: "ann"}}, long)
	kept, _ := j.Find("LONG")
	j.Record(&policy.Request{Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}}, &policy.Decision{Reference: "SHORT", Steps: []policy.Step{{Check: "greylist"}}})
	if len(kept.Decision.Steps) != 2 || kept.Decision.Steps[0].Check != "access" || kept.Decision.Headers[0].Name != "X" || kept.Helo != "long" {
		t.Errorf("what was found has changed: %+v", kept)
	}
	got, ok := j.Find("SHORT")
	if !ok || len(got.Decision.Steps) != 1 || got.Decision.Steps[0].Check != "greylist" || got.Decision.Steps[0].Error != "" ||
		len(got.Decision.Headers) != 0 || got.Helo != "" || got.Login != "" || got.Client != "192.0.2.1" {
		t.Errorf("left over: %+v", got)
	}
	if _, ok := j.Find("LONG"); ok {
		t.Error("the decision before is still found")
	}
	if n := testing.AllocsPerRun(100, func() { j.Record(&policy.Request{}, long) }); n > 0 {
		t.Errorf("%v allocations for a record", n)
	}
}

func TestZeroSizeKeepsNothing(t *testing.T) {
	j := New(0)
	record(j, 1)
	if _, ok := j.Find("R1"); ok {
		t.Error("a journal of size 0 kept a decision")
	}
}

func TestConcurrentUse(t *testing.T) {
	j := New(8)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 200 {
				record(j, g*1000+i)
				j.Recent(4)
				j.Find("R1")
			}
		})
	}
	wg.Wait()
	if len(j.Recent(100)) != 8 {
		t.Error("ring is not full")
	}
}
