package reference

import (
	"strings"
	"testing"
	"time"
)

func TestNumbersOfAMinuteAreDifferent(t *testing.T) {
	s := NewSource(7)
	now := time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)
	seen := make([]bool, 1<<numberBits)
	for range seen {
		r := s.Next(now)
		if n := r & (1<<numberBits - 1); seen[n] {
			t.Fatalf("%v came twice", r)
		} else {
			seen[n] = true
		}
	}
}

func TestNumbersShowNoCount(t *testing.T) {
	s := NewSource(7)
	now := time.Now()
	steps := map[Ref]int{}
	last := s.Next(now)
	for range 1000 {
		next := s.Next(now)
		steps[(next-last)&(1<<numberBits-1)]++
		last = next
	}
	for step, n := range steps {
		if n > 20 {
			t.Errorf("%d of 1000 are %d after the one before", n, step)
		}
	}
	if one, other := NewSource(7), NewSource(7); one.Next(now) == other.Next(now) {
		t.Error("two processes begin alike")
	}
}

func TestMinuteAndNode(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 30, 0, time.UTC)
	for _, tt := range []struct {
		name         string
		made, latest time.Time
		want         time.Time
	}{
		{"now", now, now, now.Truncate(time.Minute)},
		{"years ago", now.AddDate(-7, 0, 0), now, now.AddDate(-7, 0, 0).Truncate(time.Minute)},
		{"the clock was ahead", now.Add(time.Hour), now, now.Add(time.Hour - Wrap).Truncate(time.Minute)},
		{"the clock was ahead, and that is known", now.Add(time.Hour), now.Add(2 * time.Hour), now.Add(time.Hour).Truncate(time.Minute)},
		{"before 1970", time.Unix(-100, 0), time.Unix(0, 0), time.Unix(-60, 0)},
	} {
		r := NewSource(200).Next(tt.made)
		if got := r.Minute(tt.latest); !got.Equal(tt.want) || r.Node() != 200 {
			t.Errorf("%s: minute %v of node %d, want %v of 200", tt.name, got, r.Node(), tt.want)
		}
	}
}

func TestParse(t *testing.T) {
	want := Ref(0x1234567890abc)
	text := want.String()
	if len(text) != 11 || text[5] != '-' {
		t.Fatal(text)
	}
	for _, s := range []string{
		text, strings.ToLower(text), strings.ReplaceAll(text, "-", ""), "[ref " + text + "]", "ref=" + text, " (" + text + ") ", "ref: " + text, strings.ReplaceAll(text, "-", " "),
	} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("%q: %v %v", s, got, err)
		}
	}
	if got, err := Parse("oOiIl-LABCD"); err != nil || got.String() != "00111-1ABCD" {
		t.Errorf("look-alikes: %v %v", got, err)
	}
	for _, s := range []string{"", "ABCDE", "ABCDE-FGHJKM", "ABCDE-FGHJU", "ABCDE-FGHÄK", "ref ", "ref=", strings.Repeat("A", 10000)} {
		if got, err := Parse(s); err == nil || len(err.Error()) > 300 {
			t.Errorf("%.40q: %v %v", s, got, err)
		}
	}
}

func TestNodeOf(t *testing.T) {
	if NodeOf("mx1.example.org") != NodeOf("MX1.example.org") || NodeOf("mx1.example.org") == NodeOf("mx2.example.org") {
		t.Error(NodeOf("mx1.example.org"), NodeOf("mx2.example.org"))
	}
}

// What is read is written in one way, and that is read as the same.
func FuzzParse(f *testing.F) {
	for _, s := range []string{"7K3QX-2MDAB", "[ref 7k3qx2mdab]", "ref=OOOOO-IIIII", "", "-", "ABCDE-FGHJ\xff"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := Parse(s)
		if err != nil {
			return
		}
		if r>>50 != 0 {
			t.Fatalf("%q: %x has more than 50 bits", s, uint64(r))
		}
		if again, err := Parse(r.String()); err != nil || again != r {
			t.Fatalf("%q: %v, then %v %v", s, r, again, err)
		}
	})
}

func BenchmarkNext(b *testing.B) {
	s, now := NewSource(1), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		_ = s.Next(now).String()
	}
}
