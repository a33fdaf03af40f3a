package resolver

import (
	"errors"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"postern/internal/conf"
	"postern/internal/dnstest"
)

func TestParseResolvConf(t *testing.T) {
	for _, tt := range []struct {
		name, text string
		want       []string
		faults     int
	}{
		{"usual", "# comment\nsearch example.org\nnameserver 192.0.2.1\nnameserver\t2001:db8::1\noptions edns0 trust-ad\n", []string{"192.0.2.1:53", "[2001:db8::1]:53"}, 0},
		{"more on the line", "  nameserver 192.0.2.1 # first\r\n", []string{"192.0.2.1:53"}, 0},
		{"twice", "nameserver 192.0.2.1\nnameserver ::ffff:192.0.2.1\n", []string{"192.0.2.1:53"}, 0},
		{"zone", "nameserver fe80::1%eth0\n", []string{"[fe80::1%eth0]:53"}, 0},
		{"no address", "nameserver ns.example.org\nnameserver 192.0.2.1:53\nnameserver ff02::1\nnameserver 192.0.2.2", []string{"192.0.2.2:53"}, 3},
		{"commented out", ";nameserver 192.0.2.1\n#nameserver 192.0.2.2\nnameserver\n", nil, 0},
		{"empty", "", nil, 0},
		{
			"many", strings.Repeat("nameserver 192.0.2.1\n", 3) + "nameserver 192.0.2.2\nnameserver 192.0.2.3\nnameserver 192.0.2.4\nnameserver 192.0.2.5\nnameserver 192.0.2.6\nnameserver 192.0.2.7\nnameserver 192.0.2.8\nnameserver 192.0.2.9\n",
			[]string{"192.0.2.1:53", "192.0.2.2:53", "192.0.2.3:53", "192.0.2.4:53", "192.0.2.5:53", "192.0.2.6:53", "192.0.2.7:53", "192.0.2.8:53"},
			0,
		},
	} {
		got, faults := parseResolvConf([]byte(tt.text))
		var text []string
		for _, a := range got {
			text = append(text, a.String())
		}
		if !slices.Equal(text, tt.want) || len(faults) != tt.faults {
			t.Errorf("%s: %v, %v, want %v and %d faults", tt.name, text, faults, tt.want, tt.faults)
		}
	}
}

func FuzzParseResolvConf(f *testing.F) {
	f.Add([]byte("nameserver 192.0.2.1\nnameserver fe80::1%eth0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, _ := parseResolvConf(data)
		if len(got) > maxServers {
			t.Errorf("%d servers", len(got))
		}
		for _, a := range got {
			if !a.IsValid() || a.Port() != 53 {
				t.Errorf("server %v", a)
			}
		}
	})
}

// listOf returns a list that looks at a resolv.conf each time.
func listOf(t *testing.T, file string) (*serverList, *observer.ObservedLogs) {
	t.Helper()
	core, logs := observer.New(zapcore.InfoLevel)
	m, err := newMetrics(nil)
	if err != nil {
		t.Fatal(err)
	}
	l := new(serverList)
	if err := l.init(DefaultConfig(), file, zap.New(core), m, func(*server) {}); err != nil {
		t.Fatal(err)
	}
	l.every = 0
	t.Cleanup(l.close)
	return l, logs
}

