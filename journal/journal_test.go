package journal

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/reference"
	"postern/policy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var refs = reference.NewSource(3)

func config() Config {
	c := DefaultConfig()
	c.Memory = 64
	return c
}

// inMemory returns a journal that writes nothing.
func inMemory(cfg Config) *Journal {
	return New(cfg, Options{References: refs, Log: zap.NewNop()})
}

// onDisk starts a journal over a directory.
func onDisk(t *testing.T, cfg Config, dir string) (*Journal, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	j := New(cfg, Options{Dir: dir, References: refs, Log: zap.New(core)})
	j.Start()
	t.Cleanup(func() { j.Stop(context.Background()) })
	return j, logs
}

// refused is a request and its refusal.
func refused(at time.Time, i int) (*policy.Request, *policy.Decision) {
	req := &policy.Request{
		Time: at, Stage: policy.StageRcpt, Door: "policy", Client: policy.Client{Addr: netip.AddrFrom4([4]byte{192, 0, 2, byte(i)})},
		Sender:    policy.Address{Raw: fmt.Sprintf("S%d@Example.ORG", i), Local: fmt.Sprint("S", i), Domain: "example.org"},
		Recipient: policy.Address{Raw: "bob@sub.example.com", Local: "bob", Domain: "sub.example.com"},
	}
	v := policy.Verdict{Action: policy.Reject, Reason: "rbl-listed", Reply: policy.Reply{Code: 554, Enhanced: "5.7.1", Text: "No"}}
	return req, &policy.Decision{
		Reference: refs.Next(at).String(), Check: "rbl", Verdict: v, Steps: []policy.Step{{Check: "access"}, {Check: "rbl", Verdict: v}},
	}
}

func record(j *Journal, at time.Time, i int) string {
	req, d := refused(at, i)
	j.Record(req, d)
	return d.Reference
}

