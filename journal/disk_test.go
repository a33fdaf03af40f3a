package journal

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/reference"
	"postern/policy"
)

// eventually waits for a condition.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !f() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("%s: never", what)
		}
	}
}

// impatient starts a journal that tries a bad disk again soon.
func impatient(t *testing.T, cfg Config, dir string) (*Journal, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	j := New(cfg, Options{Dir: dir, References: refs, Log: zap.New(core)})
	j.write.retry = 10 * time.Millisecond
	j.Start()
	t.Cleanup(func() { j.Stop(context.Background()) })
	return j, logs
}

// incompressible is a decision that takes some kB on disk.
func incompressible(j *Journal, i int) string {
	req, d := refused(time.Now(), i)
	var b strings.Builder
	for b.Len() < 4000 {
		b.WriteString(refs.Next(time.Now()).String())
	}
	d.Verdict.Detail = b.String()
	j.Record(req, d)
	return d.Reference
}

func TestFullAndReadOnlyDisk(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting a small disk takes root")
	}
	disk := t.TempDir()
	if err := syscall.Mount("tmpfs", disk, "tmpfs", 0, "size=512k"); err != nil {
		t.Skip("a small disk cannot be mounted here:", err)
	}
	t.Cleanup(func() {
		if err := syscall.Unmount(disk, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	filler := filepath.Join(disk, "filler")
	if err := os.WriteFile(filler, make([]byte, 440<<10), 0o600); err != nil {
		t.Fatal(err)
	}
	cfg := config()
	j, logs := impatient(t, cfg, filepath.Join(disk, "j"))
	var all []string
	for i := 0; j.Status().Fault == ""; i++ {
		all = append(all, incompressible(j, i))
		j.write.flush(t.Context())
	}
	before := len(all) - 1 // the last one did not fit
	for i := range 5 {
		all = append(all, incompressible(j, i))
		j.write.flush(t.Context())
	}
	if s := j.Status(); !strings.Contains(s.Fault, "no space left") || s.Dropped != 0 || s.Written != uint64(before) {
		t.Errorf("status %+v", s)
	}
	for _, ref := range all[before:] {
		if find(t, j, ref) == nil {
			t.Errorf("%s is not in memory", ref)
		}
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written again", func() bool { s := j.Status(); return s.Fault == "" && s.Written == uint64(len(all)) })
	if got := fmt.Sprint(messages(logs)); got != "[the journal cannot be written; decisions go on, the newest stay in memory the journal is written again]" {
		t.Error(got)
	}
	logs.TakeAll()

	remount := func(flags uintptr) {
		t.Helper()
		// Writable files are open: only the next file is refused. The kernel
		// refuses a read-only remount with EBUSY while they are.
		if err := syscall.Mount("tmpfs", disk, "tmpfs", syscall.MS_REMOUNT|flags, ""); err != nil && !errors.Is(err, syscall.EBUSY) {
			t.Fatal(err)
		}
	}
	j.Stop(t.Context())
	remount(syscall.MS_RDONLY)
	j, logs = impatient(t, cfg, filepath.Join(disk, "j"))
	ref := record(j, time.Now(), 1)
	if find(t, j, ref) == nil || find(t, j, all[0]) == nil || j.Status().Fault == "" {
		t.Errorf("on a read-only disk: %+v", j.Status())
	}
	remount(0)
	eventually(t, "written once it can be", func() bool { s := j.Status(); return s.Fault == "" && s.Written == 1 })
	if got := len(logs.All()); got != 2 {
		t.Error(messages(logs))
	}
	if got, seen := what(t, filepath.Join(disk, "j")); len(got) != len(all)+1 || seen.Broken != 0 {
		t.Errorf("%d on disk, want %d; %+v", len(got), len(all)+1, seen)
	}
}

func messages(logs *observer.ObservedLogs) (out []string) {
	for _, e := range logs.All() {
		out = append(out, e.Message)
	}
	return out
}

func TestNoDirectory(t *testing.T) {
	above := filepath.Join(t.TempDir(), "later")
	dir := filepath.Join(above, "j")
	j, logs := impatient(t, config(), dir)
	ref := record(j, time.Now(), 1)
	if find(t, j, ref) == nil || !strings.Contains(j.Status().Fault, "no such file") {
		t.Errorf("%+v", j.Status())
	}
	if _, err := j.Search(t.Context(), &Filter{}, func(*Record) bool { return true }); err == nil {
		t.Error("nothing is wrong with a search")
	}
	if err := os.Mkdir(above, 0o700); err != nil {
		t.Fatal(err)
	}
	eventually(t, "written", func() bool { return j.Status().Written == 1 })
	if got := len(logs.All()); got != 2 {
		t.Error(messages(logs))
	}
	// A second daemon does not write there.
	second, logs := impatient(t, config(), dir)
	ref = record(second, time.Now(), 2)
	if find(t, second, ref) == nil || !strings.Contains(second.Status().Fault, "another daemon") || logs.Len() != 1 {
		t.Errorf("%+v %v", second.Status(), messages(logs))
	}
	j.Stop(t.Context())
	eventually(t, "its turn", func() bool { return second.Status().Written == 1 })
}

func TestRotationAndSize(t *testing.T) {
	cfg := config()
	cfg.MaxSize = 64 << 10
	dir := filepath.Join(t.TempDir(), "j")
	j, logs := onDisk(t, cfg, dir)
	now := time.Now()
	for i := range 400 {
		record(j, now.Add(time.Duration(i)*time.Second), i)
		j.write.flush(t.Context())
		if s := j.Status(); s.Bytes > int64(cfg.MaxSize) {
			t.Fatalf("%d bytes in %d files after %d", s.Bytes, s.Segments, i)
		}
	}
	var bytes int64
	all := mustSegments(t, dir)
	for _, s := range all {
		bytes += s.size
	}
	s := j.Status()
	if s.Bytes != bytes || s.Segments != len(all) || len(all) < 8 || bytes < int64(cfg.MaxSize)/2 || !s.Newest.Equal(now.Add(399*time.Second).Round(0)) || !s.Oldest.After(now) {
		t.Errorf("%d bytes in %d files; %+v", bytes, len(all), s)
	}
	got, seen := what(t, dir)
	if len(got) == 0 || got[len(got)-1] != "S399@Example.ORG" || seen.Broken != 0 {
		t.Errorf("%d, the last %v; %+v", len(got), got[len(got)-1], seen)
	}
	j.Stop(t.Context())
	// Less room than before, after a restart.
	cfg.MaxSize = 32 << 10
	j, _ = onDisk(t, cfg, dir)
	record(j, now.Add(time.Hour), 1)
	j.write.flush(t.Context())
	if s := j.Status(); s.Bytes > int64(cfg.MaxSize) || s.Written != 1 {
		t.Errorf("%+v", s)
	}
	if logs.Len() != 0 {
		t.Error(messages(logs))
	}
}

// What is too old goes, but not because a clock was wrong.
func TestAge(t *testing.T) {
	now := time.Now()
	day := 24 * time.Hour
	for _, tt := range []struct {
		name string
		ages []time.Duration // of segments, in the order of writing
		want int             // that stay
	}{
		{"none old", []time.Duration{2 * day, day}, 2},
		{"some old", []time.Duration{40 * day, 31 * day, 29 * day, day}, 2},
		{"all old", []time.Duration{40 * day, 31 * day}, 0},
		{"the last one is written on", []time.Duration{40 * day, day}, 1},
		{"one of the future among old ones", []time.Duration{40 * day, -3000 * day, 31 * day, day}, 1},
		{"one of the future among young ones", []time.Duration{4 * day, -3000 * day, day}, 3},
		{"old ones of the future", []time.Duration{-3000 * day, 31 * day, day}, 1},
		{"written while the clock was back", []time.Duration{3 * day, 20000 * day, day}, 3},
	} {
		dir := t.TempDir()
		for i, age := range tt.ages {
			one := t.TempDir()
			path, _ := fill(t, one, now.Add(-age))
			if err := os.Rename(path, filepath.Join(dir, nameOf(uint64(i+1)))); err != nil {
				t.Fatal(err)
			}
		}
		j := New(config(), Options{Dir: dir, References: refs, Log: zap.NewNop()})
		w := j.write
		w.clock.set(now.Add(-2 * time.Hour))
		w.open()
		w.expire(now)
		if got := len(mustSegments(t, dir)); got != tt.want || w.state.Segments != got {
			t.Errorf("%s: %d stay, want %d; %+v", tt.name, got, tt.want, w.state)
		}
		w.close()
	}
}

func TestTrustInTheClock(t *testing.T) {
	// Times with a monotonic part: Add moves both, set only the time of day.
	start := time.Now()
	at := func(passed time.Duration) time.Time { return start.Add(passed) }
	var c clock
	c.set(start)
	for _, tt := range []struct {
		passed time.Duration
		want   bool
	}{{0, false}, {59 * time.Minute, false}, {time.Hour, true}, {100 * time.Hour, true}} {
		if got := c.trusted(at(tt.passed)); got != tt.want {
			t.Errorf("after %v: %v", tt.passed, got)
		}
	}
	// The clock was set ten years ahead: what was started seems to lie back.
	c.started = c.started.Round(0).Add(-10 * 365 * 24 * time.Hour)
	c.offset += 1 << 50
	if c.trusted(at(101 * time.Hour)) {
		t.Error("a clock that was just set is trusted")
	}
	if c.trusted(at(101*time.Hour + 30*time.Minute)) {
		t.Error("trusted too soon")
	}
	if !c.trusted(at(102*time.Hour + time.Minute)) {
		t.Error("never trusted again")
	}
}

// What comes faster than it is written is counted, and the newest stays.
func TestLosses(t *testing.T) {
	core, logs := observer.New(zapcore.InfoLevel)
	cfg := config()
	cfg.Memory = 16
	j := New(cfg, Options{Dir: filepath.Join(t.TempDir(), "j"), References: refs, Log: zap.New(core)})
	for i := range 50 {
		record(j, time.Now(), i)
	}
	j.Start()
	j.write.flush(t.Context())
	if s := j.Status(); s.Written != 16 || s.Dropped != 34 {
		t.Errorf("%+v", s)
	}
	j.Stop(t.Context())
	if logs.Len() != 1 || logs.All()[0].ContextMap()["lost"] != uint64(34) {
		t.Error(logs.All())
	}
	if got := search(t, j, Filter{}); len(got) != 16 || got[0] != "S49@Example.ORG" {
		t.Error(got)
	}
}

// A flood is not written whole, and a search sees its newest all the same.
func TestMaxRate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		cfg := config()
		cfg.MaxRate, cfg.Memory = 100, 1000
		j := New(cfg, Options{Dir: filepath.Join(t.TempDir(), "j"), References: refs, Log: zap.NewNop()})
		j.Start()
		const seconds = 20
		for i := range seconds * 20 {
			for range 50 { // a thousand a second
				record(j, time.Now(), i%100)
			}
			time.Sleep(50 * time.Millisecond)
		}
		s := j.Status()
		if s.Written < (seconds-2)*100 || s.Written > (seconds+2)*100 || s.Dropped < seconds*800 {
			t.Errorf("%+v", s)
		}
		last := record(j, time.Now(), 1)
		if got := search(t, j, Filter{Reference: last}); len(got) != 1 {
			t.Error(got)
		}
		time.Sleep(time.Minute)
		record(j, time.Now(), 2)
		time.Sleep(2 * time.Second)
		if again := j.Status(); again.Written-s.Written > 1100 || again.Written-s.Written < 900 {
			t.Errorf("%+v, then %+v", s, again)
		}
		j.Stop(t.Context())
	})
}

