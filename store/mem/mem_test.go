package mem

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"postern/greylist"
	"postern/store"
	"postern/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(testing.TB) store.Store { return New(1_000_000) })
}

func TestFullStoreTakesNoNewContacts(t *testing.T) {
	s := New(10)
	defer s.Close(t.Context()) //nolint:errcheck // in memory
	now := time.Now()
	var err error
	for i := range 20 {
		c := greylist.Contact{Who: "w", Sender: fmt.Sprint(i), Time: now, Rule: storetest.Rule}
		if _, err = s.TouchGreylist(t.Context(), &c); err != nil {
			break
		}
	}
	if !errors.Is(err, store.ErrFull) {
		t.Fatalf("got %v, want ErrFull", err)
	}
	c := greylist.Contact{Who: "w", Sender: "0", Time: now.Add(time.Hour), Rule: storetest.Rule}
	if out, err := s.TouchGreylist(t.Context(), &c); err != nil || out.State != greylist.FirstPass {
		t.Errorf("an entry that is there: %v, %v", out.State, err)
	}
}

func TestSweeperDropsWhatHasExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(1_000_000)
		for i := range 500 {
			c := greylist.Contact{Who: fmt.Sprint(i), Time: time.Now(), Rule: storetest.Rule}
			if _, err := s.TouchGreylist(context.Background(), &c); err != nil {
				t.Fatal(err)
			}
		}
		if n := s.Status().Entries; n != 501 { // one pair for all
			t.Fatalf("%d entries", n)
		}
		time.Sleep(storetest.Rule.Window + 2*time.Hour)
		if n := s.Status().Entries; n != 0 {
			t.Errorf("%d entries after their time", n)
		}
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkTouch(b *testing.B) {
	s := New(100_000_000)
	defer s.Close(b.Context()) //nolint:errcheck // in memory
	now := time.Now()
	known := greylist.Contact{Who: "net:192.0.2.0/24", Sender: "a@example.org", Recipient: "b@example.com", Time: now, Rule: storetest.Rule}
	known.Rule.KnownAfter = 0
	known.Rule.Delay = 0
	b.Run("known", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := s.TouchGreylist(b.Context(), &known); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("unique", func(b *testing.B) {
		b.ReportAllocs()
		i := 0
		for b.Loop() {
			i++
			c := greylist.Contact{Who: "net:192.0.2.0/24", Sender: fmt.Sprintf("a%d@example.org", i), Recipient: "b@example.com", Time: now, Rule: storetest.Rule}
			if _, err := s.TouchGreylist(b.Context(), &c); err != nil {
				b.Fatal(err)
			}
		}
	})
}