func find(t *testing.T, j *Journal, ref string) *Record {
	t.Helper()
	r, err := j.Find(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// search returns the senders of what a filter finds.
func search(t *testing.T, j *Journal, f Filter) (out []string) {
	t.Helper()
	if _, err := j.Search(t.Context(), &f, func(r *Record) bool {
		out = append(out, r.Sender)
		return true
	}); err != nil {
		t.Error(err)
	}
	return out
}

func recent(t *testing.T, j *Journal, n int) []*Record {
	t.Helper()
	out, err := j.Recent(t.Context(), n)
	if err != nil {
		t.Error(err)
	}
	return out
}

func TestNewestDecisionsAreInMemory(t *testing.T) {
	cfg := config()
	cfg.Memory = 3
	j := inMemory(cfg)
	var all []string
	for i := range 5 {
		all = append(all, record(j, time.Unix(int64(i), 0), i))
	}
	for i, want := range []bool{false, false, true, true, true} {
		if got := find(t, j, all[i]) != nil; got != want {
			t.Errorf("decision %d is there: %v, want %v", i, got, want)
		}
	}
	var got []string
	for _, r := range recent(t, j, 10) {
		got = append(got, r.Decision.Reference)
	}
	if want := []string{all[4], all[3], all[2]}; !reflect.DeepEqual(got, want) {
		t.Errorf("Recent = %v, want %v", got, want)
	}
	if got := recent(t, j, 1); len(got) != 1 || got[0].Decision.Reference != all[4] {
		t.Errorf("Recent(1) = %v", got)
	}
	if got := search(t, j, Filter{Address: "s3@example.org"}); fmt.Sprint(got) != "[S3@Example.ORG]" {
		t.Error(got)
	}
	if got := recent(t, inMemory(cfg), 5); len(got) != 0 {
		t.Errorf("Recent of an empty journal = %v", got)
	}
}

func TestWhatIsKept(t *testing.T) {
	would := &policy.Decision{WouldCheck: "rbl", Would: policy.Verdict{Action: policy.Reject}}
	refusal := &policy.Decision{Reference: refs.Next(time.Now()).String(), Verdict: policy.Verdict{Action: policy.Reject}}
	for _, tt := range []struct {
		keep Keep
		d    *policy.Decision
		want bool
	}{
		{KeepRefused, &policy.Decision{}, false},
		{KeepRefused, refusal, true},
		{KeepRefused, would, true},
		{KeepAll, &policy.Decision{}, true},
		{KeepAll, refusal, true},
		{KeepOff, refusal, false},
		{KeepOff, would, false},
	} {
		cfg := config()
		cfg.Keep = tt.keep
		j := inMemory(cfg)
		j.Record(&policy.Request{Time: time.Now()}, tt.d)
		if got := len(search(t, j, Filter{})) == 1; got != tt.want {
			t.Errorf("%v %+v: kept %v", tt.keep, tt.d, got)
		}
	}
}

func TestRecordKeepsACopy(t *testing.T) {
	cfg := config()
	cfg.Memory = 1
	j := inMemory(cfg)
	long := &policy.Decision{
		Reference: refs.Next(time.Now()).String(), Steps: []policy.Step{{Check: "access", Error: "e"}, {Check: "rbl"}}, Headers: []policy.Header{{Name: "X", Value: "1"}},
	}
	req := &policy.Request{Helo: "long", SASL: policy.SASL{Username: "ann"}, Facts: policy.Facts{Marks: []string{"a", "b"}}}
	j.Record(req, long)
	kept := find(t, j, long.Reference)
	long.Steps[0].Check, req.Facts.Marks[0] = "overwritten", "overwritten"
	if again := find(t, j, long.Reference); again.Decision.Steps[0].Check != "access" || again.Facts.Marks[0] != "a" || again.Client != "unknown" {
		t.Errorf("kept %+v, want a copy and an unknown client", again)
	}
	short := &policy.Decision{Reference: refs.Next(time.Now()).String(), Steps: []policy.Step{{Check: "greylist"}}}
	j.Record(&policy.Request{Client: policy.Client{Addr: netip.MustParseAddr("192.0.2.1")}}, short)
	if len(kept.Decision.Steps) != 2 || kept.Decision.Steps[0].Check != "access" || kept.Decision.Headers[0].Name != "X" || kept.Helo != "long" {
		t.Errorf("what was found has changed: %+v", kept)
	}
	got := find(t, j, short.Reference)
	if got == nil || len(got.Decision.Steps) != 1 || got.Decision.Steps[0].Check != "greylist" || got.Decision.Steps[0].Error != "" ||
		len(got.Decision.Headers) != 0 || len(got.Facts.Marks) != 0 || got.Helo != "" || got.Login != "" || got.Client != "192.0.2.1" {
		t.Errorf("left over: %+v", got)
	}
	if find(t, j, long.Reference) != nil {
		t.Error("the decision before is still found")
	}
	if n := testing.AllocsPerRun(100, func() { j.Record(req, long) }); n > 0 {
		t.Errorf("%v allocations for a record", n)
	}
}

func TestConcurrentUse(t *testing.T) {
	cfg := config()
	j, _ := onDisk(t, cfg, filepath.Join(t.TempDir(), "j"))
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for i := range 200 {
				ref := record(j, time.Now(), g)
				if i%20 == 0 {
					recent(t, j, 4)
					find(t, j, ref)
					search(t, j, Filter{Limit: 3})
				}
			}
		})
	}
	wg.Wait()
	n := len(search(t, j, Filter{}))
	if s := j.Status(); uint64(n) != s.Written || s.Written+s.Dropped != 800 {
		t.Errorf("%d found; %+v", n, s)
	}
}

