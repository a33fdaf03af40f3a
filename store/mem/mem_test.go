package mem

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"postern/greylist"
	"postern/store"
	"postern/store/storetest"
)

func TestConformance(t *testing.T) {
	storetest.Run(t, func(testing.TB) store.Store { return New(1_000_000, storetest.MaxWaiting) })
}

// A full store lets in who has waited, and delays it again the next time: what
// is known of others stays.
func TestFullStore(t *testing.T) {
	s := New(10, 100)
	defer s.Close(t.Context()) //nolint:errcheck // in memory
	now := time.Now()
	for i := range 20 {
		c := greylist.Contact{Match: "w", Sender: fmt.Sprint(i), Time: now, Rule: storetest.Rule}
		for _, want := range []greylist.State{greylist.FirstContact, greylist.FirstPass} {
			if out, err := s.TouchGreylist(t.Context(), &c); err != nil || out.State != want {
				t.Fatalf("contact %d: %v, %v", i, out.State, err)
			}
			c.Time = now.Add(time.Hour)
		}
	}
	for i := range 20 {
		want := greylist.KnownTriplet
		if i >= 10 {
			want = greylist.FirstContact
		}
		c := greylist.Contact{Match: "w", Sender: fmt.Sprint(i), Time: now.Add(2 * time.Hour), Rule: storetest.Rule}
		if out, err := s.TouchGreylist(t.Context(), &c); err != nil || out.State != want {
			t.Errorf("contact %d again: %v, %v; want %v", i, out.State, err, want)
		}
	}
	if st := s.Status(); st.Entries != 10 || st.Room.Unremembered != 10 {
		t.Errorf("status %+v", st)
	}
}

func TestSweeperDropsWhatHasExpired(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New(1_000_000, 1_000_000)
		rule := storetest.Rule
		rule.Window, rule.Keep = 2*time.Hour, 12*time.Hour // each tick of the sweeper is one step of the test
		for i := range 500 {
			c := greylist.Contact{Match: fmt.Sprint(i), Time: time.Now(), Rule: rule}
			if _, err := s.TouchGreylist(context.Background(), &c); err != nil {
				t.Fatal(err)
			}
		}
		for i := range 500 {
			c := greylist.Contact{Match: "w", Sender: fmt.Sprint(i), Time: time.Now().Add(-time.Hour), Rule: rule}
			for range 2 {
				if _, err := s.TouchGreylist(context.Background(), &c); err != nil {
					t.Fatal(err)
				}
				c.Time = time.Now()
			}
		}
		if st := s.Status(); st.Entries != 500 || st.Room.Waiting != 1 { // one correspondence, 8 sides
			t.Fatalf("%+v", st)
		}
		time.Sleep(rule.Window + 2*time.Hour)
		if st := s.Status(); st.Entries != 500 || st.Room.Waiting != 0 {
			t.Errorf("%+v after the window", st)
		}
		time.Sleep(rule.Keep)
		if st := s.Status(); st.Entries != 0 {
			t.Errorf("%+v after their time", st)
		}
		if err := s.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

func BenchmarkTouch(b *testing.B) {
	s := New(100_000_000, 1_000_000)
	defer s.Close(b.Context()) //nolint:errcheck // in memory
	now := time.Now()
	known := greylist.Contact{Match: "net:192.0.2.0/24", Sender: "a@example.org", Recipient: "b@example.com", Time: now, Rule: storetest.Rule}
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
			c := greylist.Contact{Match: "net:192.0.2.0/24", Sender: fmt.Sprintf("a%d@example.org", i), Recipient: "b@example.com", Time: now, Rule: storetest.Rule}
			if _, err := s.TouchGreylist(b.Context(), &c); err != nil {
				b.Fatal(err)
			}
		}
	})
}
