package logging

import (
	"encoding/json"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"go.uber.org/zap"

	"postern/internal/conf"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func stderrFile(t *testing.T) (*os.File, func() string) {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f, func() string {
		b, err := os.ReadFile(f.Name())
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
}

func TestJSONOnStderr(t *testing.T) {
	f, text := stderrFile(t)
	l, err := open(DefaultConfig(), f, "")
	if err != nil {
		t.Fatal(err)
	}
	l.Debug("hidden")
	l.SetLevel("debug")
	l.With(zap.String("k", "v")).Debug("shown", zap.String("bad", "a\nb\x00"))
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(text()), "\n")
	var got map[string]any
	if len(lines) != 1 || json.Unmarshal([]byte(lines[0]), &got) != nil || got["msg"] != "shown" || got["k"] != "v" || got["level"] != "debug" {
		t.Errorf("log:\n%s", text())
	}
}

func TestLinesAreGathered(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, text := stderrFile(t)
		l, err := open(Config{"info", "console", "stderr"}, f, "")
		if err != nil {
			t.Fatal(err)
		}
		l.Info("one")
		if text() != "" {
			t.Error("written at once")
		}
		time.Sleep(gatherFor + time.Millisecond)
		synctest.Wait()
		if !strings.Contains(text(), "INFO\tone") {
			t.Error("not written after a while")
		}
		l.Info("two")
		l.Warn("three")
		if !strings.Contains(text(), "two") || !strings.Contains(text(), "WARN\tthree") {
			t.Error("a warning waits")
		}
		l.Info(strings.Repeat("x", gatherSize+100))
		l.Info("four")
		if err := l.Close(); err != nil {
			t.Error(err)
		}
		l.Warn("after the end")
		if !strings.Contains(text(), "four") || !strings.Contains(text(), "after the end") {
			t.Error("lines were lost at the end")
		}
	})
}

func TestNoLineIsLostOrOutOfOrder(t *testing.T) {
	f, text := stderrFile(t)
	l, err := open(Config{"info", "json", "stderr"}, f, "")
	if err != nil {
		t.Fatal(err)
	}
	const writers, lines = 8, 3000
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for i := range lines {
				switch {
				case i%500 == 7:
					l.Warn("line", zap.Int("writer", w), zap.Int("i", i))
				case i%100 == 3:
					l.Info("line", zap.Int("writer", w), zap.Int("i", i), zap.Strings("not plain", []string{"x"}))
				default:
					l.Info("line", zap.Int("writer", w), zap.Int("i", i))
				}
			}
		})
	}
	wg.Wait()
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	next := map[int]int{}
	for line := range strings.Lines(text()) {
		var got struct{ Writer, I int }
		if err := json.Unmarshal([]byte(line), &got); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		if got.I != next[got.Writer] {
			t.Fatalf("writer %d: line %d after %d", got.Writer, got.I, next[got.Writer])
		}
		next[got.Writer]++
	}
	for w := range writers {
		if next[w] != lines {
			t.Errorf("writer %d: %d lines", w, next[w])
		}
	}
}

func TestJournalPriorities(t *testing.T) {
	f, text := stderrFile(t)
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	sys := st.Sys().(*syscall.Stat_t)
	t.Setenv("JOURNAL_STREAM", fmt.Sprintf("%d:%d", sys.Dev, sys.Ino))
	l, err := open(Config{"debug", "json", "stderr"}, f, "")
	if err != nil {
		t.Fatal(err)
	}
	l.Debug("d")
	l.With(zap.Int("x", 1)).Info("i")
	l.Warn("w")
	l.Error("e")
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	for i, line := range strings.Split(strings.TrimSpace(text()), "\n") {
		if want := []string{"<7>{", "<6>{", "<4>{", "<3>{"}[i]; !strings.HasPrefix(line, want) {
			t.Errorf("line %q does not begin with %s", line, want)
		}
	}
	t.Setenv("JOURNAL_STREAM", "1:1")
	if onJournal(f) {
		t.Error("another file is taken for the journal")
	}
}

func TestFileIsMadeAnewWhenMovedAway(t *testing.T) {
	path := filepath.Join(t.TempDir(), "postern.log")
	l, err := Open(Config{"info", "json", "file:" + path})
	if err != nil {
		t.Fatal(err)
	}
	l.Warn("before")
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	deadline := time.Now().Add(30 * time.Second)
	for {
		l.Warn("after")
		if b, err := os.ReadFile(path); err == nil && strings.Contains(string(b), "after") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("no new file")
		}
		time.Sleep(50 * time.Millisecond)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if b, err := os.ReadFile(path + ".1"); err != nil || !strings.Contains(string(b), "before") {
		t.Errorf("the old file: %q %v", b, err)
	}
	if _, err := Open(Config{"info", "json", "file:/nonexistent/x"}); err == nil || !strings.Contains(err.Error(), "/nonexistent/x") {
		t.Errorf("a file that cannot be made: %v", err)
	}
}

func TestSyslog(t *testing.T) {
	f, text := stderrFile(t)
	sock := filepath.Join(t.TempDir(), "log")
	l, err := open(Config{"debug", "json", "syslog"}, f, sock)
	if err != nil {
		t.Fatal(err)
	}
	l.Info("nobody listens")
	if !strings.Contains(text(), "nobody listens") {
		t.Error("a line was lost while there was no syslog")
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: sock, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // a test's socket
	for _, tt := range []struct {
		write func(string, ...zap.Field)
		pri   string // facility mail is 2, so 16 and the severity
	}{{l.Debug, "<23>"}, {l.Info, "<22>"}, {l.Warn, "<20>"}, {l.Error, "<19>"}, {l.DPanic, "<18>"}, {l.With(zap.Int("n", 7)).Info, "<22>"}} {
		tt.write("a line")
		buf := make([]byte, 4096)
		if err := conn.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
			t.Fatal(err)
		}
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatal(err)
		}
		if got := string(buf[:n]); !strings.HasPrefix(got, tt.pri) || !strings.Contains(got, "postern[") || !strings.Contains(got, `"msg":"a line"`) {
			t.Errorf("%q does not begin with %s", got, tt.pri)
		}
	}
	if err := l.Close(); err != nil {
		t.Error(err)
	}
}

func TestValidate(t *testing.T) {
	var fs conf.Faults
	good := []Config{DefaultConfig(), {"debug", "console", "syslog"}, {"error", "json", "file:/var/log/postern.log"}}
	for _, c := range good {
		if c.Validate("log", &fs); fs != nil {
			t.Errorf("%+v: %v", c, fs)
		}
	}
	(&Config{"loud", "xml", "file:here"}).Validate("log", &fs)
	(&Config{"info", "json", "stdout"}).Validate("log", &fs)
	text := fs.Error()
	for _, want := range []string{`log.level: unknown level "loud"`, `log.format: unknown format "xml"`, `log.output: "here" is not an absolute path`, `log.output: unknown output "stdout"`} {
		if !strings.Contains(text, want) {
			t.Errorf("no %q in\n%s", want, text)
		}
	}
}

func BenchmarkDecisionLine(b *testing.B) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		b.Fatal(err)
	}
	defer null.Close() //nolint:errcheck // nothing was written
	l, err := open(DefaultConfig(), null, "")
	if err != nil {
		b.Fatal(err)
	}
	defer l.Close() //nolint:errcheck // as above
	b.ReportAllocs()
	for b.Loop() {
		l.Info("decision", zap.String("action", "continue"), zap.String("client", "192.0.2.1"), zap.String("sender", "a@example.org"),
			zap.String("recipient", "b@example.com"), zap.Duration("took", 1234))
	}
}