func TestAfterARestart(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "j")
	cfg := config()
	now := time.Now()
	j, _ := onDisk(t, cfg, dir)
	var all []string
	for i := range 40 {
		all = append(all, record(j, now.Add(time.Duration(i)*time.Second), i))
	}
	j.Stop(t.Context())

	j, logs := onDisk(t, cfg, dir)
	r := find(t, j, strings.ToLower(all[7]))
	if r == nil || r.Sender != "S7@Example.ORG" || r.Decision.Reference != all[7] || len(r.Decision.Steps) != 2 || r.Decision.Steps[1].Verdict.Reason != "rbl-listed" || !r.Time.Equal(now.Add(7*time.Second)) {
		t.Errorf("found %+v", r)
	}
	last := record(j, now.Add(time.Minute), 99)
	if got := recent(t, j, 2); len(got) != 2 || got[0].Decision.Reference != last || got[1].Decision.Reference != all[39] {
		t.Errorf("the newest: %v", got)
	}
	for _, tt := range []struct {
		name string
		f    Filter
		want string
	}{
		{"address", Filter{Address: "s5@EXAMPLE.org"}, "[S5@Example.ORG]"},
		{"address in brackets", Filter{Address: "<s5@EXAMPLE.org>"}, "[S5@Example.ORG]"},
		{"recipient, newest first", Filter{Address: "bob@sub.example.com", Limit: 2}, "[S99@Example.ORG S39@Example.ORG]"},
		{"part of an address", Filter{Address: "5@example.org"}, "[]"},
		{"domain above", Filter{Domain: "Example.COM.", Limit: 1}, "[S99@Example.ORG]"},
		{"part of a domain", Filter{Domain: "ample.com"}, "[]"},
		{"client", Filter{Client: "192.0.2.6"}, "[S6@Example.ORG]"},
		{"network", Filter{Client: "192.0.2.2/31"}, "[S3@Example.ORG S2@Example.ORG]"},
		{"large network", Filter{Client: "192.0.0.0/9", Limit: 1}, "[S99@Example.ORG]"},
		{"other network", Filter{Client: "2001:db8::/32"}, "[]"},
		{"reference", Filter{Reference: strings.ReplaceAll(last, "-", "")}, "[S99@Example.ORG]"},
		{"check and reason", Filter{Check: "rbl", Reason: "rbl-listed", Verdict: "reject", Limit: 1}, "[S99@Example.ORG]"},
		{"other reason", Filter{Reason: "rbl"}, "[]"},
		{"refused", Filter{Verdict: "refused", Limit: 1}, "[S99@Example.ORG]"},
		{"other verdict", Filter{Verdict: "defer"}, "[]"},
		{"would", Filter{Verdict: "would"}, "[]"},
		{"null sender", Filter{Address: "<>"}, "[]"},
		{"queue id", Filter{QueueID: "ABC"}, "[]"},
		{"since", Filter{Since: now.Add(38 * time.Second)}, "[S99@Example.ORG S39@Example.ORG S38@Example.ORG]"},
		{"until", Filter{Until: now.Add(time.Second)}, "[S1@Example.ORG S0@Example.ORG]"},
	} {
		if got := search(t, j, tt.f); fmt.Sprint(got) != tt.want {
			t.Errorf("%s: %v, want %s", tt.name, got, tt.want)
		}
	}
	for _, f := range []Filter{{Verdict: "no"}, {Client: "mail.example.org"}, {Reference: "x"}, {Limit: -1}, {Since: now, Until: now.Add(-1)}} {
		if _, err := j.Search(t.Context(), &f, func(*Record) bool { return true }); err == nil {
			t.Errorf("%+v is taken", f)
		}
	}
	if s := j.Status(); s.Segments != 1 || s.Dropped != 0 || !s.Oldest.Equal(now.Round(0)) || s.Fault != "" {
		t.Errorf("status %+v", s)
	}
	if logs.Len() != 0 {
		t.Error(logs.All())
	}
}

