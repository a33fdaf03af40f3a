package main

import (
	"errors"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"postern/internal/policytest"
)

// realPostgrey is the program, asked with a time of ours: policy_test_time is
// the attribute that its own test script sends.
type realPostgrey struct {
	*policytest.Client
	t testing.TB
}

// startPostgrey starts one without lists of exceptions. It ends with the test.
// When postgrey is not installed the test is skipped, and fails when CI is "true".
func startPostgrey(t testing.TB) *realPostgrey {
	t.Helper()
	program, err := exec.LookPath("postgrey")
	if err != nil {
		if program = "/usr/sbin/postgrey"; !exists(program) {
			if os.Getenv("CI") == "true" {
				t.Fatal("postgrey is not installed")
			}
			t.Skip("postgrey is not installed (make deps installs it)")
		}
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	group, err := user.LookupGroupId(me.Gid)
	if err != nil {
		t.Fatal(err)
	}
	// It syncs each change: memory where there is some.
	dir, err := os.MkdirTemp("/dev/shm", "postgrey")
	if err != nil {
		dir = t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	empty := filepath.Join(dir, "empty")
	if err := os.WriteFile(empty, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr()
	_ = l.Close() // postgrey takes it
	cmd := exec.Command(program, "--inet="+addr.String(), "--dbdir="+dir, "--user="+me.Username, "--group="+group.Name,
		"--whitelist-clients="+empty, "--whitelist-recipients="+empty, "--quiet", "--hostname=mx.example.net")
	var log strings.Builder
	cmd.Stdout, cmd.Stderr = &log, &log
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	t.Cleanup(func() {
		_ = cmd.Process.Kill() // it may have ended
		<-ended
	})
	for deadline := time.Now().Add(time.Minute); ; time.Sleep(20 * time.Millisecond) {
		c, err := net.Dial("tcp", addr.String())
		if err == nil {
			_ = c.Close()
			return &realPostgrey{policytest.Dial(t, addr), t}
		}
		select {
		case err := <-ended:
			ended <- err
			t.Fatalf("postgrey ended: %v\n%s", err, log.String())
		default:
		}
		if time.Now().After(deadline) {
			t.Fatalf("postgrey does not listen: %v", err)
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return !errors.Is(err, os.ErrNotExist)
}

func (p *realPostgrey) pass(a *attempt) bool {
	name := a.from.name
	if name == "" {
		name = "unknown"
	}
	action, err := p.Ask(policytest.Attrs{
		{"request", "smtpd_access_policy"}, {"client_address", a.from.addr.String()}, {"client_name", name}, {"sender", a.msg.from.Raw},
		{"recipient", a.msg.to.Raw}, {"instance", strconv.FormatUint(a.msg.seed, 16) + "." + strconv.Itoa(a.n)},
		{"policy_test_time", strconv.FormatInt(a.at.Unix(), 10)},
	})
	if err != nil {
		p.t.Fatalf("postgrey: %v", err)
	}
	return !strings.HasPrefix(strings.ToUpper(action), "DEFER")
}

// both asks model and program, and says where they differ.
type both struct {
	*postgrey
	real      *realPostgrey
	asked     int
	different int
}

func (b *both) pass(a *attempt) bool {
	b.asked++
	model, real := b.postgrey.pass(a), b.real.pass(a)
	if model != real {
		if b.different++; b.different <= 10 {
			b.real.t.Errorf("%s attempt %d of %s to %s from %s: model passes %v, postgrey %v",
				a.at.Format(time.DateTime), a.n, a.msg.from.Raw, a.msg.to.Raw, a.from.addr, model, real)
		}
	}
	return real
}

func TestModelIsPostgrey(t *testing.T) {
	b := &both{postgrey: newPostgrey(false), real: startPostgrey(t)}
	r := simulate(small(t), b)
	if b.different > 0 {
		t.Errorf("%d of %d decisions differ", b.different, b.asked)
	}
	t.Logf("%d decisions, %.1f %% of legitimate mail delayed", b.asked, r.legit.share(r.legit.delayed))
}