// contents returns all that the files of a directory say, unpacked.
func contents(t *testing.T, dir string) []byte {
	t.Helper()
	var out []byte
	u := unpacker{Decoder: newDecoder()}
	defer u.Close()
	for _, s := range mustSegments(t, dir) {
		text, err := os.ReadFile(s.path)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, text...)
		if _, err := blocks(s, bytes.NewReader(text), s.size, func(p place) {
			data, err := u.unpack(&p, bytes.NewReader(text))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, data...)
		}); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func TestHashedAddresses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "j")
	cfg := config()
	cfg.Addresses, cfg.Keep = Hashed, KeepAll
	j, _ := onDisk(t, cfg, dir)
	all := "ann.smith@Example.ORG, <BOB+x@example.com>; to=carol@example.net (ann.smith@example.org): dave"
	v := policy.Verdict{
		Action: policy.Reject, Reason: "verify-unknown", Detail: all, Arg: "erin@example.com", Reply: policy.Reply{Code: 550, Enhanced: "5.1.1", Text: all},
		Add: []policy.Header{{Name: "X", Value: all}},
	}
	now := time.Now()
	d := &policy.Decision{
		Reference: refs.Next(now).String(), Verdict: v, Would: v, WouldCheck: "verify", Headers: v.Add,
		Steps: []policy.Step{{Check: "verify", Verdict: v, Error: all, Notes: []policy.Note{{What: all, Value: all}}}},
	}
	req := &policy.Request{
		Time: now, Stage: policy.StageRcpt, Helo: "ann.smith@example.org", Sender: policy.Address{Raw: "ann.smith@Example.ORG"},
		Recipient: policy.Address{Raw: "bob+x@example.com"}, SASL: policy.SASL{Username: "dave", Sender: "frank@example.org"}, OnTop: v.Add,
		TLS:   policy.TLS{CertSubject: "grace@example.org"},
		Facts: policy.Facts{Missing: []string{all}, Listings: []policy.Listing{{What: all}}, Auth: policy.Auth{Results: all, Summary: all}},
	}
	j.Record(req, d)
	j.write.flush(t.Context())
	text := bytes.ToLower(contents(t, dir))
	for _, plain := range []string{"ann.smith", "bob", "carol", "dave", "erin", "frank", "grace"} {
		if i := bytes.Index(text, []byte(plain)); i >= 0 {
			t.Errorf("%s is in the file: %.60q", plain, text[max(i-20, 0):])
		}
	}
	if st, err := os.Stat(filepath.Join(dir, keyFile)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("key: %v %v", st, err)
	}
	r := find(t, j, d.Reference)
	if r == nil || !isHash(r.Sender) || !strings.HasSuffix(r.Sender, "@Example.ORG") || strings.Contains(fmt.Sprintf("%+v", r), "ann.smith") {
		t.Errorf("from memory: %+v", r)
	}
	if d.Verdict.Detail != all || d.Steps[0].Notes[0].Value != all || d.Verdict.Add[0].Value != all {
		t.Error("the decision itself has changed")
	}
	j.Stop(t.Context())
	j, _ = onDisk(t, cfg, dir) // with the same key
	for _, f := range []Filter{{Address: "Ann.Smith@example.org"}, {Address: "bob+x@example.com"}, {Domain: "example.org"}, {Address: r.Sender}} {
		if got := search(t, j, f); len(got) != 1 || got[0] != r.Sender {
			t.Errorf("%+v: %v", f, got)
		}
	}
	if got := search(t, j, Filter{Address: "bob@example.com"}); len(got) != 0 {
		t.Error(got)
	}
	reader, err := Open(dir) // without a daemon
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	if _, err := reader.Search(t.Context(), &Filter{Address: "ANN.SMITH@EXAMPLE.ORG"}, func(*Record) bool { n++; return true }); err != nil || n != 1 {
		t.Error(n, err)
	}
	j.Stop(t.Context())
	// Without a key that can be read nothing is written, rather than in plain.
	if err := os.WriteFile(filepath.Join(dir, keyFile), []byte("short\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	j, logs := impatient(t, cfg, dir)
	record(j, now, 1)
	j.write.flush(t.Context())
	if s := j.Status(); !strings.Contains(s.Fault, "no key") || s.Written != 0 || logs.Len() != 1 {
		t.Errorf("%+v %v", s, messages(logs))
	}
}

// A field in which strangers can put an address is hashed, also one that is added
// to a request or a decision.
func TestEveryTextIsHashed(t *testing.T) {
	fixed := map[string]bool{ // words of ours, of the configuration, of Postfix or the DNS
		"Door": true, "Listener": true, "Chain": true, "Context": true, "QueueID": true, "Instance": true, "Joined": true, "Server": true, "Client": true,
		"SASLMethod": true, "Protocol": true, "Cipher": true, "CertFingerprint": true, "PubkeyFingerprint": true, "CompatibilityLevel": true, "MailVersion": true,
		"Check": true, "Reason": true, "Reference": true, "WouldCheck": true, "Enhanced": true, "Skip": true, "List": true, "Answer": true, "Source": true,
		"Provider": true, "Marks": true, "Result": true, "Identity": true, "DKIM": true, "DMARC": true, "ARC": true, "Policy": true, "Override": true,
		"Domain": true, "Signers": true, "Authors": true, // domains, which stay
	}
	var walk func(v reflect.Value, name string, f func(v reflect.Value, name string))
	walk = func(v reflect.Value, name string, f func(v reflect.Value, name string)) {
		switch v.Kind() {
		case reflect.String:
			f(v, name)
		case reflect.Pointer:
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
			}
			walk(v.Elem(), name, f)
		case reflect.Slice:
			if v.Len() == 0 {
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			}
			walk(v.Index(0), name, f)
		case reflect.Struct:
			for i := range v.NumField() {
				if field := v.Type().Field(i); field.IsExported() {
					inner := field.Name
					if inner == "Name" && v.Type() != reflect.TypeFor[Record]() {
						inner = "Domain" // of a header field
					}
					walk(v.Field(i), inner, f)
				}
			}
		default:
		}
	}
	var r Record
	walk(reflect.ValueOf(&r).Elem(), "", func(v reflect.Value, name string) {
		if !fixed[name] {
			v.SetString("ann@example.org")
		}
	})
	h := hasher{make([]byte, keySize)}
	walk(reflect.ValueOf(h.conceal(&r)).Elem(), "", func(v reflect.Value, name string) {
		if strings.Contains(v.String(), "ann@") {
			t.Errorf("%s stays as it is", name)
		}
	})
}