// what returns the senders that a directory holds, the oldest first.
func what(t *testing.T, dir string) (out []string, seen Seen) {
	t.Helper()
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen, err = r.Scan(t.Context(), time.Time{}, time.Time{}, func(e Entry) error {
		switch {
		case e.Decision != nil:
			out = append(out, e.Decision.Sender)
		case e.Answer != nil:
			out = append(out, e.Answer.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out, seen
}

// fill writes blocks of one decision each, and returns where each begins.
func fill(t *testing.T, dir string, times ...time.Time) (path string, ends []int64) {
	t.Helper()
	j, _ := onDisk(t, config(), dir)
	for i, at := range times {
		record(j, at, i)
		j.write.flush(t.Context())
		ends = append(ends, j.Status().Bytes)
	}
	j.Stop(t.Context())
	return filepath.Join(dir, nameOf(1)), ends
}

// A file that ends anywhere within a block is read up to that block, and
// written on from there.
func TestTornAtEveryByte(t *testing.T) {
	now := time.Now()
	path, ends := fill(t, filepath.Join(t.TempDir(), "j"), now, now.Add(1), now.Add(2))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if int64(len(whole)) != ends[2] {
		t.Fatalf("%d bytes, blocks end at %v", len(whole), ends)
	}
	dir := filepath.Join(t.TempDir(), "torn")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	torn := filepath.Join(dir, nameOf(1))
	for n := range len(whole) + 1 {
		for _, zeros := range []int{0, 100} { // as after a loss of power
			if zeros > 0 && n%7 != 0 {
				continue
			}
			if err := os.WriteFile(torn, append(whole[:n:n], make([]byte, zeros)...), 0o600); err != nil {
				t.Fatal(err)
			}
			want := 0
			for _, end := range ends {
				if end <= int64(n) {
					want++
				}
			}
			if got, _ := what(t, dir); len(got) != want {
				t.Fatalf("cut at %d, %d zeros: %d decisions, want %d", n, zeros, len(got), want)
			}
			if n%53 != 0 {
				continue
			}
			j, _ := onDisk(t, config(), dir)
			record(j, now.Add(3), 9)
			j.Stop(t.Context())
			if got, seen := what(t, dir); len(got) != want+1 || got[want] != "S9@Example.ORG" || seen.Broken > 0 && n >= len(segmentMagic) {
				t.Fatalf("cut at %d, %d zeros, and written on: %v, %+v", n, zeros, got, seen)
			}
			for _, s := range mustSegments(t, dir) {
				if err := os.Remove(s.path); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
}

func mustSegments(t *testing.T, dir string) []*segment {
	t.Helper()
	all, err := segments(dir)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// A block that was damaged hides no other.
func TestDamageIsPassedOver(t *testing.T) {
	now := time.Now()
	dir := filepath.Join(t.TempDir(), "j")
	path, ends := fill(t, dir, now, now.Add(1), now.Add(2))
	whole, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for at := ends[0]; at < ends[1]; at++ {
		bad := append([]byte(nil), whole...)
		bad[at] ^= 0x55
		if err := os.WriteFile(path, bad, 0o600); err != nil {
			t.Fatal(err)
		}
		if got, seen := what(t, dir); fmt.Sprint(got) != "[S0@Example.ORG S2@Example.ORG]" || seen.Broken != 1 {
			t.Fatalf("byte %d is wrong: %v %+v", at, got, seen)
		}
	}
	// What follows the damage is not cut off.
	j, _ := onDisk(t, config(), dir)
	record(j, now.Add(3), 9)
	j.Stop(t.Context())
	if got, _ := what(t, dir); fmt.Sprint(got) != "[S0@Example.ORG S2@Example.ORG S9@Example.ORG]" {
		t.Error(got)
	}
}

// The order is that of time, and references are found, whatever the clock did.
func TestClockSteps(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	times := []time.Time{now, now.Add(10 * 365 * 24 * time.Hour), now.Add(time.Second), time.Unix(1000, 0), now.Add(2 * time.Second)}
	dir := filepath.Join(t.TempDir(), "j")
	fill(t, dir, times...)
	got, _ := what(t, dir)
	if fmt.Sprint(got) != "[S3@Example.ORG S0@Example.ORG S2@Example.ORG S4@Example.ORG S1@Example.ORG]" {
		t.Errorf("in the order of time: %v", got)
	}
	j, _ := onDisk(t, config(), dir)
	if got := search(t, j, Filter{}); fmt.Sprint(got) != "[S1@Example.ORG S4@Example.ORG S2@Example.ORG S0@Example.ORG S3@Example.ORG]" {
		t.Errorf("newest first: %v", got)
	}
	j.Stop(t.Context())
	r, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := r.Scan(t.Context(), time.Time{}, time.Time{}, func(e Entry) error {
		ref, err := reference.Parse(e.Decision.Decision.Reference)
		if err != nil {
			return err
		}
		found, err := r.Find(t.Context(), ref)
		if err == nil && (len(found) != 1 || found[0].Sender != e.Decision.Sender) {
			err = fmt.Errorf("%v of %v is found as %v", ref, e.Time, found)
		}
		return err
	}); err != nil {
		t.Error(err)
	}
	want := errors.New("enough")
	if _, err := r.Scan(t.Context(), now, now.Add(time.Second), func(e Entry) error {
		if e.Decision.Sender == "S2@Example.ORG" {
			return want
		}
		return nil
	}); !errors.Is(err, want) {
		t.Errorf("Scan hides an error: %v", err)
	}
}
