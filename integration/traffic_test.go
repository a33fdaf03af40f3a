package integration

import (
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// traffic asks Postfix for recipients from several sessions until stop is
// called, which returns how many were asked for and the replies that no
// policy gave: with Postfix's own default_action, a fault of the daemon is a
// 451.
func traffic(p *postfix, sessions int) (stop func() (asked int64, strange []string)) {
	var done atomic.Bool
	var asked atomic.Int64
	var mu sync.Mutex
	var strange []string
	var wg sync.WaitGroup
	for i := range sessions {
		s := p.dial(fmt.Sprintf("192.0.2.%d", i+1), "")
		wg.Go(func() {
			for n := 0; !done.Load(); n++ {
				// textproto directly: a test may only be failed by its own goroutine.
				for _, c := range []string{fmt.Sprintf("MAIL FROM:<s%d.%d@example.org>", i, n), "RCPT TO:<b@example.com>", "RSET"} {
					if err := s.PrintfLine("%s", c); err != nil {
						mu.Lock()
						strange = append(strange, err.Error())
						mu.Unlock()
						return
					}
					code, text, err := s.ReadResponse(0)
					if code != 250 && (code != 450 || !strings.Contains(text, "Greylisted")) {
						mu.Lock()
						strange = append(strange, fmt.Sprint(c, ": ", code, " ", text, " ", err))
						mu.Unlock()
						if code == 0 {
							return
						}
					}
				}
				asked.Add(1)
			}
		})
	}
	return func() (int64, []string) {
		done.Store(true)
		wg.Wait()
		return asked.Load(), strange
	}
}

func TestReloadUnderTraffic(t *testing.T) {
	t.Parallel()
	config := base + "[access]\ndeny = [\"inline:10.0.0.%d\"]\n"
	d := newDaemon(t, fmt.Sprintf(config, 0))
	d.start()
	p := startPostfix(t, false, "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:"+d.socket())
	stop := traffic(p, 5)
	for i := range 20 {
		d.configure(fmt.Sprintf(config, i+1))
		if i%2 == 0 {
			d.hangUp()
		} else {
			d.run("reload")
		}
		time.Sleep(100 * time.Millisecond)
	}
	asked, strange := stop()
	if len(strange) > 0 || asked < 100 {
		t.Errorf("%d recipients, %d strange replies: %.10q", asked, len(strange), strange)
	}
	d.eventually("the last configuration", func() bool { return strings.Contains(d.run("access", "list"), "10.0.0.20") })
	if n := strings.Count(p.log(), "warning"); n > 0 {
		t.Errorf("Postfix has %d warnings:\n%s", n, p.log())
	}
}

// systemd holds the socket while the daemon restarts: requests wait in it.
func TestRestartUnderTraffic(t *testing.T) {
	t.Parallel()
	d := newDaemon(t, base)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: d.socket(), Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(d.socket(), 0o666); err != nil {
		t.Fatal(err)
	}
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close(); _ = l.Close() }) // the end
	d.extra = []*os.File{f}
	d.start()
	p := startPostfix(t, false, "smtpd_recipient_restrictions = reject_unauth_destination, check_policy_service unix:"+d.socket())
	stop := traffic(p, 5)
	for range 5 {
		time.Sleep(300 * time.Millisecond)
		d.stop()
		if _, err := os.Stat(d.socket()); err != nil {
			t.Fatalf("the daemon has removed systemd's socket: %v", err)
		}
		time.Sleep(200 * time.Millisecond)
		d.start()
	}
	asked, strange := stop()
	if len(strange) > 0 || asked < 100 {
		t.Errorf("%d recipients, %d strange replies: %.10q", asked, len(strange), strange)
	}
}
