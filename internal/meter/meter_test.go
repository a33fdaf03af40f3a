package meter

import (
	"strings"
	"testing"
	"time"
)

var day = time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC)

func TestRate(t *testing.T) {
	// Six a minute, three at once.
	take := Take{Key: "r", Add: 10e6, Most: 30e6, Hard: true}
	now, value := day, ""
	step := func(after time.Duration, over bool, used int64, wait time.Duration) {
		t.Helper()
		now = now.Add(after)
		next, levels, taken := Apply([]string{value}, []Take{take}, now)
		if levels[0] != (Level{Over: over, Used: used, Wait: wait}) || taken == over {
			t.Fatalf("%v: %+v, taken %v", now, levels[0], taken)
		}
		if taken {
			value = next[0]
		}
	}
	step(0, false, 10e6, 0)
	step(0, false, 20e6, 0)
	step(0, false, 30e6, 0)
	step(0, true, 30e6, 10*time.Second)
	step(9*time.Second, true, 21e6, time.Second)
	step(time.Second, false, 30e6, 0)
	step(time.Hour, false, 10e6, 0)
	step(-time.Minute, true, 30e6, 10*time.Second) // the clock is set back: full
	step(30*time.Second, true, 30e6, 10*time.Second)
	step(20*time.Second, false, 30e6, 0) // for no longer than the burst takes
	step(-time.Hour, false, 10e6, 0)     // by more than a burst: as if nobody had come
	value = "nonsense"
	step(0, false, 10e6, 0)
	take.Add = -10e6 // given back, and more than there is
	step(0, false, 0, 0)
	step(0, false, 0, 0)
}

func TestQuota(t *testing.T) {
	take := func(at time.Time, add int64) Take {
		start := at.Truncate(24 * time.Hour)
		return Take{Key: "q", Kind: Quota, Add: add, Most: 10, Start: start, End: start.Add(24 * time.Hour), Hard: true}
	}
	value := ""
	for i, tt := range []struct {
		at   time.Time
		add  int64
		want Level
	}{
		{day, 4, Level{Used: 4}},
		{day.Add(time.Hour), 6, Level{Used: 10}},
		{day.Add(2 * time.Hour), 1, Level{Over: true, Used: 10, Wait: 22 * time.Hour}},
		{day.Add(2 * time.Hour), -3, Level{Used: 7}},
		{day.Add(3 * time.Hour), 3, Level{Used: 10}},
		{day.Add(24 * time.Hour), 1, Level{Used: 1}},
		// Another gateway's clock is a moment behind: it counts in the new day.
		{day.Add(24*time.Hour - time.Second), 1, Level{Used: 2}},
		// One that is an hour behind does not.
		{day.Add(23 * time.Hour), 1, Level{Used: 1}},
		{day.Add(23 * time.Hour), -9, Level{Used: 0}},
		{day.Add(23 * time.Hour), 11, Level{Over: true, Wait: time.Hour}},
	} {
		next, levels, taken := Apply([]string{value}, []Take{take(tt.at, tt.add)}, tt.at)
		if levels[0] != tt.want || taken == tt.want.Over {
			t.Errorf("%d: %+v, want %+v", i, levels[0], tt.want)
		}
		if taken {
			value = next[0]
		}
	}
}

func TestDistinct(t *testing.T) {
	value := ""
	for i, tt := range []struct {
		member string
		want   Level
	}{
		{"0000000a", Level{Used: 1}}, {"0000000a", Level{Used: 1}}, {"0000000b", Level{Used: 2}},
		{"0000000c", Level{Over: true, Used: 2, Wait: 24 * time.Hour}}, {"0000000b", Level{Used: 2}},
	} {
		take := Take{Key: "d", Kind: Distinct, Most: 2, Start: day, End: day.Add(24 * time.Hour), Member: tt.member, Hard: true}
		next, levels, taken := Apply([]string{value}, []Take{take}, day)
		if levels[0] != tt.want {
			t.Errorf("%d: %+v, want %+v", i, levels[0], tt.want)
		}
		if taken {
			value = next[0]
		}
		if got := take.Held(value, day); got != min(int64(i/2+1), 2) && i != 1 {
			t.Errorf("%d: holds %d", i, got)
		}
	}
	// Half a member is none.
	take := Take{Kind: Distinct, Most: 2, Start: day, End: day.Add(time.Hour), Member: "0000000a"}
	if next, _, _ := Apply([]string{"1767312000000:abc"}, []Take{take}, day); !strings.HasSuffix(next[0], ":0000000a") {
		t.Error(next)
	}
}

// All or none: a hard meter that is full leaves the others as they are; a soft
// one is only left out itself.
func TestAllOrNone(t *testing.T) {
	full := Take{Key: "full", Kind: Quota, Add: 5, Most: 4, Start: day, End: day.Add(time.Hour), Hard: true}
	free := Take{Key: "free", Kind: Quota, Add: 1, Most: 4, Start: day, End: day.Add(time.Hour), Hard: true}
	next, levels, taken := Apply([]string{"", ""}, []Take{free, full}, day)
	if taken || next != nil || levels[0].Over || !levels[1].Over {
		t.Errorf("hard: %q %+v %v", next, levels, taken)
	}
	full.Hard = false
	next, levels, taken = Apply([]string{"", ""}, []Take{free, full}, day)
	if !taken || next[0] != "1767312000000:1" || next[1] != "" || !levels[1].Over {
		t.Errorf("soft: %q %+v %v", next, levels, taken)
	}
}