// Whatever is in a file, it is read to its end, within the memory that its size
// allows, and whole blocks are found.
func FuzzSegment(f *testing.F) {
	dir := f.TempDir()
	j := New(config(), Options{Dir: filepath.Join(dir, "j"), References: reference.NewSource(1), Log: zap.NewNop()})
	j.write.open()
	for i := range 3 {
		req, d := refused(time.Unix(int64(i), 0), i)
		j.Record(req, d)
		j.write.drain(1 << 30)
		j.write.write(true)
	}
	j.write.close()
	whole, err := os.ReadFile(filepath.Join(dir, "j", nameOf(1)))
	if err != nil {
		f.Fatal(err)
	}
	f.Add(whole)
	f.Add(whole[:len(whole)-7])
	f.Add([]byte(segmentMagic))
	f.Add([]byte{})
	f.Add([]byte(segmentMagic + blockMagic + strings.Repeat("\xff", 40)))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := &segment{path: "fuzz", size: int64(len(data))}
		u := unpacker{Decoder: newDecoder()}
		defer u.Close()
		read := bytes.NewReader(data)
		end := int64(0)
		got, err := blocks(s, read, s.size, func(p place) {
			if p.start < end || p.at+int64(p.size) > s.size {
				t.Fatalf("block from %d to %d, behind %d", p.start, p.at+int64(p.size), end)
			}
			end = p.at + int64(p.size)
			p.filter.has(1)
			text, err := u.unpack(&p, read)
			var e entry
			for err == nil && len(text) > 0 {
				if text, err = e.cut(text); err == nil {
					e.eachHash(func(uint64) {})
					_, _ = e.record()
					_, _ = e.answer()
				}
			}
		})
		if err != nil || got.end > s.size || got.end < end {
			t.Fatalf("%+v, %v; the last block ends at %d", got, err, end)
		}
	})
}

// An entry that can be cut off is the one that was appended.
func FuzzEntry(f *testing.F) {
	req, d := refused(time.Unix(1e9, 0), 1)
	var r Record
	r.fill(req, d)
	k := keysOf(&r, 5)
	b, _, err := appendEntry(nil, &k, &r)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:20])
	f.Add([]byte{1, 0, 0, 0, 2})
	f.Fuzz(func(t *testing.T, data []byte) {
		var e entry
		rest, err := e.cut(data)
		if err != nil {
			return
		}
		if len(rest) >= len(data) {
			t.Fatal("nothing was cut off")
		}
		e.eachHash(func(uint64) {})
		_, _ = e.record()
		_, _ = e.answer()
	})
}