func TestResolvConfIsReadAgain(t *testing.T) {
	file := filepath.Join(t.TempDir(), "resolv.conf")
	step := time.Unix(1e9, 0)
	write := func(text string) {
		t.Helper()
		// As editors and DHCP clients do: a new file in place of the old.
		if err := errors.Join(os.WriteFile(file+".new", []byte(text), 0o644), os.Rename(file+".new", file)); err != nil {
			t.Fatal(err)
		}
		step = step.Add(time.Second) // clocks of file systems are coarse
		if err := os.Chtimes(file, step, step); err != nil {
			t.Fatal(err)
		}
	}
	write("nameserver 192.0.2.1\nnameserver 192.0.2.2\n")
	l, logs := listOf(t, file)
	names := func() string {
		var out []string
		for _, s := range l.order() {
			out = append(out, s.addr.Addr().String())
		}
		return strings.Join(out, " ")
	}
	if got := names(); got != "192.0.2.1 192.0.2.2" {
		t.Fatal(got)
	}
	first, second := l.list()[0], l.list()[1]
	for range downAfter {
		second.note(resTimeout, os.ErrDeadlineExceeded, "test", 0)
	}
	for _, tt := range []struct {
		name, text, want, log string
	}{
		{"order changed, one gone", "nameserver 192.0.2.2\nnameserver 192.0.2.3\n", "192.0.2.3 192.0.2.2", "name servers changed"},
		{"only a comment changed", "# here\nnameserver 192.0.2.2\nnameserver 192.0.2.3\n", "192.0.2.3 192.0.2.2", ""},
		{"half written", "", "192.0.2.3 192.0.2.2", "name servers stay as they are"},
		{"still half written", "nameser", "192.0.2.3 192.0.2.2", ""},
		{"with a fault", "nameserver 192.0.2.4\nnameserver ns\n", "192.0.2.4", "line of resolv.conf left out"},
	} {
		logs.TakeAll()
		write(tt.text)
		if got := names(); got != tt.want {
			t.Errorf("%s: servers are %s, want %s", tt.name, got, tt.want)
		}
		if all := logs.TakeAll(); (len(all) > 0) != (tt.log != "") || len(all) > 0 && all[0].Message != tt.log {
			t.Errorf("%s: log %v, want %q", tt.name, all, tt.log)
		}
		if tt.name == "order changed, one gone" {
			if l.list()[0] != second || l.list()[0].healthy() {
				t.Error("what was known of a server that stays is lost")
			}
			if !first.closed || second.closed {
				t.Error("the server that is gone is not closed")
			}
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	if got := names(); got != "192.0.2.4" {
		t.Errorf("file gone: %s", got)
	}
	write("nameserver 192.0.2.5\n")
	if got := names(); got != "192.0.2.5" {
		t.Errorf("file back: %s", got)
	}
	if second.timer != nil {
		t.Error("a server that is gone is still probed")
	}
}

func TestWithoutResolvConf(t *testing.T) {
	dir := t.TempDir()
	l, logs := listOf(t, filepath.Join(dir, "none"))
	if s := l.order(); len(s) != 1 || s[0].text != "127.0.0.1:53" {
		t.Errorf("servers: %v", s)
	}
	if logs.Len() != 0 {
		t.Errorf("log: %v", logs.All())
	}
	if _, err := newResolver(DefaultConfig(), zap.NewNop(), nil, dir); err == nil {
		t.Error("a directory is no resolv.conf")
	}
	file := filepath.Join(dir, "none")
	if err := os.WriteFile(file, []byte("nameserver 192.0.2.1"), 0o644); err != nil {
		t.Fatal(err)
	}
	if s := l.order(); len(s) != 1 || s[0].text != "192.0.2.1:53" {
		t.Errorf("servers: %v", s)
	}
	if _, err := os.Stat(file); errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
}

// TestHealth is the life of a server that goes away and comes back.
func TestHealth(t *testing.T) {
	t.Parallel()
	s1, s2 := dnstest.Start(t), dnstest.Start(t)
	for _, s := range []*dnstest.Server{s1, s2} {
		s.Add(`*.example. 300 IN A 192.0.2.1`, `. 300 IN NS ns.example.`)
	}
	s1.BehaveUnder(".", dnstest.Drop)
	cfg := testConfig(s1.Addr(), s2.Addr())
	cfg.Timeout = conf.Duration(700 * time.Millisecond)

	back := make(chan struct{})
	core, logs := observer.New(zapcore.WarnLevel)
	log := zap.New(zapcore.NewTee(core, &signal{LevelEnabler: zapcore.InfoLevel, message: "name server answers again", seen: back}))
	r, err := newResolver(cfg, log, prometheus.NewRegistry(), "")
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	for _, s := range r.servers.list() {
		s.first = 10 * time.Millisecond
	}
	look := func(name string) {
		t.Helper()
		if a, _, _, err := r.LookupA(t.Context(), name); err != nil || len(a) != 1 {
			t.Fatalf("%s: %v, %v", name, a, err)
		}
	}
	for _, name := range []string{"a.example", "b.example", "c.example"} {
		if st := r.Status()[0]; !st.Healthy {
			t.Errorf("given up too early: %+v", st)
		}
		look(name)
	}
	st := r.Status()
	if st[0].Healthy || st[0].Failures < downAfter || st[0].LastError == "" || st[0].LastErrorAt.IsZero() || st[0].RTT != 0 {
		t.Errorf("silent server: %+v", st[0])
	}
	if !st[1].Healthy || st[1].Failures != 0 || st[1].RTT <= 0 || st[1].Queries != 3 || st[1].Address != s2.Addr() {
		t.Errorf("other server: %+v", st[1])
	}
	if n := logs.FilterMessage("name server does not answer and is asked last").Len(); n != 1 {
		t.Errorf("%d warnings", n)
	}
	look("d.example")
	if n := s1.Count("d.example", ""); n != 0 {
		t.Errorf("the silent server was asked %d times before the other", n)
	}

	s1.BehaveWell(".")
	select {
	case <-back:
	case <-time.After(patience):
		t.Fatal("the server is back, and nobody sees it")
	}
	look("e.example")
	if st := r.Status()[0]; !st.Healthy || s1.Count("e.example", "A") != 1 {
		t.Errorf("after it came back: %+v", st)
	}
}

// signal is a log that closes a channel at the first line with the message.
type signal struct {
	zapcore.LevelEnabler
	message string
	seen    chan struct{}
}

func (s *signal) With([]zapcore.Field) zapcore.Core { return s }
func (s *signal) Sync() error                       { return nil }
func (s *signal) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if e.Message == s.message {
		return ce.AddCore(e, s)
	}
	return ce
}

func (s *signal) Write(zapcore.Entry, []zapcore.Field) error {
	close(s.seen)
	return nil
}

func TestUnhealthyServerIsAskedWhenNoOtherAnswers(t *testing.T) {
	s1, s2 := dnstest.Start(t), dnstest.Start(t)
	s1.Add(`a.example. 300 IN A 192.0.2.1`)
	s2.BehaveUnder(".", dnstest.ServFail)
	r := start(t, testConfig(s1.Addr(), s2.Addr()), "name server does not answer and is asked last")
	first := r.servers.list()[0]
	for range downAfter {
		first.note(resTimeout, os.ErrDeadlineExceeded, "test", 0)
	}
	if a, _, _, err := r.LookupA(t.Context(), "a.example"); err != nil || len(a) != 1 {
		t.Errorf("%v, %v", a, err)
	}
	if !first.healthy() {
		t.Error("it answered, and is not healthy")
	}
	if first.timer != nil {
		t.Error("a healthy server is probed")
	}
}

func TestProbesBecomeRare(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var probes []time.Duration
		begin := time.Now()
		core, logs := observer.New(zapcore.InfoLevel)
		s := &server{addr: netip.MustParseAddrPort("192.0.2.53:53"), log: zap.New(core), first: firstProbe}
		silence := func() { s.note(resTimeout, os.ErrDeadlineExceeded, "test", 0) }
		s.probe = func(*server) {
			probes = append(probes, time.Since(begin))
			silence()
		}
		silence()
		s.note(resServFail, nil, "test", 0) // is an answer
		silence()
		silence()
		if !s.healthy() {
			t.Error("two in a row are enough")
		}
		for range 10 {
			s.note(resForged, errForged, "test", 0)
			s.note(resUnreachable, syscall.EMFILE, "test", 0)
		}
		if !s.healthy() {
			t.Error("unhealthy by the fault of others")
		}
		silence()
		silence() // one that was under way
		if s.healthy() {
			t.Error("three in a row are not enough")
		}
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		want := []time.Duration{2, 6, 14, 30, 62, 122, 182}
		for i := range want {
			want[i] *= time.Second
		}
		if !slices.Equal(probes, want) {
			t.Errorf("probes after %v, want %v", probes, want)
		}
		s.note(resAnswer, nil, "", time.Millisecond)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if len(probes) != len(want) || !s.healthy() {
			t.Error("probed although it answers")
		}
		if n := logs.Len(); n != 2 {
			t.Errorf("%d lines in the log: %v", n, logs.All())
		}
	})
}

func TestFailureWords(t *testing.T) {
	for r := range resultCount {
		if r.String() == "" {
			t.Errorf("result %d has no name", r)
		}
		if (r.kind() == nil) != (r == resAnswer || r == resNegative) {
			t.Errorf("%v: %v", r, r.kind())
		}
		f := &failure{kind: r.kind()}
		if f.kind == nil {
			continue
		}
		if !errors.Is(f, ErrTemporary) || f.Timeout() != (r == resTimeout) {
			t.Errorf("%v: temporary %v, timeout %v", r, errors.Is(f, ErrTemporary), f.Timeout())
		}
	}
}
